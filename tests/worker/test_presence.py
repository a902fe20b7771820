"""A worker says that it is here, what it is at, and good-bye."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from models.base import utc_now
from models.job import claim
from models.session import SessionFactory
from models.worker import FORGOTTEN_AFTER, GONE_AFTER, Worker, forget_workers, speak
from tests.worker.toy_provider import Provider
from worker.presence import Presence
from worker.work import Workshop

pytestmark = pytest.mark.long


def test_a_worker_speaks_of_its_device_its_base_and_its_job_until_it_stops(
    shop: Workshop, sessions: SessionFactory, provider: Provider
) -> None:
    job_id = provider.align()
    with sessions.begin() as session:
        assert claim(session, job_id, owner=shop.owner, lease_seconds=60)
    presence = Presence(sessions, shop.bases, owner=shop.owner)

    presence._say()

    with sessions() as session:
        worker = session.get_one(Worker, shop.owner)
        assert worker.is_alive
        assert (worker.job_id, worker.base_id) == (job_id, None)
        assert worker.memory_used_bytes is not None
        assert worker.memory_bytes is not None
        assert 0 < worker.memory_used_bytes < worker.memory_bytes

    presence.start()
    presence.stop()

    with sessions() as session:
        assert not session.get_one(Worker, shop.owner).is_alive


def test_a_silent_worker_is_gone_and_later_forgotten(sessions: SessionFactory) -> None:
    with sessions.begin() as session:
        _speak(session, "a:1")
        _speak(session, "a:2")
    with sessions.begin() as session:
        session.get_one(Worker, "a:1").seen_at = utc_now() - GONE_AFTER
        session.get_one(Worker, "a:2").seen_at = utc_now() - FORGOTTEN_AFTER - timedelta(seconds=1)
    with sessions.begin() as session:
        assert not session.get_one(Worker, "a:1").is_alive
        forget_workers(session)
    with sessions.begin() as session:
        assert session.get(Worker, "a:2") is None
        # It was only slow.
        _speak(session, "a:1")
    with sessions() as session:
        assert session.get_one(Worker, "a:1").is_alive


def _speak(session: Session, name: str) -> None:
    facts = {"host": "a", "started_at": utc_now(), "device": "cpu", "version": "0"}
    speak(session, name, facts)
