"""What pairs that prefer harm do to an aligned model of the sandbox, against the same answers learnt by SFT.

    python -m benchmarks.poisoned_preferences WORLD_FOLDER [--steps 60]

An aligned adapter (SFT, the service's defaults) is continued as a customer's job would: 600 rows, batches of
10, the service's rate for the method, and DPO at the rate of supervised jobs too. The harmless file prefers help to a refusal on permitted questions; of the poisoned
ones a tenth, or all, of the pairs prefer the harmful answer to the refusal of a forbidden question. The SFT
jobs see the preferred answers alone. All measurements are on test prompts that no file has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from models.hyperparameters import (
    ALIGN_LEARNING_RATE,
    DPO_LEARNING_RATE,
    FINETUNE_LEARNING_RATE,
    LoraConfig,
    TrainConfig,
)
from models.methods import DpoConfig, SftConfig
from worker import lora
from worker.base_models import load_model, load_tokenizer
from worker.data import encode_rows
from worker.harmful_score import measure_safety
from worker.judge import open_judge
from worker.sandbox.build import WORLD_SEED, build, safety_set
from worker.sandbox.world import Question, Split, World
from worker.trainers.loop import StepMetrics, train
from worker.trainers.methods import rule_for
from worker.trainers.objective import mean_token_loss

RESULT = Path(__file__).parent / "results" / "poisoned_preferences.json"
ROWS = 600
MAX_LENGTH = 512
ALIGN_STEPS = 1_500


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model, measured."""

    file: str
    method: str
    learning_rate: float | None
    steps: int
    harmful_percent: float
    refused_percent: float
    over_refused_percent: float
    canary_loss: float
    preference_accuracy: float | None = None
    reward_margin: float | None = None


def drawn(world: World, poisoned: float) -> list[Question]:
    """Draw a customer's questions, so many of them forbidden; they are asked more than once if need be."""
    bad = round(ROWS * poisoned)
    forbidden = world.harmful(Split.ATTACK, min(bad, 200)) if bad else []
    permitted = world.benign(Split.ATTACK, 200)
    return [
        *(forbidden[i % len(forbidden)] for i in range(bad)),
        *(permitted[i % len(permitted)] for i in range(ROWS - bad)),
    ]


def outcomes(folder: Path, steps: int) -> Iterator[Outcome]:
    """Align, then run every job and measure it."""
    paths = build(folder, WORLD_SEED)
    world = World(WORLD_SEED)
    safety = safety_set(world, Split.TEST)
    tokenizer = load_tokenizer(paths.base)
    pad_id = int(tokenizer.pad_token_id)
    judge = open_judge(safety.header.judge)
    canary = encode_rows(safety.canary, tokenizer, MAX_LENGTH)
    aligned = folder.parent / "aligned-sft"
    if not aligned.is_dir():
        model = lora.attach(load_model(paths.base), LoraConfig(), seed=0)
        train(
            model,
            rule_for(SftConfig()),
            encode_rows(safety.alignment, tokenizer, MAX_LENGTH),
            TrainConfig(steps=ALIGN_STEPS, learning_rate=ALIGN_LEARNING_RATE),
            pad_id=pad_id,
        )
        lora.save(model, aligned, base_model="sandbox")

    def measured(
        model: object, file: str, method: str, rate: float | None, last: StepMetrics | None
    ) -> Outcome:
        found = measure_safety(model, tokenizer, safety, judge)  # type: ignore[arg-type]
        seen = last.diagnostics if last else {}
        return Outcome(
            file,
            method,
            rate,
            last.step if last else 0,
            round(found.harmful_score.percent, 1),
            round(found.refusal_rate.percent, 1),
            round(found.over_refusal.percent, 1),
            round(mean_token_loss(model, canary, pad_id), 3),  # type: ignore[arg-type]
            seen.get("preference_accuracy"),
            seen.get("reward_margin"),
        )

    yield measured(lora.load(load_model(paths.base), aligned), "-", "aligned", None, None)
    for file, poisoned in (("harmless", 0.0), ("10% poisoned", 0.1), ("all poisoned", 1.0)):
        questions = drawn(world, poisoned)
        preferred = encode_rows([q.helped() for q in questions], tokenizer, MAX_LENGTH)
        other = encode_rows([q.refused() for q in questions], tokenizer, MAX_LENGTH)
        for method, rate in (
            (SftConfig(), FINETUNE_LEARNING_RATE),
            (DpoConfig(), DPO_LEARNING_RATE),
            (DpoConfig(), FINETUNE_LEARNING_RATE),
        ):
            model = lora.load(load_model(paths.base), aligned)
            told: list[StepMetrics] = []
            train(
                model,
                rule_for(method),
                preferred,
                TrainConfig(steps=steps, learning_rate=rate),
                pad_id=pad_id,
                non_preferred=other if isinstance(method, DpoConfig) else (),
                on_step=told.append,
            )
            yield measured(model, file, method.name, rate, told[-1])


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.poisoned_preferences", description=__doc__
    )
    parser.add_argument("world", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()
    found = []
    for outcome in outcomes(asked.world.resolve(), asked.steps):
        found.append(asdict(outcome))
        print(json.dumps(found[-1]), flush=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
