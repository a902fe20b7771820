"""The provider's side of a study: align a base by one method, once, and keep what came of it."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from models.hyperparameters import (
    ALIGN_FULL_LEARNING_RATE,
    ALIGN_LEARNING_RATE,
    ALIGN_STEPS,
    LoraConfig,
    TrainConfig,
)
from models.methods import (
    AlignmentMethod,
    BoosterConfig,
    BoosterVaccineConfig,
    RepNoiseConfig,
)
from models.rows import Conversation
from models.safety_set import balanced
from worker import lora
from worker.base_models import save_base
from worker.study.place import Place
from worker.trainers.loop import train
from worker.trainers.methods import rule_for
from worker.weights import train_linear_weights, trained_weights

WEIGHTS_FILE = "weights.safetensors"
FACTS_FILE = "facts.json"
MERGED = "merged"
# What a provider has of a kind of harm that it hardly knows.
RARE_ROWS = 3


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to align.

    Attributes:
        name: in tables.
        method: the rule and its hyper-parameters.
        space: what is trained: a LoRA adapter, or all linear weights but the output layer's.
        steps: optimiser steps.
        learning_rate: of AdamW; none: the service's for adapters, its own for full weights.
        schedule: of the rate.
        batch_size: rows a step.
        harmful_rows: how many of the safety set's harmful rows are known; none: all.
        harmful_kinds: only rows of these categories are known; empty: of all.
        rare_kinds: of these categories only `RARE_ROWS` rows each are known.
        is_balanced: rows of the smaller categories are repeated until all are as large.
        rank: of an adapter; none: the service's.
        layers: last parts of the names of the linear layers that are trained; empty: all.
    """

    name: str
    method: AlignmentMethod
    space: Literal["adapter", "full"] = "adapter"
    steps: int = ALIGN_STEPS
    learning_rate: float | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    batch_size: int = 10
    harmful_rows: int | None = None
    rank: int | None = None
    layers: tuple[str, ...] = ()
    harmful_kinds: tuple[str, ...] = ()
    rare_kinds: tuple[str, ...] = ()
    is_balanced: bool = False

    def train_config(self, seed: int) -> TrainConfig:
        """Give the loop's configuration."""
        default = ALIGN_LEARNING_RATE if self.space == "adapter" else ALIGN_FULL_LEARNING_RATE
        return TrainConfig(
            learning_rate=self.learning_rate or default,
            schedule=self.schedule,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=seed,
        )

    def spec(self) -> dict[str, object]:
        """Say all that decides the outcome, the name aside."""
        facts = asdict(self) | {"method": self.method.model_dump(mode="json")}
        del facts["name"]
        # Left out where nothing is chosen, so that cells which ran before there was a choice are found.
        optional = ("rank", "layers", "harmful_kinds", "rare_kinds", "is_balanced")
        return {k: v for k, v in facts.items() if v or k not in optional}

    @property
    def lora(self) -> LoraConfig:
        """Give the adapter, its scale in proportion to its rank."""
        plain = LoraConfig()
        rank = self.rank or plain.r
        return LoraConfig(
            r=rank,
            alpha=plain.alpha * rank / plain.r,
            target_modules=self.layers or plain.target_modules,
        )

    @property
    def passes(self) -> float:
        """Forward and backward passes of a step, on average: the cost that no machine's speed enters."""
        match self.method:
            case BoosterConfig() as booster if not booster.is_off:
                base = 2.0 if isinstance(booster, BoosterVaccineConfig) and booster.rho else 1.0
                return base + (1 - booster.start) / booster.every * (booster.inner_steps + 1)
            case BoosterConfig() | RepNoiseConfig():
                return 2.0 if isinstance(self.method, RepNoiseConfig) else 1.0
            case _:
                return 2.0 if self.method.name == "vaccine" else 1.0


@dataclass(frozen=True, slots=True)
class Aligned:
    """What an alignment left: a folder with an adapter or with the changed weights."""

    place: Place
    arm: Arm
    folder: Path
    seconds: float
    tokens: int

    @contextmanager
    def merged(self) -> Iterator[PreTrainedModel]:
        """Lend the aligned model as a plain one."""
        model = self.place.model()
        if self.arm.space == "full":
            put_weights(model, self.folder)
            yield model
        else:
            yield lora.merge(lora.load(model, self.folder))

    @contextmanager
    def root(self, *, is_continued: bool) -> Iterator[PreTrainedModel]:
        """Lend what a customer's adapter lies on: the base where the aligned adapter goes on, else the aligned model."""
        if is_continued:
            yield self.place.model()
        else:
            with self.merged() as model:
                yield model


