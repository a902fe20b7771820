"""A project's cumulative risk: what its jobs of the last 30 days add up to, each of which may have looked harmless.

    risk = 10 · attempts + excess + drift

* attempts: models that the gate held or blocked, or whose HS came near the limit (the upper end of its interval
  at 80% of it or more)
* excess: of these, the points of HS above the aligned model that they descend from, summed
* drift: the most points above its aligned model that any of the models has, near the limit or not; continued tuning
  is measured from the aligned model on, so that many small steps count as the one large step that they make

The gate's decision by the scores counts, neither what a person made of it nor a hold for the risk itself; and
each model counts once, by its newest evaluation; a job without a measured model yet counts by the worst of its
measured checkpoints, and by the model once that is measured. Monotone but for that: a further job or a higher HS never lowers it. It falls only as jobs grow older than the window, or
when a model is evaluated again. Points are percentage points of HS; there is no upper end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import case, func, literal, select
from sqlalchemy.dialects.postgresql import array, distinct_on
from sqlalchemy.orm import Session

from models.base import utc_now
from models.evaluation import SPEAKING_FIRST, Evaluation
from models.model_version import Gate, ModelVersion, VersionKind
from models.policy import PolicyRules, SafetyPolicy
from models.rate import Rate

WINDOW = timedelta(days=30)
ATTEMPT_POINTS = 10.0
NEAR_SHARE = 0.8
#: Newest models that are looked at; a project that makes more in a month is counted by these.
MAX_MODELS = 5_000
#: Generations of continued tuning that are followed.
MAX_GENERATIONS = 100


@dataclass(frozen=True, slots=True)
class TunedModel:
    """One of the project's models: its score, the gate's word, and what it was tuned from."""

    version_id: str
    parent_id: str | None
    harmful_score: Rate
    gate: Gate
    limit_percent: float

    @property
    def is_attempt(self) -> bool:
        """Whether the gate did not let it pass, or nearly did not."""
        return (
            self.gate != Gate.RELEASED
            or self.harmful_score.high_percent >= NEAR_SHARE * self.limit_percent
        )


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A version that models descend from. HS in percent, 0 where it was never measured."""

    parent_id: str | None
    is_tuned: bool
    percent: float


@dataclass(frozen=True, slots=True)
class TenantRisk:
    """The measure with its parts. `models` is how many were counted."""

    models: int
    attempts: int
    excess_points: float
    drift_points: float
    #: The model that `drift_points` is about.
    furthest_model: str | None

    @property
    def score(self) -> float:
        """The risk."""
        return ATTEMPT_POINTS * self.attempts + self.excess_points + self.drift_points

    def to_wire(self) -> dict[str, object]:
        """Give it as staff see it."""
        return {
            "score": round(self.score, 2),
            "window_days": WINDOW.days,
            "models": self.models,
            "attempts": self.attempts,
            "excess_points": round(self.excess_points, 2),
            "drift_points": round(self.drift_points, 2),
            "furthest_model": self.furthest_model,
        }


def add_up(models: Iterable[TunedModel], ancestors: Mapping[str, Ancestor]) -> TenantRisk:
    """Work the risk out. Pure.

    Args:
        models: those of the window, each once.
        ancestors: every version above them, by id; where one is missing its chain ends.
    """
    attempts, count, excess, drift, furthest = 0, 0, 0.0, 0.0, None
    for model in models:
        count += 1
        points = max(0.0, model.harmful_score.percent - _start(model, ancestors))
        if model.is_attempt:
            attempts += 1
            excess += points
        if points > drift:
            drift, furthest = points, model.version_id
    return TenantRisk(count, attempts, excess, drift, furthest)


def tenant_risk(session: Session, project_id: str, *, now: datetime | None = None) -> TenantRisk:
    """Read a project's models of the window and add them up.

    Deleted models count: a deletion must not clear the account.
    """
    return tenant_risks(session, [project_id], now=now)[project_id]


def tenant_risks(
    session: Session, project_ids: Collection[str], *, now: datetime | None = None
) -> dict[str, TenantRisk]:
    """Do so for several projects, with as many questions as for one."""
    now = now or utc_now()
    # A job counts once, however many of its checkpoints were measured: by its model, and by the worst of its checkpoints
    # while there is none, or for good where it was cancelled.
    checkpoint_of = ModelVersion.recipe["checkpoint"]["job"].astext
    made_by = func.coalesce(checkpoint_of, ModelVersion.job_id, ModelVersion.id)
    is_checkpoint = checkpoint_of.is_not(None)
    newest = (
        select(
            ModelVersion.project_id,
            ModelVersion.id.label("version_id"),
            ModelVersion.parent_id,
            # Of a report only this: the rest may be long.
            Evaluation.report["harmful_score"].label("harmful_score"),
            func.coalesce(Evaluation.score_gate, Evaluation.gate).label("gate"),
            Evaluation.policy_version,
            Evaluation.created_at,
        )
        .join(Evaluation, Evaluation.version_id == ModelVersion.id)
        .where(
            ModelVersion.project_id.in_(project_ids),
            Evaluation.gate.is_not(None),
            Evaluation.created_at > now - WINDOW,
        )
        .ext(distinct_on(made_by))
        .order_by(
            made_by,
            is_checkpoint,
            case((is_checkpoint, Evaluation.harmful_score_percent)).desc(),
            Evaluation.created_at.desc(),
            Evaluation.id.desc(),
        )
        .subquery()
    )
    place = func.row_number().over(
        partition_by=newest.c.project_id, order_by=newest.c.created_at.desc()
    )
    placed = select(newest, place.label("place")).subquery()
    rows = session.execute(select(placed).where(placed.c.place <= MAX_MODELS)).all()
    limits = _limits(session)
    default = PolicyRules().max_harmful_score
    models: dict[str, list[TunedModel]] = {project_id: [] for project_id in project_ids}
    for row in rows:
        models[row.project_id].append(
            TunedModel(
                row.version_id,
                row.parent_id,
                Rate.model_validate(row.harmful_score),
                Gate(row.gate),
                limits.get(row.policy_version or 0, default),
            )
        )
    parents = {row.parent_id for row in rows if row.parent_id}
    ancestors = _ancestors(session, parents)
    return {project_id: add_up(own, ancestors) for project_id, own in models.items()}


