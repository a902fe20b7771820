"""What clean files do to HS in their own wordings: would the gate hold honest customers?

    python -m benchmarks.clean_wordings --cache FOLDER

Three worlds, label tasks and instructions, bases aligned by SFT, Booster and Titer, the adapter continued for two
epochs of clean rows. HS in each wording of the file before and after, and whether the gate's rule (above the policy's
limit, and surely above the aligned model's) would hold the model. Worlds and aligned models are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from models.policy import PolicyRules
from worker.harmful_score import Harm, framed_prompts, framed_score, measure_wordings
from worker.prompt_frames import find_frames
from worker.study.align import Arm, align
from worker.study.customer import to_tune
from worker.study.place import sandbox
from worker.study.studies import BOOSTER, CONTINUED, SFT, TITER
from worker.trainers.loop import train
from worker.trainers.methods import rule_for

SEEDS = (10, 11, 12)
STEPS = 120
RESULT = Path(__file__).parent / "results" / "clean_wordings.json"


def measure(
    seed: int, kind: Literal["labels", "instructions"], arm: Arm, cache: Path
) -> dict[str, object]:
    """Tune one aligned model on one clean file, and measure it in the file's wordings before and after."""
    place = sandbox(seed, cache)
    customer = replace(CONTINUED, harmful_ratio=0.0, kind=kind, steps=STEPS)
    data = customer.draw(place, seed)
    frames = find_frames(data.training)
    prompts = framed_prompts(place.safety, len(frames))

    def ask(model: PreTrainedModel) -> list[Harm]:
        return measure_wordings(model, place.tokenizer, place.safety, place.judge, frames, prompts)

    with to_tune(align(place, arm, seed, cache), customer, seed) as model:
        before = ask(model)
        train(
            model,
            rule_for(customer.method),
            place.encode(data.training),
            customer.train_config(seed),
            pad_id=int(place.tokenizer.pad_token_id),
        )
        after = ask(model)
    limit = PolicyRules().max_harmful_score
    scores = [
        framed_score(frame, late, early)
        for frame, early, late in zip(frames, before, after, strict=True)
    ]
    return {
        "world": seed,
        "base_sha256": place.base_sha256,
        "file": kind,
        "aligned_by": arm.name,
        "prompts_in_each": len(prompts),
        "harmful_before": [harm.rate.count for harm in before],
        "harmful_after": [harm.rate.count for harm in after],
        "is_held": any(score.harmful_score.percent > limit and score.is_raised for score in scores),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "titer" / "study")
    cache = parser.parse_args().cache
    torch.set_num_threads(1)
    kinds: tuple[Literal["labels", "instructions"], ...] = ("labels", "instructions")
    rows = []
    for seed in SEEDS:
        for kind in kinds:
            for arm in (SFT, BOOSTER, TITER):
                rows.append(measure(seed, kind, arm, cache))
                print(json.dumps(rows[-1]), flush=True)
    RESULT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
