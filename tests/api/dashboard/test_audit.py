"""The audit page: search, entries with their details, the chain, the export, and who may read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text as sql
from sqlalchemy.orm import Session

from api.seed.states import HOSTILE_NAME, Provider
from models.audit import SERVICE, record
from models.audit_chain import check_chain
from models.base import utc_now
from tests.api.dashboard.conftest import House, SignIn, text_of

pytestmark = pytest.mark.long

AUDIT = "/dashboard/audit"


@pytest.fixture
def session(house: House) -> Iterator[Session]:
    with house.session() as session:
        yield session


@pytest.fixture
def reader(app: FastAPI, house: House, session: Session, sign_in: SignIn) -> TestClient:
    for number in range(5):
        record(
            session,
            actor=SERVICE,
            action="thing.done",
            subject=("thing", f"thing-{number}"),
            reason=HOSTILE_NAME if number == 3 else None,
            details={"number": number},
        )
    session.commit()
    return sign_in(house.staff.viewer)


def subjects(html: str) -> list[str]:
    return re.findall(r'class="e-subject">.*?<span class="name">([^<]+)<', html)


class TestEntries:
    def test_newest_first_with_their_details(self, reader: TestClient) -> None:
        html = reader.get(AUDIT).text
        assert subjects(html)[:5] == [f"thing-{number}" for number in (4, 3, 2, 1, 0)]
        text = text_of(html)
        assert re.search(r"thing\.done by titer thing thing-4", text)
        assert "&#34;number&#34;: 4" in html
        assert re.search(r"SHA-256 [0-9a-f]{64}", text)
        assert "All 33 flagged answers name a statute." in text
        assert "Harbour Legal" in text

    def test_escapes_what_others_wrote(self, reader: TestClient) -> None:
        html = reader.get(AUDIT).text
        assert HOSTILE_NAME not in html
        assert "&lt;script&gt;" in html

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("text=statute", 1),
            ("text=thing", 5),
            ("text=zebra", 0),
            ("action=policy.created", 1),
            ("action=thing.done&text=thing-2", 1),
            ("subject=thing-1", 1),
            ("since=2020-01-01", 8),
            ("since=9999-01-01", 0),
            ("until=2020-01-01", 0),
            ("actor=key-none", 0),
        ],
    )
    def test_search(self, reader: TestClient, query: str, found: int) -> None:
        html = reader.get(f"{AUDIT}?{query}").text
        assert len(subjects(html)) == found
        assert ("No entry matches this search." in html) == (found == 0)

    def test_today_is_included_at_both_ends(self, reader: TestClient) -> None:
        today = utc_now().date().isoformat()
        assert len(subjects(reader.get(f"{AUDIT}?since={today}&until={today}").text)) == 8

    def test_by_actor_and_project(self, reader: TestClient, house: House) -> None:
        by = house.provider.operator.id
        assert len(subjects(reader.get(f"{AUDIT}?actor={by}").text)) == 3
        other = house.provider.other.id
        assert len(subjects(reader.get(f"{AUDIT}?project={other}").text)) == 3

    def test_offers_every_action_there_is(self, reader: TestClient) -> None:
        html = reader.get(f"{AUDIT}?action=thing.done").text
        actions = re.findall(r"<option (?:selected)?>([^<]+)<", html)
        assert actions == [
            "model.release_approved",
            "policy.activated",
            "policy.created",
            "thing.done",
        ]
        assert "<option selected>thing.done" in html

    @pytest.mark.parametrize("query", ["since=yesterday", "until=2026-13-01", "text=" + "x" * 257])
    def test_faulty_search_is_a_sentence(self, reader: TestClient, query: str) -> None:
        assert reader.get(f"{AUDIT}?{query}").status_code == 400

    def test_pages_without_gap_or_repeat_and_keep_the_search(
        self, reader: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("api.dashboard.audit.entries.PAGE_SIZE", 2)
        seen, address = [], f"{AUDIT}?action=thing.done"
        while address:
            html = reader.get(address).text
            seen += subjects(html)
            older = re.search(r'href="([^"]+)">Older', html)
            address = older[1].replace("&amp;", "&") if older else ""
        assert seen == [f"thing-{number}" for number in (4, 3, 2, 1, 0)]

    def test_costs_the_same_queries_however_long(
        self, reader: TestClient, session: Session, statements: list[str]
    ) -> None:
        reader.get(AUDIT)
        statements.clear()
        reader.get(AUDIT)
        before = len(statements)
        for number in range(30):
            record(session, actor=SERVICE, action=f"a.{number}", subject=("thing", str(number)))
        session.commit()
        statements.clear()
        reader.get(AUDIT)
        assert len(statements) == before

    def test_links_of_entries_can_be_followed(self, reader: TestClient) -> None:
        html = reader.get(AUDIT).text
        links = set(re.findall(r'href="(/dashboard/(?:audit\?|policies/|jobs/)[^"]+)"', html))
        assert len(links) > 8
        for link in links:
            assert reader.get(link.replace("&amp;", "&")).status_code == 200, link

    def test_empty_log_says_so(self, newcomer: Provider, session: Session, sign_in: SignIn) -> None:
        session.execute(sql("alter table audit_entries disable trigger all"))
        session.execute(sql("delete from audit_entries"))
        session.commit()
        html = sign_in(newcomer.operator_token).get(AUDIT).text
        assert "Nothing has been written yet." in html


class TestExport:
    def test_without_a_search_is_a_chain_by_itself(self, reader: TestClient) -> None:
        answer = reader.get(f"{AUDIT}/export")
        assert answer.headers["content-type"] == "application/jsonl"
        assert 'filename="audit.jsonl"' in answer.headers["content-disposition"]
        entries = [json.loads(line) for line in answer.text.splitlines()]
        assert len(entries) == 8
        pairs = [
            ({k: v for k, v in e.items() if k not in ("sha256", "object")}, e["sha256"])
            for e in entries
        ]
        assert check_chain(pairs).is_whole

    def test_gives_what_is_searched_for(self, reader: TestClient) -> None:
        page = reader.get(f"{AUDIT}?action=thing.done&text=thing-2").text
        address = re.search(r'href="([^"]+)" download', page)
        assert address
        lines = reader.get(address[1].replace("&amp;", "&")).text.splitlines()
        assert [json.loads(line)["subject"]["id"] for line in lines] == ["thing-2"]


class TestChain:
    def test_whole_chain_tells_its_head(self, reader: TestClient) -> None:
        html = reader.get(f"{AUDIT}/chain").text
        assert "The chain is whole:" in html
        assert "8 entries" in html
        head = re.search(r"8:[0-9a-f]{64}", html)
        assert head
        assert "the noted head is among them" in reader.get(f"{AUDIT}/chain?head={head[0]}").text
        forged = "3:" + head[0][2:]
        assert "is not in the chain" in reader.get(f"{AUDIT}/chain?head={forged}").text

    def test_break_is_named(self, reader: TestClient, session: Session) -> None:
        session.execute(sql("alter table audit_entries disable trigger all"))
        session.execute(sql("update audit_entries set reason = 'x' where position = 2"))
        session.commit()
        session.expire_all()
        html = reader.get(f"{AUDIT}/chain", headers={"HX-Request": "true"}).text
        assert "<html" not in html
        assert "The chain is broken." in html
        assert "Entry 2 was changed after it was written." in html

    @pytest.mark.parametrize("head", ["12", "12:abc", "x:" + "0" * 64, "1:" + "G" * 64])
    def test_faulty_head_is_refused(self, reader: TestClient, head: str) -> None:
        assert reader.get(f"{AUDIT}/chain?head={head}").status_code == 400


def test_customers_have_no_log(
    house: House, session: Session, app: FastAPI, sign_in: SignIn
) -> None:
    customer = sign_in(house.provider.customer_token)
    for address in ("", "/export", "/chain"):
        answer = customer.get(f"{AUDIT}{address}")
        assert answer.status_code == 403
        assert "statute" not in answer.text
