"""Files over HTTP: every faulty row is named, and bytes live as long as somebody has them."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.files.service import clean_filename, remove_bytes
from models.file import File, content_key
from models.job import JobStatus
from models.model_version import ModelVersion
from models.settings import Settings
from tests.api.conftest import Place, Tenant, rows, upload

FILES = "/v1/files"
SECRET = "the-text-of-a-row"


def post(tenant: Tenant, content: bytes, purpose: str = "fine-tune") -> dict[str, object]:
    response = tenant.client.post(
        FILES, data={"purpose": purpose}, files={"file": ("rows.jsonl", content)}
    )
    assert response.status_code == 400
    return dict(response.json()["error"])


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
