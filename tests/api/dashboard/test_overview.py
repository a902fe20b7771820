"""The overview: what it puts first, that its numbers are right, and that they cost the same however much there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from importlib import import_module

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Connection, Engine, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from api.dashboard.jobs.job_list import MAX_HELD_SHOWN
from api.dashboard.overview import attention, queue, scores
from api.dashboard.overview.scores import ceiling
from api.organization.use import SWEEPER_GONE_AFTER, count_use
from api.seed.demo import seed_appealed, seed_held_model
from api.seed.fleet import seed_workers
from api.seed.month import seed_canary_alarm, seed_fault
from api.seed.states import Provider, report, seed_all, seed_held_data, seed_job, seed_version
from models.api_key import create_key
from models.base import utc_now
from models.errors import DomainError
from models.job import Job, JobStatus, Stage
from models.model_version import ModelVersion
from models.policy import SafetyPolicy
from models.priority import Priority
from models.project_use import ProjectUse
from models.scope import Scope
from models.worker import Worker
from tests.api.conftest import Place
from tests.api.dashboard.conftest import SignIn, seed_held_models

ADDRESS = "/dashboard/overview"
HELD_MODEL = "ft:sandbox-base:acme:tone:Hc81Zx0p"
RUNNING_MODEL = "ft:sandbox-base:acme:faq-de:Wm3v0TzK"


@pytest.fixture(scope="module")
def seeded(engine: Engine) -> Iterator[tuple[Connection, Provider]]:
    """A full database, filled once for all tests here: each of them undoes only its own part."""
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            provider = seed_all(session, points=30)
            seed_workers(session)
            count_use(session)
            session.commit()
        yield connection, provider
        outer.rollback()


@pytest.fixture
def session(seeded: tuple[Connection, Provider]) -> Iterator[Session]:
    connection, _ = seeded
    before = connection.begin_nested()
    with Session(
        connection, join_transaction_mode="create_savepoint", expire_on_commit=False
    ) as session:
        yield session
    before.rollback()


@pytest.fixture
def provider(app: FastAPI, seeded: tuple[Connection, Provider]) -> Provider:
    return seeded[1]


@pytest.fixture
def operator_page(provider: Provider, sign_in: SignIn) -> TestClient:
    return sign_in(provider.operator_token)


def html_of(client: TestClient) -> str:
    answer = client.get(ADDRESS)
    assert answer.status_code == 200, answer.text
    return str(answer.text)


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def section(html: str, heading: str) -> str:
    """The text of the section that a heading's id names."""
    found = re.search(rf'<section[^>]*aria-labelledby="{heading}">(.*?)</section>', html, re.DOTALL)
    assert found, f"no section {heading}"
    return text_of(found[1])


def tile(html: str, name: str) -> str:
    found = re.search(rf"<dt>{name}</dt><dd><a[^>]*>([^<]+)</a></dd>", html)
    assert found, name
    return found[1]


def token_of(session: Session, provider: Provider, scope: Scope) -> str:
    token = create_key(session, provider.operator.project, "staff", frozenset({scope}))[1]
    session.commit()
    return token


class TestWhoMaySee:
    @pytest.mark.parametrize("scope", [Scope.VIEWER, Scope.REVIEWER, Scope.PROVIDER])
    def test_staff_of_every_kind(
        self, session: Session, provider: Provider, sign_in: SignIn, scope: Scope
    ) -> None:
        html = html_of(sign_in(token_of(session, provider, scope)))
        assert (">Review<" in html) == (scope == Scope.REVIEWER)
        assert (">View<" in html) == (scope != Scope.REVIEWER)

    def test_no_customer(self, provider: Provider, sign_in: SignIn) -> None:
        client = sign_in(provider.customer_token)
        answer = client.get(ADDRESS)
        assert answer.status_code == 403
        assert "own people." in answer.text
        assert ADDRESS not in client.get("/dashboard/jobs").text

    def test_nobody_who_has_not_signed_in(self, provider: Provider, visitor: TestClient) -> None:
        assert visitor.get(ADDRESS).status_code == 303

    def test_staff_begin_here(self, operator_page: TestClient) -> None:
        assert operator_page.get("/dashboard/").headers["location"] == ADDRESS

    def test_live_part_is_the_part_alone(self, operator_page: TestClient) -> None:
        html = operator_page.get(ADDRESS, headers={"HX-Request": "true"}).text
        assert html.lstrip().startswith(f'<div id="overview" data-live hx-get="{ADDRESS}"')
        assert "<html" not in html


