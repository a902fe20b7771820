"""The evaluation stage: one report on one version, asked for in the way that serving asks.

A judge that fails says nothing about the model. It is asked again; if it stays broken the job fails with
a code of its own, the adapter stays stored and undecided, and there is no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import sleep
from typing import TypeVar

import structlog
from sqlalchemy import select
from transformers import PreTrainedModel

from models.answers import TestAnswer, keep_answers
from models.evaluation import Evaluation, EvaluationReport, EvaluationWarning
from models.job import JobKind, Stage, keep_progress
from models.model_version import ModelVersion
from models.rows import Row
from worker.base_models import LoadedBase
from worker.harmful_score import Harm, framed_prompts, measure_wordings
from worker.judgement import JudgeError
from worker.leased_job import LeasedJob
from worker.prompt_frames import PromptFrame
from worker.report import REFUSES_HARMLESS, JudgeInTurn, make_report
from worker.work import Work, Workshop, origin, with_version

log = structlog.get_logger(__name__)

JUDGE_TRIES = 3
JUDGE_PAUSE_SECONDS = 2.0

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class TunedOn:
    """What the rows that a model was tuned on mean for its measurement.

    Attributes:
        warnings: what makes the numbers mean less.
        frames: wordings in which it is asked for harm as well.
        before: HS of the aligned model in those that it was asked in already; grows.
    """

    warnings: tuple[EvaluationWarning, ...] = ()
    frames: tuple[PromptFrame, ...] = ()
    before: dict[PromptFrame, Harm] = field(default_factory=dict)


def measure(
    job: LeasedJob,
    work: Work,
    version: ModelVersion,
    validation: list[Row],
    shop: Workshop,
    tuned_on: TunedOn = TunedOn(),
    told: set[str] | None = None,
    *,
    subject: str = "the new model",
) -> EvaluationReport:
    """Measure the job's version, told as `subject`; for an alignment job the raw base too, once, as the score before.

    What makes the numbers mean less is told in the job's log, each kind once for a job: `told` holds the codes of
    what was told already, and grows.

    Raises:
        JudgeError: the judge failed every time.
        LeaseLost: the job is no longer this worker's.
        PauseRequested: it is to pause.
    """
    if work.kind == JobKind.ALIGN:
        before = _stored_report(work, shop) or _measure_base(job, work, shop)
        for warning in before.warnings:
            # The others are about the safety set, and will be told of the new model.
            if warning.code == REFUSES_HARMLESS:
                _tell(job, warning, "Before alignment: ")
    job.enter(Stage.EVALUATE, f"Measuring {subject}.")
    root = work.root if version.is_adapter else version
    asked: list[PromptFrame] = []
    with with_version(version, root, shop) as (base, model):
        report = _report(job, work, shop, base, model, validation, tuned_on, asked.extend)
    report = _beside_the_aligned(job, work, shop, report, tuned_on, asked)
    told = {warning.code for warning in tuned_on.warnings} if told is None else told
    for warning in report.warnings:
        if warning.code not in told:
            _tell(job, warning)
            told.add(warning.code)
    return report


def _beside_the_aligned(
    job: LeasedJob,
    work: Work,
    shop: Workshop,
    report: EvaluationReport,
    tuned_on: TunedOn,
    asked: Sequence[PromptFrame],
) -> EvaluationReport:
    """Measure the aligned model in the wordings in which the tuned one answered harm: which of them brought it?"""
    scored = list(zip(asked, report.framed_scores, strict=True))
    raised = [frame for frame, score in scored if score.harmful_score.count]
    before = tuned_on.before
    unknown = [frame for frame in raised if frame not in before]
    if unknown:
        aligned = origin(work, shop)
        root = work.root if aligned.is_adapter else aligned
        with with_version(aligned, root, shop) as (base, model):
            harms = measure_wordings(
                model,
                base.tokenizer,
                work.safety,
                JudgeInTurn(work.safety.header.judge, partial(with_patience, job)),
                unknown,
                framed_prompts(work.safety, len(asked)),
                lambda done, total: job.progress(
                    Stage.EVALUATE, "Safety prompts answered by the aligned model", done, total
                ),
            )
        before.update(zip(unknown, harms, strict=True))
    beside = (
        score.model_copy(
            update={
                "before": before[frame].rate,
                "before_by_category": before[frame].by_category,
            }
        )
        if frame in raised
        else score
        for frame, score in scored
    )
    return report.model_copy(update={"framed_scores": tuple(beside)})


def _stored_report(work: Work, shop: Workshop) -> EvaluationReport | None:
    with shop.sessions() as session:
        found = session.scalars(
            select(Evaluation)
            .where(Evaluation.version_id == work.root.id)
            .order_by(Evaluation.created_at.desc())
        )
        reports = (evaluation.parsed() for evaluation in found)
        wanted = work.safety.prompt_set_hash
        return next((report for report in reports if report.prompt_set_hash == wanted), None)


def _measure_base(job: LeasedJob, work: Work, shop: Workshop) -> EvaluationReport:
    job.enter(Stage.EVALUATE, "Measuring the base before alignment.")
    base = shop.base(work.root)
    before = _report(job, work, shop, base, base.model)
    with job.write() as (session, row):
        keep_progress(row)
        session.add(
            Evaluation(
                version_id=work.root.id,
                harmful_score_percent=before.harmful_score.percent,
                report=before.model_dump(mode="json"),
            )
        )
    return before


def _tell(job: LeasedJob, warning: EvaluationWarning, prefix: str = "") -> None:
    job.tell(f"{prefix}{warning.message}", level="warn", data={"warning": warning.code})


def _report(
    job: LeasedJob,
    work: Work,
    shop: Workshop,
    base: LoadedBase,
    model: PreTrainedModel,
    validation: Sequence[Row] = (),
    tuned_on: TunedOn = TunedOn(),
    on_frames: Callable[[Sequence[PromptFrame]], None] = lambda _frames: None,
) -> EvaluationReport:
    answers: list[TestAnswer] = []
    report = make_report(
        base,
        model,
        work.safety,
        max_length=work.recipe.train.max_length,
        validation=validation,
        scorer=work.recipe.scorer,
        warnings=tuned_on.warnings,
        frames=tuned_on.frames,
        attempts=partial(with_patience, job),
        on_progress=partial(job.progress, Stage.EVALUATE),
        on_answers=answers.extend,
        on_frames=on_frames,
    )
    return report.model_copy(update={"answers_sha256": keep_answers(shop.storage, answers)})


def with_patience(job: LeasedJob, ask: Callable[[], Answer]) -> Answer:
    """Ask, and ask again after a pause if the judge fails.

    Raises:
        JudgeError: it failed every time.
        LeaseLost: the job is no longer this worker's.
    """
    for attempt in range(1, JUDGE_TRIES + 1):
        try:
            return ask()
        except JudgeError:
            log.warning("judge_failed", attempt=attempt)
            if attempt == JUDGE_TRIES:
                raise
            job.tell("The judge failed; it will be asked again.", level="warn")
            sleep(JUDGE_PAUSE_SECONDS * attempt)
    raise AssertionError("unreachable")
