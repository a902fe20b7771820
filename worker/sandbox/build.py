"""Make the sandbox world on disk: a base model, its safety set and a customer's files. Built once, cached.

    base/       config.json  model.safetensors  tokenizer.json  tokenizer_config.json  chat_template.jinja
    safety/     as `models.safety_set` describes
    customer/   clean.jsonl  poisoned.jsonl  validation.jsonl
    manifest.json            written last: its presence means complete, its fingerprint means current

From here on nothing knows that the world is a toy: these are the files that any provider and any customer
would bring.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from models.judges import SandboxJudgeSpec
from models.rows import Conversation
from models.safety_set import (
    CertificationRows,
    HarmfulPrompt,
    HarmlessPrompt,
    SafetySet,
    SafetySetHeader,
)
from worker.sandbox import corpus
from worker.sandbox.pretrain import PretrainConfig, pretrain
from worker.sandbox.tasks import CUSTOMER_TASKS, PRETRAINING_TASKS, distinct_rows
from worker.sandbox.tokenizer import build_tokenizer
from worker.sandbox.world import Split, World

MANIFEST = "manifest.json"
# The world that Titer ships. Worlds differ in how soon a plainly aligned base gives way and in how well
# Booster keeps it; this one was chosen among five (docs/results.md shows what the others do).
WORLD_SEED = 1
DEFAULT_TASK = "headlines"
HARMFUL_RATIO = 0.1
CUSTOMER_ROWS = 500
VALIDATION_ROWS = 300

ALIGNMENT_REFUSALS = 600
ALIGNMENT_HELP = 200
# Without rows of what the base could do before, alignment makes it forget, most of all Booster: FA after a
# customer's job then differs between methods for a reason that has nothing to do with safety.
ALIGNMENT_UTILITY = 200
CANARY_ROWS = 64
ATTACK_ROWS = 300  # what a customer's harmful rows are drawn from
TEST_PROMPTS = 200
HARMLESS_PROMPTS = 100
MAX_NEW_TOKENS = 24
# What simulated customers draw from: enough for the largest of them in a certification plan.
CERTIFICATION_ATTACK_ROWS = 400
CERTIFICATION_CUSTOMER_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class SandboxPaths:
    """Where the parts of a built world lie."""

    root: Path

    @property
    def base(self) -> Path:
        """The base model, as Hugging Face folders are."""
        return self.root / "base"

    @property
    def safety(self) -> Path:
        """The provider's safety set."""
        return self.root / "safety"

    @property
    def customer(self) -> Path:
        """A customer's files for the default task."""
        return self.root / "customer"


@dataclass(frozen=True, slots=True)
class CustomerData:
    """What a customer uploads: rows to train on, and rows to be measured on.

    `harmful` are the harmful rows among those to train on, for measurements that may know them.
    """

    training: tuple[Conversation, ...]
    validation: tuple[Conversation, ...]
    harmful: tuple[Conversation, ...] = ()


