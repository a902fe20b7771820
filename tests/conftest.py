"""Servers, databases and folders for tests. Nothing starts until a test asks for it.

One real PostgreSQL and one real Redis serve a whole run (one of each per xdist process). Migrations run
once, into a template; databases are copies of it.

* `session`: one transaction on a shared database, undone after the test, whatever the test commits.
* `database_url`: a database of the test's own, for code that opens its own connections or processes.
"""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis
from hypothesis import settings
from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from api.embedded.database import upgrade
from api.embedded.postgres import EmbeddedPostgres
from api.embedded.redis import EmbeddedRedis
from models.session import make_engine
from models.storage import Storage

# A busy machine is slow, not wrong: no single example has a time limit.
settings.register_profile("titer", max_examples=50, deadline=None)
settings.load_profile("titer")

# Fixtures behind which PostgreSQL or Redis starts.
SERVERS = frozenset({"template_url", "redis_server_url"})

# The settings of the shell that runs the tests are not the tests' settings.
for name in list(os.environ):
    if name.startswith("TITER_") or name in ("DATABASE_URL", "REDIS_URL", "STORAGE_URL"):
        del os.environ[name]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server by what it asks for, so that no test's author has to think of it."""
    for item in items:
        if SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.servers)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over torch and its like, which it would read anew in every test."""
    gc.freeze()


@pytest.fixture(scope="session")
def template_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated database that nobody writes to. Copy it."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), is_durable=False)
    url = server.start()
    try:
        upgrade(url)
        yield url
    finally:
        server.stop()


@pytest.fixture(scope="session")
def engine(template_url: str) -> Iterator[Engine]:
    """The database that all tests with a `session` share."""
    engine = make_engine(_copy(template_url, "shared"))
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session in an outer transaction: code under test may commit and roll back at will."""
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            yield session
        outer.rollback()


@pytest.fixture
def database_url(template_url: str) -> Iterator[str]:
    """A fresh, migrated database that others may connect to; gone after the test."""
    with fresh_database(template_url) as url:
        yield url


@pytest.fixture(scope="session")
def redis_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The run's Redis. Ask for `redis_url` instead, which is empty."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"), is_durable=False)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """An empty Redis."""
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushall()
    return redis_server_url


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An empty object store in a folder whose name has a space."""
    return Storage((tmp_path / "object store").as_uri())


@contextmanager
def fresh_database(template_url: str) -> Iterator[str]:
    """Lend a copy of the template, for fixtures that live longer than a test."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield _copy(template_url, name)
    _administer(template_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def _copy(template_url: str, name: str) -> str:
    source = make_url(template_url)
    _administer(template_url, f'CREATE DATABASE "{name}" TEMPLATE "{source.database}"')
    return source.set(database=name).render_as_string(hide_password=False)


def _administer(template_url: str, statement: str) -> None:
    # From another database: nobody may be connected to a template while it is copied.
    url = make_url(template_url).set(drivername="postgresql", database="postgres")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(statement.encode())
