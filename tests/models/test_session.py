"""Engines: which addresses are understood, and what an error may show."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models.session import make_engine, session_factory
from tests.models.factories import make_project


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_means_psycopg(scheme: str) -> None:
    engine = make_engine(f"{scheme}://titer@127.0.0.1/x")
    assert engine.dialect.driver == "psycopg"
    engine.dispose()


def test_objects_stay_readable_after_the_commit(database_url: str) -> None:
    engine = make_engine(database_url)
    with session_factory(engine).begin() as session:
        project = make_project(session, "kept")
    assert project.name == "kept"
    engine.dispose()


def test_a_failed_statement_does_not_quote_its_parameters(session: Session) -> None:
    with pytest.raises(DBAPIError) as caught:
        session.execute(text("select cast(:x as integer), 1 / 0"), {"x": "7719"})
    assert "7719" not in str(caught.value)
