"""What happens at the same moment, on real connections of a database of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from api.app import create_app
from models.api_key import Scope
from models.job import Job, JobEvent, JobStatus, claim
from models.model_version import VersionKind
from models.settings import Settings
from models.storage import Storage
from tests.api.conftest import Place, rows

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
