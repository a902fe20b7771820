"""Build the sandbox world from a shell: `python -m worker.sandbox FOLDER [--seed N]`.

Prints JSON lines for whoever started it: {"done", "total"} while the base is trained, at last the paths.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from worker.sandbox.build import WORLD_SEED, build


def main() -> None:
    """Parse the arguments, build, and say where the parts are."""
    parser = argparse.ArgumentParser(prog="python -m worker.sandbox", description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="where to build it; kept when it is there already"
    )
    parser.add_argument(
        "--seed", type=int, default=WORLD_SEED, help="of the base's training and every draw"
    )
    arguments = parser.parse_args()

    def tell(facts: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()

    paths = build(
        arguments.folder.resolve(),
        arguments.seed,
        on_progress=lambda done, total: tell({"done": done, "total": total}),
    )
    tell(
        {
            "base": str(paths.base),
            "safety": str(paths.safety),
            "customer": str(paths.customer),
        }
    )


if __name__ == "__main__":
    main()
