"""What happens at the same moment, on real connections of a database of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import anyio
import httpx
import pytest
from fastapi.testclient import TestClient
from openai import AsyncOpenAI
from sqlalchemy import func, select

from api.app import create_app
from api.files.service import delete_expired
from api.uploads.service import MAX_PENDING, MAX_SENDINGS, clean_uploads
from models.api_key import ApiKey, Project
from models.base import utc_now
from models.file import File
from models.job import Job, JobEvent, JobStatus, claim
from models.model_version import VersionKind
from models.scope import Scope
from models.settings import Settings
from models.storage import Storage
from models.upload import UploadPart
from tests.api.conftest import Place, rows
from tests.api.server import serve

# Each test has a database of its own.
pytestmark = pytest.mark.long

AT_ONCE = 6


@pytest.fixture
def place(database_url: str, settings: Settings, storage: Storage) -> Iterator[Place]:
    app = create_app(settings.model_copy(update={"database_url": database_url}))
    with TestClient(app), app.state.sessions() as session:
        place = Place(session, storage)
        place.app = app  # type: ignore[attr-defined]
        yield place


@pytest.fixture
def client(place: Place) -> TestClient:
    token = place.key(place.project(), Scope.CUSTOMER, Scope.OPERATOR)
    base = place.version("tiny", VersionKind.BASE)
    place.version("tiny-booster", VersionKind.ALIGNED, parent=base)
    place.session.commit()
    app = place.app  # type: ignore[attr-defined]
    return TestClient(app, headers={"authorization": f"Bearer {token}"})


def at_once(action: Callable[[int], int]) -> list[int]:
    """Run an action on several threads that start together; give what each gave."""
    barrier = Barrier(AT_ONCE)

    def wait_and_act(number: int) -> int:
        barrier.wait()
        return action(number)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(wait_and_act, range(AT_ONCE)))


def upload(client: TestClient) -> str:
    response = client.post(
        "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", rows())}
    )
    return str(response.json()["id"])


@pytest.mark.parametrize(
    "headers", [{"idempotency-key": "k"}, {"x-stainless-retry-count": "1"}], ids=["key", "retry"]
)
def test_one_request_sent_many_times_makes_one_job(
    client: TestClient, place: Place, headers: dict[str, str]
) -> None:
    body = {"model": "tiny-booster", "training_file": upload(client)}

    def create(_: int) -> int:
        return client.post("/v1/fine_tuning/jobs", json=body, headers=headers).status_code

    assert at_once(create) == [200] * AT_ONCE
    assert place.session.scalar(select(func.count()).select_from(Job)) == 1


def test_one_name_is_given_to_one_alignment(client: TestClient) -> None:
    def align(number: int) -> int:
        body = {"model": "tiny", "method": {"name": "sft"}, "seed": number}
        return client.post("/v1/alignment/jobs", json=body).status_code

    assert sorted(at_once(align)) == [200] + [409] * (AT_ONCE - 1)


def test_a_file_is_deleted_or_used_but_never_both(client: TestClient, place: Place) -> None:
    file = upload(client)

    def create_or_delete(number: int) -> int:
        if number == 0:
            return client.delete(f"/v1/files/{file}").status_code
        body = {"model": "tiny-booster", "training_file": file, "seed": number}
        return client.post("/v1/fine_tuning/jobs", json=body).status_code

    deleted, *created = at_once(create_or_delete)
    assert deleted in (200, 409)
    assert set(created) <= {200, 404}
    assert (deleted == 200) == (200 not in created)


def test_bytes_survive_uploads_and_deletions_of_one_content(client: TestClient) -> None:
    files = [upload(client) for _ in range(AT_ONCE)]

    def replace(number: int) -> int:
        client.delete(f"/v1/files/{files[number]}")
        return client.get(f"/v1/files/{upload(client)}/content").status_code

    assert at_once(replace) == [200] * AT_ONCE


def begin(client: TestClient, size: int) -> str:
    body = {
        "bytes": size,
        "filename": "a.jsonl",
        "mime_type": "text/jsonl",
        "purpose": "fine-tune",
    }
    return str(client.post("/v1/uploads", json=body).json()["id"])


def add_part(client: TestClient, upload: str, data: bytes) -> httpx.Response:
    return client.post(f"/v1/uploads/{upload}/parts", files={"data": ("upload", data)})


def test_parts_sent_at_the_same_time_all_arrive(client: TestClient, place: Place) -> None:
    pieces = [rows(number + 1) for number in range(AT_ONCE)]
    upload = begin(client, sum(map(len, pieces)))
    ids: dict[int, str] = {}

    def send(number: int) -> int:
        response = add_part(client, upload, pieces[number])
        ids[number] = response.json()["id"]
        return response.status_code

    assert at_once(send) == [200] * AT_ONCE
    done = client.post(
        f"/v1/uploads/{upload}/complete", json={"part_ids": [ids[i] for i in range(AT_ONCE)]}
    ).json()
    content = client.get(f"/v1/files/{done['file']['id']}/content").content
    assert content == b"".join(pieces)


def test_the_stock_client_sends_parts_at_the_same_time(place: Place) -> None:
    token = place.key(place.project(), Scope.CUSTOMER)
    place.session.commit()
    content = rows(100)

    async def go(address: str) -> bytes:
        async with AsyncOpenAI(base_url=f"{address}/v1", api_key=token, max_retries=0) as client:
            upload = await client.uploads.create(
                bytes=len(content), filename="a", mime_type="text/jsonl", purpose="fine-tune"
            )
            sent: dict[int, str] = {}

            async def send(start: int) -> None:
                data = content[start : start + 500]
                sent[start] = (await client.uploads.parts.create(upload.id, data=data)).id

            async with anyio.create_task_group() as group:
                for start in range(0, len(content), 500):
                    group.start_soon(send, start)
            done = await client.uploads.complete(
                upload.id, part_ids=[sent[start] for start in sorted(sent)]
            )
            assert done.file is not None
            return (await client.files.content(done.file.id)).read()

    with serve(place.app) as address:  # type: ignore[attr-defined]
        assert anyio.run(go, address) == content


def test_parts_sent_at_the_same_time_stay_within_what_was_declared(client: TestClient) -> None:
    upload = begin(client, 10)
    statuses = at_once(lambda _: add_part(client, upload, b"x" * 10).status_code)
    assert sorted(statuses) == [200] * MAX_SENDINGS + [400] * (AT_ONCE - MAX_SENDINGS)


def test_uploads_declared_at_the_same_time_stay_within_their_number(client: TestClient) -> None:
    for _ in range(MAX_PENDING - 2):
        begin(client, 1)
    body = {"bytes": 1, "filename": "a", "mime_type": "b", "purpose": "fine-tune"}
    statuses = at_once(lambda _: client.post("/v1/uploads", json=body).status_code)
    assert sorted(statuses) == [200] * 2 + [409] * (AT_ONCE - 2)


def test_one_completion_sent_many_times_makes_one_file(client: TestClient, place: Place) -> None:
    upload = begin(client, len(rows()))
    body = {"part_ids": [add_part(client, upload, rows()).json()["id"]]}
    files: list[str] = []

    def complete(_: int) -> int:
        response = client.post(f"/v1/uploads/{upload}/complete", json=body)
        files.append(response.json()["file"]["id"])
        return response.status_code

    assert at_once(complete) == [200] * AT_ONCE
    assert len(set(files)) == 1
    assert place.session.scalar(select(func.count()).select_from(File)) == 1
    assert client.get(f"/v1/files/{files[0]}/content").content == rows()


def test_completions_that_differ_make_one_file(client: TestClient, place: Place) -> None:
    upload = begin(client, len(rows()))
    parts = [add_part(client, upload, rows()).json()["id"] for _ in range(MAX_SENDINGS)]

    def complete(number: int) -> int:
        body = {"part_ids": [parts[number % MAX_SENDINGS]]}
        return client.post(f"/v1/uploads/{upload}/complete", json=body).status_code

    # Of the three orders one wins, and each was sent twice.
    assert sorted(at_once(complete)) == [200] * 2 + [409] * 4
    assert place.session.scalar(select(func.count()).select_from(File)) == 1


@pytest.mark.parametrize("has_swept", [True, False], ids=["swept", "not swept"])
def test_an_upload_is_completed_or_cancelled_but_never_both(
    client: TestClient, place: Place, has_swept: bool
) -> None:
    content = rows(200)
    upload = begin(client, len(content))
    parts = [
        add_part(client, upload, content[i : i + 1000]).json()["id"]
        for i in range(0, len(content), 1000)
    ]
    app = place.app  # type: ignore[attr-defined]

    def complete_or_cancel(number: int) -> int:
        if number == 0:
            status = client.post(f"/v1/uploads/{upload}/cancel").status_code
            if has_swept:
                # Takes the parts away from under completions that still read them.
                clean_uploads(app.state.sessions, place.storage)
            return status
        return client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": parts}).status_code

    cancelled, *completed = at_once(complete_or_cancel)
    assert {cancelled, *completed} == {200, 409}
    assert len(set(completed)) == 1
    files = place.session.scalar(select(func.count()).select_from(File))
    assert files == (cancelled == 409)


def test_a_part_that_comes_while_the_upload_ends_is_kept_or_refused(
    client: TestClient, place: Place
) -> None:
    upload = begin(client, len(rows()))
    body = {"part_ids": [add_part(client, upload, rows()).json()["id"]]}

    def complete_or_send(number: int) -> int:
        if number == 0:
            return client.post(f"/v1/uploads/{upload}/complete", json=body).status_code
        return add_part(client, upload, b"x").status_code

    completed, *sent = at_once(complete_or_send)
    assert completed == 200
    assert set(sent) <= {200, 409}
    assert place.session.scalar(select(func.count()).select_from(UploadPart)) == 1 + sent.count(200)
    app = place.app  # type: ignore[attr-defined]
    assert clean_uploads(app.state.sessions, place.storage) == 1
    assert place.storage.root is not None
    assert [p for p in (place.storage.root / "incoming").rglob("*") if p.is_file()] == []


def test_a_file_expires_or_is_used_but_never_both(client: TestClient, place: Place) -> None:
    file = upload(client)
    app = place.app  # type: ignore[attr-defined]

    def create_or_sweep(number: int) -> int:
        if number == 0:
            with app.state.sessions.begin() as session:
                session.get_one(File, file).expires_at = utc_now()
            return int(delete_expired(app.state.sessions))
        body = {"model": "tiny-booster", "training_file": file, "seed": number}
        return client.post("/v1/fine_tuning/jobs", json=body).status_code

    deleted, *created = at_once(create_or_sweep)
    assert set(created) <= {200, 404}
    assert (deleted == 1) == (200 not in created)


def test_a_model_is_deleted_or_tuned_but_never_both(client: TestClient) -> None:
    file = upload(client)

    def create_or_delete(number: int) -> int:
        if number == 0:
            return client.delete("/v1/models/tiny-booster").status_code
        body = {"model": "tiny-booster", "training_file": file, "seed": number}
        return client.post("/v1/fine_tuning/jobs", json=body).status_code

    deleted, *created = at_once(create_or_delete)
    assert (deleted == 200) == (200 not in created)
    assert set(created) <= {200, 404}


@pytest.mark.parametrize("is_running", [False, True], ids=["queued", "running"])
def test_pauses_at_the_same_moment_pause_once(
    client: TestClient, place: Place, is_running: bool
) -> None:
    job_id = create(client)
    if is_running:
        claim(place.session, job_id, owner="w", lease_seconds=60)
        place.session.commit()
    pause = f"/v1/fine_tuning/jobs/{job_id}/pause"
    codes = at_once(lambda _: client.post(pause).status_code)
    assert sorted(codes) == [200] + [409] * (AT_ONCE - 1)


def test_pause_resume_and_cancel_at_the_same_moment_are_taken_one_after_the_other(
    client: TestClient, place: Place
) -> None:
    job_id = create(client)
    verbs = ("pause", "resume", "pause", "resume", "cancel", "pause")

    def change(number: int) -> int:
        return client.post(f"/v1/fine_tuning/jobs/{job_id}/{verbs[number]}").status_code

    codes = at_once(change)
    assert codes[4] == 200
    assert set(codes) <= {200, 409}
    job = place.session.get_one(Job, job_id)
    assert job.status == JobStatus.CANCELLED
    numbers = place.session.scalars(
        select(JobEvent.sequence).where(JobEvent.job_id == job_id).order_by(JobEvent.sequence)
    ).all()
    assert list(numbers) == list(range(1, 3 + codes.count(200)))


def test_a_job_is_claimed_or_paused_but_never_both(client: TestClient, place: Place) -> None:
    job_id = create(client)

    def claim_or_pause(number: int) -> int:
        if number:
            with place.app.state.sessions.begin() as session:  # type: ignore[attr-defined]
                return int(claim(session, job_id, owner="w", lease_seconds=60) is not None)
        return client.post(f"/v1/fine_tuning/jobs/{job_id}/pause").status_code

    paused, *claimed = at_once(claim_or_pause)
    assert paused == 200
    job = place.session.get_one(Job, job_id)
    assert job.state == ("pausing" if any(claimed) else "paused")
    assert sum(claimed) <= 1


def create(client: TestClient) -> str:
    body = {"model": "tiny-booster", "training_file": upload(client)}
    return str(client.post("/v1/fine_tuning/jobs", json=body).json()["id"])


def limited(client: TestClient, place: Place, **quotas: int) -> str:
    """Limit the client's project, and give its id."""
    project = place.session.scalars(select(Project)).one()
    body = {"quotas": quotas}
    path = f"/v1/organization/projects/{project.id}"
    assert client.post(path, json=body).status_code == 200
    return project.id


