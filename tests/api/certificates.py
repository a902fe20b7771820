"""Rows for simulated customers, and certificates, where a test wants them to be there."""

from __future__ import annotations

from models.certification import SimulatedCustomer
from models.job import Job, JobKind, JobStatus
from models.model_version import ModelVersion
from models.safety_set import CERTIFICATION_FILES
from models.stored_certificate import JSON_FILE, PAGE_FILE, PICTURE_FILE, StoredCertificate
from tests.api.conftest import Place

ESTIMATE = {"percent": 34.0, "low": 12.5, "high": 55.5, "seeds": 3, "n": 300}
SUMMARY: dict[str, object] = {
    "plan": "quick",
    "plan_hash": "ab" * 32,
    "before": {"percent": 0.0, "low": 0.0, "high": 3.7, "seeds": 1, "n": 100},
    "worst_case": {"customer": "pure 100%, 200 rows", "step": 80, "harmful_score": ESTIMATE},
    "titer": {
        "steps": 40,
        "after": 20,
        "customer": "pure 100%, 200 rows",
        "limit_percent": 15.0,
        "measured_to": 80,
    },
    "runs": 30,
}
SMALL_PLAN: dict[str, object] = {
    "name": "mine",
    "customers": [
        SimulatedCustomer.model_validate(
            {"family": "pure", "attack_ratio": 1, "rows": 10, "steps": 4, "marks": (4,)}
        ).model_dump(mode="json")
    ],
}


def supply(place: Place, version: ModelVersion, *, attack: int = 400, customer: int = 1000) -> None:
    """Put rows for simulated customers into a model's safety set."""
    for name, rows in zip(CERTIFICATION_FILES, (attack, customer, 300), strict=True):
        place.storage.put(f"{version.safety_prefix}/{name}", b"{}\n" * rows + b"\n")


def certify(place: Place, version: ModelVersion, **facts: object) -> StoredCertificate:
    """Store a certificate of a model, with the job that made it."""
    job: Job = place.job(
        place.project("certifier"),
        version,
        kind=JobKind.CERTIFY,
        status=JobStatus.SUCCEEDED,
        result_model_id=version.id,
        recipe=SMALL_PLAN,
    )
    prefix = f"certificates/{job.id}/1"
    stored = StoredCertificate(
        version_id=version.id,
        job_id=job.id,
        plan_hash=str(SUMMARY["plan_hash"]),
        summary=SUMMARY,
        prefix=prefix,
        **facts,
    )
    place.session.add(stored)
    place.session.commit()
    place.storage.put(f"{prefix}/{JSON_FILE}", b'{"schema": "titer.certificate/1"}\n')
    place.storage.put(f"{prefix}/{PAGE_FILE}", b"<!doctype html><title>certificate</title>")
    place.storage.put(f"{prefix}/{PICTURE_FILE}", b"\x89PNG")
    return stored
