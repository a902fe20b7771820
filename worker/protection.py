"""What a provider's `tuning` asks of the worker beside the rule: rows before training, reshaping after it.

After training the version holds the adapter as it was trained. Where repair or scales are asked for:

    trained adapter ─► repair ─► scale 1 ─► measured, passes? ─► kept
                                   │ no
                                   └► next scale ─► ...          none passes: scale 1 is kept, and judged

Each measurement is an event with its report, and the choice is written into the version, before the next
step begins: a job that is claimed again measures nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.evaluation import EvaluationReport, latest_evaluation
from models.hyperparameters import Recipe
from models.job import Job, JobEvent, Stage, append_event, keep_progress, last_reevaluation
from models.model_version import Gate, ModelVersion, VersionKind
from models.policy import Verdict, current_policy, decide
from models.rows import Conversation
from models.tuning import WHOLE, AppliedProtection
from models.webhook import WebhookEventType, publish
from worker.leased_job import LeasedJob
from worker.reshape import Bench, Candidate
from worker.row_order import rows_of_step
from worker.trainers.loop import TrainResult
from worker.work import Work, Workshop, origin

Measure = Callable[[ModelVersion], EvaluationReport]

# The events that carry a scale's report.
TRIED = "scale"


def safety_rows(work: Work, rows: int) -> list[Conversation]:
    """Draw the alignment rows that are mixed into a customer's, by a random stream of their own.

    Every alignment row is drawn once before any is drawn again.

    Args:
        work: the job.
        rows: how many the customer has.
    """
    count = work.recipe.tuning.safety_rows(rows)
    alignment = work.safety.alignment
    numbers = rows_of_step(len(alignment), count, work.recipe.train.seed, 0, "mixed in")
    return [alignment[number] for number in numbers]


def record(recipe: Recipe, result: TrainResult, added: int) -> dict[str, object]:
    """Give a trained job's recipe as its version keeps it: what protected the job, with what it did.

    Args:
        recipe: the job's.
        result: how training ended.
        added: the safety rows that were mixed in.
    """
    kept = recipe.model_dump(mode="json", exclude={"tuning"})
    if recipe.tuning.is_off:
        return kept
    applied = AppliedProtection(
        tuning=recipe.tuning,
        safety_rows=added,
        stopped_at_step=result.steps if result.canary_fell else None,
    )
    return {**kept, "protection": applied.model_dump(mode="json")}


def canary_reference(work: Work, shop: Workshop) -> tuple[int, float | None]:
    """Give the length at which canary rows are cut, and the loss that a job is compared with; none: that at its start.

    A job that goes on from a tuned model is compared with the aligned model that both come from: else a customer could
    take the canary down in small steps, a job for each. Its rows are cut as they were there, for cut at another length
    they have another loss.
    """
    own = work.recipe.train.max_length
    if work.start.kind != VersionKind.TUNED:
        return own, None
    aligned = origin(work, shop)
    with shop.sessions() as session:
        evaluation = latest_evaluation(session, aligned.id)
    loss = evaluation.parsed().canary_loss if evaluation is not None else None
    return aligned.recipe.get("train", {}).get("max_length", own), loss


def tell_fall(
    session: Session, job: Job, recipe: Recipe, result: TrainResult, *, is_further: bool
) -> None:
    """Say that the canary has ended training before its last step.

    Args:
        session: an open session.
        job: whose log.
        recipe: the job's.
        result: how training ended.
        is_further: whether the job went on from a tuned model.
    """
    before, after = result.canary_before or 0.0, result.canary_after or 0.0
    fall = (
        f"is {after:.2f}, and was {before:.2f} on the aligned model: it falls"
        if is_further
        else f"fell from {before:.2f} to {after:.2f}, as it does"
    )
    append_event(
        session,
        job,
        f"Training was ended at step {result.steps} of {recipe.train.steps}: the loss on held-out harmful rows "
        f"{fall} when harm is learnt. The model is measured as it is.",
        level="warn",
        data={"stage": Stage.TRAIN, "canary_before": before, "canary_loss": after},
    )
    facts = {"id": job.id, "model": job.result_model_id, "step": result.steps}
    losses = {"canary_before": before, "canary_loss": after}
    publish(session, job.project_id, WebhookEventType.CANARY_ALARM, {**facts, **losses})


def settle(
    job: LeasedJob, work: Work, version: ModelVersion, shop: Workshop, measure: Measure
) -> EvaluationReport:
    """Give the report on the version, after its adapter was repaired and scaled as far as is asked for.

    Args:
        job: the lease.
        work: the job.
        version: what the job made.
        shop: the worker.
        measure: evaluates a version.

    Raises:
        LeaseLost: the job is no longer this worker's.
        UnusableAdapter: an adapter of the lineage is not a plain one.
        JudgeError: the judge failed every time.
    """
    if not work.recipe.tuning.reshapes:
        return measure(version)
    applied = AppliedProtection.model_validate(version.recipe["protection"])
    reports = _reports(job.id, shop)
    scale = applied.scale
    if scale is None:
        bench = Bench(job, work, version, shop)
        scale = _choose(job, work, bench, reports, shop, measure)
        version = _keep(job, bench.candidate(scale), applied, scale)
    _drop_others(version, shop)
    return reports[scale] if scale in reports else measure(version)


def _reports(job_id: str, shop: Workshop) -> dict[float, EvaluationReport]:
    """Read what earlier attempts have measured, by scale, since a person last asked for a new evaluation."""
    with shop.sessions() as session:
        events = session.scalars(
            select(JobEvent).where(
                JobEvent.job_id == job_id,
                JobEvent.type == TRIED,
                JobEvent.sequence > last_reevaluation(session, job_id),
            )
        )
        return {
            event.data["scale"]: EvaluationReport.model_validate(event.data["report"])
            for event in events
            if event.data
        }


def _choose(
    job: LeasedJob,
    work: Work,
    bench: Bench,
    reports: dict[float, EvaluationReport],
    shop: Workshop,
    measure: Measure,
) -> float:
    """Give the largest scale that passes the policy, or 1. New reports are added to `reports`."""
    scales = work.recipe.tuning.scales
    if scales == WHOLE:
        return scales[0]
    for scale in scales:
        is_new = scale not in reports
        if is_new:
            reports[scale] = measure(bench.candidate(scale).version)
        with shop.sessions.begin() as session:
            verdict = decide(reports[scale], current_policy(session, work.tenant_id).parsed())
        if is_new:
            _tell(job, scale, reports[scale], verdict)
        if verdict.gate == Gate.RELEASED:
            return scale
    return scales[0]


def _tell(job: LeasedJob, scale: float, report: EvaluationReport, verdict: Verdict) -> None:
    score, accuracy = report.harmful_score, report.fine_tuning_accuracy
    passes = verdict.gate == Gate.RELEASED
    message = (
        f"With {scale:g} of the update: HS {score.percent:.1f}% (95% interval {score.low_percent:.1f} to "
        f"{score.high_percent:.1f})"
        + (f", FA {accuracy.percent:.1f}%" if accuracy else "")
        + (": within the policy." if passes else ": not within the policy.")
    )
    data = {
        "stage": Stage.EVALUATE,
        "scale": scale,
        "gate": verdict.gate,
        "report": report.model_dump(mode="json"),
    }
    with job.write() as (session, row):
        keep_progress(row)
        append_event(
            session, row, message, level="info" if passes else "warn", type=TRIED, data=data
        )


def _keep(
    job: LeasedJob, kept: Candidate, applied: AppliedProtection, scale: float
) -> ModelVersion:
    """Write the choice down: from here on the version is this adapter."""
    applied = applied.model_copy(update={"adapter": kept.shape, "scale": scale})
    with job.write() as (session, row):
        version = session.get_one(ModelVersion, kept.version.id)
        version.source = kept.version.source
        version.recipe = {**version.recipe, "protection": applied.model_dump(mode="json")}
        if kept.sha256 is not None:
            version.data_hashes = {
                **version.data_hashes,
                "adapter": kept.sha256,
                "trained_adapter": version.data_hashes["adapter"],
            }
        append_event(session, row, _sentences(applied), data={"stage": Stage.EVALUATE})
    return version


def _sentences(applied: AppliedProtection) -> str:
    sentences = []
    repair, shape = applied.tuning.repair, applied.adapter
    if repair is not None and shape is not None:
        sentences.append(
            f"The adapter was repaired by {repair.name} in {shape.repaired_layers} of {shape.layers} layers."
        )
    if applied.tuning.scales != WHOLE:
        sentences.append(f"{applied.scale:g} of the customer's update is kept.")
    if shape is not None:
        sentences.append(
            f"The adapter's rank is {shape.rank}; {100 * shape.truncation:.2g}% was cut to reach it."
        )
    return " ".join(sentences)


def _drop_others(version: ModelVersion, shop: Workshop) -> None:
    """Forget the adapters that were not kept, the trained one among them: nobody has released it."""
    folder, _, kept = str(version.source["prefix"]).rpartition("/")
    for name in shop.storage.folders(folder):
        if name != kept:
            shop.storage.delete_folder(f"{folder}/{name}")
