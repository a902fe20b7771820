"""A run on disk, complete or absent, from which it goes on bit for bit.

    <folder>/step-00000120/
        weights.safetensors      the trained tensors
        optimizer.safetensors    AdamW's two moments and step count for each of them
        rule.safetensors         what the rule remembers, for those that do
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
from worker.trainers.step import Rule, StatefulRule, Weights

STATE_FILE = "state.json"
WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
RULE_FILE = "rule.safetensors"
NAME = re.compile(r"step-(\d{8})")


class CheckpointMismatch(DomainError):
    """The checkpoint belongs to another run."""

    code = "checkpoint_mismatch"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: optimiser steps done.
        tokens: trained tokens seen in them.
        canary_before: the canary's loss before the first step, when there is a canary.
    """

    step: int = 0
    tokens: int = 0
    canary_before: float | None = None


class Shelf:
    """One run's folder of checkpoints. `identity` says what the run was given."""

    def __init__(self, folder: Path, identity: dict[str, object]) -> None:
        self.folder = folder
        self.identity = identity

    def save(
        self,
        progress: Progress,
        weights: Weights,
        optimizer: torch.optim.Optimizer,
        rule: Rule,
    ) -> Path:
        """Write a checkpoint, drop the older ones, and give its path.

        Args:
            progress: where the run is.
            weights: the trained tensors, as the optimiser knows them.
            optimizer: AdamW over these tensors.
            rule: the method.
        """
        path = self.folder / f"step-{progress.step:08d}"
        partial = self.folder / f".{path.name}.partial"
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
        if isinstance(rule, StatefulRule):
            save_file(_portable(rule.state()), partial / RULE_FILE)
        state = {**asdict(progress), "identity": self.identity}
        (partial / STATE_FILE).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
        partial.rename(path)
        for other in self._complete():
            if other != path:
                shutil.rmtree(other, ignore_errors=True)
        return path

    @torch.no_grad()
    def resume(self, weights: Weights, optimizer: torch.optim.Optimizer, rule: Rule) -> Progress:
        """Put the newest checkpoint into weights, optimiser and rule, all in place.

        Returns:
            Where that checkpoint was taken; the start when there is none.

        Raises:
            CheckpointMismatch: the run was given something else than the checkpoint's.
        """
        found = self._complete()
        if not found:
            return Progress()
        state = json.loads((found[-1] / STATE_FILE).read_text())
        given = state.pop("identity")
        if given != self.identity:
            differing = [k for k in self.identity if self.identity[k] != given.get(k)]
            raise CheckpointMismatch(
                f"The checkpoint is of another run, with other {', '.join(sorted(differing))}."
            )
        stored = load_file(found[-1] / WEIGHTS_FILE)
        moments = load_file(found[-1] / OPTIMIZER_FILE)
        for name, tensor in weights.items():
            tensor.copy_(stored[name])
            optimizer.state[tensor] = {
                # AdamW counts steps on the CPU, wherever the moments are.
                kind: moments[key] if kind == "step" else moments[key].to(tensor.device)
                for kind in ("step", "exp_avg", "exp_avg_sq")
                if (key := f"{name}/{kind}") in moments
            }
        if isinstance(rule, StatefulRule):
            device = next(iter(weights.values())).device
            kept = load_file(found[-1] / RULE_FILE)
            rule.restore({name: tensor.to(device) for name, tensor in kept.items()})
        return Progress(**state)

    def _complete(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(
            path
            for path in self.folder.iterdir()
            if NAME.fullmatch(path.name) and (path / STATE_FILE).is_file()
        )


def _portable(tensors: Weights) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
