"""A worker's surroundings: a workshop on this test's database and storage, and a provider in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.session import SessionFactory, make_engine, session_factory
from models.storage import Storage
from tests.worker.toy_provider import Provider
from worker.base_models import ResidentBase
from worker.work import Workshop


@pytest.fixture
def sessions(database_url: str) -> Iterator[SessionFactory]:
    engine = make_engine(database_url)
    yield session_factory(engine)
    engine.dispose()


@pytest.fixture
def shop(sessions: SessionFactory, storage: Storage, tmp_path: Path) -> Workshop:
    return Workshop(
        sessions=sessions,
        storage=storage,
        bases=ResidentBase(),
        cache=tmp_path / "cache",
        owner="test",
        lease_seconds=60,
    )


@pytest.fixture
def provider(shop: Workshop, tmp_path: Path) -> Provider:
    return Provider(shop, tmp_path)
