"""Seconds of a Booster step against an SFT step, in one run on one machine.

    python -m benchmarks.step_cost [--blocks 15] [--steps 10]

Booster makes three passes where SFT makes one, so about 3 is expected; the paper reports the same. The
two are timed in alternating blocks of whole optimiser steps (drawing rows, passes, clipping, AdamW), so that
a machine that slows down slows both, and compared block by block. Both the clock's seconds and the
processor's are recorded: on a machine that is busy with other work only the second are steady.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from models.hyperparameters import LoraConfig, TrainConfig
from models.methods import BoosterConfig, SftConfig
from worker import lora
from worker.data import IGNORED, Example
from worker.trainers.loop import StepMetrics, train
from worker.trainers.methods import rule_for

RESULT = Path(__file__).parent / "results" / "step_cost.json"
VOCABULARY = 1000
HIDDEN, LAYERS = 96, 3  # the sandbox's size
BATCH = 10
METHODS = (SftConfig(), BoosterConfig())


def model() -> torch.nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    torch.manual_seed(0)
    return lora.attach(LlamaForCausalLM(config), LoraConfig(), seed=0)


def rows(count: int, seed: int) -> list[Example]:
    """Random rows of 24 to 40 tokens, half of them trained."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        tokens = tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(24, 40)))
        half = len(tokens) // 2
        made.append(Example(tokens, (IGNORED,) * half + tokens[half:]))
    return made


def block(
    network: torch.nn.Module, method: SftConfig | BoosterConfig, steps: int, seed: int
) -> tuple[float, float]:
    """Seconds per optimiser step by the clock and by the processor, the run's first step not counted."""
    ticks: list[tuple[float, float]] = []

    def on_step(_: StepMetrics) -> None:
        ticks.append((time.perf_counter(), time.process_time()))

    train(
        network,
        rule_for(method),
        rows(100, seed),
        TrainConfig(steps=steps + 1, batch_size=BATCH, learning_rate=1e-4, seed=seed),
        pad_id=0,
        harmful=rows(100, seed + 1000),
        on_step=on_step,
    )
    (wall_start, cpu_start), (wall_end, cpu_end) = ticks[0], ticks[-1]
    return (wall_end - wall_start) / steps, (cpu_end - cpu_start) / steps


def compared(sft: list[float], booster: list[float]) -> dict[str, object]:
    ratios = [b / s for s, b in zip(sft, booster, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "sft_milliseconds_median": round(1000 * statistics.median(sft), 2),
        "booster_milliseconds_median": round(1000 * statistics.median(booster), 2),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def measure(blocks: int, steps: int) -> dict[str, object]:
    network = model()
    for method in METHODS:
        block(network, method, 3, seed=0)  # warm-up
    seconds: dict[str, list[tuple[float, float]]] = {method.name: [] for method in METHODS}
    for number in range(blocks):
        # The order alternates as well, so that neither always runs on the warmer cache.
        for method in METHODS if number % 2 else METHODS[::-1]:
            seconds[method.name].append(block(network, method, steps, seed=number))
    (sft_wall, sft_cpu), (booster_wall, booster_cpu) = (
        map(list, zip(*seconds[method.name], strict=True)) for method in METHODS
    )
    return {
        "what": "one optimiser step, Booster against SFT, in paired blocks",
        "processor_time": compared(sft_cpu, booster_cpu),
        "clock_time": compared(sft_wall, booster_wall),
        "paper_ratio": 3,
        "blocks": blocks,
        "steps_per_block": steps,
        "batch_rows": BATCH,
        "row_tokens": [24, 40],
        "model": {
            "architecture": "llama",
            "hidden": HIDDEN,
            "layers": LAYERS,
            "vocabulary": VOCABULARY,
            "parameters": sum(p.numel() for p in network.parameters() if not p.requires_grad),
            "adapter_parameters": sum(
                p.numel() for p in lora.trainable_parameters(network).values()
            ),
        },
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average": round(os.getloadavg()[0], 1),
            "device": "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=15, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=10, help="optimiser steps in a block")
    parser.add_argument("--threads", type=int, default=1, help="threads that torch may use")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = measure(arguments.blocks, arguments.steps)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
