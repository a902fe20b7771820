"""Uploads over HTTP: parts in any order make one checked file, once, and nothing is left of those given up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.uploads import service
from api.uploads.schemas import MAX_PARTS
from api.uploads.service import (
    COMPLETION_GRACE,
    MAX_PENDING,
    MAX_SENDINGS,
    clean_uploads,
    expire_uploads,
)
from models.base import utc_now
from models.file import File
from models.settings import Settings
from models.storage import Storage
from models.upload import MAX_PART_BYTES, Upload, UploadPart, incoming_key
from tests.api.conftest import Place, Tenant, rows

UPLOADS = "/v1/uploads"
SECRET = "the-text-of-a-row"


def declare(tenant: Tenant, size: int = len(rows()), **more: object) -> httpx.Response:
    body = {
        "bytes": size,
        "filename": "rows.jsonl",
        "mime_type": "text/jsonl",
        "purpose": "fine-tune",
        **more,
    }
    return tenant.client.post(UPLOADS, json=body)


def begin(tenant: Tenant, size: int = len(rows()), **more: object) -> str:
    response = declare(tenant, size, **more)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def send(tenant: Tenant, upload: str, data: bytes) -> httpx.Response:
    return tenant.client.post(f"{UPLOADS}/{upload}/parts", files={"data": ("upload", data)})


def part(tenant: Tenant, upload: str, data: bytes) -> str:
    response = send(tenant, upload, data)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def complete(
    tenant: Tenant, upload: str, parts: Sequence[str], md5: str | None = None
) -> httpx.Response:
    return tenant.client.post(
        f"{UPLOADS}/{upload}/complete", json={"part_ids": list(parts), "md5": md5}
    )


def cancel(tenant: Tenant, upload: str) -> httpx.Response:
    return tenant.client.post(f"{UPLOADS}/{upload}/cancel")


def refused(
    response: httpx.Response, status: int, code: str, param: str | None
) -> dict[str, object]:
    error = dict(response.json()["error"])
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    return error


def incoming(place: Place) -> list[str]:
    assert place.storage.root is not None
    folder = place.storage.root / "incoming"
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_parts_in_any_order_make_the_file_in_the_order_named(
    customer: Tenant, place: Place
) -> None:
    content = rows(30)
    upload = begin(customer, len(content))
    middle = part(customer, upload, content[100:250])
    last = part(customer, upload, content[250:])
    first = part(customer, upload, content[:100])
    shown = complete(
        customer, upload, [first, middle, last], hashlib.md5(content).hexdigest().upper()
    ).json()
    assert (shown["status"], shown["bytes"], shown["object"]) == (
        "completed",
        len(content),
        "upload",
    )
    file = shown["file"]
    assert (file["rows"], file["bytes"], file["expires_at"]) == (30, len(content), None)
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert customer.client.get(f"/v1/files/{file['id']}/content").content == content
    assert customer.client.get(f"/v1/files/{file['id']}").json() == file
    # The parts are the sweeper's; nothing else stays.
    assert incoming(place) == sorted([first, middle, last])


class TestCreate:
    def test_says_what_was_declared_and_how_long_it_has(self, customer: Tenant) -> None:
        shown = declare(customer, 1000, filename="../my rows.jsonl").json()
        assert shown.pop("id").startswith("upload_")
        created = shown.pop("created_at")
        assert shown == {
            "object": "upload",
            "bytes": 1000,
            "filename": "my rows.jsonl",
            "purpose": "fine-tune",
            "status": "pending",
            "expires_at": created + 3600,
            "file": None,
        }

    def test_anonymous_is_asked_for_a_key(self, anonymous: TestClient) -> None:
        for path in ("", "/upload_x/parts", "/upload_x/complete", "/upload_x/cancel"):
            assert anonymous.post(f"{UPLOADS}{path}", json={}).status_code == 401

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"bytes": 0}, "bytes"),
            ({"bytes": "many"}, "bytes"),
            ({"bytes": None}, "bytes"),
            ({"bytes": 2**70}, "bytes"),
            ({"filename": ""}, "filename"),
            ({"filename": "x" * 256}, "filename"),
            ({"mime_type": ""}, "mime_type"),
            ({"expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after.seconds"),
            ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
            ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds"),
            ({"unknown": 1}, "unknown"),
        ],
    )
    def test_a_faulty_field_is_named(
        self, customer: Tenant, body: dict[str, object], param: str
    ) -> None:
        response = declare(customer, **body)  # type: ignore[arg-type]
        assert response.status_code in (400, 413)
        assert response.json()["error"]["param"] == param

    def test_a_purpose_that_nobody_has(self, customer: Tenant) -> None:
        refused(declare(customer, purpose="evals"), 400, "unsupported_purpose", "purpose")

    def test_the_greatest_total_passes_and_one_byte_more_does_not(
        self, customer: Tenant, settings: Settings
    ) -> None:
        begin(customer, settings.max_upload_bytes)
        too_large = declare(customer, settings.max_upload_bytes + 1)
        refused(too_large, 413, "file_too_large", "bytes")

    def test_only_so_many_may_be_pending_in_a_project(
        self, customer: Tenant, stranger: Tenant, place: Place
    ) -> None:
        pending = [begin(customer) for _ in range(MAX_PENDING)]
        response = declare(customer)
        refused(response, 409, "too_many_uploads", None)
        assert response.headers["x-should-retry"] == "false"
        begin(stranger)
        cancel(customer, pending[0])
        begin(customer)
        assert declare(customer).status_code == 409
        _expire(place, pending[1])
        begin(customer)


class TestParts:
    def test_are_shown_as_openai_shows_them(self, customer: Tenant) -> None:
        upload = begin(customer)
        shown = send(customer, upload, b"x").json()
        assert set(shown) == {"id", "object", "created_at", "upload_id"}
        assert (shown["object"], shown["upload_id"]) == ("upload.part", upload)
        assert shown["id"].startswith("part_")

    def test_another_tenants_upload_is_not_found(
        self, customer: Tenant, stranger: Tenant, place: Place
    ) -> None:
        theirs = begin(stranger)
        for response in (
            send(customer, theirs, b"x"),
            complete(customer, theirs, ["part_x"]),
            cancel(customer, theirs),
        ):
            refused(response, 404, "upload_not_found", "upload_id")
        assert incoming(place) == []

    def test_another_uploads_part_is_not_found(self, customer: Tenant, stranger: Tenant) -> None:
        mine, other, theirs = begin(customer), begin(customer), begin(stranger)
        for foreign in (
            part(customer, other, rows()),
            part(stranger, theirs, rows()),
            "part_\x00",
        ):
            refused(complete(customer, mine, [foreign]), 404, "part_not_found", "part_ids")

    @pytest.mark.parametrize(
        ("files", "data", "param"),
        [
            ({"file": ("a", b"x")}, {}, "data"),
            ({}, {"data": "text"}, None),
            ({"data": ("a", b"x")}, {"more": "x"}, "more"),
            ({"data": ("a", b"")}, {}, "data"),
        ],
    )
    def test_a_faulty_form_leaves_nothing(
        self,
        customer: Tenant,
        place: Place,
        files: dict[str, tuple[str, bytes]],
        data: dict[str, str],
        param: str | None,
    ) -> None:
        upload = begin(customer)
        response = customer.client.post(f"{UPLOADS}/{upload}/parts", files=files, data=data)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
        assert incoming(place) == []
        assert place.session.scalars(select(UploadPart)).all() == []

    def test_a_part_is_bounded_by_what_was_declared(self, customer: Tenant, place: Place) -> None:
        upload = begin(customer, 10)
        refused(send(customer, upload, b"x" * 11), 400, "too_many_parts", "data")
        # As often as a client sends a part that it hears no answer to.
        for _ in range(MAX_SENDINGS):
            part(customer, upload, b"x" * 10)
        refused(send(customer, upload, b"x"), 400, "too_many_parts", "data")
        assert len(incoming(place)) == MAX_SENDINGS

    def test_their_number_is_bounded(
        self, customer: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert Settings().max_upload_bytes <= MAX_PARTS * MAX_PART_BYTES
        monkeypatch.setattr(service, "MAX_PARTS", 2)
        upload = begin(customer)
        part(customer, upload, b"a")
        part(customer, upload, b"b")
        refused(send(customer, upload, b"c"), 400, "too_many_parts", "data")

    def test_one_that_declares_too_much_is_refused_by_its_header(self, customer: Tenant) -> None:
        headers = {
            "content-length": str(MAX_PART_BYTES + 100_000),
            "content-type": "multipart/form-data; boundary=b",
        }
        response = customer.client.post(
            f"{UPLOADS}/{begin(customer)}/parts", content=b"x", headers=headers
        )
        refused(response, 413, "body_too_large", None)


class TestQuota:
    @pytest.fixture
    def upload(self, customer: Tenant, operator: Tenant) -> str:
        """One that fits, once, into what the project may store."""
        quotas = {"quotas": {"bytes_stored": len(rows()) + 10}}
        path = f"/v1/organization/projects/{customer.project.id}"
        assert operator.client.post(path, json=quotas).status_code == 200
        return begin(customer)

    def used(self, tenant: Tenant) -> int:
        quotas = tenant.client.get("/v1/organization/quotas").json()["data"]
        return next(int(quota["used"]) for quota in quotas if quota["name"] == "bytes_stored")

    def test_parts_count_while_the_upload_is_pending_and_then_the_file(
        self, customer: Tenant, upload: str
    ) -> None:
        parts = [part(customer, upload, rows()[:100]), part(customer, upload, rows()[100:])]
        assert self.used(customer) == len(rows())
        error = refused(send(customer, upload, b"x" * 11), 429, "insufficient_quota", None)
        assert (error["quota"], error["used"]) == ("bytes_stored", len(rows()))
        # The parts and the file together would be too much.
        assert complete(customer, upload, parts).status_code == 200
        assert self.used(customer) == len(rows())

    def test_a_refused_part_leaves_nothing(
        self, customer: Tenant, upload: str, place: Place
    ) -> None:
        part(customer, upload, rows())
        kept = incoming(place)
        assert send(customer, upload, rows()).status_code == 429
        assert incoming(place) == kept

    def test_cancelled_they_count_no_more(self, customer: Tenant, upload: str) -> None:
        part(customer, upload, rows())
        cancel(customer, upload)
        assert self.used(customer) == 0

    def test_a_completion_that_is_too_much_can_be_made_when_there_is_room(
        self, customer: Tenant, operator: Tenant, upload: str
    ) -> None:
        path = f"/v1/organization/projects/{customer.project.id}"
        parts = [part(customer, upload, rows())]
        operator.client.post(path, json={"quotas": {"bytes_stored": 10}})
        refused(complete(customer, upload, parts), 429, "insufficient_quota", None)
        operator.client.post(path, json={"quotas": {"bytes_stored": 0}})
        assert complete(customer, upload, parts).json()["status"] == "completed"


class TestComplete:
    def test_the_sum_must_be_what_was_declared(self, customer: Tenant, place: Place) -> None:
        content = rows()
        upload = begin(customer, len(content))
        whole = part(customer, upload, content)
        byte = part(customer, upload, b"\n")
        most = part(customer, upload, content[:-1])
        for parts in ([byte], [most], [whole, byte]):
            refused(complete(customer, upload, parts), 400, "invalid_parts", "part_ids")
        assert complete(customer, upload, [most, byte]).status_code == 200

    def test_a_part_counts_once(self, customer: Tenant) -> None:
        upload = begin(customer, 2)
        one = part(customer, upload, b"x")
        refused(complete(customer, upload, [one, one]), 400, "invalid_parts", "part_ids")

    @pytest.mark.parametrize("parts", [[], ["x" * 300], [1], None, ["p"] * (MAX_PARTS + 1)])
    def test_the_list_of_parts_is_bounded(self, customer: Tenant, parts: object) -> None:
        upload = begin(customer)
        response = customer.client.post(f"{UPLOADS}/{upload}/complete", json={"part_ids": parts})
        assert response.status_code == 400
        assert str(response.json()["error"]["param"]).startswith("part_ids")

    @pytest.mark.parametrize("md5", ["", "x" * 32, "0" * 31, "0" * 33])
    def test_what_is_no_md5_is_refused(self, customer: Tenant, md5: str) -> None:
        refused(complete(customer, begin(customer), ["p"], md5), 400, "invalid_request", "md5")

    def test_another_md5_keeps_nothing_and_the_upload_stays(
        self, customer: Tenant, place: Place
    ) -> None:
        upload = begin(customer)
        whole = part(customer, upload, rows())
        refused(complete(customer, upload, [whole], "0" * 32), 400, "checksum_mismatch", "md5")
        assert incoming(place) == [whole]
        assert place.session.scalars(select(File)).all() == []
        assert complete(customer, upload, [whole]).status_code == 200

    def test_faulty_rows_are_named_and_the_upload_can_be_put_right(
        self, customer: Tenant, place: Place
    ) -> None:
        faulty = json.dumps({"messages": [{"role": "user", "content": SECRET}]}).encode() + b"\n"
        upload = begin(customer, len(rows(2) + faulty))
        good, bad = part(customer, upload, rows(2)), part(customer, upload, faulty)
        error = refused(
            complete(customer, upload, [good, bad]), 400, "invalid_training_file", "file"
        )
        assert isinstance(error["faults"], list)
        assert [fault["line"] for fault in error["faults"]] == [3]
        assert SECRET not in json.dumps(error)
        assert sorted(incoming(place)) == sorted([good, bad])
        blank = part(customer, upload, b" " * (len(faulty) - 1) + b"\n")
        assert complete(customer, upload, [good, blank]).json()["file"]["rows"] == 2

    def test_a_row_and_a_mark_may_be_cut_anywhere(self, customer: Tenant) -> None:
        content = (
            b"\xef\xbb\xbf" + json.dumps({"prompt": "é", "completion": "ü"}).encode() + b"\r\n"
        )
        upload = begin(customer, len(content))
        parts = [part(customer, upload, content[i : i + 1]) for i in range(len(content))]
        assert complete(customer, upload, parts).json()["file"]["rows"] == 1

    def test_the_same_again_gives_the_same_file_and_another_does_not(
        self, customer: Tenant, place: Place
    ) -> None:
        upload = begin(customer, 2 * len(rows(1)))
        one, two = part(customer, upload, rows(1)), part(customer, upload, rows(1))
        first = complete(customer, upload, [one, two])
        again = complete(customer, upload, [one, two])
        assert first.json() == again.json()
        response = complete(customer, upload, [two, one])
        refused(response, 409, "upload_not_pending", "upload_id")
        assert response.headers["x-should-retry"] == "false"
        assert len(place.session.scalars(select(File)).all()) == 1

    def test_other_purposes_are_not_read_as_rows(self, customer: Tenant) -> None:
        upload = begin(customer, 3, purpose="user_data", mime_type="text/plain")
        shown = complete(customer, upload, [part(customer, upload, b"abc")]).json()
        assert (shown["file"]["purpose"], shown["file"]["rows"]) == ("user_data", None)

    def test_the_file_expires_from_its_own_creation(self, customer: Tenant, place: Place) -> None:
        upload = begin(customer, expires_after={"anchor": "created_at", "seconds": 3600})
        whole = part(customer, upload, rows())
        file = complete(customer, upload, [whole]).json()["file"]
        assert file["expires_at"] == file["created_at"] + 3600
        place.session.get_one(File, file["id"]).expires_at = utc_now()
        place.session.commit()
        again = complete(customer, upload, [whole]).json()
        assert (again["status"], again["file"]) == ("completed", None)

    def test_parts_that_are_gone_are_a_fault_of_ours(self, customer: Tenant, place: Place) -> None:
        upload = begin(customer)
        whole = part(customer, upload, rows())
        place.storage.delete(incoming_key(whole))
        assert complete(customer, upload, [whole]).json()["error"]["code"] == "content_missing"
        assert incoming(place) == []


class TestInterrupted:
    """What happens to the upload while a completion reads its parts."""

    @pytest.fixture
    def interrupted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[Callable[[], object]], None]:
        def interrupt(action: Callable[[], object]) -> None:
            original = Storage.stream

            def stream(storage: Storage, key: str) -> Iterator[bytes]:
                monkeypatch.setattr(Storage, "stream", original)
                action()
                return original(storage, key)

            monkeypatch.setattr(Storage, "stream", stream)

        return interrupt

    @pytest.mark.parametrize("has_swept", [True, False])
    def test_a_cancellation_wins(
        self,
        customer: Tenant,
        place: Place,
        interrupted: Callable[[Callable[[], object]], None],
        has_swept: bool,
    ) -> None:
        upload = begin(customer)
        whole = part(customer, upload, rows())

        def give_up() -> None:
            cancel(customer, upload)
            if has_swept:
                sweep(customer, place)

        interrupted(give_up)
        refused(complete(customer, upload, [whole]), 409, "upload_not_pending", "upload_id")
        assert place.session.scalars(select(File)).all() == []
        assert incoming(place) == ([] if has_swept else [whole])

    @pytest.mark.parametrize("has_swept", [True, False])
    def test_the_same_completion_gives_its_file(
        self,
        customer: Tenant,
        place: Place,
        interrupted: Callable[[Callable[[], object]], None],
        has_swept: bool,
    ) -> None:
        upload = begin(customer)
        whole = part(customer, upload, rows())
        first: list[object] = []

        def get_ahead() -> None:
            first.append(complete(customer, upload, [whole]).json())
            if has_swept:
                sweep(customer, place)

        interrupted(get_ahead)
        assert complete(customer, upload, [whole]).json() == first[0]
        assert len(place.session.scalars(select(File)).all()) == 1

    def test_the_hour_may_end_meanwhile(
        self,
        customer: Tenant,
        place: Place,
        interrupted: Callable[[Callable[[], object]], None],
    ) -> None:
        upload = begin(customer)
        whole = part(customer, upload, rows())

        def end_the_hour() -> None:
            _expire(place, upload)
            sweep(customer, place)

        interrupted(end_the_hour)
        assert complete(customer, upload, [whole]).json()["status"] == "completed"


class TestSweep:
    def test_parts_go_when_the_upload_has_ended(
        self, customer: Tenant, stranger: Tenant, place: Place
    ) -> None:
        done, given_up, forgotten = (begin(customer) for _ in range(3))
        theirs = begin(stranger)
        complete(customer, done, [part(customer, done, rows())])
        part(customer, given_up, b"x")
        cancel(customer, given_up)
        part(customer, forgotten, b"x")
        _expire(place, forgotten, COMPLETION_GRACE + timedelta(seconds=1))
        stays = part(stranger, theirs, b"x")
        sessions = customer.client.app.state.sessions  # type: ignore[attr-defined]
        assert (expire_uploads(sessions), expire_uploads(sessions)) == (1, 0)
        assert clean_uploads(sessions, place.storage) == 3
        assert clean_uploads(sessions, place.storage) == 0
        assert incoming(place) == [stays]
        place.session.expire_all()
        assert place.session.get_one(Upload, forgotten).status == "expired"
        assert [p.id for p in place.session.scalars(select(UploadPart))] == [stays]


class TestEnd:
    def test_a_cancelled_upload_takes_nothing_more(self, customer: Tenant, place: Place) -> None:
        upload = begin(customer)
        whole = part(customer, upload, rows())
        assert cancel(customer, upload).json()["status"] == "cancelled"
        assert cancel(customer, upload).json()["status"] == "cancelled"
        for response in (send(customer, upload, b"x"), complete(customer, upload, [whole])):
            refused(response, 409, "upload_not_pending", "upload_id")
        assert incoming(place) == [whole]

    def test_a_completed_upload_is_not_cancelled(self, customer: Tenant) -> None:
        upload = begin(customer)
        complete(customer, upload, [part(customer, upload, rows())])
        refused(cancel(customer, upload), 409, "upload_not_pending", "upload_id")
        refused(send(customer, upload, b"x"), 409, "upload_not_pending", "upload_id")

    def test_it_expires_to_the_second(self, customer: Tenant, place: Place) -> None:
        upload = begin(customer)
        whole = part(customer, upload, rows())
        _expire(place, upload)
        for response in (
            send(customer, upload, b"x"),
            complete(customer, upload, [whole]),
            cancel(customer, upload),
        ):
            error = refused(response, 409, "upload_not_pending", "upload_id")
            assert "expired" in str(error["message"])


def sweep(tenant: Tenant, place: Place) -> None:
    sessions = tenant.client.app.state.sessions  # type: ignore[attr-defined]
    expire_uploads(sessions)
    clean_uploads(sessions, place.storage)


def _expire(place: Place, upload: str, ago: timedelta = timedelta(seconds=1)) -> None:
    place.session.expire_all()
    place.session.get_one(Upload, upload).expires_at = utc_now() - ago
    place.session.commit()
