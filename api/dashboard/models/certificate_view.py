"""A certificate as the model's page draws it, beside those of other aligned versions of the same base."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import structlog
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.certificate import Certificate, CertificateSummary, CustomerResult, Estimate
from models.certificate_curves import Figure, figures, ratio_figure
from models.model_version import ModelVersion, VersionKind
from models.rate import Rate
from models.storage import Storage, StorageMissing
from models.stored_certificate import JSON_FILE, StoredCertificate, latest_certificates

log = structlog.get_logger(__name__)

#: Curves that one figure can hold and people can still tell apart.
MAX_COMPARED = 6
#: Other certified versions that are named in the table.
MAX_NAMED = 30
#: Generations between a base and what was aligned on it; the bound keeps a damaged chain from looping.
MAX_GENERATIONS = 32


@dataclass(frozen=True, slots=True)
class Peer:
    """A certified version of the same base, and why its curves are not drawn here (empty: they are)."""

    version: ModelVersion
    summary: CertificateSummary
    why_apart: str = ""


@dataclass(frozen=True, slots=True)
class Utility:
    """What a customer's model is worth after the job."""

    name: str
    fine_tuning_accuracy: Estimate
    over_refusal: Estimate
    #: Harmless prompts that were answered well, all seeds together.
    help: Rate


@dataclass(frozen=True, slots=True)
class CertificateView:
    """What the page shows. `certificate` is empty where its file cannot be read."""

    stored: StoredCertificate
    summary: CertificateSummary
    certificate: Certificate | None
    peers: tuple[Peer, ...]
    figures: tuple[Figure, ...]
    utility: tuple[Utility, ...]


def read_certificate_view(
    session: Session, storage: Storage, version: ModelVersion
) -> CertificateView | None:
    """Gather what is known of a version's newest certificate; None where it has none."""
    stored = latest_certificates(session, [version.id]).get(version.id)
    if stored is None:
        return None
    certificate = _read(storage, stored)
    peers, compared = _peers(session, storage, version, certificate)
    if certificate is None:
        return CertificateView(stored, stored.parsed(), None, peers, (), ())
    ratios = ratio_figure([certificate, *compared])
    return CertificateView(
        stored=stored,
        summary=stored.parsed(),
        certificate=certificate,
        peers=peers,
        figures=((ratios,) if ratios else ()) + figures(certificate),
        utility=tuple(_utility(certificate, result) for result in certificate.customers),
    )


def _peers(
    session: Session, storage: Storage, version: ModelVersion, own: Certificate | None
) -> tuple[tuple[Peer, ...], list[Certificate]]:
    versions = _aligned_on_the_same_base(session, version)
    stored = latest_certificates(session, [peer.id for peer in versions])
    newest = sorted(stored.values(), key=lambda found: found.created_at, reverse=True)
    by_id = {peer.id: peer for peer in versions}
    peers: list[Peer] = []
    compared: list[Certificate] = []
    for found in newest[:MAX_NAMED]:
        why = "too many to draw"
        if own is None:
            why = "not drawn"
        elif found.plan_hash != own.plan_hash:
            why = "another plan"
        elif len(compared) < MAX_COMPARED - 1:
            certificate = _read(storage, found)
            why = _why_apart(own, certificate)
            if certificate is not None and not why:
                compared.append(certificate)
        peers.append(Peer(by_id[found.version_id], found.parsed(), why))
    return tuple(peers), compared


def _why_apart(own: Certificate, other: Certificate | None) -> str:
    if other is None:
        return "its file cannot be read"
    if other.instruments.prompt_set_hash != own.instruments.prompt_set_hash:
        return "other prompts"
    if other.instruments.judge != own.instruments.judge:
        return "another judge"
    return ""


def _aligned_on_the_same_base(session: Session, version: ModelVersion) -> list[ModelVersion]:
    base = version
    for _ in range(MAX_GENERATIONS):
        if base.parent_id is None:
            break
        base = session.get_one(ModelVersion, base.parent_id)
    below = (
        select(ModelVersion.id)
        .where(ModelVersion.parent_id == base.id, ModelVersion.kind == VersionKind.ALIGNED)
        .cte(recursive=True)
    )
    # UNION, not UNION ALL: a damaged chain ends where it meets itself.
    below = below.union(
        select(ModelVersion.id).where(
            ModelVersion.parent_id == below.c.id, ModelVersion.kind == VersionKind.ALIGNED
        )
    )
    return list(
        session.scalars(
            select(ModelVersion).where(
                ModelVersion.id.in_(select(below.c.id)),
                ModelVersion.id != version.id,
                ModelVersion.deleted_at.is_(None),
            )
        )
    )


def _utility(certificate: Certificate, result: CustomerResult) -> Utility:
    last = result.last
    points = [
        point
        for run in certificate.runs
        if run.customer == result.customer
        for point in run.points
        if point.step == last.step
    ]
    return Utility(
        name=result.customer.short_name,
        fine_tuning_accuracy=last.fine_tuning_accuracy,
        over_refusal=last.over_refusal,
        help=Rate(
            count=sum(point.helped for point in points),
            n=sum(point.harmless_prompts for point in points),
        ),
    )


def _read(storage: Storage, stored: StoredCertificate) -> Certificate | None:
    try:
        return _read_kept(storage, stored.prefix)
    except (StorageMissing, ValidationError) as error:
        log.warning("certificate_unreadable", certificate=stored.id, problem=type(error).__name__)
        return None


@lru_cache(maxsize=64)
def _read_kept(storage: Storage, prefix: str) -> Certificate:
    # What lies below a prefix is written once, and takes a tenth of a second to check.
    return Certificate.model_validate_json(storage.get(f"{prefix}/{JSON_FILE}"))
