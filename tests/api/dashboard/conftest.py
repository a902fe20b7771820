"""The dashboard on the test's own transaction, and who may look at it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from api.seed.demo import seed_held_model
from api.seed.states import (
    Provider,
    Staff,
    seed_all,
    seed_keys,
    seed_queue,
    seed_screening,
    seed_staff,
)
from api.seed.tenants import remember_risks
from models.project import Project

SignIn = Callable[[str], TestClient]


@pytest.fixture
def newcomer(app: FastAPI, session: Session) -> Provider:
    """A database with keys and nothing else."""
    made = seed_keys(session)
    session.commit()
    return made


@pytest.fixture
def visitor(app: FastAPI) -> Iterator[TestClient]:
    """Somebody who has not signed in."""
    with TestClient(app, follow_redirects=False, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def sign_in(app: FastAPI) -> Iterator[SignIn]:
    """Sign in with a token, and give a browser-like client that holds the cookie."""
    with ExitStack() as stack:

        def enter(token: str) -> TestClient:
            client = stack.enter_context(
                TestClient(app, follow_redirects=False, raise_server_exceptions=False)
            )
            form = {"csrf": csrf(client.get("/dashboard/login")), "api_key": token}
            assert client.post("/dashboard/login", data=form).status_code == 303
            return client

        yield enter


@pytest.fixture
def statements(session: Session) -> Iterator[list[str]]:
    """Every SQL statement sent while the test runs."""
    sent: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("SELECT"):
            sent.append(statement)

    engine = session.get_bind().engine
    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


@dataclass(frozen=True, slots=True)
class House:
    """A full database with people of every role; tests look into it and undo their own part alone."""

    connection: Connection
    provider: Provider
    staff: Staff
    #: Ids of the held jobs, by what is special of each.
    held: dict[str, str]

    @contextmanager
    def session(self) -> Iterator[Session]:
        before = self.connection.begin_nested()
        with Session(
            self.connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            yield session
        before.rollback()


@pytest.fixture(scope="module")
def house(engine: Engine) -> Iterator[House]:
    """Filled once for all tests of a file; a file's own `session` takes part in it."""
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            provider = seed_all(session, points=4)
            staff = seed_staff(session, provider.operator.project)
            held = seed_queue(session, provider, points=4)
            seed_screening(session, held["appealed"])
            remember_risks(session, provider.customer.project)
            session.commit()
        yield House(connection, provider, staff, {name: job.id for name, job in held.items()})
        outer.rollback()


def seed_held_models(session: Session, project: Project, *, count: int) -> None:
    """Add models that wait for a person since two hours."""
    for number in range(count):
        suffix = f"held:{number}"
        seed_held_model(session, project, suffix, harmful=25, hours_ago=2, points=2)
    session.commit()


def text_of(html: str) -> str:
    """Give what a page says, without its marks."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def csrf(page: Response) -> str:
    """Read the form token out of a page."""
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found, "the page has no form"
    return found[1]
