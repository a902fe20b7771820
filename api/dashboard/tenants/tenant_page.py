"""One tenant's page: use, keys, policy, webhooks; and apart, for they read much: its months, and its risk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.dashboard.tenants.tenant_list import Use, read_uses
from api.deps import QUOTAS
from api.keys.service import list_keys
from api.organization.quotas import limits_of, show_use
from api.organization.service import get_project
from api.organization.usage import Bucket, Used, Width, read_usage
from models.api_key import ApiKey
from models.base import utc_now
from models.policy import SafetyPolicy, current_policy
from models.project import Project, Quotas
from models.project_use import ProjectUse
from models.risk import WINDOW, RiskStep, TenantRisk, risk_history, tenant_risk
from models.webhook import DeliveryStatus, WebhookDelivery, WebhookEndpoint

MAX_KEYS = 100
MAX_STEPS = 60
MONTHS = 12
#: Of each endpoint so many of the newest deliveries are looked at.
RECENT_DELIVERIES = 50


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A webhook endpoint with how its newest deliveries fared."""

    endpoint: WebhookEndpoint
    delivered: int
    pending: int
    failed: int


@dataclass(frozen=True, slots=True)
class RiskLine:
    """The risk over time as a line on a canvas of 100 by 40, oldest first; no points: fewer than two are known."""

    points: str
    limit_y: float | None
    top: float
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class TenantPage:
    """What the template shows."""

    project: Project
    uses: tuple[Use, ...]
    counted_at: datetime | None
    #: The service's limits, which hold where the project has none of its own.
    defaults: dict[str, int]
    keys: tuple[ApiKey, ...]
    has_more_keys: bool
    policy: SafetyPolicy
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class RiskPage:
    """A tenant's cumulative risk: the present one, and the decisions that make it."""

    risk: TenantRisk
    limit: float | None
    steps: tuple[RiskStep, ...]
    line: RiskLine | None
    #: What was decided before counts no more.
    window_start: datetime


@dataclass(frozen=True, slots=True)
class Month:
    """What a tenant used in one month."""

    start: datetime
    used: Used


def read_tenant_page(session: Session, project_id: str) -> TenantPage:
    """Gather what is known of a tenant.

    Raises:
        ProjectNotFound: there is none.
    """
    project = get_project(session, project_id)
    counted = session.get(ProjectUse, project.id)
    limits = limits_of(session, project)
    keys, has_more = list_keys(session, project_id=project.id, after=None, limit=MAX_KEYS)
    return TenantPage(
        project=project,
        # Fresh counts are exact and dear; between two of the sweeper's nobody sees the difference.
        uses=read_uses(project, limits, counted or show_use(session, project.id)),
        counted_at=counted.counted_at if counted else None,
        defaults=asdict(session.info.get(QUOTAS, Quotas())),
        keys=tuple(sorted(keys, key=lambda key: key.why_dead is not None)),
        has_more_keys=has_more,
        policy=current_policy(session, project.id),
        endpoints=_endpoints(session, project.id),
    )


def read_risk_page(session: Session, project_id: str) -> RiskPage:
    """Work a tenant's risk out, and tell how it came about.

    Raises:
        ProjectNotFound: there is none.
    """
    project = get_project(session, project_id)
    limit = current_policy(session, project.id).parsed().max_tenant_risk
    steps = risk_history(session, project.id, at_most=MAX_STEPS)
    return RiskPage(
        risk=tenant_risk(session, project.id),
        limit=limit,
        steps=tuple(steps),
        line=draw_risk(steps, limit),
        window_start=utc_now() - WINDOW,
    )


def read_months(session: Session, project_id: str) -> tuple[Month, ...]:
    """Give what a tenant used in the last months, the present one last.

    Raises:
        ProjectNotFound: there is none.
    """
    project = get_project(session, project_id)
    now = utc_now()
    buckets, _ = read_usage(
        session,
        start=_months_before(now, MONTHS - 1),
        end=now,
        width=Width.MONTH,
        limit=MONTHS,
        project_ids=[project.id],
    )
    return tuple(_month(bucket, project.id) for bucket in buckets)


def draw_risk(steps: Sequence[RiskStep], limit: float | None) -> RiskLine | None:
    """Lay the risk out as a line that rises at each decision."""
    known = sorted((step.decided_at, step.risk) for step in steps if step.risk is not None)
    if len(known) < 2:
        return None
    first, last = known[0][0], known[-1][0]
    span = (last - first).total_seconds() or 1.0
    top = max(*(risk for _, risk in known), limit or 0.0, 1.0) * 1.1
    at = [(100 * (moment - first).total_seconds() / span, risk) for moment, risk in known]
    path = [f"0,{_y(at[0][1], top)}"]
    for (_, before), (x, risk) in pairwise(at):
        path += [f"{x:.2f},{_y(before, top)}", f"{x:.2f},{_y(risk, top)}"]
    return RiskLine(
        " ".join(path), None if limit is None else float(_y(limit, top)), top, first, last
    )


def _y(risk: float, top: float) -> str:
    return f"{40 - 40 * risk / top:.2f}"


def _month(bucket: Bucket, project_id: str) -> Month:
    return Month(bucket.start, bucket.used.get(project_id, Used()))


def _months_before(moment: datetime, months: int) -> datetime:
    start = Width.MONTH.floor(moment)
    for _ in range(months):
        start = Width.MONTH.floor(start - timedelta(days=1))
    return start


def _endpoints(session: Session, project_id: str) -> tuple[Endpoint, ...]:
    found = session.scalars(
        select(WebhookEndpoint)
        .where(WebhookEndpoint.project_id == project_id)
        .order_by(WebhookEndpoint.created_at, WebhookEndpoint.id)
    ).all()
    ids = [endpoint.id for endpoint in found]
    newest = (
        select(WebhookDelivery.status)
        .where(WebhookDelivery.endpoint_id == WebhookEndpoint.id)
        .order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc())
        .limit(RECENT_DELIVERIES)
        .correlate(WebhookEndpoint)
        .lateral()
    )
    counts = {
        (row[0], row[1]): row[2]
        for row in session.execute(
            select(WebhookEndpoint.id, newest.c.status, func.count())
            .select_from(WebhookEndpoint)
            .join(newest, WebhookEndpoint.id.in_(ids))
            .group_by(WebhookEndpoint.id, newest.c.status)
        )
    }
    return tuple(
        Endpoint(
            endpoint,
            *(
                counts.get((endpoint.id, status), 0)
                for status in (
                    DeliveryStatus.DELIVERED,
                    DeliveryStatus.PENDING,
                    DeliveryStatus.FAILED,
                )
            ),
        )
        for endpoint in found
    )
