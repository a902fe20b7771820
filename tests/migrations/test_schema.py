"""The migrations make exactly the tables that the code describes, and can be undone."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.orm import Session, joinedload

import migrations
from models.base import utc_now
from models.evaluation import Evaluation
from models.job import JobKind, append_event
from models.policy import PolicyRules, SafetyPolicy, current_policy
from models.priority import Priority
from models.project import Project, Quotas
from models.session import make_engine
from models.tables import Base
from tests.models.factories import make_job, make_project


@pytest.fixture
def config() -> Config:
    config = Config()
    folder = Path(migrations.__file__ or "").parent
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config


def run(engine: Engine, config: Config, what: str) -> None:
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.upgrade if what == "head" else command.downgrade)(config, what)


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    return list(compare_metadata(context, Base.metadata))


def constraints(connection: Connection) -> set[tuple[str, str, str]]:
    # Autogenerate does not compare check constraints, nor which rows a foreign key is checked on.
    rows = connection.execute(
        text(
            "select c.conrelid::regclass::text, c.conname, pg_get_constraintdef(c.oid) "
            "from pg_constraint c join pg_namespace n on n.oid = c.connamespace "
            "where n.nspname = 'public' and c.conrelid <> 0 "
            "and c.conrelid::regclass::text <> 'alembic_version'"
        )
    )
    return {(str(table), str(name), str(rule)) for table, name, rule in rows}


def test_there_is_one_head(config: Config) -> None:
    assert len(ScriptDirectory.from_config(config).get_heads()) == 1


def test_migrated_and_described_schemas_are_the_same(database_url: str) -> None:
    engine = make_engine(database_url)
    with engine.connect() as connection:
        assert differences(connection) == []
        migrated = constraints(connection)
    with engine.begin() as connection:
        connection.execute(text("drop schema public cascade"))
        connection.execute(text("create schema public"))
        Base.metadata.create_all(connection)
        assert constraints(connection) == migrated
    engine.dispose()


def test_down_to_nothing_and_up_again(database_url: str, config: Config) -> None:
    engine = make_engine(database_url)
    run(engine, config, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    run(engine, config, "head")
    with engine.connect() as connection:
        assert differences(connection) == []
    run(engine, config, "head")
    engine.dispose()


def test_a_failed_migration_leaves_nothing_behind(database_url: str, config: Config) -> None:
    engine = make_engine(database_url)
    run(engine, config, "base")
    with engine.begin() as connection:
        # In the way of the last table but one.
        connection.execute(text("create table evaluations (id text)"))
    with pytest.raises(Exception, match="already exists"):
        run(engine, config, "head")
    assert sorted(inspect(engine).get_table_names()) == ["alembic_version", "evaluations"]
    engine.dispose()


def test_going_back_before_evaluation_jobs_takes_them_and_what_they_measured_along(
    database_url: str, config: Config
) -> None:
    engine = make_engine(database_url)
    with Session(engine) as session:
        kept = make_job(session)
        gone = make_job(session, kind=JobKind.EVALUATE)
        append_event(session, gone, "Created.")
        for job in (kept, gone):
            session.add(
                Evaluation(
                    version_id=job.model_id, job_id=job.id, harmful_score_percent=0, report={}
                )
            )
        session.commit()
        kept_id = kept.id
    run(engine, config, "c5a9d2e81f47")
    with engine.connect() as connection:
        assert connection.scalars(text("select id from jobs")).all() == [kept_id]
        assert connection.scalars(text("select job_id from evaluations")).all() == [kept_id]
    run(engine, config, "head")
    engine.dispose()


def test_going_back_before_certificates_takes_their_jobs_along(
    database_url: str, config: Config
) -> None:
    engine = make_engine(database_url)
    with Session(engine) as session:
        kept = make_job(session)
        gone = make_job(session, kind=JobKind.CERTIFY)
        append_event(session, gone, "Created.")
        session.commit()
        kept_id = kept.id
    run(engine, config, "5870dd43ff94")
    with engine.connect() as connection:
        assert connection.scalars(text("select id from jobs")).all() == [kept_id]
    run(engine, config, "head")
    engine.dispose()


def test_projects_that_were_there_before_organizations_keep_the_id_that_clients_were_shown(
    database_url: str, config: Config
) -> None:
    engine = make_engine(database_url)
    run(engine, config, "b1c0e3a7d952")
    with engine.begin() as connection:
        for name in ("one", "two"):
            connection.execute(
                text("insert into projects values (:id, :name, now())"),
                {"id": f"proj-{name}", "name": name},
            )
    run(engine, config, "head")
    with Session(engine) as session:
        for name in ("one", "two"):
            project = session.get_one(Project, f"proj-{name}", options=[joinedload("*")])
            assert project.organization_id == f"org-{name}"
            assert project.organization.name == name
            assert (project.priority, project.archived_at) == (Priority.NORMAL, None)
            assert project.quotas(Quotas(jobs_queued=7)) == Quotas(jobs_queued=7)
    engine.dispose()


def test_a_policy_that_was_not_in_force_is_not_so_before_or_after(
    database_url: str, config: Config
) -> None:
    engine = make_engine(database_url)
    rules = PolicyRules().model_dump(mode="json")
    with Session(engine) as session:
        project = make_project(session)
        session.add(SafetyPolicy(version=1, rules=rules))
        session.add(SafetyPolicy(version=2, rules=rules, project_id=project.id))
        waiting = SafetyPolicy(version=3, rules=rules)
        session.add(waiting)
        session.flush()
        waiting.activated_at = None
        session.commit()
    run(engine, config, "b1c0e3a7d952")
    with engine.connect() as connection:
        assert connection.scalars(text("select version from safety_policies")).all() == [1]
    run(engine, config, "head")
    with Session(engine) as session:
        assert current_policy(session).version == 1
    engine.dispose()


def test_an_open_job_keeps_its_count_of_losses(database_url: str, config: Config) -> None:
    engine = make_engine(database_url)
    with Session(engine) as session:
        jobs = [
            make_job(session, lost_leases=2, finished_at=finished_at)
            for finished_at in (None, utc_now())
        ]
        ids = [job.id for job in jobs]
        session.commit()
    run(engine, config, "e8b1d05c7f24")
    run(engine, config, "head")
    with engine.connect() as connection:
        found = connection.execute(text("select id, losses_in_a_row from jobs"))
        counts = {row.id: row.losses_in_a_row for row in found}
    assert [counts[each] for each in ids] == [2, 0]
    engine.dispose()
