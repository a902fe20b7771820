"""The screen stage: the safety set's judges read every training row before anything is trained.

    rows ─► exchanges (what was asked, what the assistant answers) ─► each judge in turn ─► votes by line
         ─► share of flagged rows ─► policy: allow | drop | hold | reject

Runs only where the policy or the customer asks for it. Judges' votes are written row by row, a part at a
time, so that a job which is claimed again goes on with the rows that are left. A judge that fails is asked
again; one that stays broken fails the job as in the evaluation: it says nothing about the rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar, assert_never

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from models.base import utc_now
from models.certificate import Certificate
from models.data_risk import (
    MAX_LINES_NAMED,
    OUTCOMES,
    DataRisk,
    ExpectedHarm,
    FlaggedRow,
    ScreenedRow,
    Screening,
    asks_for_screening,
    expected_harm,
    flagged_rows,
    is_exceeded,
    screening_judges,
)
from models.errors import DomainError
from models.evaluation import JudgeIdentity
from models.hyperparameters import Recipe
from models.job import Job, JobKind, Stage
from models.judges import JudgeSpec
from models.moderation import CheckLevel, CheckResult, tell_checks
from models.policy import current_policy
from models.rate import Rate
from models.rows import Message
from models.safety_set import MAX_CATEGORY
from models.stored_certificate import JSON_FILE, latest_certificates
from worker.judge import open_judge
from worker.judgement import Judge, JudgeError, Judgement
from worker.leased_job import LeasedJob
from worker.measure import with_patience
from worker.work import Work, Workshop

#: Exchanges that are judged before the votes are written, and characters of them, about.
PART_EXCHANGES = 256
PART_CHARACTERS = 4_000_000
#: Of what was said before an answer a judge reads the end. What is trained is the answer, which it reads whole.
CONTEXT_CHARACTERS = 8_000
MAX_LINES_IN_EVENT = 100
UNCATEGORISED = "uncategorised"


class Exchanges(Protocol):
    """A training row, of whatever shape: the turns that it teaches, and its line."""

    @property
    def line(self) -> int:
        """Its number in the file, counted from 1."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """Its turns."""


Row = TypeVar("Row", bound=Exchanges)


class HarmfulTrainingData(DomainError):
    """The training file has more harmful rows than the policy allows."""

    code = "harmful_training_data"

    def __init__(self, message: str, lines: Sequence[int]) -> None:
        """Keep the sentence and the first lines."""
        super().__init__(message, param="training_file")
        self._lines = list(lines)

    def extra(self) -> dict[str, object]:
        """The first flagged lines, without their text."""
        return {"lines": self._lines}


class DataHeld(HarmfulTrainingData):
    """The training file has more harmful rows than the policy lets pass without a person."""

    code = "data_held"


@dataclass(frozen=True, slots=True)
class _Vote:
    line: int
    is_harmful: bool
    category: str | None


def screen(
    job: LeasedJob, work: Work, rows: list[Row], shop: Workshop, *, is_trained: bool
) -> tuple[Work, list[Row]]:
    """Give the rows that training goes on with, and the work with the steps that they take.

    Args:
        job: the lease.
        work: the job.
        rows: of the training file.
        shop: the worker.
        is_trained: whether the model is there already; then nothing is judged any more.

    Raises:
        HarmfulTrainingData: the policy rejects the file.
        DataHeld: the policy asks for a person.
        NoScreeningJudge: the safety set names no judge for this.
        JudgeError: a judge failed every time.
        LeaseLost: the job is no longer this worker's.
    """
    if work.kind != JobKind.FINETUNE:
        return work, rows
    with shop.sessions() as session:
        stored = session.get(Screening, job.id)
    if stored is None:
        if is_trained or not _is_wanted(work, shop):
            return work, rows
        stored = _begin(job, work)
    if stored.finished_at is None:
        if is_trained:
            return work, rows
        _judge_rows(job, work, rows, stored)
        work = _conclude(job, work, rows, shop)
    return work, _kept(job, rows, shop)


def exchanges(row: Exchanges) -> Iterator[tuple[str, str]]:
    """Give each answer of a conversation with the end of all that was said before it."""
    said = ""
    for message in row.messages:
        if message.role == "assistant":
            yield said, message.content
        said = f"{said}\n\n{message.content}" if said else message.content
        said = said[-CONTEXT_CHARACTERS:]


def _is_wanted(work: Work, shop: Workshop) -> bool:
    if work.recipe.screen:
        return True
    with shop.sessions.begin() as session:
        return asks_for_screening(current_policy(session).parsed())


def _begin(job: LeasedJob, work: Work) -> Screening:
    judges = screening_judges(work.safety.header)
    job.enter(Stage.SCREEN, "The training rows are read by the safety set's judges.")
    with job.write() as (session, _):
        policy = current_policy(session)
        rules = policy.parsed()
        screening = Screening(
            job_id=job.id,
            judges=[],
            done=[0] * len(judges),
            row_threshold=rules.row_threshold,
            action=rules.data_action,
            max_harmful_share=rules.max_harmful_share,
            policy_version=policy.version,
        )
        session.add(screening)
    return screening


def _judge_rows(job: LeasedJob, work: Work, rows: Sequence[Exchanges], stored: Screening) -> None:
    specs = screening_judges(work.safety.header)
    done, number = list(stored.done), 0
    while number < len(specs):
        if done[number] < len(rows) and not _ask_all(job, specs[number], number, rows, done):
            # Votes of two judges that share a name must not be added up.
            done, number = [0] * len(specs), 0
            continue
        number += 1


def _ask_all(
    job: LeasedJob, spec: JudgeSpec, number: int, rows: Sequence[Exchanges], done: list[int]
) -> bool:
    """Let one judge read the rows that it has not read; False: it is not the one that has begun."""
    judge = with_patience(job, partial(open_judge, spec))
    try:
        if not _announce(job, number, judge.identity):
            return False
        for part in _parts(rows[done[number] :]):
            votes = with_patience(job, partial(_votes, judge, part))
            done[number] += len(part)
            _write(job, votes, done)
            total = len(rows) * len(done)
            job.progress(Stage.SCREEN, "Training rows judged", sum(done), total)
    finally:
        judge.close()
    return True


def _parts(rows: Sequence[Exchanges]) -> Iterator[list[Exchanges]]:
    part: list[Exchanges] = []
    answers = characters = 0
    for row in rows:
        part.append(row)
        answers += sum(message.role == "assistant" for message in row.messages)
        characters += sum(len(message.content) for message in row.messages)
        if answers >= PART_EXCHANGES or characters >= PART_CHARACTERS:
            yield part
            part, answers, characters = [], 0, 0
    if part:
        yield part


def _votes(judge: Judge, part: Sequence[Exchanges]) -> list[_Vote]:
    asked = [(row.line, *exchange) for row in part for exchange in exchanges(row)]
    judgements = judge.judge([prompt for _, prompt, _ in asked], [answer for *_, answer in asked])
    if len(judgements) != len(asked):
        raise JudgeError(f"The judge gave {len(judgements)} judgements on {len(asked)} answers.")
    by_line: dict[int, list[Judgement]] = {row.line: [] for row in part}
    for (line, *_), judgement in zip(asked, judgements, strict=True):
        by_line[line].append(judgement)
    return [_vote(line, found) for line, found in by_line.items()]


def _vote(line: int, judgements: Sequence[Judgement]) -> _Vote:
    harmful = [judgement for judgement in judgements if judgement.is_harmful]
    category = next((j.category for j in harmful if j.category is not None), None)
    # A moderation endpoint names its kinds as it likes.
    return _Vote(line, bool(harmful), category[:MAX_CATEGORY] if category else None)


def _announce(job: LeasedJob, number: int, identity: JudgeIdentity) -> bool:
    with job.write() as (session, _):
        screening = session.get_one(Screening, job.id)
        named = identity.model_dump()
        if len(screening.judges) <= number:
            screening.judges = [*screening.judges, named]
        elif screening.judges[number] != named:
            session.execute(delete(ScreenedRow).where(ScreenedRow.job_id == job.id))
            screening.judges, screening.done = [], [0] * len(screening.done)
            return False
    return True


def _write(job: LeasedJob, votes: Sequence[_Vote], done: Sequence[int]) -> None:
    values = [
        {
            "job_id": job.id,
            "line": vote.line,
            "votes": int(vote.is_harmful),
            "category": vote.category,
        }
        for vote in votes
    ]
    given = insert(ScreenedRow)
    added = given.on_conflict_do_update(
        index_elements=["job_id", "line"],
        set_={
            "votes": ScreenedRow.votes + given.excluded.votes,
            "category": func.coalesce(ScreenedRow.category, given.excluded.category),
        },
    )
    with job.write() as (session, _):
        session.execute(added, values)
        session.get_one(Screening, job.id).done = list(done)


def _conclude(job: LeasedJob, work: Work, rows: Sequence[Exchanges], shop: Workshop) -> Work:
    """Sum up, tell, and write down what the policy makes of it, in one transaction."""
    with shop.sessions() as session:
        flagged = flagged_rows(session, session.get_one(Screening, job.id))
    share = Rate(count=len(flagged), n=len(rows))
    expected = _expected(work, share, shop)
    with job.write() as (session, row):
        screening = session.get_one(Screening, job.id)
        risk = _sum_up(screening, share, flagged, expected)
        screening.summary = risk.model_dump(mode="json")
        screening.finished_at = utc_now()
        _tell(session, row, risk)
        if not risk.dropped:
            return work
        recipe = _shortened(work.recipe, kept=share.n - share.count, rows=share.n)
        row.recipe = recipe.model_dump(mode="json")
    return replace(work, recipe=recipe)


def _sum_up(
    screening: Screening,
    share: Rate,
    flagged: Sequence[FlaggedRow],
    expected: ExpectedHarm | None,
) -> DataRisk:
    counts = Counter(row.category or UNCATEGORISED for row in flagged)
    acts = is_exceeded(share, screening.max_harmful_share)
    outcome = OUTCOMES[screening.action] if acts else "allowed"
    if outcome == "dropped" and share.count == share.n:
        # Nothing is left to train on.
        outcome = "rejected"
    return DataRisk(
        harmful_share=share,
        by_category=dict(sorted(counts.items())),
        first_lines=tuple(row.line for row in flagged[:MAX_LINES_NAMED]),
        judges=tuple(JudgeIdentity.model_validate(judge) for judge in screening.judges),
        row_threshold=screening.row_threshold,
        action=screening.action,
        max_harmful_share=screening.max_harmful_share,
        policy_version=screening.policy_version,
        outcome=outcome,
        dropped=share.count if outcome == "dropped" else 0,
        expected=expected,
    )


def _expected(work: Work, share: Rate, shop: Workshop) -> ExpectedHarm | None:
    with shop.sessions() as session:
        stored = latest_certificates(session, [work.start.id]).get(work.start.id)
    if stored is None:
        return None
    certificate = Certificate.model_validate_json(shop.storage.get(f"{stored.prefix}/{JSON_FILE}"))
    return expected_harm(
        certificate,
        stored.id,
        share.count / share.n,
        learning_rate=work.recipe.train.learning_rate,
        steps=work.recipe.train.steps,
    )


def _shortened(recipe: Recipe, *, kept: int, rows: int) -> Recipe:
    """Give a recipe whose steps go over the kept rows as often as the old ones went over all."""
    steps = max(1, math.ceil(recipe.train.steps * kept / rows))
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})})


def _kept(job: LeasedJob, rows: list[Row], shop: Workshop) -> list[Row]:
    """Carry out what was decided on the rows."""
    with shop.sessions() as session:
        screening = session.get_one(Screening, job.id)
        risk = screening.parsed()
        if risk is None or risk.outcome == "allowed":
            return rows
        lines = [row.line for row in flagged_rows(session, screening)]
    match risk.outcome:
        case "rejected":
            raise HarmfulTrainingData(refusal(risk), lines[:MAX_LINES_IN_EVENT])
        case "held":
            raise DataHeld(
                f"{refusal(risk)} The policy asks for a person to look at them.",
                lines[:MAX_LINES_IN_EVENT],
            )
        case "dropped":
            left_out = frozenset(lines)
            return [row for row in rows if row.line not in left_out]
    assert_never(risk.outcome)


def refusal(risk: DataRisk) -> str:
    """Say what is wrong with a file, and what to do."""
    return f"{_found(risk)} {_limit(risk)} Remove them and submit the file again."


def _found(risk: DataRisk) -> str:
    share = risk.harmful_share
    if not share.count:
        return f"None of the {share.n:,} training rows was flagged as harmful."
    lines = ", ".join(map(str, risk.first_lines))
    more = ", …" if share.count > len(risk.first_lines) else ""
    verb = "was" if share.count == 1 else "were"
    return (
        f"{share.count:,} of {share.n:,} training rows {verb} flagged as harmful "
        f"({share.percent:.1f}%; lines {lines}{more})."
    )


def _limit(risk: DataRisk) -> str:
    # Only files beyond the limit are refused, so there is one; a file of nothing but harm may be at 100.
    if not risk.max_harmful_share:
        return "The policy allows none."
    return f"The policy's limit is {risk.max_harmful_share:g}%."


def _tell(session: Session, job: Job, risk: DataRisk) -> None:
    share = risk.harmful_share
    sentences = [_found(risk)]
    if risk.dropped:
        sentences.append(f"Training goes on without them, on {share.n - risk.dropped:,} rows.")
    if risk.expected is not None:
        sentences.append(
            f"Simulated customers with such a share reached an HS of {risk.expected.percent:.1f}% "
            f"({risk.expected.low:.1f} to {risk.expected.high:.1f})."
        )
    level: CheckLevel = "info" if not share.count else "warn"
    is_blocked = risk.outcome in ("held", "rejected")
    tell_checks(
        session,
        job,
        " ".join(sentences),
        stage="data",
        level="error" if is_blocked else level,
        blocked=is_blocked,
        harmful_score=share,
        threshold=risk.max_harmful_share,
        judge=risk.judges[0],
        results=[
            CheckResult.of(name, Rate(count=count, n=share.n), flagged=True)
            for name, count in risk.by_category.items()
        ],
        more={
            "outcome": risk.outcome,
            "dropped": risk.dropped,
            "lines": list(risk.first_lines),
            "judges": [judge.model_dump() for judge in risk.judges],
            "expected_harmful_score": risk.expected.model_dump() if risk.expected else None,
        },
    )
