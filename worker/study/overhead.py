"""What a method costs against SFT: processor seconds, passes, tokens and peak memory, a process for each.

Every arm runs the same number of steps of the same batch from start to end, so that late and lazy arms pay in
proportion. Rounds are repeated with the arms in turn, and each arm is compared with SFT's of its own round: a
machine that slows down slows both. Peak memory is the process's own (on a GPU: what torch allocated), less what
it had before training.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.methods import (
    TITER_ADAPTER_ALPHA,
    BoosterConfig,
    BoosterVaccineConfig,
    RepNoiseConfig,
    SftConfig,
    TiterConfig,
    VaccineConfig,
)
from worker.study.align import Arm, prepared
from worker.study.place import sandbox

STEPS = 100
ROUNDS = 5
WORLD = 10  # that other studies build as well
_BOOSTER = BoosterConfig(lambda_=20, alpha=0.005)
ARMS = tuple(
    replace(arm, steps=STEPS)
    for arm in (
        Arm("SFT", SftConfig()),
        Arm("Vaccine", VaccineConfig()),
        Arm("RepNoise", RepNoiseConfig(paired=False)),
        Arm("Booster, all steps", _BOOSTER),
        Arm("Booster, late 30%", _BOOSTER.model_copy(update={"start": 0.7})),
        Arm("Booster, late 30%, lazy 4", _BOOSTER.model_copy(update={"start": 0.7, "every": 4})),
        Arm("Booster+Vaccine", BoosterVaccineConfig()),
        Arm("Titer in an adapter", TiterConfig(alpha=TITER_ADAPTER_ALPHA)),
        Arm("SFT (full)", SftConfig(), "full"),
        Arm("Titer", TiterConfig(), "full"),
        Arm("Titer, lazy 4", TiterConfig(every=4), "full"),
    )
)


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of an arm."""

    seconds: float
    tokens: int
    peak_mib: float


def measure(
    cache: Path, on_run: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, list[Cost]]:
    """Run every arm `ROUNDS` times, in turn."""
    costs: dict[str, list[Cost]] = {arm.name: [] for arm in ARMS}
    context = multiprocessing.get_context("spawn")
    for number in range(ROUNDS):
        for place, arm in enumerate(ARMS):
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                costs[arm.name].append(pool.submit(_run, arm, cache).result())
            on_run(arm.name, number * len(ARMS) + place + 1, ROUNDS * len(ARMS))
    return costs


def table(costs: dict[str, list[Cost]]) -> str:
    """Give the table, each arm against SFT of its own round and space."""
    lines = [
        "# What a method costs",
        "",
        f"{STEPS} steps of {ARMS[0].batch_size} alignment rows on the sandbox base, {ROUNDS} rounds, one thread. "
        "Seconds are the processor's, as multiples of SFT's in the same round and the same space: median "
        "(smallest to largest).",
        "",
        "| arm | passes | processor seconds | alignment tokens a step | peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for arm in ARMS:
        own = costs[arm.name]
        base = costs["SFT" if arm.space == "adapter" else "SFT (full)"]
        ratios = [one.seconds / sft.seconds for one, sft in zip(own, base, strict=True)]
        lines.append(
            f"| {arm.name} | {arm.passes:.3g} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {own[0].tokens / STEPS:.0f} "
            f"| {statistics.median(cost.peak_mib for cost in own):.0f} |"
        )
    return "\n".join(lines) + "\n"


def _run(arm: Arm, cache: Path) -> Cost:
    torch.set_num_threads(1)
    run = prepared(sandbox(WORLD, cache), arm, seed=0)
    before = _peak_mib()
    started = time.process_time()
    tokens = run.train()
    return Cost(time.process_time() - started, tokens, _peak_mib() - before)


def _peak_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def rows(names: Sequence[str], costs: dict[str, list[Cost]]) -> list[dict[str, object]]:
    """Give the runs as plain facts, for JSON."""
    return [
        {"arm": name, "seconds": c.seconds, "tokens": c.tokens, "peak_mib": c.peak_mib}
        for name in names
        for c in costs[name]
    ]
