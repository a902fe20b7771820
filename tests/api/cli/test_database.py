"""`titer db`: what may be done by whoever holds the database, key or no key."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from api.keys.service import FIRST_PROJECT
from models.api_key import find_key
from models.scope import Scope
from models.session import make_engine, session_factory

# Each test has a database of its own.
pytestmark = pytest.mark.long


@pytest.fixture
def address(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return database_url


def db(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["db", *arguments])


class TestUpgrade:
    def test_may_be_run_again(self, address: str) -> None:
        assert db("upgrade").exit_code == 0
        assert db("upgrade").exit_code == 0


class TestCreateKey:
    def test_prints_a_working_operator_key_and_nothing_else(self, address: str) -> None:
        result = db("create-key", "first")
        assert result.exit_code == 0, result.output
        token = result.stdout.removesuffix("\n")
        with session_factory(make_engine(address))() as session:
            key = find_key(session, token)
            assert (key.name, key.project.name) == ("first", FIRST_PROJECT)
            assert set(key.scopes) == set(Scope)

    def test_a_second_key_joins_the_same_project(self, address: str) -> None:
        tokens = [db("create-key", "n").stdout.strip() for _ in range(2)]
        with session_factory(make_engine(address))() as session:
            assert len({find_key(session, token).project.id for token in tokens}) == 1

    def test_names_a_database_that_was_never_migrated(
        self, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", address.rsplit("/", 1)[0] + "/postgres")
        result = db("create-key", "first")
        assert result.exit_code == 1
        assert "titer db upgrade" in result.stderr
        assert not result.stdout
