"""Model versions as the page shows them: bases and aligned ones drawn, tuned ones counted, and listed by pages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    and_,
    bindparam,
    func,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.orm import Session

from api.dashboard.measures import Measure, harmful_score
from api.registry.safety import latest_evaluations
from models.api_key import Project
from models.certificate import CertificateSummary
from models.model_version import (
    NOT_TUNED,
    Gate,
    ModelNotFound,
    ModelVersion,
    VersionKind,
)
from models.policy import current_policy
from models.rate import Rate
from models.stored_certificate import latest_certificates

PAGE_SIZE = 50
#: Bases and aligned versions that are drawn; the search finds the others.
MAX_DRAWN = 200
#: Of what was tuned from one version so many are counted, the newest: they show how its customers fare, and a customer
#: with a hundred thousand models must not wait for them.
MAX_COUNTED = 100


@dataclass(frozen=True, slots=True)
class TunedCount:
    """How many of the newest models that were tuned from one version have each gate; only gates that some have."""

    by_gate: tuple[tuple[Gate, int], ...]

    @property
    def total(self) -> int:
        """All gates together."""
        return sum(count for _, count in self.by_gate)

    @property
    def is_cut(self) -> bool:
        """Whether there are more than were counted."""
        return self.total >= MAX_COUNTED


NONE_TUNED = TunedCount(())


@dataclass(frozen=True, slots=True)
class Node:
    """A base or an aligned version, with what was made from it."""

    version: ModelVersion
    harmful_score: Measure | None
    certificate: CertificateSummary | None
    tuned: TunedCount
    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is drawn."""

    roots: tuple[Node, ...]
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Search:
    """What to list; without a text tuned versions alone, for the others are drawn."""

    text: str = ""
    parent: str = ""
    gate: Gate | None = None
    #: A version's id: list those older than it.
    before: str = ""

    @property
    def is_narrow(self) -> bool:
        """Whether anything is left out."""
        return bool(self.text or self.parent or self.gate)


@dataclass(frozen=True, slots=True)
class VersionLine:
    """One line of the list."""

    version: ModelVersion
    project_name: str | None
    harmful_score: Measure | None
    fine_tuning_accuracy: Rate | None


@dataclass(frozen=True, slots=True)
class VersionList:
    """A page of the list."""

    lines: tuple[VersionLine, ...]
    next_before: str | None


#: The provider's models that customers know of.
IS_TUNABLE = and_(ModelVersion.kind == VersionKind.ALIGNED, ModelVersion.gate == Gate.RELEASED)


def visible(project_id: str | None) -> ColumnElement[bool]:
    """Select what a viewer may know of: customers their own, and the provider's that may be tuned."""
    is_there = ModelVersion.deleted_at.is_(None)
    if project_id is None:
        return is_there
    return and_(is_there, or_(ModelVersion.project_id == project_id, IS_TUNABLE))


def visible_tuned(project_id: str | None) -> ColumnElement[bool]:
    """Select the tuned versions among them: said so that the index of a project's own is seen to suffice."""
    tuned = and_(ModelVersion.deleted_at.is_(None), ModelVersion.kind == VersionKind.TUNED)
    if project_id is None:
        return tuned
    # Written out, not as a parameter: a plan for any project would read all the models of one that has many.
    own = bindparam(None, project_id, type_=String(), literal_execute=True, unique=True)
    return and_(tuned, ModelVersion.project_id == own)


def _visible_untuned(project_id: str | None) -> ColumnElement[bool]:
    # What is not tuned is no customer's: said so that the index of those alone is read.
    is_there = and_(ModelVersion.deleted_at.is_(None), NOT_TUNED)
    return is_there if project_id is None else and_(is_there, IS_TUNABLE)