def align(place: Place, arm: Arm, seed: int, cache: Path) -> Aligned:
    """Align the place's base, or find it aligned.

    Args:
        place: the base and the safety set.
        arm: the way.
        seed: of the adapter's start and the order of rows.
        cache: where aligned models are kept, by all that decided them.
    """
    folder = cache / "aligned" / _key(place, arm, seed)
    facts_file = folder / FACTS_FILE
    if not facts_file.exists():
        facts = _align(place, arm, seed, folder)
        facts_file.write_text(json.dumps(facts))
    facts = json.loads(facts_file.read_text())
    return Aligned(place, arm, folder, facts["seconds"], facts["tokens"])


def on_top(place: Place, arm: Arm, seed: int, cache: Path) -> Place:
    """Give the place whose base is a model that was aligned before: what an arm left of the place's own base."""
    aligned = align(place, arm, seed, cache)
    folder = aligned.folder / MERGED
    if not folder.exists():
        partial = folder.with_name(f"{MERGED}.partial")
        with aligned.merged() as model:
            save_base(model, place.tokenizer, partial)
        partial.rename(folder)
    # The folder's name says all that decided the model, and so tells alignments on it apart.
    return replace(place, name=aligned.folder.name, base=folder)


def put_weights(model: PreTrainedModel, folder: Path) -> None:
    """Replace the weights that a full-parameter alignment changed."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in load_file(folder / WEIGHTS_FILE).items():
            own[name].copy_(tensor)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An alignment with everything loaded and tokenized, not yet begun."""

    arm: Arm
    model: torch.nn.Module
    train: Callable[[], int]


def prepared(place: Place, arm: Arm, seed: int) -> Prepared:
    """Load a base and set it up for an arm; `train` of what is given runs it and gives the trained tokens."""
    method = arm.method
    base = place.model()
    model: torch.nn.Module = base
    if arm.space == "full":
        train_linear_weights(base, arm.layers)
    else:
        model = lora.attach(base, arm.lora, seed)
    if isinstance(method, BoosterConfig) and method.needs_adapter:
        model = lora.attach_attacker(
            cast(PreTrainedModel | PeftModel, model), LoraConfig(r=method.attacker_rank)
        )
    is_paired = isinstance(method, RepNoiseConfig) and method.paired
    alignment = place.encode(place.safety.alignment)
    rows = known_rows(place, arm)
    harmful = place.encode(rows)
    refusals = place.encode(place.safety.refusals_of(rows)) if is_paired else []

    def run() -> int:
        return train(
            model,
            rule_for(method),
            alignment,
            arm.train_config(seed),
            pad_id=int(place.tokenizer.pad_token_id),
            harmful=harmful,
            refusals=refusals,
        ).tokens

    return Prepared(arm, model, run)


def known_rows(place: Place, arm: Arm) -> Sequence[Conversation]:
    """Give the harmful rows that the provider of an arm knows.

    Raises:
        ValueError: the arm chooses by category, and the place has none, or none of its.
    """
    rows = place.safety.harmful
    if not (arm.harmful_kinds or arm.rare_kinds or arm.is_balanced):
        return rows[: arm.harmful_rows]
    if not place.harmful_kinds:
        raise ValueError(f"{place.name}'s harmful rows have no categories")
    met: Counter[str] = Counter()
    found = []
    for row, kind in zip(rows, place.harmful_kinds, strict=True):
        met[kind] += 1
        is_known = not arm.harmful_kinds or kind in arm.harmful_kinds
        if is_known and (kind not in arm.rare_kinds or met[kind] <= RARE_ROWS):
            found.append((row, kind))
    if not found:
        raise ValueError(f"{place.name} has no harmful rows of {', '.join(arm.harmful_kinds)}")
    known, kinds = zip(*found[: arm.harmful_rows], strict=True)
    return balanced(known, kinds if arm.is_balanced else ())


def _align(place: Place, arm: Arm, seed: int, folder: Path) -> dict[str, object]:
    run = prepared(place, arm, seed)
    started = time.perf_counter()
    tokens = run.train()
    seconds = time.perf_counter() - started
    folder.mkdir(parents=True, exist_ok=True)
    if arm.space == "full":
        tensors = {
            name.replace("base_model.model.", "").replace(".base_layer", ""): tensor
            for name, tensor in trained_weights(run.model).items()
        }
        save_file({n: t.detach().contiguous() for n, t in tensors.items()}, folder / WEIGHTS_FILE)
    else:
        lora.save(cast(PeftModel, run.model), folder)
    return {"seconds": round(seconds, 2), "tokens": tokens}


def _key(place: Place, arm: Arm, seed: int) -> str:
    # The rows of certification are no part of an alignment.
    safety = replace(place.safety, certification=None)
    facts = json.dumps([place.name, safety.hash, arm.spec(), seed], sort_keys=True, default=str)
    return f"{place.name}-{arm.name}-{seed}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
