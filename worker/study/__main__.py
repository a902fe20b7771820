"""Run studies from a shell: `python -m worker.study table1 --out FOLDER`.

Prints JSON lines for whoever started it: {"done", "total", "arm", "customer", "seed"} for each cell, at last the
paths that were written. What is done is kept: started again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

from models.hyperparameters import ScorerName
from worker.study import overhead, report
from worker.study.grid import Cell, Results, Task, run
from worker.study.place import Folders
from worker.study.studies import STUDIES

OVERHEAD = "overhead"


def main() -> None:
    """Parse the arguments, run what is missing, write tables and figures."""
    parser = argparse.ArgumentParser(prog="python -m worker.study", description=__doc__)
    parser.add_argument("studies", nargs="+", choices=[*STUDIES, OVERHEAD])
    parser.add_argument(
        "--out", type=Path, required=True, help="where tables, figures and cells go"
    )
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "titer" / "study")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the study's own")
    parser.add_argument(
        "--processes", type=int, help="cells at once; by default one for each processor"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing, write what there is"
    )
    for name, meaning in (
        ("base", "a model folder, instead of the sandbox's worlds; the four others belong to it"),
        ("safety-set", "its safety set"),
        ("customer", "harmless rows that customers draw from, JSON Lines"),
        ("attack", "harmful rows that customers draw from, JSON Lines"),
        ("validation", "rows that FA is measured on, JSON Lines"),
    ):
        parser.add_argument(f"--{name}", type=Path, help=meaning)
    parser.add_argument(
        "--task",
        choices=get_args(ScorerName),
        default="exact",
        help="what those customers tune for: how answers are scored",
    )
    arguments = parser.parse_args()
    own = [
        arguments.base,
        arguments.safety_set,
        arguments.customer,
        arguments.attack,
        arguments.validation,
    ]
    if any(own) and not all(own):
        parser.error("--base, --safety-set, --customer, --attack and --validation go together")
    folders = (
        replace(Folders(*(path.resolve() for path in own)), task=arguments.task)
        if all(own)
        else None
    )

    def tell(facts: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()

    def tell_cell(cell: Cell, done: int, total: int) -> None:
        tell({"done": done, "total": total, **{k: cell[k] for k in ("arm", "customer", "seed")}})

    for name in arguments.studies:
        if name == OVERHEAD:
            tell({"study": name, "written": [str(p) for p in _overhead(arguments, tell)]})
            continue
        study = STUDIES[name]
        if arguments.seeds:
            study = replace(study, seeds=tuple(arguments.seeds))
        tasks = [
            Task(arm, customer_name, customer, seed, study.split, folders, study.world, study.onto)
            for seed in study.seeds
            for arm in study.arms
            for customer_name, customer in study.customers.items()
        ]
        results = Results(arguments.out / f"{name}.jsonl")
        if not arguments.report_only:
            run(tasks, results, arguments.cache, processes=arguments.processes, on_cell=tell_cell)
        # Names belong to the study: a cell that an earlier version ran under another name is the same cell.
        cells = [
            results.cells[task.key] | {"arm": task.arm.name, "customer": task.customer_name}
            for task in tasks
            if task.key in results.cells
        ]
        tell(
            {"study": name, "written": [str(p) for p in report.write(study, cells, arguments.out)]}
        )


def _overhead(
    arguments: argparse.Namespace, tell: Callable[[dict[str, object]], None]
) -> list[Path]:
    written = [arguments.out / f"{OVERHEAD}.json", arguments.out / f"{OVERHEAD}.md"]
    if not arguments.report_only:
        costs = overhead.measure(
            arguments.cache,
            lambda arm, done, total: tell(
                {"done": done, "total": total, "arm": arm, "customer": "none", "seed": 0}
            ),
        )
        arguments.out.mkdir(parents=True, exist_ok=True)
        written[0].write_text(json.dumps(overhead.rows(list(costs), costs), indent=1) + "\n")
        written[1].write_text(overhead.table(costs))
    return written


if __name__ == "__main__":
    main()