class TestWholePage:
    def test_runs_nothing_inline_and_has_unique_ids(self, operator_page: TestClient) -> None:
        html = html_of(operator_page)
        assert not re.search(r"<script(?![^>]*\ssrc=)", html)
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html)
        ids = re.findall(r'\sid="([^"]+)"', html)
        assert len(ids) == len(set(ids))
        assert html.count("<h1") == 1

    def test_links_to_jobs_can_be_followed(self, operator_page: TestClient) -> None:
        links = set(re.findall(r'href="(/dashboard/jobs[^"#]*)', html_of(operator_page)))
        assert len(links) > 5
        for link in links:
            assert operator_page.get(link.replace("&amp;", "&")).status_code == 200, link

    def test_costs_the_same_statements_however_much_there_is(
        self,
        operator_page: TestClient,
        provider: Provider,
        session: Session,
        statements: list[str],
    ) -> None:
        html_of(operator_page)
        statements.clear()
        html_of(operator_page)
        before = len(statements)
        for number in range(8):
            suffix = f"more:{number}"
            seed_held_model(session, provider.other, suffix, harmful=25, hours_ago=1, points=2)
            name = f"ft:fault-{number}"
            seed_fault(session, provider.other, name, "sandbox-booster", 30, code="worker_lost")
            name = f"ft:alarm-{number}"
            seed_canary_alarm(session, provider.other, name, minutes_ago=30)
        session.commit()
        statements.clear()
        html_of(operator_page)
        # One more: the failures that are not shown are counted.
        assert len(statements) <= before + 1 <= 25


