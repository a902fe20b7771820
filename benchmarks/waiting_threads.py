"""What a training step costs where threads that wait spin, against threads that sleep (OMP_WAIT_POLICY=PASSIVE).

    python -m benchmarks.waiting_threads [--rounds 5] [--steps 40]

OpenMP's threads spin by default while they wait for each other. Both ways are timed in turn, in processes of
their own, on an otherwise idle machine and beside as many busy processes as there are processors. The step is the
sandbox's SFT step of `benchmarks.step_cost`, with as many threads as PyTorch takes by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "waiting_threads.json"
VARIABLE = "OMP_WAIT_POLICY"
# An empty value is none to OpenMP, and keeps `worker` from setting its own.
POLICIES = {"default": "", "passive": "PASSIVE"}
SPIN = "while True: pass"


def timed_alone(steps: int) -> None:
    """Print the seconds of a step; runs in a process whose environment says how threads wait."""
    from benchmarks.step_cost import block, model  # noqa: PLC0415 - loads torch, which reads the environment
    from models.methods import SftConfig  # noqa: PLC0415

    network = model()
    block(network, SftConfig(), 3, seed=0)
    print(block(network, SftConfig(), steps, seed=1)[0])


def timed(policy: str, steps: int) -> float:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    command = [sys.executable, "-m", "benchmarks.waiting_threads", "--alone", "--steps", str(steps)]
    done = subprocess.run(
        command,
        env=environment | {VARIABLE: POLICIES[policy]},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep processors busy."""
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def compared(others: int, rounds: int, steps: int) -> dict[str, object]:
    seconds: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    with busy(others):
        for number in range(rounds):
            order = list(POLICIES) if number % 2 else list(POLICIES)[::-1]
            for policy in order:
                seconds[policy].append(timed(policy, steps))
    ratios = [d / p for d, p in zip(seconds["default"], seconds["passive"], strict=True)]
    return {
        "busy_processes": others,
        **{
            f"{policy}_milliseconds_median": round(1000 * statistics.median(values), 1)
            for policy, values in seconds.items()
        },
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting_threads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        timed_alone(arguments.steps)
        return
    cores = os.cpu_count() or 1
    result = {
        "what": "one SFT step, OpenMP's default against OMP_WAIT_POLICY=PASSIVE, in turn",
        "processors": cores,
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "idle": compared(0, arguments.rounds, arguments.steps),
        "busy": compared(cores, arguments.rounds, arguments.steps),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
