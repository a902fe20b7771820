"""The audit log: only added to, chained, and a break is found wherever it is."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from models.api_key import create_key
from models.audit import DATABASE, MAX_REASON, SERVICE, AuditEntry, record, verify
from models.audit_chain import GENESIS, Head, check_chain
from models.scope import Scope
from models.session import make_engine, session_factory
from tests.models.factories import make_project


def fill(session: Session, count: int = 3) -> list[AuditEntry]:
    return [
        record(
            session,
            actor=SERVICE,
            action="thing.done",
            subject=("thing", str(number)),
            details={"share": 1 / (number + 3), "large": 1e22, "zero": -0.0, "text": "ü\u2028"},
        )
        for number in range(count)
    ]


def tamper(session: Session, statement: str) -> None:
    # As the database's owner could.
    session.execute(text("alter table audit_entries disable trigger all"))
    session.execute(text(statement))
    session.execute(text("alter table audit_entries enable trigger all"))
    session.expire_all()


class TestRecord:
    def test_names_the_key_its_project_and_what_it_did(self, session: Session) -> None:
        project = make_project(session)
        key, _ = create_key(session, project, "mine", frozenset({Scope.OPERATOR}))
        entry = record(
            session,
            actor=key,
            action="policy.created",
            subject=("policy", "policy-2"),
            project_id=project.id,
            reason="x" * 5_000,
            details={"limits": ("a", 1)},
        )
        session.commit()
        session.expire_all()
        stored = session.get_one(AuditEntry, entry.id)
        assert stored.content()["actor"] == {
            "key_id": key.id,
            "name": "mine",
            "project_id": project.id,
        }
        assert (stored.position, stored.previous_sha256) == (1, GENESIS)
        assert stored.reason == "x" * MAX_REASON
        assert stored.details == {"limits": ["a", 1]}
        assert verify(session).is_whole

    def test_without_a_key_it_was_the_service_or_the_databases_holder(
        self, session: Session
    ) -> None:
        names = [
            record(session, actor=who, action="a.b", subject=("c", "d")).actor_name
            for who in (SERVICE, DATABASE)
        ]
        assert names == ["titer", "titer db"]

    @pytest.mark.parametrize("details", [{"x": "y" * 17_000}, {"x": float("nan")}])
    def test_details_are_bounded_json(self, session: Session, details: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=r"too long|JSON"):
            record(session, actor=SERVICE, action="a.b", subject=("c", "d"), details=details)

    @pytest.mark.parametrize(
        "statement",
        [
            "update audit_entries set reason = 'x'",
            "delete from audit_entries",
            "truncate audit_entries",
        ],
    )
    def test_the_database_refuses_every_change(self, session: Session, statement: str) -> None:
        fill(session)
        with pytest.raises(DatabaseError, match="append-only"), session.begin_nested():
            session.execute(text(statement))

    def test_an_undone_action_leaves_no_gap(self, session: Session) -> None:
        fill(session, 1)
        undone = session.begin_nested()
        fill(session, 1)
        undone.rollback()
        fill(session, 1)
        assert session.scalars(select(AuditEntry.position)).all() == [1, 2]
        assert verify(session).is_whole

    def test_many_at_once_make_one_chain(self, database_url: str) -> None:
        engine = make_engine(database_url)
        sessions = session_factory(engine)

        def add(_: int) -> None:
            with sessions.begin() as session:
                fill(session, 2)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add, range(16)))
        with sessions() as session:
            report = verify(session)
        engine.dispose()
        assert (report.is_whole, report.entries, report.head.position) == (True, 32, 32)


class TestVerify:
    def test_an_empty_log_is_whole(self, session: Session) -> None:
        report = verify(session)
        assert (report.is_whole, report.head) == (True, Head(0, GENESIS))

    def test_reads_back_what_was_hashed_to_the_last_digit(self, session: Session) -> None:
        entries = fill(session)
        session.commit()
        session.expire_all()
        report = verify(session)
        assert (report.entries, report.fault) == (3, None)
        assert report.head == Head(3, entries[-1].sha256)

    @pytest.mark.parametrize(
        ("statement", "fault"),
        [
            ("update audit_entries set reason = 'x' where position = 2", "Entry 2 was changed"),
            ("update audit_entries set details = '{}' where position = 2", "Entry 2 was changed"),
            (
                "update audit_entries set created_at = created_at - interval '1 s' where position = 2",
                "Entry 2 was changed",
            ),
            ("delete from audit_entries where position = 2", "Entry 2 is missing"),
            ("delete from audit_entries where position = 1", "Entry 1 is missing"),
            (
                f"update audit_entries set previous_sha256 = '{GENESIS}' where position = 3",
                "Entry 3 does not follow",
            ),
        ],
    )
    def test_says_where_the_chain_breaks(
        self, session: Session, statement: str, fault: str
    ) -> None:
        fill(session)
        tamper(session, statement)
        report = verify(session)
        assert not report.is_whole
        assert fault in (report.fault or "")

    def test_a_cut_end_is_found_by_a_noted_head(self, session: Session) -> None:
        noted = Head(3, fill(session)[-1].sha256)
        assert verify(session, noted).is_whole
        fill(session, 1)
        assert verify(session, noted).is_whole
        tamper(session, "delete from audit_entries where position > 2")
        assert verify(session).is_whole
        assert "position 3 is not in the chain" in (verify(session, noted).fault or "")

    def test_a_chain_that_was_written_anew_is_found_by_a_noted_head(self, session: Session) -> None:
        noted = Head(3, fill(session)[-1].sha256)
        tamper(session, "delete from audit_entries")
        fill(session, 4)
        assert verify(session).is_whole
        assert not verify(session, noted).is_whole

    def test_an_export_can_be_checked_without_the_database(self, session: Session) -> None:
        lines = [json.dumps({**entry.content(), "sha256": entry.sha256}) for entry in fill(session)]
        read = [json.loads(line) for line in lines]
        pairs = [({k: v for k, v in e.items() if k != "sha256"}, e["sha256"]) for e in read]
        assert check_chain(pairs).is_whole
        pairs[1][0]["reason"] = "another"
        assert "Entry 2 was changed" in (check_chain(pairs).fault or "")
