"""/v1/evaluation: measuring registered models anew. For operators."""

from __future__ import annotations

from api.deps import ProviderDep, SessionDep
from api.evaluation.schemas import CreateEvaluation
from api.evaluation.service import create_evaluation
from api.jobs.provider_routes import provider_job_routes
from api.jobs.replay import ReplayDep
from api.jobs.schemas import JobObject
from api.jobs.wire import show_job
from models.job import JobKind

router = provider_job_routes(JobKind.EVALUATE)


@router.post("")
def create(
    body: CreateEvaluation, caller: ProviderDep, session: SessionDep, replay: ReplayDep
) -> JobObject:
    """Start measuring a model with the safety set of its lineage.

    The job's `safety` has what was found. The model's gate stays as it is, whatever comes out.
    """
    return show_job(session, create_evaluation(session, caller.key, body, replay))
