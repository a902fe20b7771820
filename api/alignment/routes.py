"""/v1/alignment/jobs: hardening a base against harmful fine-tuning. For operators."""

from __future__ import annotations

from api.alignment.schemas import CreateAlignment
from api.alignment.service import create_alignment
from api.deps import ProviderDep, SessionDep
from api.jobs.provider_routes import provider_job_routes
from api.jobs.replay import ReplayDep
from api.jobs.schemas import JobObject
from api.jobs.wire import show_job
from models.job import JobKind

router = provider_job_routes(JobKind.ALIGN)


@router.post("")
def create(
    body: CreateAlignment, caller: ProviderDep, session: SessionDep, replay: ReplayDep
) -> JobObject:
    """Start an alignment job on a registered base."""
    return show_job(session, create_alignment(session, caller.key, body, replay))
