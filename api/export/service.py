"""Which adapters may be downloaded, and the tar stream that carries one.

The stream is made a chunk at a time, so its memory does not grow with the adapter, and each file's hash is
compared with its manifest before the file's last chunk is sent: a damaged adapter ends in a cut stream.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy.orm import Session

from api.jobs.service import refuse_unreleased
from api.registry.service import get_model
from api.safety.adapter_check import REPORT_FILE
from api.safety.report import stored_weights
from models.errors import DomainError, Forbidden
from models.model_version import ModelVersion, VersionKind
from models.safety_set import HEADER, parse_header
from models.settings import Settings
from models.storage import DamagedFolder, Manifest, Storage

#: All that an adapter needs. Nothing else is ever sent: no pickle, no code.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
READABLE = 0o644
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


class NoAdapter(DomainError):
    """The model is no adapter: it has weights of its own."""

    code = "no_adapter"


class ExportNotAllowed(Forbidden):
    """The provider does not give the adapters of this base out of the house. The model can be used here."""

    code = "export_not_allowed"


@dataclass(frozen=True, slots=True)
class Export:
    """What one download carries."""

    prefix: str
    manifest: Manifest
    report: bytes | None

    @property
    def bytes(self) -> int:
        """The length of the stream."""
        parts = [(name, self.manifest.files[name].bytes) for name in ADAPTER_FILES]
        if self.report is not None:
            parts.append((REPORT_FILE, len(self.report)))
        return len(END) + sum(len(_header(*part)) + part[1] + -part[1] % BLOCK for part in parts)


def find_exportable(
    session: Session,
    storage: Storage,
    settings: Settings,
    model_id: str,
    *,
    project_id: str | None,
) -> ModelVersion:
    """Give a model whose adapter the caller may have.

    Args:
        session: an open session.
        storage: where the base's safety set is.
        settings: the service's.
        model_id: the model's name.
        project_id: the caller's project; None for staff, who may have the provider's adapters as well.

    Raises:
        ModelNotFound: it is absent, or not theirs to see.
        NoAdapter: it has weights of its own.
        ExportNotAllowed: the provider keeps it in the house.
        ModelBlocked: the gate has not released it.
    """
    version = get_model(session, model_id, project_id=project_id)
    if not version.is_adapter:
        raise NoAdapter(param="model")
    if project_id is not None and not (
        version.kind == VersionKind.TUNED and _is_given_out(storage, settings, version)
    ):
        raise ExportNotAllowed(param="model")
    refuse_unreleased(version)
    return version


def prepare(storage: Storage, version: ModelVersion, report: bytes | None) -> Export:
    """Look up what is to be sent, and that it is what was measured.

    Raises:
        StorageMissing: it is gone or damaged.
    """
    manifest = stored_weights(storage, version)
    prefix = str(version.source["prefix"])
    if not manifest.files.keys() >= set(ADAPTER_FILES):
        raise DamagedFolder(prefix)
    return Export(prefix, manifest, report)


def tar(storage: Storage, export: Export) -> Iterator[bytes]:
    """Make the stream. It ends early, and so is cut, if a file is not the one that its manifest names.

    Raises:
        StorageMissing: a file is gone; raised after the first chunks, as any reading fault is.
    """
    for name in ADAPTER_FILES:
        stored = export.manifest.files[name]
        yield _header(name, stored.bytes)
        yield from _checked(storage, export.prefix, name, stored.sha256)
        yield _padding(stored.bytes)
    if export.report is not None:
        yield _header(REPORT_FILE, len(export.report)) + export.report
        yield _padding(len(export.report))
    yield END


def _is_given_out(storage: Storage, settings: Settings, version: ModelVersion) -> bool:
    match settings.adapter_export:
        case "always":
            return True
        case "never":
            return False
        case "per-base":
            header = parse_header(storage.get(f"{version.safety_prefix}/{HEADER}"))
            return bool(header.adapter_export)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, READABLE
    # The old format holds 8 GiB in a file, the newer one more.
    return entry.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _checked(storage: Storage, prefix: str, name: str, sha256: str) -> Iterator[bytes]:
    digest, waiting = hashlib.sha256(), b""
    for chunk in storage.stream(f"{prefix}/{name}"):
        digest.update(chunk)
        yield waiting
        waiting = chunk
    if digest.hexdigest() != sha256:
        raise DamagedFolder(prefix)
    yield waiting
