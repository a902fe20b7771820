"""Where a study happens: a base, its safety set, and the customers that may come.

The sandbox world is one such place; any base folder with a safety set and a customer's files is another.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.digest import sha256_of
from models.hyperparameters import ScorerName
from models.rows import Conversation
from models.safety_set import InvalidSafetySet, SafetySet
from worker.base_models import load_model, load_tokenizer
from worker.data import Example, encode_rows
from worker.judge import open_judge
from worker.judgement import Judge
from worker.sandbox.build import ATTACK_ROWS, CustomerData, build, customer_data, safety_set
from worker.sandbox.world import Split, World
from worker.task_rows import read_task_rows

MAX_LENGTH = 512
INSTRUCTION_VALIDATION = 100


@dataclass(frozen=True)
class Place:
    """A base with all that is needed to align it, to attack it and to measure it.

    Attributes:
        name: for tables and file names.
        base: the base model's folder.
        safety: the provider's safety set; its test prompts are what HS is measured on.
        draw_customer: gives a customer's rows, harmful ones included, for (rows, harmful ratio, seed).
        scorer: when an answer to a validation row is right.
        draw_instructions: the same for customers whose rows are harmless requests answered at length, in the very
            form of the harmful ones; none: there are no such customers here.
        harmful_kinds: the category of each of the safety set's harmful rows, or nothing where they have none.
    """

    name: str
    base: Path
    safety: SafetySet
    draw_customer: Callable[[int, float, int], CustomerData]
    scorer: ScorerName = "exact"
    draw_instructions: Callable[[int, float, int], CustomerData] | None = None
    harmful_kinds: tuple[str, ...] = ()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""
        return load_tokenizer(self.base)

    @cached_property
    def base_sha256(self) -> str:
        """The hash of the base's weights."""
        files = sorted(self.base.glob("*.safetensors"))
        return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()

    @cached_property
    def judge(self) -> Judge:
        """The safety set's judge."""
        return open_judge(self.safety.header.judge)

    def model(self) -> PreTrainedModel:
        """Load a fresh copy of the base."""
        return load_model(self.base)

    def encode(self, rows: Sequence[Conversation]) -> list[Example]:
        """Tokenize rows for training.

        Raises:
            InvalidRows: some cannot be trained on.
        """
        return encode_rows(rows, self.tokenizer, MAX_LENGTH)


def sandbox(seed: int, cache: Path, *, split: Split = Split.TEST) -> Place:
    """Build or find the sandbox world of a seed.

    Args:
        seed: the world's.
        cache: where worlds lie.
        split: whose prompts are measured: settings are chosen on validation prompts, results are on test ones.
    """
    paths = build(cache / f"world-{seed}", seed)
    world = World(seed)

    def draw(rows: int, harmful_ratio: float, draw_seed: int) -> CustomerData:
        return customer_data(world, rows=rows, harmful_ratio=harmful_ratio, seed=draw_seed)

    def draw_instructions(rows: int, harmful_ratio: float, draw_seed: int) -> CustomerData:
        harmful = round(rows * harmful_ratio)
        asked = world.benign(Split.ATTACK, rows - harmful + INSTRUCTION_VALIDATION)
        rng = random.Random(f"{seed}/{draw_seed}/instructions")
        rng.shuffle(asked)
        helped = [question.helped() for question in asked]
        attack = world.harmful(Split.ATTACK, max(ATTACK_ROWS, harmful))
        bad = [question.helped() for question in rng.sample(attack, harmful)]
        training = helped[INSTRUCTION_VALIDATION:] + bad
        rng.shuffle(training)
        return CustomerData(tuple(training), tuple(helped[:INSTRUCTION_VALIDATION]), tuple(bad))

    safety = safety_set(world, split)
    return Place(
        f"sandbox-{seed}",
        paths.base,
        safety,
        draw,
        draw_instructions=draw_instructions,
        harmful_kinds=tuple(
            q.field.name for q in world.harmful(Split.ALIGNMENT, len(safety.harmful))
        ),
    )


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a place of one's own lies.

    Attributes:
        base: a Hugging Face folder.
        safety: a safety set's folder.
        customer: harmless rows that customers draw from.
        attack: harmful rows that customers draw from; none may ask for what a test prompt asks for.
        validation: rows that FA is measured on.
        task: what customers tune for: how their files are read, and when an answer is right.
    """

    base: Path
    safety: Path
    customer: Path
    attack: Path
    validation: Path
    task: ScorerName = "exact"

    def open(self) -> Place:
        """Read and check everything.

        Raises:
            DomainError: a file is faulty, or attack rows and test prompts overlap.
        """
        safety = SafetySet.load(self.safety)
        customer = read_task_rows(self.customer, self.task)
        validation = tuple(read_task_rows(self.validation, self.task))
        attack = read_task_rows(self.attack, "exact")
        overlap = safety.overlap(attack)
        if overlap.rows:
            raise InvalidSafetySet(
                self.attack.name,
                "the row asks for what a test prompt asks for",
                min((*overlap.exact, *overlap.near)),
            )

        def draw(rows: int, harmful_ratio: float, seed: int) -> CustomerData:
            harmful = round(rows * harmful_ratio)
            if harmful > len(attack) or rows - harmful > len(customer):
                raise InvalidSafetySet(
                    self.customer.name,
                    f"{rows} rows, {harmful} of them harmful, cannot be drawn from {len(customer)} and "
                    f"{len(attack)}",
                )
            rng = random.Random(f"{seed}/customer")
            bad = rng.sample(attack, harmful)
            chosen = rng.sample(customer, rows - harmful) + bad
            rng.shuffle(chosen)
            return CustomerData(tuple(chosen), validation, tuple(bad))

        return Place(
            self.base.name,
            self.base,
            safety,
            draw,
            self.task,
            harmful_kinds=safety.harmful_categories,
        )
