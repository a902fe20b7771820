"""The bench on which a job's tuned adapter is repaired and scaled: candidates, each in the storage.

What happens to a layer stands in `worker.repair`; this module finds the matrices: the trained adapter, the
one that the job began with, and what the lineage's alignment changed in the base.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from models.model_version import ModelVersion, VersionKind
from models.tuning import LoxConfig, ReshapedAdapter
from worker.adapter_files import read_adapter, write_adapter
from worker.base_models import load_model
from worker.leased_job import LeasedJob
from worker.low_rank import LowRank, leading_of
from worker.repair import Alignment, Split, alignment_of, rejoined, repaired, split
from worker.weights import weight_change
from worker.work import Work, Workshop, lineage, origin


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter that may be kept.

    Attributes:
        version: stands for it where a version is asked for; no row of the database does.
        sha256: of its folder; none for the adapter as it was trained.
        shape: what was done to it; none for the adapter as it was trained.
    """

    version: ModelVersion
    sha256: str | None = None
    shape: ReshapedAdapter | None = None


class Bench:
    """Makes candidates when they are asked for. What all have in common is worked out once."""

    def __init__(self, job: LeasedJob, work: Work, version: ModelVersion, shop: Workshop) -> None:
        """Take the version that holds the adapter as it was trained."""
        self._job, self._work, self._version, self._shop = job, work, version, shop
        self._layers: dict[str, Split] = {}
        self._rank = 0
        self._made: dict[float, Candidate] = {}

    def candidate(self, scale: float) -> Candidate:
        """Give the repaired adapter with a share of the customer's own update.

        Raises:
            UnusableAdapter: an adapter of the lineage is not a plain one.
        """
        if scale not in self._made:
            is_as_trained = scale == 1 and self._work.recipe.tuning.repair is None
            self._made[scale] = Candidate(self._version) if is_as_trained else self._make(scale)
        return self._made[scale]

    def _make(self, scale: float) -> Candidate:
        trained = self._folder(self._version)
        if not self._layers:
            tuned = read_adapter(trained)
            self._rank = max(update.rank for update in tuned.values())
            self._layers = self._split(tuned)
        # The limit is for what reshaping adds: what was trained with a larger rank keeps it.
        limit = max(self._work.recipe.tuning.max_rank, self._rank)
        updates, truncation = rejoined(self._layers, scale, limit)
        # By attempt: a worker that was thought dead must not write where another one measures.
        prefix = f"models/{self._job.id}/{self._job.attempt}-{scale:g}"
        with tempfile.TemporaryDirectory() as scratch:
            rank = write_adapter(updates, Path(scratch), like=trained)
            sha256 = self._shop.storage.put_folder(prefix, Path(scratch))
        version = ModelVersion(
            id=self._version.id,
            kind=self._version.kind,
            root_id=self._version.root_id,
            source={"prefix": prefix},
        )
        shape = ReshapedAdapter(
            layers=len(self._layers),
            repaired_layers=sum(layer.is_repaired for layer in self._layers.values()),
            rank=rank,
            truncation=truncation,
        )
        return Candidate(version, sha256, shape)

    def _split(self, tuned: Mapping[str, LowRank]) -> dict[str, Split]:
        start, repair = self._work.start, self._work.recipe.tuning.repair
        before = read_adapter(self._folder(start)) if start.is_adapter else {}
        layers = {name: split(update, before.get(name)) for name, update in tuned.items()}
        # A job that goes on from a tuned version finds LoX's part there already: that version's job added it.
        is_done = isinstance(repair, LoxConfig) and start.kind == VersionKind.TUNED
        if repair is None or is_done:
            return layers
        return repaired(layers, self._alignment(), repair)

    def _alignment(self) -> Alignment:
        """Give what the lineage's alignment changed in the base."""
        aligned = origin(self._work, self._shop)
        adapter: Mapping[str, LowRank] = {}
        if aligned.is_adapter:
            adapter = read_adapter(self._folder(aligned))
        if self._work.root.kind == VersionKind.BASE:
            return alignment_of(adapter)
        return self._difference(lineage(self._work, self._shop)[-1], adapter)

    def _difference(self, base: ModelVersion, adapter: Mapping[str, LowRank]) -> Alignment:
        """Give what an alignment in full parameters, and an adapter on it, changed: one layer at a time."""
        # The root's weights are resident on the device; the base's stay in ordinary memory.
        after = self._shop.base(self._work.root).model
        before = load_model(self._shop.folder(base), target=torch.device("cpu"))

        def part(name: str, rank: int) -> LowRank | None:
            change = weight_change(before, after, name)
            if change is None:
                return None
            if name in adapter:
                change = change + adapter[name].dense().to(change)
            return leading_of(change, rank)

        return part

    def _folder(self, version: ModelVersion) -> Path:
        return self._shop.storage.folder(version.source["prefix"], self._shop.cache)
