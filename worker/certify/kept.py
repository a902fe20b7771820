"""What a certification has finished, kept in the storage: another attempt at the job does not do it again.

Whole runs are kept, not steps: a run is short. Everything lies below the job's checkpoints, so it goes with them. What
another judge or another release has measured is not found: a certificate names one of each.
"""

from __future__ import annotations

import hashlib

from pydantic import ValidationError

from models.certificate import CertificationRun, Point
from models.certification import Family, SimulatedCustomer
from models.evaluation import JudgeIdentity
from models.storage import Storage, StorageMissing
from worker.certify.summary import versions


class Kept:
    """One job's finished runs and measurements."""

    def __init__(self, job_id: str, storage: Storage, judge: JudgeIdentity) -> None:
        """Name the place, for what this judge and these libraries measure; nothing is made yet."""
        instruments = f"{judge.model_dump_json()}{sorted(versions().items())}"
        digest = hashlib.sha256(instruments.encode()).hexdigest()
        self._prefix = f"checkpoints/{job_id}/runs-{digest[:16]}"
        self._storage = storage

    def run(self, customer: SimulatedCustomer, seed: int) -> CertificationRun | None:
        """Give a finished run."""
        found = self._read(_key(customer, seed))
        try:
            return CertificationRun.model_validate_json(found) if found is not None else None
        except ValidationError:
            # Cut short or of an older version: it is run again.
            return None

    def keep_run(self, run: CertificationRun) -> None:
        """Keep a finished run."""
        self._write(_key(run.customer, run.seed), run.model_dump_json())

    def before(self, family: Family) -> Point | None:
        """Give a finished measurement of the certified model."""
        found = self._read(f"before-{family}")
        try:
            return Point.model_validate_json(found) if found is not None else None
        except ValidationError:
            return None

    def keep_before(self, family: Family, point: Point) -> None:
        """Keep a measurement of the certified model."""
        self._write(f"before-{family}", point.model_dump_json())

    def _read(self, name: str) -> bytes | None:
        try:
            return self._storage.get(f"{self._prefix}/{name}.json")
        except StorageMissing:
            return None

    def _write(self, name: str, text: str) -> None:
        self._storage.put(f"{self._prefix}/{name}.json", text.encode())


def _key(customer: SimulatedCustomer, seed: int) -> str:
    digest = hashlib.sha256(customer.model_dump_json().encode()).hexdigest()
    return f"{digest[:16]}-{seed}"