def draw_lineage(session: Session, project_id: str | None) -> Lineage:
    """Give bases and aligned versions as trees, newest first, each with the count of what was tuned from it."""
    versions = session.scalars(
        select(ModelVersion)
        .where(_visible_untuned(project_id))
        .order_by(ModelVersion.created_at.desc(), ModelVersion.id.desc())
        .limit(MAX_DRAWN + 1)
    ).all()
    drawn = versions[:MAX_DRAWN]
    ids = [version.id for version in drawn]
    evaluations = latest_evaluations(session, ids)
    certificates = latest_certificates(session, ids)
    aligned = [version.id for version in drawn if version.kind == VersionKind.ALIGNED]
    counts = count_tuned(session, project_id, aligned)
    rules = current_policy(session).parsed()
    children: defaultdict[str | None, list[ModelVersion]] = defaultdict(list)
    known = set(ids)
    for version in drawn:
        # One whose parent was deleted or cut off stands at the top rather than nowhere.
        children[version.parent_id if version.parent_id in known else None].append(version)

    def node(version: ModelVersion) -> Node:
        found, certificate = evaluations.get(version.id), certificates.get(version.id)
        return Node(
            version,
            harmful_score(found, rules) if found else None,
            certificate.parsed() if certificate else None,
            counts.get(version.id, NONE_TUNED),
            tuple(node(child) for child in children[version.id]),
        )

    return Lineage(tuple(node(root) for root in children[None]), len(versions) > MAX_DRAWN)


def count_tuned(
    session: Session, project_id: str | None, parent_ids: Sequence[str]
) -> Mapping[str, TunedCount]:
    """Count what was tuned from each version directly, by gate: of each the newest, up to `MAX_COUNTED`."""
    if not parent_ids:
        return {}
    newest = union_all(*(_newest_tuned(project_id, parent) for parent in parent_ids)).subquery()
    rows = session.execute(
        select(newest.c.parent_id, newest.c.gate, func.count()).group_by(
            newest.c.parent_id, newest.c.gate
        )
    )
    found = {(row[0], row[1]): row[2] for row in rows}
    return {
        parent: TunedCount(
            tuple((gate, found[parent, gate]) for gate in Gate if (parent, gate) in found)
        )
        for parent in parent_ids
    }


def _newest_tuned(project_id: str | None, parent_id: str) -> Select[str, str]:
    # A range and an order of the index's own columns, not equalities: those would let PostgreSQL walk through everybody's
    # models by time, in the hope to meet soon some that this customer may not have at all.
    columns, values = [ModelVersion.parent_id], [parent_id]
    if project_id is not None:
        columns, values = [ModelVersion.project_id, *columns], [project_id, *values]
    query = (
        select(ModelVersion.parent_id.label("parent_id"), ModelVersion.gate.label("gate"))
        .where(
            ModelVersion.deleted_at.is_(None),
            ModelVersion.kind == VersionKind.TUNED,
            tuple_(*columns) >= tuple_(*values),
            tuple_(*columns) <= tuple_(*values),
        )
        .order_by(
            *(column.desc() for column in columns),
            ModelVersion.created_at.desc(),
            ModelVersion.id.desc(),
        )
        .limit(MAX_COUNTED)
        .subquery()
    )
    return select(query.c.parent_id, query.c.gate)


def list_versions(session: Session, project_id: str | None, search: Search) -> VersionList:
    """Give a page of versions, newest first.

    Raises:
        ModelNotFound: the page is to begin at a version that the viewer does not know.
    """
    query = (
        select(ModelVersion, Project.name)
        .outerjoin(Project, Project.id == ModelVersion.project_id)
        .where(visible(project_id) if search.text else visible_tuned(project_id))
        .order_by(ModelVersion.created_at.desc(), ModelVersion.id.desc())
        .limit(PAGE_SIZE + 1)
    )
    if search.text:
        query = query.where(ModelVersion.id.icontains(search.text, autoescape=True))
    if search.parent:
        query = query.where(ModelVersion.parent_id == search.parent)
    if search.gate:
        query = query.where(ModelVersion.gate == search.gate)
    if search.before:
        at = session.scalar(
            select(ModelVersion).where(visible(project_id), ModelVersion.id == search.before)
        )
        if at is None:
            raise ModelNotFound(f"The model {search.before[:128]!r} does not exist.")
        query = query.where(
            tuple_(ModelVersion.created_at, ModelVersion.id) < tuple_(at.created_at, at.id)
        )
    rows = session.execute(query).all()
    evaluations = latest_evaluations(session, [version.id for version, _ in rows[:PAGE_SIZE]])
    rules = current_policy(session).parsed()
    lines = []
    for version, project_name in rows[:PAGE_SIZE]:
        found = evaluations.get(version.id)
        lines.append(
            VersionLine(
                version,
                project_name,
                harmful_score(found, rules) if found else None,
                found.parsed().fine_tuning_accuracy if found else None,
            )
        )
    more = len(rows) > PAGE_SIZE
    return VersionList(tuple(lines), lines[-1].version.id if more else None)