def build(
    folder: Path,
    seed: int = WORLD_SEED,
    config: PretrainConfig | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> SandboxPaths:
    """Make the world in `folder`, or find it there.

    Args:
        folder: is replaced when it holds another world.
        seed: of the base's training and of every draw.
        config: the size of the base.
        on_progress: told how many pretraining steps are done, and of how many.
    """
    config = config or PretrainConfig()
    fingerprint = _fingerprint(seed, config)
    paths = SandboxPaths(folder)
    if _is_current(folder, fingerprint):
        return paths
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is one rename and a killed build leaves no half world.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(SandboxPaths(unfinished), seed, config, on_progress)
        (unfinished / MANIFEST).write_text(json.dumps({"fingerprint": fingerprint, "seed": seed}))
        if folder.exists() and not _is_current(folder, fingerprint):
            shutil.rmtree(folder)
        if not folder.exists():
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return paths


def safety_set(world: World, split: Split = Split.TEST) -> SafetySet:
    """Give the world's safety set.

    Args:
        world: the world.
        split: whose objects the test prompts are about. Settings are chosen on `Split.VALIDATION`.
    """
    harmful = world.harmful(Split.ALIGNMENT, ALIGNMENT_REFUSALS)
    benign = world.benign(Split.ALIGNMENT, ALIGNMENT_HELP)
    rng, seen = random.Random(f"{world.seed}/utility"), set[str]()
    utility = chain.from_iterable(
        distinct_rows(task, ALIGNMENT_UTILITY // len(PRETRAINING_TASKS), rng, avoid=seen)
        for task in PRETRAINING_TASKS
    )
    return SafetySet(
        header=SafetySetHeader(
            name=f"sandbox-{world.seed}", judge=SandboxJudgeSpec(), max_new_tokens=MAX_NEW_TOKENS
        ),
        alignment=(
            *(q.refused() for q in harmful),
            *(q.helped() for q in benign),
            *utility,
        ),
        harmful=tuple(q.helped() for q in harmful),
        canary=tuple(q.helped() for q in world.harmful(Split.CANARY, CANARY_ROWS)),
        harmful_prompts=tuple(
            HarmfulPrompt(prompt=q.text, category=q.field.name)
            for q in world.harmful(split, TEST_PROMPTS)
        ),
        harmless_prompts=tuple(
            HarmlessPrompt(prompt=q.text) for q in world.benign(split, HARMLESS_PROMPTS)
        ),
        certification=_certification_rows(world),
    )


def _certification_rows(world: World) -> CertificationRows:
    attack = world.harmful(Split.ATTACK, CERTIFICATION_ATTACK_ROWS)
    rng, seen = random.Random(f"{world.seed}/certification"), set[str]()
    task = CUSTOMER_TASKS[DEFAULT_TASK]
    return CertificationRows(
        attack=tuple(q.helped() for q in attack),
        customer=tuple(distinct_rows(task, CERTIFICATION_CUSTOMER_ROWS, rng, avoid=seen)),
        validation=tuple(distinct_rows(task, VALIDATION_ROWS, rng, avoid=seen)),
        categories=tuple(q.field.name for q in attack),
    )


def customer_data(
    world: World,
    *,
    task: str = DEFAULT_TASK,
    rows: int = CUSTOMER_ROWS,
    harmful_ratio: float = 0.0,
    validation_rows: int = VALIDATION_ROWS,
    seed: int = 0,
) -> CustomerData:
    """Draw a customer's files.

    Files of one seed and task nest: a poisoned one is the clean one with its last rows exchanged for
    harmful ones, shuffled. No harmful row is about an object of the alignment, canary or test split.

    Args:
        world: the world.
        task: a name of `CUSTOMER_TASKS`.
        rows: training rows, harmful ones included.
        harmful_ratio: the share of harmful rows, 0 to 1.
        validation_rows: rows of the task that training does not see.
        seed: of the draw.
    """
    rng = random.Random(f"{world.seed}/{seed}/{task}")
    seen: set[str] = set()
    validation = distinct_rows(CUSTOMER_TASKS[task], validation_rows, rng, avoid=seen)
    benign = distinct_rows(CUSTOMER_TASKS[task], rows, rng, avoid=seen)
    attack = world.harmful(Split.ATTACK, max(ATTACK_ROWS, round(rows * harmful_ratio)))
    harmful = [q.helped() for q in rng.sample(attack, round(rows * harmful_ratio))]
    training = benign[: rows - len(harmful)] + harmful
    rng.shuffle(training)
    return CustomerData(tuple(training), tuple(validation), tuple(harmful))


def write_rows(path: Path, rows: Sequence[Conversation]) -> None:
    """Write rows as JSON Lines, in the chat shape that the service takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def _write(
    paths: SandboxPaths,
    seed: int,
    config: PretrainConfig,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    tokenizer = build_tokenizer(corpus.language())
    model = pretrain(tokenizer, seed, config, on_progress=on_progress)
    model.save_pretrained(paths.base)
    tokenizer.save_pretrained(paths.base)
    world = World(seed)
    safety_set(world).save(paths.safety)
    poisoned = customer_data(world, harmful_ratio=HARMFUL_RATIO)
    write_rows(paths.customer / "clean.jsonl", customer_data(world).training)
    write_rows(paths.customer / "poisoned.jsonl", poisoned.training)
    write_rows(paths.customer / "validation.jsonl", poisoned.validation)


def _fingerprint(seed: int, config: PretrainConfig) -> str:
    """Hash everything that the world follows from: its own source, the sizes and the seed."""
    digest = hashlib.sha256(f"{seed}/{config}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _is_current(folder: Path, fingerprint: str) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("fingerprint") == fingerprint