class TestHeld:
    def test_stand_first_the_longest_waiting_before_all(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        old = seed_held_model(session, provider.other, "old", harmful=25, hours_ago=70, points=2)
        session.commit()
        html = html_of(operator_page)
        assert (
            html.index("Waiting for a decision")
            < html.index(old.result_model_id)
            < html.index(HELD_MODEL)
            < html.index('class="tiles"')
        )
        line = section(html, "held")
        assert re.search(
            r"Harbour Legal · held 3 d ago HS is 12\.5% .*? blocked unless decided in 2 h", line
        )
        assert re.search(r"Acme Support · held 2\d min ago", line)
        assert tile(html, "Held") == "2"

    def test_an_appeal_is_marked_and_counted(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        project = provider.customer.project
        job = seed_appealed(session, project, "appealed", by=provider.customer)
        session.commit()
        html = html_of(operator_page)
        held = section(html, "held")
        assert "2, 1 of them appealed" in held
        assert "appealed just now The customer has appealed. 26.0%" in held
        assert job.result_model_id in held
        assert re.search(r"1 appealed</dd>", html)

    def test_data_waits_beside_models_and_says_what_was_found(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        job = seed_held_data(session, provider.other)
        session.commit()
        html = html_of(operator_page)
        held = section(html, "held")
        assert f"{job.result_model_id} Harbour Legal · training data · held 3 h ago" in held
        assert "14 of 1,000" in held
        assert "rejected unless decided in 3 d" in held
        assert (tile(html, "Held"), tile(html, "Running")) == ("2", "2")
        assert f'href="/dashboard/reviews/{job.id}"' in html

    def test_only_the_oldest_are_shown_and_the_rest_is_counted(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        seed_held_models(session, provider.other, count=MAX_HELD_SHOWN)
        html = html_of(operator_page)
        assert f"All {MAX_HELD_SHOWN + 1} in the review queue" in html
        # The newest is the one that was seeded with all.
        assert HELD_MODEL not in section(html, "held")


class TestAlerts:
    def test_a_running_job_whose_canary_falls(self, operator_page: TestClient) -> None:
        alerts = section(html_of(operator_page), "alerts")
        assert re.search(
            rf"Canary falls {re.escape(RUNNING_MODEL)} Acme Support The loss on held-out harmful rows "
            r"went from 2\.\d\d to 1\.\d\d: the model is learning harm now\.",
            alerts,
        )
        assert alerts.count("Canary falls") == 1

    def test_training_that_the_canary_ended_with_the_verdict(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        version = seed_canary_alarm(session, provider.other, "ft:alarm", minutes_ago=90)
        session.commit()
        line = "Canary alarm ft:alarm Harbour Legal Training was ended at step 112 of 300"
        assert line in section(html_of(operator_page), "alerts")
        version.created_at = utc_now() - attention.ALARMS_SINCE - timedelta(minutes=1)
        session.commit()
        assert "Canary alarm" not in html_of(operator_page)

    def test_versions_that_no_canary_ended_are_none(
        self, operator_page: TestClient, session: Session
    ) -> None:
        version = session.get_one(ModelVersion, "ft:sandbox-base:acme:tickets:R4kd92Lm")
        version.recipe = {**version.recipe, "protection": {"stopped_at_step": None}}
        version.created_at = utc_now()
        session.commit()
        assert "Canary alarm" not in html_of(operator_page)

    def test_failures_of_ours_and_no_others(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        for name, code, minutes in (
            ("ft:lost", "worker_lost", 60),
            ("ft:theirs", "out_of_memory", 60),
            ("ft:yesterday", "internal_error", 26 * 60),
        ):
            seed_fault(session, provider.other, name, "sandbox-booster", minutes, code=code)
        session.commit()
        alerts = section(html_of(operator_page), "alerts")
        assert "Our fault ft:lost Harbour Legal The worker fell silent 3 times" in alerts
        assert "ft:theirs" not in alerts
        assert "ft:yesterday" not in alerts

    def test_more_failures_than_are_shown_are_counted(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        for number in range(attention.MAX_SHOWN + 2):
            name = f"ft:{number}"
            seed_fault(session, provider.other, name, "sandbox-booster", 60, code="judge_failed")
        session.commit()
        alerts = section(html_of(operator_page), "alerts")
        assert "2 more failed by our fault in the last day" in alerts

    @pytest.mark.long
    def test_faults_of_ours_are_codes_that_jobs_fail_with(self) -> None:
        # Where they are defined; what the worker says of the unexpected, and the sweeper of the lost, are no classes.
        for module in ("base_models", "judgement", "lora"):
            import_module(f"worker.{module}")
        known, found = [DomainError], {"internal_error", "worker_lost"}
        while known:
            kind = known.pop()
            found.add(kind.code)
            known += kind.__subclasses__()
        assert set(attention.OUR_FAULTS) <= found

    def test_silent_workers_but_not_those_that_said_goodbye(
        self, operator_page: TestClient
    ) -> None:
        alerts = section(html_of(operator_page), "alerts")
        assert re.search(r"Silent worker gpu-9:4188 was last heard 1\d min ago", alerts)
        assert "gpu-8" not in alerts

    def test_jobs_that_wait_while_nobody_works(
        self, operator_page: TestClient, session: Session
    ) -> None:
        assert "no worker is alive" not in html_of(operator_page)
        session.execute(update(Worker).values(stopped_at=utc_now()))
        session.commit()
        alerts = section(html_of(operator_page), "alerts")
        assert "No worker 1 job waits and no worker is alive." in alerts

    def test_a_sweeper_that_is_gone(self, operator_page: TestClient, session: Session) -> None:
        assert "No sweeper" not in html_of(operator_page)
        before = utc_now() - SWEEPER_GONE_AFTER - timedelta(seconds=1)
        session.execute(update(ProjectUse).values(counted_at=before))
        session.commit()
        assert "No sweeper" in section(html_of(operator_page), "alerts")

    def test_no_alert_and_nothing_held_is_said_in_a_line(
        self, operator_page: TestClient, session: Session
    ) -> None:
        session.execute(update(Worker).values(seen_at=utc_now() + timedelta(hours=1), job_id=None))
        session.execute(
            update(Job)
            .where(Job.stage == Stage.REVIEW)
            .values(status=JobStatus.CANCELLED, finished_at=utc_now())
        )
        session.commit()
        html = html_of(operator_page)
        assert "Nothing needs a person now." in html
        assert 'id="alerts"' not in html


class TestNumbers:
    def test_tiles_count_each_state(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        paused = seed_job(
            session,
            provider.other,
            name="ft:paused",
            model="sandbox-booster",
            status=JobStatus.PAUSED,
        )
        session.commit()
        html = html_of(operator_page)
        found = {
            name: tile(html, name)
            for name in ("Running", "Queued", "Held", "Paused", "Blocked", "Cancelled")
        }
        assert found == {
            "Running": "2",
            "Queued": "1",
            "Held": "1",
            "Paused": "1",
            "Blocked": "1",
            "Cancelled": "1",
        }
        # The two alignments ended two days ago.
        assert tile(html, "Succeeded") == "2"
        assert tile(html, "Failed otherwise") == "1"
        assert paused.result_model_id not in section(html, "queue")

    def test_queue_by_priority_with_its_age(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        provider.other.priority = Priority.HIGH
        session.merge(provider.other)
        for minutes_ago in (90, 4):
            seed_job(
                session,
                provider.other,
                name=f"ft:{minutes_ago}",
                model="sandbox-booster",
                status=JobStatus.QUEUED,
                minutes_ago=minutes_ago,
            )
        session.commit()
        shown = section(html_of(operator_page), "queue")
        assert re.search(r"High 2 2 h ago Normal 1 (just now|\d+ min ago) Low 0 –", shown)
        provider.other.priority = Priority.NORMAL

    def test_a_queue_too_long_to_count_is_a_lower_bound(
        self,
        operator_page: TestClient,
        provider: Provider,
        session: Session,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(queue, "MAX_COUNTED", 2)
        for number in range(3):
            seed_job(
                session,
                provider.other,
                name=f"ft:{number}",
                model="sandbox-booster",
                status=JobStatus.QUEUED,
            )
        session.commit()
        html = html_of(operator_page)
        assert tile(html, "Queued") == "3+"
        assert "Normal 3+" in section(html, "queue")

    def test_more_ends_than_are_counted_are_the_newest(
        self, operator_page: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "in the last 24 h" in html_of(operator_page)
        monkeypatch.setattr(queue, "MAX_ENDED", 3)
        html = html_of(operator_page)
        assert "of the newest 3" in html
        ends = ("Succeeded", "Blocked", "Failed otherwise", "Cancelled")
        assert sum(int(tile(html, name)) for name in ends) == 3


class TestWorkers:
    def test_device_memory_base_job_and_pace(self, operator_page: TestClient) -> None:
        fleet = section(html_of(operator_page), "workers")
        assert "3 alive" in fleet
        assert "1 stopped in the last day" in fleet
        assert re.search(
            r"cuda: NVIDIA H100 80GB HBM3 \d+\.0 GiB of 80\.0 GiB · 82% busy holds sandbox-base "
            + re.escape(RUNNING_MODEL)
            + r" Acme Support · train 172 of 300 steps · 4\.\d a second canary 2\.\d+ → 1\.\d+ fallen",
            fleet,
        )
        assert re.search(r"300 of 500 answers · 33\.3 a second", fleet)
        assert re.search(r"spare:977 Idle cpu 2\.0 GiB of 128\.0 GiB no base in memory", fleet)
        assert "gpu-9:4188 Silent" in fleet

    def test_a_job_that_ended_since_its_worker_spoke_is_not_shown(
        self, operator_page: TestClient, session: Session
    ) -> None:
        session.execute(
            update(Job)
            .where(Job.result_model_id == RUNNING_MODEL)
            .values(status=JobStatus.CANCELLED, finished_at=utc_now())
        )
        session.commit()
        assert RUNNING_MODEL not in section(html_of(operator_page), "workers")

    def test_none_at_all_says_how_to_start_one(
        self, operator_page: TestClient, session: Session
    ) -> None:
        for worker in session.scalars(select(Worker)):
            session.delete(worker)
        session.commit()
        assert "make up starts one" in section(html_of(operator_page), "workers")


class TestScores:
    def test_are_counted_by_verdict_and_the_table_says_the_same(
        self, operator_page: TestClient
    ) -> None:
        html = html_of(operator_page)
        shown = section(html, "scores")
        assert "released 4 held 1 blocked 1" in shown
        assert "0–5% 3 0 0" in shown
        assert "5–10% 1 0 0" in shown
        assert "10–15% 0 1 0" in shown
        assert "80–85% 0 0 1" in shown
        assert html.count('class="segment"') == 4
        assert 'x1="15.0%"' in html
        assert "limit 15%" in shown
        # Told apart without colour, too.
        assert len(set(re.findall(r'fill="url\(#(fill-\w+)\)"', html))) == 3

    def test_line_is_the_policys_that_is_in_force(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        rules = session.get_one(SafetyPolicy, 1).rules
        session.add_all(
            [
                SafetyPolicy(version=2, rules={**rules, "max_harmful_score": 8.5}),
                SafetyPolicy(version=3, rules=rules, project_id=provider.other.id),
            ]
        )
        session.commit()
        shown = section(html_of(operator_page), "scores")
        assert "limit 8.5%" in shown
        assert "that of policy 2" in shown
        assert "1 project has a policy of its own" in shown

    def test_highest_score_is_in_the_last_bar_and_old_ones_in_none(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        for name, minutes in (("ft:worst", 60), ("ft:old", (scores.DAYS + 1) * 24 * 60)):
            job = seed_job(
                session,
                provider.other,
                name=name,
                model="sandbox-sft",
                status=JobStatus.SUCCEEDED,
                minutes_ago=minutes,
            )
            job.finished_at = job.created_at
            seed_version(session, job, report(200), method="sft")
        session.commit()
        shown = section(html_of(operator_page), "scores")
        assert "95–100% 0 0 1" in shown

    def test_more_than_are_drawn_are_the_newest(
        self, operator_page: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scores, "MAX_EVALUATIONS", 2)
        assert "2 newest verdicts" in section(html_of(operator_page), "scores")

    @pytest.mark.parametrize(
        ("highest", "expected"),
        [
            (0, 2),
            (1, 2),
            (3, 4),
            (7, 10),
            (10, 10),
            (11, 20),
            (61, 80),
            (999, 1_000),
            (5_000, 6_000),
        ],
    )
    def test_ceiling_is_round_and_holds_the_highest(self, highest: int, expected: int) -> None:
        assert ceiling(highest) == expected


class TestPressure:
    def test_who_is_near_a_limit_and_who_stores_most(
        self, operator_page: TestClient, provider: Provider, session: Session
    ) -> None:
        assert "No project is near a limit" in section(html_of(operator_page), "limits")
        project = session.merge(provider.other)
        project.quota_bytes_stored = 1_300_000
        project.quota_training_tokens_month = 200_000
        session.commit()
        html = html_of(operator_page)
        assert re.search(
            r"Harbour Legal 92% 184,320 of 200,000 tokens trained this month",
            section(html, "limits"),
        )
        assert re.search(r"Harbour Legal [\d.]+ KiB of 1\.2 MiB", section(html, "storage"))
        assert re.search(r"Disk [\d.]+ \w+ free of", section(html, "storage"))
        project.quota_bytes_stored = project.quota_training_tokens_month = None

    def test_before_the_first_count_it_says_so(
        self, operator_page: TestClient, session: Session
    ) -> None:
        for use in session.scalars(select(ProjectUse)):
            session.delete(use)
        session.commit()
        assert "has not counted yet" in section(html_of(operator_page), "storage")


class TestIndexes:
    """What keeps the page as fast with a million jobs: that these statements can be answered by their indexes.

    Those for which few rows have several indexes to choose from are left to `benchmarks.dashboard_pages`.
    """

    @pytest.mark.parametrize(
        ("read", "index"),
        [
            (attention.read_held, "ix_jobs_in_review"),
            (attention.read_held, "ix_appeals_open"),
            (attention.read_alarms, "ix_model_versions_canary_fell"),
            (scores.read_distribution, "ix_evaluations_created_at_scores"),
        ],
    )
    def test_are_used(self, session: Session, read: object, index: str) -> None:
        plans: list[str] = []
        for option in ("seqscan", "bitmapscan", "sort"):
            session.execute(text(f"set local enable_{option} = off"))
        execute = session.execute

        def explain(query: object, *rest: object, **more: object) -> object:
            if hasattr(query, "compile"):
                written = query.compile(
                    dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}
                )
                rows = execute(text("explain " + str(written).replace(":", "\\:"))).scalars()
                plans.append("\n".join(str(row) for row in rows))
            return execute(query, *rest, **more)  # type: ignore[call-overload]

        session.execute = explain  # type: ignore[method-assign]
        assert callable(read)
        read(session)
        assert index in "\n".join(plans)


class TestFirstLook:
    def test_a_newcomer_is_told_what_to_do_next(
        self, session: Session, place: Place, sign_in: SignIn, provider: Provider
    ) -> None:
        session.execute(text("delete from workers"))
        for table in ("job_events", "evaluations", "project_use"):
            session.execute(text(f"delete from {table}"))
        session.execute(text("update model_versions set job_id = null"))
        session.execute(text("delete from jobs"))
        session.commit()
        html = html_of(sign_in(provider.operator_token))
        steps = section(html, "first-steps")
        assert "make up" in steps
        assert "Register a base model, with its safety set done" in steps
        assert "Give a customer a key done" in steps
        assert "titer jobs create" in steps
        assert 'class="tiles"' not in html
        assert 'id="alerts"' not in html
