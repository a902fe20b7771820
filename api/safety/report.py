"""What a safety report says: all the evidence on one released model, its weights, and how it came about.

Made from the database and the storage alone, so the same model gives the same report. It carries numbers,
names and hashes, never the text of a row, a prompt or an answer.
"""

from __future__ import annotations

from importlib.metadata import version as version_of

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.jobs.service import refuse_unreleased
from api.registry.safety import latest_evaluations, verdicts
from models.base import unix
from models.evaluation import Evaluation
from models.job import JobEvent
from models.model_version import ModelVersion
from models.policy import SafetyPolicy
from models.storage import DamagedFolder, Manifest, Storage

SCHEMA = "titer.safety_report/1"
REVIEW = "review"
HELD_BY = {True: "adapter", False: "weights"}

CAVEATS = (
    "Scores hold for these prompts, this judge and this way of asking, within their intervals.",
    "They are about the files named under weights, over the root named under model. An adapter on other weights, "
    "the base before its alignment among them, is another model.",
    "Whoever holds the weights can train them on. This report ends there.",
)


def make_report(session: Session, storage: Storage, version: ModelVersion) -> dict[str, object]:
    """Put together what is known of a released model.

    Raises:
        ModelBlocked: the gate has not released it.
        StorageMissing: its files are gone, or are not those that were measured.
    """
    refuse_unreleased(version)
    lineage = _lineage(session, version)
    evaluations = latest_evaluations(session, [entry.id for entry in lineage])
    own = evaluations.get(version.id)
    return {
        "schema": SCHEMA,
        "made_by": {"name": "titer", "version": version_of("titer")},
        "model": {
            "id": version.id,
            "kind": version.kind,
            "created_at": unix(version.created_at),
            "parent": version.parent_id,
            "root": version.root_id,
            "method": version.method,
            "job": version.job_id,
            "recipe": version.recipe,
            "data_hashes": version.data_hashes,
        },
        "weights": _weights(stored_weights(storage, version), is_adapter=version.is_adapter),
        "lineage": [_ancestor(entry, evaluations.get(entry.id)) for entry in lineage[1:]],
        "safety": verdicts(session, [version]).get(version.id),
        "evaluation": {"id": own.id, "created_at": unix(own.created_at)} if own else None,
        "policy": _policy(session, own),
        "reviews": _reviews(session, version),
        "caveats": list(CAVEATS),
    }


def stored_weights(storage: Storage, version: ModelVersion) -> Manifest:
    """Give what a version's folder holds, if it is the one that was measured.

    Raises:
        StorageMissing: it is gone.
        DamagedFolder: it is another one.
    """
    prefix = str(version.source["prefix"])
    manifest = storage.manifest(prefix)
    if manifest.sha256 != version.data_hashes.get(HELD_BY[version.is_adapter]):
        raise DamagedFolder(prefix)
    return manifest


def _weights(manifest: Manifest, *, is_adapter: bool) -> dict[str, object]:
    return {
        "form": HELD_BY[is_adapter],
        "sha256": manifest.sha256,
        "files": {
            name: {"sha256": stored.sha256, "bytes": stored.bytes}
            for name, stored in manifest.files.items()
        },
    }


def _lineage(session: Session, version: ModelVersion) -> list[ModelVersion]:
    lineage = [version]
    while (parent := lineage[-1].parent_id) is not None:
        # Deleted ancestors stay in the table: what was made from them was.
        lineage.append(session.get_one(ModelVersion, parent))
    return lineage


def _ancestor(version: ModelVersion, evaluation: Evaluation | None) -> dict[str, object]:
    return {
        "id": version.id,
        "kind": version.kind,
        "method": version.method,
        # The provider's own jobs are not for customers to know.
        "job": version.job_id if version.project_id is not None else None,
        "data_hashes": version.data_hashes,
        "harmful_score": evaluation.parsed().harmful_score.to_wire() if evaluation else None,
    }


def _policy(session: Session, evaluation: Evaluation | None) -> dict[str, object] | None:
    if evaluation is None or evaluation.policy_version is None:
        return None
    policy = session.get(SafetyPolicy, evaluation.policy_version)
    return {
        "version": evaluation.policy_version,
        "rules": policy.rules if policy is not None else None,
        "gate": evaluation.gate,
        "reasons": evaluation.reasons,
    }


def _reviews(session: Session, version: ModelVersion) -> list[dict[str, object]]:
    """Give what people decided, by the key that they used."""
    events = session.scalars(
        select(JobEvent)
        .where(JobEvent.job_id == version.job_id, JobEvent.type == REVIEW)
        .order_by(JobEvent.sequence)
    )
    return [
        {
            "decision": (event.data or {}).get("decision"),
            "key": (event.data or {}).get("key"),
            "created_at": unix(event.created_at),
        }
        for event in events
    ]
