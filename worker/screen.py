"""The screen stage: the safety set's judges read every training row before anything is trained.

    rows ─► exchanges (what was asked, what the assistant answers) ─► each judge in turn ─► votes by line
         ─► share of flagged rows ─► policy: allow | drop | hold | reject

Runs only where the policy or the customer asks for it. Judges' votes are written row by row, a part at a
time, so that a job which is claimed again goes on with the rows that are left. A judge that fails is asked
again; one that stays broken fails the job as in the evaluation: it says nothing about the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert

from models.data_risk import (
    ScreenedRow,
    Screening,
    asks_for_screening,
    screening_judges,
)
from models.evaluation import JudgeIdentity
from models.job import JobKind, Stage, keep_progress
from models.judges import JudgeSpec
from models.policy import current_policy
from models.safety_set import MAX_CATEGORY
from worker.judge import open_judge
from worker.judgement import Judge, JudgeError, Judgement
from worker.leased_job import LeasedJob
from worker.measure import with_patience
from worker.screen_outcome import Exchanges, Row, conclude, kept
from worker.work import Work, Workshop

#: Exchanges that are judged before the votes are written, and characters of them, about.
PART_EXCHANGES = 256
PART_CHARACTERS = 4_000_000
#: Of what was said before an answer a judge reads the end. What is trained is the answer, which it reads whole.
CONTEXT_CHARACTERS = 8_000


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
        DataHeld: the policy asks for a person, and the job waits for one.
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
        work = conclude(job, work, rows, shop)
    return work, kept(job, rows, shop)


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
        return asks_for_screening(current_policy(session, work.tenant_id).parsed())


def _begin(job: LeasedJob, work: Work) -> Screening:
    judges = screening_judges(work.safety.header)
    job.enter(Stage.SCREEN, "The training rows are read by the safety set's judges.")
    with job.write() as (session, _):
        policy = current_policy(session, work.tenant_id)
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
    with job.write() as (session, row):
        keep_progress(row)
        session.execute(added, values)
        session.get_one(Screening, job.id).done = list(done)
