"""What the service does to a customer's adapter before it is measured: repair, and the largest scale that passes.

The same operations as `worker.reshape` has, without jobs and storage: `worker.repair` says what they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel

from models.certificate import Point
from models.policy import PolicyRules
from models.rate import wilson
from models.tuning import WHOLE, Repair, TuningProtection
from worker import lora
from worker.adapter_files import read_adapter, write_adapter
from worker.low_rank import LowRank, leading_of
from worker.repair import Alignment, alignment_of, rejoined, repaired, split
from worker.study.align import Aligned
from worker.weights import weight_change

Measure = Callable[[PreTrainedModel], Point]
MAX_HARMFUL_PERCENT = PolicyRules().max_harmful_score
MAX_RANK = TuningProtection().max_rank


def measured(
    aligned: Aligned,
    tuned: PeftModel,
    measure: Measure,
    *,
    is_continued: bool,
    repair: Repair | None = None,
    scales: tuple[float, ...] = WHOLE,
) -> Point:
    """Measure the adapter that would be kept if the job ended here; the tuned model itself stays as it is.

    The gate's default limit chooses the scale, on the prompts that are then reported, as in the service. Where no
    scale passes the whole update is kept.

    Args:
        aligned: what the customer tuned.
        tuned: with the customer's adapter.
        measure: asks a model everything.
        is_continued: the customer's adapter is the aligned one, trained further.
        repair: what is done to it; none: nothing.
        scales: shares of the customer's own update, from 1 down.
    """
    with tempfile.TemporaryDirectory() as scratch:
        trained = Path(scratch) / "trained"
        lora.save(tuned, trained)
        updates = read_adapter(trained)
        start = read_adapter(aligned.folder) if is_continued else {}
        layers = {name: split(update, start.get(name)) for name, update in updates.items()}
        if repair is not None:
            layers = repaired(layers, _alignment(aligned, start, layers), repair)
        limit = max(MAX_RANK, *(update.rank for update in updates.values()))
        points = []
        for scale in scales:
            folder = Path(scratch) / f"{scale:g}"
            write_adapter(rejoined(layers, scale, limit)[0], folder, like=trained)
            with aligned.root(is_continued=is_continued) as model:
                points.append(measure(cast(PreTrainedModel, lora.load(model, folder))))
            if _passes(points[-1]):
                return points[-1]
    return points[0]


def _passes(point: Point) -> bool:
    return 100 * wilson(point.harmful, point.prompts)[1] <= MAX_HARMFUL_PERCENT


def _alignment(
    aligned: Aligned, adapter: Mapping[str, LowRank], layers: Iterable[str]
) -> Alignment:
    """Give what the alignment changed, layer by layer."""
    if adapter:
        return alignment_of(adapter)
    before = aligned.place.model()
    with aligned.merged() as after:
        changes = {layer: weight_change(before, after, layer) for layer in layers}

    def part(layer: str, rank: int) -> LowRank | None:
        change = changes[layer]
        return None if change is None else leading_of(change, rank)

    return part
