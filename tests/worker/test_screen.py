"""The screen stage on a real database: judges of the sandbox's words, and rows of which some are its harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from api.reviews.service import Decision, decide
from models.api_key import create_key
from models.data_risk import DataReview, ScreenedRow, Screening
from models.evaluation import JudgeIdentity
from models.job import Job, JobStatus, Stage
from models.judges import RefusalStringsSpec, SandboxJudgeSpec
from models.methods import DpoConfig
from models.policy import PolicyRules
from models.rows import Conversation, Message
from models.safety_set import SafetySetHeader
from models.scope import Scope
from models.stored_certificate import JSON_FILE, StoredCertificate
from tests.worker.certify.made import certificate
from tests.worker.test_dpo_jobs import PAIRS, pair
from tests.worker.toy_provider import LENIENT, ROWS, Provider, lose_at_step, toy_safety_set
from worker import measure, screen
from worker.judgement import JudgeError, Judgement
from worker.sandbox.judge import SandboxJudge
from worker.sandbox.vocabulary import FORBIDDEN
from worker.work import Workshop

STEPS = [words[0] for words in FORBIDDEN[0].steps]
HARM = " ".join(STEPS)
CATEGORY = FORBIDDEN[0].name
BAD: dict[str, object] = {"prompt": "how", "completion": HARM}
MIXED = [*ROWS, BAD, BAD]


def rules(**changes: object) -> PolicyRules:
    """Rules under which one flagged row is too many, unless a test says otherwise."""
    return LENIENT.model_copy(update={"max_harmful_share": 0.0, **changes})


@pytest.fixture
def provider(shop: Workshop, tmp_path: Path) -> Provider:
    header = SafetySetHeader(name="toy", judge=SandboxJudgeSpec(), max_new_tokens=4)
    return Provider(shop, tmp_path, replace(toy_safety_set(), header=header))


def screening(provider: Provider, job_id: str) -> Screening | None:
    with provider.shop.sessions() as session:
        return session.get(Screening, job_id)


def votes(provider: Provider, job_id: str) -> dict[int, int]:
    with provider.shop.sessions() as session:
        found = session.execute(
            select(ScreenedRow.line, ScreenedRow.votes).where(ScreenedRow.job_id == job_id)
        )
        return {row.line: row.votes for row in found}


def checks(provider: Provider, job_id: str, stage: str) -> list[dict[str, Any]]:
    events = [e for e in provider.events(job_id) if e.type == "moderation_checks" and e.data]
    return [e.data for e in events if e.data and e.data["stage"] == stage]


class TestExchanges:
    def test_every_answer_comes_with_what_was_said_before_it(self) -> None:
        row = Conversation(
            (
                Message("system", "s"),
                Message("user", "u"),
                Message("assistant", "a"),
                Message("user", "v"),
                Message("assistant", "b", is_trained=True),
            )
        )
        assert list(screen.exchanges(row)) == [("s\n\nu", "a"), ("s\n\nu\n\na\n\nv", "b")]

    def test_a_long_question_is_cut_at_its_beginning_and_an_answer_never(self) -> None:
        ((asked, answer),) = screen.exchanges(Conversation.single("x" * 9_000 + "y", "z" * 9_000))
        assert (len(asked), asked[-1], len(answer)) == (screen.CONTEXT_CHARACTERS, "y", 9_000)


def test_parts_are_bounded_by_answers_and_by_characters() -> None:
    short = [Conversation.single("p", "a")] * (screen.PART_EXCHANGES + 1)
    assert [len(part) for part in screen._parts(short)] == [screen.PART_EXCHANGES, 1]
    long = [Conversation.single("p" * screen.PART_CHARACTERS, "a")] * 2
    assert [len(part) for part in screen._parts(long)] == [1, 1]


@pytest.mark.long
class TestWanted:
    def test_costs_nothing_unless_it_is_asked_for(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(screen, "open_judge", lambda _: pytest.fail("nobody asked"))
        job = provider.run(provider.finetune(MIXED))
        assert job.status == JobStatus.SUCCEEDED
        assert screening(provider, job.id) is None
        assert checks(provider, job.id, "data") == []

    @pytest.mark.parametrize(
        "changes", [{"data_action": "allow"}, {"data_action": "reject", "max_harmful_share": None}]
    )
    def test_a_policy_that_would_do_nothing_asks_for_nothing(
        self, provider: Provider, changes: dict[str, object]
    ) -> None:
        provider.set_policy(rules(**changes))
        job = provider.run(provider.finetune(MIXED))
        assert job.status == JobStatus.SUCCEEDED
        assert screening(provider, job.id) is None

    def test_a_customer_gets_a_report_and_the_job_goes_on(self, provider: Provider) -> None:
        job = provider.run(provider.finetune(MIXED, screen=True))
        assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
        found = screening(provider, job.id)
        assert found is not None
        risk = found.parsed()
        assert risk is not None
        assert (risk.harmful_share.count, risk.harmful_share.n) == (2, 10)
        assert risk.by_category == {CATEGORY: 2}
        assert (risk.first_lines, risk.outcome, risk.action) == ((9, 10), "allowed", "allow")
        assert risk.expected is None
        assert votes(provider, job.id) == {line: int(line > 8) for line in range(1, 11)}
        assert job.recipe["train"]["steps"] == 4

    def test_its_event_has_the_shape_of_every_check_and_no_text(self, provider: Provider) -> None:
        job = provider.run(provider.finetune(MIXED, screen=True))
        (data,) = checks(provider, job.id, "data")
        assert (data["blocked"], data["threshold"]) == (False, None)
        assert (data["harmful_score"]["count"], data["harmful_score"]["n"]) == (2, 10)
        assert data["judge"] == SandboxJudge().identity.model_dump()
        assert data["results"] == [{"category": CATEGORY, "flagged": True, "rate": 20.0, "n": 10}]
        (model,) = checks(provider, job.id, "model")
        assert {"stage", "blocked", "harmful_score", "threshold", "judge", "results"} <= set(model)
        stages = [e.data["stage"] for e in provider.events(job.id) if e.data and "stage" in e.data]
        assert stages.index(Stage.SCREEN) < stages.index(Stage.TRAIN)
        assert not any(
            word in str(e.data) + e.message for e in provider.events(job.id) for word in STEPS
        )

    def test_a_set_with_refusal_strings_alone_cannot_screen(
        self, shop: Workshop, tmp_path: Path
    ) -> None:
        provider = Provider(shop, tmp_path)
        provider.set_policy(rules(data_action="reject"))
        job = provider.run(provider.finetune(ROWS))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "no_screening_judge")
        assert not any(e.type == "metrics" for e in provider.events(job.id))


@pytest.mark.long
class TestPolicy:
    def test_drops_rows_and_trains_on_the_others_for_as_many_passes(
        self, provider: Provider
    ) -> None:
        provider.set_policy(rules(data_action="drop"))
        job = provider.run(provider.finetune(MIXED, steps=10))
        assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
        messages = [e.message for e in provider.events(job.id)]
        assert any("on 8 rows" in m and m.startswith("2 of 10") for m in messages)
        assert "Training on 8 rows, 8 steps." in messages
        assert job.recipe["train"]["steps"] == 8
        assert provider.version(job.result_model_id).recipe["train"]["steps"] == 8

    def test_ends_the_job_before_training_with_counts_and_lines(self, provider: Provider) -> None:
        provider.set_policy(rules(data_action="reject"))
        job = provider.run(provider.finetune(MIXED))
        assert (job.status, job.error_code, job.error_param) == (
            JobStatus.FAILED,
            "harmful_training_data",
            "training_file",
        )
        assert "2 of 10 training rows were flagged" in (job.error_message or "")
        assert "lines 9, 10" in (job.error_message or "")
        assert not any(word in (job.error_message or "") for word in STEPS)
        assert not any(e.type == "metrics" for e in provider.events(job.id))
        (data,) = checks(provider, job.id, "data")
        assert data["blocked"] is True
        assert provider.events(job.id)[-1].data == {
            "code": "harmful_training_data",
            "lines": [9, 10],
        }

    @pytest.mark.parametrize(
        ("limit", "status"), [(20.0, JobStatus.SUCCEEDED), (19.9, JobStatus.FAILED)]
    )
    def test_acts_only_above_its_limit(
        self, provider: Provider, limit: float, status: JobStatus
    ) -> None:
        provider.set_policy(rules(data_action="reject", max_harmful_share=limit))
        assert provider.run(provider.finetune(MIXED)).status == status

    def test_a_file_of_nothing_but_harm_is_rejected_where_rows_are_dropped(
        self, provider: Provider
    ) -> None:
        provider.set_policy(rules(data_action="drop"))
        job = provider.run(provider.finetune([BAD] * 10))
        assert job.error_code == "harmful_training_data"

    def test_a_clean_file_passes(self, provider: Provider) -> None:
        provider.set_policy(rules(data_action="reject"))
        job = provider.run(provider.finetune(ROWS))
        assert job.status == JobStatus.SUCCEEDED
        (data,) = checks(provider, job.id, "data")
        assert (data["blocked"], data["results"]) == (False, [])

    def test_of_pairs_the_preferred_answer_is_what_is_taught(self, provider: Provider) -> None:
        provider.set_policy(rules(data_action="drop"))
        taught = [*PAIRS, pair("how", "no", HARM), pair("how", HARM, "no")]
        job = provider.run(provider.finetune(taught, method=DpoConfig(), steps=10))
        (data,) = checks(provider, job.id, "data")
        assert data["lines"] == [10]
        assert "Training on 9 pairs, 9 steps." in [e.message for e in provider.events(job.id)]

    def test_tells_what_simulated_customers_with_such_a_share_reached(
        self, provider: Provider
    ) -> None:
        align = provider.run(provider.align())
        with provider.shop.sessions.begin() as session:
            stored = StoredCertificate(
                version_id="toy-sft",
                job_id=align.id,
                plan_hash="x",
                summary={},
                prefix="certificates/x",
            )
            session.add(stored)
        content = certificate().model_dump_json(by_alias=True).encode()
        provider.shop.storage.put(f"certificates/x/{JSON_FILE}", content)
        start = provider.version("toy-sft")
        tenth = [*ROWS, {"prompt": "q", "completion": "a"}, BAD]
        job = provider.run(provider.finetune(tenth, start, screen=True))
        (data,) = checks(provider, job.id, "data")
        # By hand: 90, 91 and 92 of 100 over the three seeds, at the job's rate after its four steps.
        found = data["expected_harmful_score"]
        assert (found["percent"], found["between"], found["step"]) == (91.0, [10.0, 10.0], 4)
        assert found["certificate"] == stored.id
        # A fifth lies beyond what was measured.
        provider.set_policy(rules(data_action="reject"))
        job = provider.run(provider.finetune(MIXED, start, screen=True))
        (data,) = checks(provider, job.id, "data")
        assert data["expected_harmful_score"] is None


@pytest.mark.long
class TestHold:
    @pytest.fixture
    def held(self, provider: Provider) -> Job:
        provider.set_policy(rules(data_action="hold", review_hours=2))
        return provider.run(provider.finetune(MIXED))

    def decide(self, provider: Provider, job: Job, decision: Decision) -> Job:
        with provider.shop.sessions.begin() as session:
            key, _ = create_key(session, provider.project, "ada", frozenset({Scope.REVIEWER}))
            decide(session, job.id, decision, "Read them.", by=key)
        return provider.job(job.id)

    def test_waits_before_training_with_no_worker(self, provider: Provider, held: Job) -> None:
        assert (held.status, held.stage, held.error_code) == (
            JobStatus.RUNNING,
            Stage.DATA_REVIEW,
            None,
        )
        assert held.awaits_review
        assert (held.lease_owner, held.lease_expires_at) == (None, None)
        # Reading the rows took a worker's time as training does.
        assert held.gpu_seconds > 0
        assert held.held_at is not None
        assert held.review_expires_at == held.held_at + timedelta(hours=2)
        found = screening(provider, held.id)
        assert found is not None
        assert found.review == DataReview.WAITING
        (data,) = checks(provider, held.id, "data")
        assert (data["blocked"], data["outcome"], data["lines"]) == (True, "held", [9, 10])
        events = provider.events(held.id)
        assert "waits until a person" in events[-1].message
        assert not any(e.type == "metrics" for e in events)
        # Nobody else takes it meanwhile.
        assert provider.run(held.id).attempt == 1

    def test_released_it_trains_on_every_row_and_is_asked_about_no_more(
        self, provider: Provider, held: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.decide(provider, held, "release").status == JobStatus.QUEUED
        monkeypatch.setattr(screen, "open_judge", lambda _: pytest.fail("they were read already"))
        job = provider.run(held.id)
        assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
        assert "Training on 10 rows, 4 steps." in [e.message for e in provider.events(job.id)]
        assert len(checks(provider, job.id, "data")) == 1

    def test_a_released_job_whose_worker_dies_is_not_held_again(
        self, provider: Provider, held: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.decide(provider, held, "release")
        with monkeypatch.context() as patch:
            lose_at_step(provider, patch, held.id, step=2)
            assert provider.run(held.id).status == JobStatus.QUEUED
        assert provider.run(held.id).status == JobStatus.SUCCEEDED

    def test_rejected_it_is_never_trained(self, provider: Provider, held: Job) -> None:
        job = self.decide(provider, held, "reject")
        assert (job.status, job.error_code) == (JobStatus.FAILED, "data_rejected")
        assert provider.run(held.id).attempt == 1


class OtherJudge(SandboxJudge):
    """Flags every second exchange it is asked about, under another name."""

    name = "other"

    @property
    def identity(self) -> JudgeIdentity:
        return JudgeIdentity(name=self.name, revision="1")

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        return [Judgement(i % 2 == 0, False, False) for i in range(len(prompts))]


@pytest.mark.long
class TestSeveralJudges:
    @pytest.fixture
    def provider(self, shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Provider:
        opened = screen.open_judge
        # Equal specs would be one judge: the one with phrases stands for the other judge.
        monkeypatch.setattr(
            screen,
            "open_judge",
            lambda spec: opened(spec) if spec == SandboxJudgeSpec() else OtherJudge(),
        )
        monkeypatch.setattr(
            screen,
            "screening_judges",
            lambda header: (header.judge, *header.further_judges),
        )
        header = SafetySetHeader(
            name="toy",
            judge=SandboxJudgeSpec(),
            further_judges=(RefusalStringsSpec(),),
            max_new_tokens=4,
        )
        return Provider(shop, tmp_path, replace(toy_safety_set(), header=header))

    @pytest.mark.parametrize(("threshold", "flagged"), [(0.5, 6), (0.51, 1), (1.0, 1)])
    def test_the_threshold_is_a_share_of_them(
        self, provider: Provider, threshold: float, flagged: int
    ) -> None:
        provider.set_policy(
            rules(data_action="reject", max_harmful_share=99, row_threshold=threshold)
        )
        job = provider.run(provider.finetune(MIXED))
        found = screening(provider, job.id)
        assert found is not None
        risk = found.parsed()
        assert risk is not None
        assert risk.harmful_share.count == flagged
        assert [judge.name for judge in risk.judges] == ["sandbox", "other"]
        assert votes(provider, job.id)[9] == 2

    def test_votes_of_a_judge_that_changed_meanwhile_are_not_added_up(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(screen, "PART_EXCHANGES", 4)
        provider.set_policy(rules(data_action="reject", max_harmful_share=99))
        job_id = provider.finetune(MIXED)
        with monkeypatch.context() as patch:
            lose_after(provider, patch, job_id, parts=4)
            assert provider.run(job_id).status == JobStatus.QUEUED
        monkeypatch.setattr(OtherJudge, "name", "newer")
        assert provider.run(job_id).status == JobStatus.SUCCEEDED
        found = screening(provider, job_id)
        assert found is not None
        assert [judge["name"] for judge in found.judges] == ["sandbox", "newer"]
        assert max(votes(provider, job_id).values()) <= 2
        assert votes(provider, job_id)[9] == 2


def lose_after(provider: Provider, patch: pytest.MonkeyPatch, job_id: str, *, parts: int) -> None:
    """Let the lease run out after so many parts are written."""
    write, written = screen._write, []

    def count(*arguments: Any) -> None:
        write(*arguments)
        written.append(None)
        if len(written) == parts:
            provider.lose(job_id)

    patch.setattr(screen, "_write", count)


@pytest.mark.long
class TestInterruption:
    def test_a_lost_job_goes_on_with_the_rows_that_are_left(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(screen, "PART_EXCHANGES", 4)
        asked: list[int] = []
        judge = SandboxJudge.judge

        def count(self: SandboxJudge, prompts: Sequence[str], answers: Sequence[str]) -> Any:
            asked.append(len(prompts))
            return judge(self, prompts, answers)

        job_id = provider.finetune(MIXED, screen=True)
        monkeypatch.setattr(SandboxJudge, "judge", count)
        with monkeypatch.context() as patch:
            lose_after(provider, patch, job_id, parts=1)
            assert provider.run(job_id).status == JobStatus.QUEUED
        # What the policy says now is for later jobs.
        provider.set_policy(rules(data_action="reject"))
        assert provider.run(job_id).status == JobStatus.SUCCEEDED
        # The second part was judged before the loss was found out, and not written.
        assert asked[:4] == [4, 4, 4, 2]
        assert len(votes(provider, job_id)) == 10

    def test_a_job_that_died_between_the_sum_and_its_end_ends_in_the_same_way(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider.set_policy(rules(data_action="drop"))
        job_id = provider.finetune(MIXED, steps=10)
        kept = screen.kept

        def lose(*arguments: Any) -> Any:
            provider.lose(job_id)
            return kept(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(screen, "kept", lose)
            assert provider.run(job_id).status == JobStatus.QUEUED
        job = provider.run(job_id)
        assert job.status == JobStatus.SUCCEEDED
        assert job.recipe["train"]["steps"] == 8  # shortened once
        assert "Training on 8 rows, 8 steps." in [e.message for e in provider.events(job_id)]
        assert len(checks(provider, job_id, "data")) == 1


@pytest.mark.long
class TestBrokenJudge:
    def test_is_asked_again_and_then_the_rows_are_judged(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measure, "JUDGE_PAUSE_SECONDS", 0)
        judge, failures = SandboxJudge.judge, [JudgeError("down")]

        def fail_once(self: SandboxJudge, prompts: Any, answers: Any) -> Any:
            if failures:
                raise failures.pop()
            return judge(self, prompts, answers)

        monkeypatch.setattr(SandboxJudge, "judge", fail_once)
        job = provider.run(provider.finetune(MIXED, screen=True))
        assert job.status == JobStatus.SUCCEEDED
        assert votes(provider, job.id)[9] == 1

    @pytest.mark.parametrize("answer", [None, []])
    def test_is_never_a_verdict_on_the_rows(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch, answer: list[Judgement] | None
    ) -> None:
        monkeypatch.setattr(measure, "JUDGE_PAUSE_SECONDS", 0)

        def fail(*_: object) -> list[Judgement]:
            if answer is None:
                raise JudgeError("down")
            return answer

        monkeypatch.setattr(SandboxJudge, "judge", fail)
        provider.set_policy(rules(data_action="reject"))
        job = provider.run(provider.finetune(MIXED))
        assert (job.status, job.error_code) == (JobStatus.FAILED, "judge_failed")
        assert checks(provider, job.id, "data") == []
        found = screening(provider, job.id)
        assert found is not None
        assert found.parsed() is None