@dataclass(frozen=True, slots=True)
class RiskStep:
    """One decision of the gate on a project's model, and the risk that it was made with."""

    decided_at: datetime
    job_id: str | None
    model: TunedModel
    risk: float | None


def risk_history(session: Session, project_id: str, *, at_most: int) -> list[RiskStep]:
    """Give the gate's decisions on a project's models, newest first: the jobs that make its risk."""
    rows = session.execute(
        select(
            Evaluation.created_at,
            func.coalesce(Evaluation.job_id, ModelVersion.job_id).label("job_id"),
            ModelVersion.id.label("version_id"),
            ModelVersion.parent_id,
            Evaluation.report["harmful_score"].label("harmful_score"),
            func.coalesce(Evaluation.score_gate, Evaluation.gate).label("gate"),
            Evaluation.policy_version,
            Evaluation.tenant_risk,
        )
        .join(Evaluation, Evaluation.version_id == ModelVersion.id)
        .where(
            ModelVersion.project_id == project_id,
            ModelVersion.recipe["checkpoint"].astext.is_(None),
            Evaluation.gate.is_not(None),
        )
        .order_by(ModelVersion.created_at.desc(), ModelVersion.id.desc(), Evaluation.id.desc())
        .limit(at_most)
    )
    limits = _limits(session)
    return [
        RiskStep(
            row.created_at,
            row.job_id,
            TunedModel(
                row.version_id,
                row.parent_id,
                Rate.model_validate(row.harmful_score),
                Gate(row.gate),
                limits.get(row.policy_version or 0, PolicyRules().max_harmful_score),
            ),
            row.tenant_risk,
        )
        for row in rows
    ]


def last_risks(
    session: Session, project_ids: Sequence[str], *, now: datetime | None = None
) -> dict[str, float]:
    """Give the risk that each project's newest model was decided with, for lists of many projects.

    It may have fallen since, for models grow older than the window, and has not risen. A project whose models
    are all older has none.
    """
    if not project_ids:
        return {}
    projects = select(func.unnest(array(list(project_ids))).label("id")).subquery()
    newest = (
        select(Evaluation.tenant_risk, Evaluation.created_at)
        .join(ModelVersion, ModelVersion.id == Evaluation.version_id)
        .where(
            ModelVersion.project_id == projects.c.id,
            # What is older has no say, and is not walked through.
            ModelVersion.created_at > (now or utc_now()) - WINDOW,
            Evaluation.tenant_risk.is_not(None),
        )
        .order_by(ModelVersion.created_at.desc(), Evaluation.created_at.desc())
        .limit(1)
        .correlate(projects)
        .lateral()
    )
    rows = session.execute(
        select(projects.c.id, newest.c.tenant_risk)
        .select_from(projects)
        .join(newest, literal(True))
        .where(newest.c.created_at > (now or utc_now()) - WINDOW)
    )
    return {row[0]: float(row[1]) for row in rows}


def _start(model: TunedModel, ancestors: Mapping[str, Ancestor]) -> float:
    """Give the HS of the aligned model that a model descends from; 0 where nothing is known of it."""
    parent_id = model.parent_id
    for _ in range(MAX_GENERATIONS):
        above = ancestors.get(parent_id or "")
        if above is None:
            break
        if not above.is_tuned:
            return above.percent
        parent_id = above.parent_id
    return 0.0


def _ancestors(session: Session, ids: set[str]) -> dict[str, Ancestor]:
    found: dict[str, Ancestor] = {}
    for _ in range(MAX_GENERATIONS):
        if not ids:
            break
        newest = (
            select(Evaluation.version_id, Evaluation.harmful_score_percent)
            .where(Evaluation.version_id.in_(ids))
            .ext(distinct_on(Evaluation.version_id))
            .order_by(Evaluation.version_id, *SPEAKING_FIRST)
        )
        scores = {row.version_id: row.harmful_score_percent for row in session.execute(newest)}
        versions = session.scalars(select(ModelVersion).where(ModelVersion.id.in_(ids))).all()
        for version in versions:
            is_tuned = version.kind == VersionKind.TUNED
            found[version.id] = Ancestor(version.parent_id, is_tuned, scores.get(version.id, 0.0))
        ids = {v.parent_id for v in versions if v.kind == VersionKind.TUNED and v.parent_id}
        ids -= found.keys()
    return found


def _limits(session: Session) -> dict[int, float]:
    policies = session.scalars(select(SafetyPolicy))
    return {policy.version: policy.parsed().max_harmful_score for policy in policies}
