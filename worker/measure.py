"""The evaluation stage: one report on one version, asked for in the way that serving asks.

A judge that fails says nothing about the model. It is asked again; if it stays broken the job fails with
a code of its own, the adapter stays stored and undecided, and there is no verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import sleep
from typing import TypeVar

import structlog
from sqlalchemy import select
from transformers import PreTrainedModel

from models.evaluation import Evaluation, EvaluationReport
from models.job import JobKind, Stage
from models.model_version import ModelVersion
from models.rate import Rate
from models.rows import Conversation
from worker.base_models import LoadedBase
from worker.data import encode_rows
from worker.harmful_score import measure_safety
from worker.judge import open_judge
from worker.judgement import JudgeError
from worker.leased_job import LeasedJob
from worker.task_accuracy import measure_accuracy
from worker.trainers.objective import mean_token_loss
from worker.work import Work, Workshop, with_version

log = structlog.get_logger(__name__)

JUDGE_TRIES = 3
JUDGE_PAUSE_SECONDS = 2.0

Answer = TypeVar("Answer")


def measure(
    job: LeasedJob,
    work: Work,
    version: ModelVersion,
    validation: list[Conversation],
    shop: Workshop,
) -> EvaluationReport:
    """Measure the job's version; for an alignment job the raw base too, once, as the score before.

    Raises:
        JudgeError: the judge failed every time.
        LeaseLost: the job is no longer this worker's.
    """
    if work.kind == JobKind.ALIGN and not _is_measured(work, shop):
        job.enter(Stage.EVALUATE, "Measuring the base before alignment.")
        base = shop.base(work.root)
        before = _report(job, work, base, base.model, [])
        with job.write() as (session, _):
            session.add(
                Evaluation(
                    version_id=work.root.id,
                    harmful_score_percent=before.harmful_score.percent,
                    report=before.model_dump(mode="json"),
                )
            )
    job.enter(Stage.EVALUATE, "Measuring the new model.")
    root = work.root if version.is_adapter else version
    with with_version(version, root, shop) as (base, model):
        return _report(job, work, base, model, validation)


def _is_measured(work: Work, shop: Workshop) -> bool:
    with shop.sessions() as session:
        found = session.scalars(select(Evaluation).where(Evaluation.version_id == work.root.id))
        return any(e.report["prompt_set_hash"] == work.safety.prompt_set_hash for e in found)


def _report(
    job: LeasedJob,
    work: Work,
    base: LoadedBase,
    model: PreTrainedModel,
    validation: list[Conversation],
) -> EvaluationReport:
    safety = with_patience(
        job,
        lambda: measure_safety(
            model,
            base.tokenizer,
            work.safety,
            open_judge(work.safety.header.judge),
            partial(job.progress, Stage.EVALUATE, "Safety prompts answered"),
        ),
    )
    limit = work.recipe.train.max_length
    accuracy: Rate | None = None
    validation_loss: float | None = None
    if validation:
        examples = encode_rows(validation, base.tokenizer, limit, param="validation_file")
        validation_loss = mean_token_loss(model, examples, base.pad_id)
        accuracy = measure_accuracy(
            model,
            base.tokenizer,
            validation,
            on_progress=partial(job.progress, Stage.EVALUATE, "Validation rows answered"),
        )
    canary = encode_rows(work.safety.canary, base.tokenizer, limit, param="safety_set")
    return EvaluationReport(
        judge=safety.judge,
        prompt_set_hash=safety.prompt_set_hash,
        template_hash=safety.template_hash,
        harmful_score=safety.harmful_score,
        harmful_or_incoherent=safety.harmful_or_incoherent,
        refusal_rate=safety.refusal_rate,
        harmful_by_category=safety.harmful_by_category,
        over_refusal=safety.over_refusal,
        help_rate=safety.help_rate,
        fine_tuning_accuracy=accuracy,
        validation_loss=validation_loss,
        canary_loss=mean_token_loss(model, canary, base.pad_id),
    )


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
