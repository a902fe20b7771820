"""What it costs to compare the test prompts of a safety set with all of its training prompts.

Prompts are words drawn by Zipf's law, as in a language, and every second training prompt is an edited test
prompt, so that the candidates are many.

    python -m benchmarks.near_duplicates --tests 10000 --training 50000
"""

from __future__ import annotations

import argparse
import random
import time

from models.near_duplicates import PromptIndex

WORDS = 30_000


def draw_prompts(count: int, draw: random.Random) -> list[str]:
    """Draw prompts of 5 to 60 words."""
    words = [f"w{rank}" for rank in range(1, WORDS + 1)]
    weights = [1 / rank for rank in range(1, WORDS + 1)]
    return [" ".join(draw.choices(words, weights, k=draw.randint(5, 60))) for _ in range(count)]


def edited(prompt: str, draw: random.Random) -> str:
    """Exchange up to three words."""
    words = prompt.split()
    for _ in range(draw.randint(0, 3)):
        words[draw.randrange(len(words))] = f"w{draw.randint(1, WORDS)}"
    return " ".join(words)


def main() -> None:
    """Build the index, look every training prompt up, print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=10_000)
    parser.add_argument("--training", type=int, default=50_000)
    args = parser.parse_args()
    draw = random.Random(0)
    tests = draw_prompts(args.tests, draw)
    training = draw_prompts(args.training // 2, draw)
    training += [edited(draw.choice(tests), draw) for _ in range(args.training - len(training))]
    started = time.perf_counter()
    index = PromptIndex(tests)
    indexed = time.perf_counter()
    found = sum(bool(index.find(prompt)) for prompt in training)
    ended = time.perf_counter()
    print(
        f"{len(tests):,} test prompts indexed in {indexed - started:.1f} s; {len(training):,} training "
        f"prompts looked up in {ended - indexed:.1f} s, {found:,} of them duplicates"
    )


if __name__ == "__main__":
    main()
