"""Where a run keeps its checkpoints: on this worker's disk, and in the storage for the next worker."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from models.job_checkpoint import resume_prefix
from models.storage import StorageMissing
from worker.work import Workshop


class RunFolder:
    """The checkpoints of one job."""

    def __init__(self, job_id: str, shop: Workshop, *, attempt: int = 0) -> None:
        """Name the places; nothing is made yet. Attempts may share a disk, so each has its own folder."""
        self._runs = shop.cache / "runs" / job_id
        self.path = self._runs / str(attempt)
        self._prefix = resume_prefix(job_id)
        self._shop = shop

    def keep(self, checkpoint: Path) -> None:
        """Store a checkpoint that the loop has just written, and drop the older stored ones."""
        storage = self._shop.storage
        storage.put_folder(f"{self._prefix}/{checkpoint.name}", checkpoint)
        for name in storage.folders(self._prefix):
            if name < checkpoint.name:
                storage.delete_folder(f"{self._prefix}/{name}")

    def fetch(self) -> None:
        """Bring the newest stored checkpoint here, when another worker was further than this one."""
        stored = self._shop.storage.folders(self._prefix)
        if not stored or (self.path / stored[-1]).exists():
            return
        try:
            source = self._shop.storage.folder(f"{self._prefix}/{stored[-1]}", self._shop.cache)
        except StorageMissing:
            # Exchanged or damaged at this moment: starting anew costs time, and nothing else.
            return
        # A copy that is cut short must not look like a checkpoint.
        partial = self.path / f".{stored[-1]}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        partial.rename(self.path / stored[-1])

    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """Lend a folder on the disk of the checkpoints: a whole model need not fit into a `/tmp` in memory.

        What a killed worker leaves in it goes with the run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".scratch-", dir=self.path)

    def leave(self) -> None:
        """Forget this attempt's copies here; the storage has what the next one needs."""
        shutil.rmtree(self.path, ignore_errors=True)

    def remove(self) -> None:
        """Forget the run: it is over."""
        shutil.rmtree(self._runs, ignore_errors=True)
        self._shop.storage.delete_folder(self._prefix)