def test_a_quota_of_jobs_is_not_passed_together(client: TestClient, place: Place) -> None:
    file = upload(client)
    limited(client, place, jobs_queued=2)

    def create(number: int) -> int:
        body = {"model": "tiny-booster", "training_file": file, "seed": number}
        return client.post("/v1/fine_tuning/jobs", json=body).status_code

    assert sorted(at_once(create)) == [200, 200] + [429] * (AT_ONCE - 2)
    assert place.session.scalar(select(func.count()).select_from(Job)) == 2


def test_a_quota_of_bytes_is_not_passed_together(client: TestClient, place: Place) -> None:
    limited(client, place, bytes_stored=2 * len(rows()))

    def store(_: int) -> int:
        return client.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", rows())}
        ).status_code

    assert sorted(at_once(store)) == [200, 200] + [429] * (AT_ONCE - 2)


def test_of_two_operator_keys_at_most_one_is_revoked(client: TestClient, place: Place) -> None:
    own = place.session.scalars(select(ApiKey.id)).one()
    second = client.post("/v1/keys", json={"name": "n", "scopes": ["operator"]}).json()["id"]

    def revoke(number: int) -> int:
        return client.delete(f"/v1/keys/{(own, second)[number % 2]}").status_code

    at_once(revoke)
    place.session.expire_all()
    living = place.session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None))).all()
    assert len(living) == 1


def test_a_project_is_archived_or_gets_a_job_but_no_job_is_left_waiting(
    client: TestClient, place: Place
) -> None:
    file = upload(client)
    operator = {"name": "n", "scopes": ["operator"], "project": "provider"}
    token = client.post("/v1/keys", json=operator).json()["key"]
    project = place.session.scalars(select(Project).where(Project.name != "provider")).one()

    def archive_or_create(number: int) -> int:
        if number == 0:
            return client.post(
                f"/v1/organization/projects/{project.id}/archive",
                headers={"authorization": f"Bearer {token}"},
            ).status_code
        body = {"model": "tiny-booster", "training_file": file, "seed": number}
        return client.post("/v1/fine_tuning/jobs", json=body).status_code

    archived, *created = at_once(archive_or_create)
    assert archived == 200
    assert set(created) <= {200, 401}
    place.session.expire_all()
    assert set(place.session.scalars(select(Job.status))) <= {JobStatus.CANCELLED}
