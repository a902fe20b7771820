"""Files over HTTP: every faulty row is named, and bytes live as long as somebody has them."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.files.service import clean_filename, delete_expired, remove_bytes, remove_leftovers
from models.base import utc_now
from models.file import File, content_key, get_held_file
from models.job import TERMINAL, JobStatus
from models.model_version import ModelVersion
from models.settings import Settings
from models.storage import Storage
from tests.api.conftest import Place, Tenant, rows, upload

FILES = "/v1/files"
SECRET = "the-text-of-a-row"


def post(tenant: Tenant, content: bytes, purpose: str = "fine-tune") -> dict[str, object]:
    response = tenant.client.post(
        FILES, data={"purpose": purpose}, files={"file": ("rows.jsonl", content)}
    )
    assert response.status_code == 400
    return dict(response.json()["error"])


def stored(place: Place) -> list[Path]:
    """Everything that lies in the storage but the safety set of the fixtures."""
    assert place.storage.root is not None
    folders = (place.storage.root / name for name in ("files", "incoming"))
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def expire(place: Place, file: str) -> None:
    place.session.expire_all()
    place.session.get_one(File, file).expires_at = utc_now()
    place.session.commit()


def _out_of_order(*_: object) -> None:
    raise OSError("out of order")


class TestUpload:
    def test_anonymous_is_asked_for_a_key(self, anonymous: TestClient) -> None:
        response = anonymous.post(FILES, files={"file": ("a.jsonl", rows())})
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"

    def test_an_operator_key_alone_may_not(self, operator: Tenant) -> None:
        response = operator.client.post(FILES, files={"file": ("a.jsonl", rows())})
        assert response.status_code == 403

    def test_a_good_file_is_kept_by_its_content(self, customer: Tenant, place: Place) -> None:
        one, two = upload(customer), upload(customer)
        assert one != two
        files = place.session.scalars(select(File)).all()
        assert {file.sha256 for file in files} == {files[0].sha256}
        shown = customer.client.get(f"{FILES}/{one}").json()
        assert shown["bytes"] == len(rows())
        assert shown["rows"] == 12
        assert shown["status"] == "processed"
        assert shown["filename"] == "rows.jsonl"
        assert place.storage.get(content_key(files[0].sha256)) == rows()

    def test_every_faulty_row_is_named_and_nothing_kept(
        self, customer: Tenant, place: Place
    ) -> None:
        faulty = [
            b'{"prompt": "p"}',
            b"not json",
            json.dumps({"messages": [{"role": "user", "content": SECRET}]}).encode(),
        ]
        error = post(customer, rows(2) + b"\n".join(faulty))
        assert error["code"] == "invalid_training_file"
        assert error["param"] == "file"
        assert error["faulty_rows"] == 3
        faults = error["faults"]
        assert isinstance(faults, list)
        assert [(fault["line"], fault["field"]) for fault in faults] == [
            (3, "completion"),
            (4, None),
            (5, "messages"),
        ]
        assert all(fault["reason"] for fault in faults)
        assert SECRET not in json.dumps(error)
        assert place.session.scalars(select(File)).all() == []

    def test_at_most_a_hundred_faults_are_listed_and_all_are_counted(
        self, customer: Tenant
    ) -> None:
        error = post(customer, b"x\n" * 150)
        assert error["faulty_rows"] == 150
        assert isinstance(error["faults"], list)
        assert len(error["faults"]) == 100

    @pytest.mark.parametrize("content", [b"", b"\n\n"])
    def test_a_file_without_rows_is_refused(self, customer: Tenant, content: bytes) -> None:
        assert post(customer, content)["code"] == "invalid_training_file"

    @pytest.mark.parametrize("purpose", ["evals", "fine-tune-results", "", "nonsense"])
    def test_a_purpose_that_nobody_has_is_refused(self, customer: Tenant, purpose: str) -> None:
        assert post(customer, rows(), purpose)["code"] == "unsupported_purpose"

    def test_the_purpose_is_needed(self, customer: Tenant) -> None:
        response = customer.client.post(FILES, files={"file": ("a.jsonl", rows())})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "purpose"

    @pytest.mark.parametrize("form", [{"purpose": "fine-tune"}, {"purpose": "x", "file": "text"}])
    def test_the_file_is_needed(self, customer: Tenant, form: dict[str, str]) -> None:
        response = customer.client.post(FILES, data=form, files={"other": ("a", b"b")})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "file"

    @pytest.mark.parametrize("purpose", ["assistants", "batch", "user_data", "vision"])
    def test_what_is_no_data_set_is_kept_unread(self, customer: Tenant, purpose: str) -> None:
        shown = customer.client.get(f"{FILES}/{upload(customer, b'not json', purpose)}").json()
        assert (shown["purpose"], shown["rows"], shown["bytes"]) == (purpose, None, 8)
        assert post(customer, b"", purpose)["code"] == "empty_file"

    def test_a_byte_order_mark_is_let_pass(self, customer: Tenant) -> None:
        content = b"\xef\xbb\xbf" + rows()
        mine = upload(customer, content)
        assert customer.client.get(f"{FILES}/{mine}/content").content == content

    def test_the_order_of_the_form_does_not_matter(self, customer: Tenant) -> None:
        files = {
            "file": ("rows.jsonl", rows()),
            "purpose": (None, "fine-tune"),
        }
        assert customer.client.post(FILES, files=files).json()["rows"] == 12

    @pytest.mark.parametrize(
        "form",
        [
            {"purpose": "nonsense"},
            {"purpose": "fine-tune", "more": "x"},
            {"purpose": "fine-tune", "expires_after[anchor]": "created_at"},
        ],
    )
    def test_a_refused_form_leaves_no_bytes(
        self, customer: Tenant, place: Place, form: dict[str, str]
    ) -> None:
        response = customer.client.post(FILES, data=form, files={"file": ("a.jsonl", rows())})
        assert response.status_code == 400
        assert stored(place) == []

    def test_refused_rows_leave_no_bytes(self, customer: Tenant, place: Place) -> None:
        post(customer, b"x")
        assert stored(place) == []
        upload(customer)
        upload(customer)
        assert len(stored(place)) == 1

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (b"{}", "application/json"),
            (b"garbage", "multipart/form-data; boundary=x"),
            (b"garbage", "multipart/form-data"),
            (b"", None),
        ],
    )
    def test_what_is_no_form_is_a_fault_of_the_request(
        self, customer: Tenant, content: bytes, kind: str | None
    ) -> None:
        headers = {"content-type": kind} if kind else {}
        response = customer.client.post(FILES, content=content, headers=headers)
        assert response.status_code == 400
        assert set(response.json()["error"]) >= {"message", "type", "param", "code"}


class TestExpiry:
    def expiring(self, tenant: Tenant, **fields: object) -> httpx.Response:
        data = {"purpose": "fine-tune"} | {f"expires_after[{k}]": v for k, v in fields.items()}
        return tenant.client.post(FILES, data=data, files={"file": ("a.jsonl", rows())})

    @pytest.mark.parametrize("seconds", [3600, 2592000])
    def test_is_counted_from_the_creation(self, customer: Tenant, seconds: int) -> None:
        shown = self.expiring(customer, anchor="created_at", seconds=seconds).json()
        assert shown["expires_at"] == shown["created_at"] + seconds
        assert customer.client.get(f"{FILES}/{shown['id']}").json() == shown

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"anchor": "created_at", "seconds": 3599}, "expires_after.seconds"),
            ({"anchor": "created_at", "seconds": 2592001}, "expires_after.seconds"),
            ({"anchor": "created_at", "seconds": "soon"}, "expires_after.seconds"),
            ({"anchor": "created_at", "seconds": "NaN"}, "expires_after.seconds"),
            ({"anchor": "created_at"}, "expires_after.seconds"),
            ({"seconds": 3600}, "expires_after.anchor"),
            ({"anchor": "now", "seconds": 3600}, "expires_after.anchor"),
            ({"anchor": "created_at", "seconds": 3600, "hours": 1}, "expires_after"),
        ],
    )
    def test_a_faulty_one_is_named(
        self, customer: Tenant, fields: dict[str, object], param: str
    ) -> None:
        response = self.expiring(customer, **fields)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param

    def test_an_expired_file_is_gone_at_once(
        self, customer: Tenant, place: Place, aligned: ModelVersion
    ) -> None:
        kept, mine = upload(customer), upload(customer)
        expire(place, mine)
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            response = customer.client.request(method, f"{FILES}/{mine}{path}")
            assert response.json()["error"]["code"] == "file_not_found"
        assert [file["id"] for file in customer.client.get(FILES).json()["data"]] == [kept]
        for files in ({"training_file": mine}, {"training_file": kept, "validation_file": mine}):
            response = customer.client.post(
                "/v1/fine_tuning/jobs", json={"model": aligned.id, **files}
            )
            assert (response.status_code, response.json()["error"]["code"]) == (
                404,
                "file_not_found",
            )

    def test_the_sweeper_deletes_it_and_its_bytes(self, customer: Tenant, place: Place) -> None:
        mine, twin = upload(customer), upload(customer)
        key = place.session.get_one(File, mine).storage_key
        sessions = customer.client.app.state.sessions  # type: ignore[attr-defined]
        assert delete_expired(sessions) == 0
        expire(place, mine)
        assert (delete_expired(sessions), delete_expired(sessions)) == (1, 0)
        assert remove_leftovers(sessions, place.storage) == 1
        assert remove_leftovers(sessions, place.storage) == 0
        assert place.storage.exists(key)
        expire(place, twin)
        assert delete_expired(sessions) == 1
        assert remove_leftovers(sessions, place.storage) == 1
        assert not place.storage.exists(key)

    @pytest.mark.parametrize("field", ["training_file_id", "validation_file_id"])
    @pytest.mark.parametrize("status", sorted(set(JobStatus) - TERMINAL))
    def test_not_while_a_job_needs_it(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        place: Place,
        field: str,
        status: JobStatus,
    ) -> None:
        mine = upload(customer)
        job = place.job(customer.project, aligned, status=status, **{field: mine})
        sessions = customer.client.app.state.sessions  # type: ignore[attr-defined]
        expire(place, mine)
        assert delete_expired(sessions) == 0
        assert get_held_file(place.session, customer.project.id, mine).id == mine
        job.status = JobStatus.SUCCEEDED
        place.session.commit()
        assert delete_expired(sessions) == 1


class TestSize:
    def test_a_file_of_the_greatest_size_passes_and_one_byte_more_does_not(
        self, customer: Tenant, settings: Settings
    ) -> None:
        filler = settings.max_file_bytes - len(rows())
        content = rows() + b" " * (filler - 1) + b"\n"
        upload(customer, content)
        response = customer.client.post(
            FILES, data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", content + b" ")}
        )
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "file_too_large"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("rows.jsonl", "rows.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\rows.jsonl", "rows.jsonl"),
        ("a\x00\nb\u202e", "ab"),
        ("", "upload.jsonl"),
        ("x" * 300, "x" * 255),
    ],
)
def test_names_of_files_are_made_harmless(given: str, kept: str) -> None:
    assert clean_filename(given) == kept


class TestList:
    def test_anonymous_is_asked_for_a_key(self, anonymous: TestClient) -> None:
        assert anonymous.get(FILES).status_code == 401

    def test_pages_in_both_orders(self, customer: Tenant, stranger: Tenant) -> None:
        made = [upload(customer) for _ in range(4)]
        upload(stranger)
        for order, expected in (("asc", made), ("desc", made[::-1])):
            first = customer.client.get(FILES, params={"limit": 3, "order": order}).json()
            assert first["has_more"] is True
            assert (first["first_id"], first["last_id"]) == (expected[0], expected[2])
            rest = customer.client.get(
                FILES, params={"order": order, "after": first["last_id"]}
            ).json()
            assert rest["has_more"] is False
            assert [f["id"] for f in first["data"] + rest["data"]] == expected

    def test_purpose_filters(self, customer: Tenant) -> None:
        upload(customer)
        assert customer.client.get(FILES, params={"purpose": "batch"}).json()["data"] == []
        assert len(customer.client.get(FILES, params={"purpose": "fine-tune"}).json()["data"]) == 1

    def test_a_page_may_be_deleted_before_the_next_is_asked_for(self, customer: Tenant) -> None:
        made = [upload(customer) for _ in range(4)]
        seen: list[str] = []
        while True:
            after = {"after": seen[-1]} if seen else {}
            page = customer.client.get(FILES, params={"limit": 2, **after}).json()
            for file in page["data"]:
                customer.client.delete(f"{FILES}/{file['id']}")
            seen += [file["id"] for file in page["data"]]
            if not page["has_more"]:
                break
        assert seen == made[::-1]

    def test_pages_after_a_strangers_file_are_not_found(
        self, customer: Tenant, stranger: Tenant
    ) -> None:
        response = customer.client.get(FILES, params={"after": upload(stranger)})
        assert response.json()["error"]["code"] == "file_not_found"


class TestRead:
    def test_content_is_the_bytes_that_came(self, customer: Tenant) -> None:
        response = customer.client.get(f"{FILES}/{upload(customer)}/content")
        assert response.content == rows()

    def test_another_tenants_file_is_not_found(self, customer: Tenant, stranger: Tenant) -> None:
        theirs = upload(stranger)
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            response = customer.client.request(method, f"{FILES}/{theirs}{path}")
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "file_not_found"

    def test_anonymous_is_asked_for_a_key(self, anonymous: TestClient, customer: Tenant) -> None:
        mine = upload(customer)
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            assert anonymous.request(method, f"{FILES}/{mine}{path}").status_code == 401


class TestDelete:
    def test_the_answer_is_an_object_and_the_file_is_gone(
        self, customer: Tenant, place: Place
    ) -> None:
        mine = upload(customer)
        file = place.session.get_one(File, mine)
        response = customer.client.delete(f"{FILES}/{mine}")
        assert response.json() == {"id": mine, "object": "file", "deleted": True}
        assert customer.client.get(f"{FILES}/{mine}").status_code == 404
        assert customer.client.delete(f"{FILES}/{mine}").status_code == 404
        assert not place.storage.exists(file.storage_key)

    def test_bytes_stay_while_another_tenant_has_them(
        self, customer: Tenant, stranger: Tenant, place: Place
    ) -> None:
        mine, theirs = upload(customer), upload(stranger)
        key = place.session.get_one(File, mine).storage_key
        customer.client.delete(f"{FILES}/{mine}")
        assert place.storage.exists(key)
        assert stranger.client.get(f"{FILES}/{theirs}/content").content == rows()
        stranger.client.delete(f"{FILES}/{theirs}")
        assert not place.storage.exists(key)

    def test_bytes_that_could_not_be_removed_are_removed_later(
        self, customer: Tenant, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine = upload(customer)
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "delete", _out_of_order)
            assert customer.client.delete(f"{FILES}/{mine}").status_code == 200
        assert len(stored(place)) == 1
        sessions = customer.client.app.state.sessions  # type: ignore[attr-defined]
        assert remove_leftovers(sessions, place.storage) == 1
        assert stored(place) == []

    def test_removing_bytes_looks_again(self, customer: Tenant, place: Place) -> None:
        # As when the same content was uploaded between the deletion and the removal.
        key = place.session.get_one(File, upload(customer)).storage_key
        remove_bytes(
            customer.client.app.state.sessions,  # type: ignore[attr-defined]
            place.storage,
            key.rsplit("/", 1)[-1],
        )
        assert place.storage.exists(key)

    @pytest.mark.parametrize("field", ["training_file_id", "validation_file_id"])
    def test_a_file_in_use_is_a_conflict(
        self, customer: Tenant, aligned: ModelVersion, place: Place, field: str
    ) -> None:
        mine = upload(customer)
        job = place.job(customer.project, aligned, **{field: mine})
        response = customer.client.delete(f"{FILES}/{mine}")
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "file_in_use"
        job.status = JobStatus.SUCCEEDED
        place.session.commit()
        assert customer.client.delete(f"{FILES}/{mine}").status_code == 200
