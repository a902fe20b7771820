"""Making evaluation jobs. All else is what `api.jobs.service` does for every job."""

from __future__ import annotations

from sqlalchemy.orm import Session

from api.evaluation.schemas import CreateEvaluation
from api.jobs.replay import Replay, find_replayed, request_hash
from api.jobs.service import start, unfinished_job
from models.api_key import ApiKey
from models.audit import record
from models.errors import Conflict
from models.job import Job, JobKind
from models.model_version import get_version


class EvaluationRunning(Conflict):
    """The model is being measured already."""

    code = "evaluation_running"


def create_evaluation(session: Session, by: ApiKey, asked: CreateEvaluation, replay: Replay) -> Job:
    """Make an evaluation job, or give the one that this same request made before.

    Raises:
        ModelNotFound: there is no such model.
        EvaluationRunning: an evaluation of the model has not ended.
    """
    request_sha256 = request_hash(JobKind.EVALUATE, asked)
    earlier = find_replayed(session, by.project_id, replay, request_sha256)
    if earlier is not None:
        return earlier
    version = get_version(session, asked.model, project_id=None)
    # Not to be deleted meanwhile, nor measured by two requests at once.
    session.refresh(version, with_for_update=True)
    version = get_version(session, asked.model, project_id=None)
    running = unfinished_job(session, JobKind.EVALUATE, version.id)
    if running is not None:
        raise EvaluationRunning(
            f"The job {running} measures this model and has not ended.", param="model"
        )
    job = Job(
        project_id=by.project_id,
        kind=JobKind.EVALUATE,
        model_id=version.id,
        result_model_id=version.id,
        seed=0,
        recipe={},
        tags=asked.metadata or {},
        replay_key=replay.key,
        request_sha256=request_sha256,
    )
    start(session, job)
    record(
        session,
        actor=by,
        action="evaluation.started",
        subject=("job", job.id),
        details={"model": version.id},
    )
    return job
