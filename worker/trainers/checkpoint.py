"""A run on disk, complete or absent, from which it goes on bit for bit.

    <folder>/step-00000120/
        weights.safetensors      the trained tensors
        optimizer.safetensors    AdamW's two moments and step count for each of them
        state.json               step, trained tokens so far, and what the run was given; written last

There is no random state to keep: the rows of a step and its dropout masks are functions of the seed and
the step. A checkpoint is written beside its final name and moved there in one rename.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.errors import DomainError
from worker.trainers.step import Weights

STATE_FILE = "state.json"
WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
NAME = re.compile(r"step-(\d{8})")


class CheckpointMismatch(DomainError):
    """The checkpoint belongs to another run."""

    code = "checkpoint_mismatch"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: optimiser steps done, and trained tokens seen in them."""

    step: int = 0
    tokens: int = 0


def save(
    folder: Path,
    progress: Progress,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, object],
) -> Path:
    """Write a checkpoint and drop the older ones; gives its path.

    Args:
        folder: the run's own folder for checkpoints.
        progress: where the run is.
        weights: the trained tensors, as the optimiser knows them.
        optimizer: AdamW over these tensors.
        identity: what the run was given; must be equal when it is resumed.
    """
    path = folder / f"step-{progress.step:08d}"
    partial = folder / f".{path.name}.partial"
    for leftover in (partial, path):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_portable(weights), partial / WEIGHTS_FILE)
    moments = {
        f"{name}/{kind}": value
        for name, tensor in weights.items()
        for kind, value in optimizer.state.get(tensor, {}).items()
    }
    save_file(_portable(moments), partial / OPTIMIZER_FILE)
    state = {**asdict(progress), "identity": identity}
    (partial / STATE_FILE).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
    partial.rename(path)
    for other in _complete(folder):
        if other != path:
            shutil.rmtree(other, ignore_errors=True)
    return path


@torch.no_grad()
def resume(
    folder: Path,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, object],
) -> Progress:
    """Put the newest checkpoint of `folder` into weights and optimiser, both in place.

    Returns:
        Where that checkpoint was taken; the start when there is none.

    Raises:
        CheckpointMismatch: the run was given something else than the checkpoint's.
    """
    found = _complete(folder)
    if not found:
        return Progress()
    path = found[-1]
    state = json.loads((path / STATE_FILE).read_text())
    if state["identity"] != identity:
        changed = sorted(
            key for key in identity if identity[key] != state["identity"].get(key)
        ) or ["something that this version does not know"]
        raise CheckpointMismatch(f"The checkpoint is of another run: {', '.join(changed)} differs.")
    stored = load_file(path / WEIGHTS_FILE)
    moments = load_file(path / OPTIMIZER_FILE)
    for name, tensor in weights.items():
        tensor.copy_(stored[name])
    for name, tensor in weights.items():
        optimizer.state[tensor] = {
            # AdamW counts steps on the CPU, wherever the moments are.
            kind: moments[key] if kind == "step" else moments[key].to(tensor.device)
            for kind in ("step", "exp_avg", "exp_avg_sq")
            if (key := f"{name}/{kind}") in moments
        }
    return Progress(state["step"], state["tokens"])


def _complete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if NAME.fullmatch(path.name) and (path / STATE_FILE).is_file()
    )


def _portable(tensors: Weights) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
