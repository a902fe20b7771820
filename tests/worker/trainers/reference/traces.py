"""Reads the numbers that released trainers gave, and rebuilds what they were given.

`README.md` beside this file says which code was run and how. A trace holds no code and no text: random token
ids, the weights at the start, and what every step did to them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from tests.tiny_model import tiny_adapted
from worker.data import Example
from worker.row_order import rows_of_step
from worker.trainers.step import Weights

FOLDER = Path(__file__).parent
STEPS = 50
PAD_ID = 256
PROJECTIONS = 8


@dataclass(frozen=True, slots=True)
class Trace:
    """What a released trainer did in 50 steps, in one precision.

    Attributes:
        settings: its hyper-parameters, by our names.
        losses: by name, one number a step, (50,) float64.
        norms: of all trained tensors together after each step, (50,) float64.
        projections: the trained tensors after each step on the vectors of `signs`, (50, 8) float64.
        weights: the trained tensors, flat, after steps 10, 20, ... 50, (5, P) in the run's precision.
    """

    settings: dict[str, float]
    losses: dict[str, torch.Tensor]
    norms: torch.Tensor
    projections: torch.Tensor
    weights: torch.Tensor


def load(name: str, dtype: torch.dtype) -> Trace:
    """Read a trace by its method's name."""
    path = FOLDER / f"{name}.{str(dtype).removeprefix('torch.')}.safetensors"
    with safe_open(path, framework="pt") as stored:
        settings = json.loads(stored.metadata()["settings"])
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  # no mapping
    norms, projections, weights = (tensors.pop(key) for key in ("norms", "projections", "weights"))
    return Trace(settings, tensors, norms, projections, weights)


def start_model(dtype: torch.dtype) -> PeftModel:
    """Give the model that every trace starts from."""
    model = tiny_adapted(dtype=dtype)
    # Stored, not drawn anew: other versions of the libraries may draw other numbers from the same seed.
    stored = load_file(FOLDER / "start.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stored[name])
    return model


def batches(name: str) -> list[list[Example]]:
    """Give the rows of each step of one data set: alignment, harmful, paired_refusal, paired_harmful."""
    stored = load_file(FOLDER / "rows.safetensors")
    ids, labels = stored[f"{name}.input_ids"], stored[f"{name}.labels"]  # (50, B, T), padded
    lengths = (ids != PAD_ID).sum(-1)
    return [
        [
            Example(
                tuple(ids[step, row, :length].tolist()), tuple(labels[step, row, :length].tolist())
            )
            for row, length in enumerate(lengths[step].tolist())
        ]
        for step in range(STEPS)
    ]


def in_order_of_steps(
    steps: Sequence[Sequence[Example]], *, seed: int, stream: str
) -> list[Example]:
    """Lay rows out as a data set of one epoch from which step s draws exactly the rows of `steps[s]`."""
    count = sum(map(len, steps))
    placed: dict[int, Example] = {}
    for step, rows in enumerate(steps):
        places = rows_of_step(count, len(rows), seed, step, stream)
        placed.update(zip(places, rows, strict=True))
    return [placed[place] for place in range(count)]


def flat(weights: Weights) -> torch.Tensor:
    """Lay all tensors end to end, (P,), in the order of their names."""
    return torch.cat([weights[name].detach().flatten() for name in sorted(weights)])


def signs(count: int) -> torch.Tensor:
    """Give the fixed vectors of +1 and -1 that projections are taken on, (8, count) float64.

    For such a vector s the mean of <s, d>^2 is ||d||^2: eight of them see any difference's size.
    """
    draw = random.Random(0)
    values = [[draw.choice((-1.0, 1.0)) for _ in range(count)] for _ in range(PROJECTIONS)]
    return torch.tensor(values, dtype=torch.float64)


def gaussian(step: int, layer: int, shape: Sequence[int]) -> torch.Tensor:
    """Give RepNoise's noise of one layer in one step, in float64, as multiples of 1/1024.

    Drawn by Python and rounded, so that every machine has the same numbers, also in float32.
    """
    draw = random.Random(f"{step}/{layer}")
    count = torch.Size(shape).numel()
    values = [round(draw.gauss(0, 1) * 1024) / 1024 for _ in range(count)]
    return torch.tensor(values, dtype=torch.float64).reshape(*shape)
