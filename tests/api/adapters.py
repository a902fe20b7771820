"""Stored adapters for models of a test: files of the right names, whose content is nobody's weights."""

from __future__ import annotations

from pathlib import Path

from models.evaluation import Evaluation
from models.job import Job, JobStatus
from models.model_version import Gate, ModelVersion, VersionKind
from tests.api.conftest import Place, Tenant

CONFIG = b'{"peft_type": "LORA", "r": 8}\n'
WEIGHTS = bytes(range(256)) * 5_000


def store(place: Place, version: ModelVersion, folder: Path, **files: bytes) -> None:
    """Give a version its stored folder, and the hash by which it was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS, **files}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    sha256 = place.storage.put_folder(str(version.source["prefix"]), folder)
    version.data_hashes = {**version.data_hashes, "adapter": sha256}
    place.session.commit()


def tuned(
    place: Place,
    tenant: Tenant,
    parent: ModelVersion,
    folder: Path,
    *,
    gate: Gate = Gate.RELEASED,
    harmful: int = 5,
    name: str = "ft:tiny:acme::1",
) -> tuple[ModelVersion, Job, Evaluation]:
    """Make a tenant's model with its job, its evaluation and its files."""
    job = place.job(tenant.project, parent, status=JobStatus.SUCCEEDED, result_model_id=name)
    version = place.version(
        name, VersionKind.TUNED, gate=gate, parent=parent, project=tenant.project, job=job
    )
    evaluation = place.evaluation(version, harmful=harmful)
    store(place, version, folder)
    return version, job, evaluation
