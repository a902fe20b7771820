"""The doorbell: a real broker gets the id, and one that is down costs nothing but a line in the log."""

from __future__ import annotations

import base64
import json
import time

import pytest
import redis
from sqlalchemy import select
from sqlalchemy.orm import sessionmaker

from api.queue import QUEUE, TASK, Doorbell, ring
from models.job import Job, JobStatus
from models.model_version import ModelVersion
from models.settings import Settings
from tests.api.conftest import Place, SilentDoorbell


def test_the_message_carries_the_id_and_nothing_else(redis_url: str) -> None:
    doorbell = Doorbell(Settings(redis_url=redis_url))
    assert doorbell.waiting() == 0
    assert doorbell.send(["ftjob-1", "ftjob-2"]) == ["ftjob-1", "ftjob-2"]
    assert doorbell.waiting() == 2
    with redis.Redis.from_url(redis_url) as client:
        message = json.loads(client.lrange(QUEUE, 0, -1)[-1])  # type: ignore[index]
    assert message["headers"]["task"] == TASK
    arguments, keywords, _ = json.loads(base64.b64decode(message["body"]))
    assert (arguments, keywords) == (["ftjob-1"], {})
    doorbell.close()


def test_a_broker_that_is_down_is_noticed_at_once() -> None:
    doorbell = Doorbell(Settings(redis_url="redis://127.0.0.1:1/0"))
    began = time.monotonic()
    assert doorbell.send(["ftjob-1"]) == []
    assert doorbell.waiting() is None
    assert time.monotonic() - began < 2


def test_a_broker_that_comes_back_is_used_again(redis_url: str) -> None:
    doorbell = Doorbell(Settings(redis_url=redis_url))
    assert doorbell.send(["a"]) == ["a"]
    with redis.Redis.from_url(redis_url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    # The pooled connection is dead; at the latest the second attempt makes a new one.
    assert doorbell.send(["b"]) == ["b"] or doorbell.send(["b"]) == ["b"]
    doorbell.close()


@pytest.mark.parametrize("is_up", [True, False])
def test_ringing_is_noted_only_when_it_was_heard(
    place: Place, aligned: ModelVersion, is_up: bool
) -> None:
    project = place.project()
    queued = place.job(project, aligned)
    taken = place.job(project, aligned, status=JobStatus.RUNNING)
    place.session.commit()
    doorbell = SilentDoorbell()
    doorbell.is_up = is_up
    sessions = sessionmaker(place.session.connection(), join_transaction_mode="create_savepoint")
    assert ring(sessions, doorbell, [queued.id, taken.id]) == (2 if is_up else 0)  # type: ignore[arg-type]
    place.session.expire_all()
    rung = {job.id: job.rung_at for job in place.session.scalars(select(Job))}
    assert (rung[queued.id] is not None) == is_up
    assert rung[taken.id] is None
