"""Run cells of a study, several at a time, each once: a cell that the results hold is not run again.

A cell is one alignment (arm and seed) with one customer. Cells of one alignment run one after the other in one
process, so that the alignment is made once.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from worker.sandbox.world import Split
from worker.study.align import Arm, align, on_top
from worker.study.customer import Customer, serve
from worker.study.place import Folders, Place, sandbox

Cell = dict[str, object]


@dataclass(frozen=True, slots=True)
class Task:
    """One cell to run: in the sandbox world of its seed, or in a place of one's own.

    `onto` is how the base was aligned before the arm begins; none: it is raw.
    """

    arm: Arm
    customer_name: str
    customer: Customer
    seed: int
    split: Split = Split.TEST
    folders: Folders | None = None
    world: int | None = None
    onto: Arm | None = None

    def place(self, cache: Path) -> Place:
        """Build or open where it happens."""
        raw = self._raw_place(cache)
        return on_top(raw, self.onto, self.seed, cache) if self.onto else raw

    def _raw_place(self, cache: Path) -> Place:
        if self.folders:
            return self.folders.open()
        world = self.seed if self.world is None else self.world
        return sandbox(world, cache, split=self.split)

    @property
    def key(self) -> str:
        """Name the cell by all that decides its outcome."""
        facts: list[object] = [self.arm.spec(), self.customer.spec(), self.seed, self.split]
        if self.folders:
            facts.append(asdict(self.folders))
        if self.world is not None:
            facts.append(self.world)
        if self.onto:
            facts.append(self.onto.spec())
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[
            :16
        ]


class Results:
    """Cells on disk, one JSON object a line, appended as they come.

    A cell that another study of the same folder has run is not run again: all its files are read, one is written.
    Where two files hold a cell, the study's own counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, Cell] = {}
        for file in sorted(path.parent.glob("*.jsonl"), key=lambda file: (file == path, file)):
            for line in file.read_text().splitlines():
                cell = json.loads(line)
                self.cells[cell["key"]] = cell

    def add(self, cell: Cell) -> None:
        """Keep a cell."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(cell) + "\n")
        self.cells[str(cell["key"])] = cell


def run(
    tasks: Sequence[Task],
    results: Results,
    cache: Path,
    *,
    processes: int | None = None,
    on_cell: Callable[[Cell, int, int], None] = lambda *_: None,
) -> None:
    """Run the tasks that the results lack.

    Args:
        tasks: what is wanted; repeated ones run once.
        results: grows.
        cache: where worlds and aligned models are kept.
        processes: at once; none: one for each processor. Each uses one thread.
        on_cell: told of each finished cell, how many are done, and of how many.
    """
    groups: dict[str, dict[str, Task]] = defaultdict(dict)
    for task in tasks:
        if task.key not in results.cells:
            groups[f"{task.arm.spec()}/{task.seed}"][task.key] = task
    total = sum(map(len, groups.values()))
    # Fresh processes: a forked one would share the threads' state of a loaded torch.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=context) as pool:
        # Places first: two processes that begin with the same world would both build it.
        places = {
            (t.folders, t.world, t.seed, t.onto): t for g in groups.values() for t in g.values()
        }
        for opened in [pool.submit(_open_place, task, cache) for task in places.values()]:
            opened.result()
        done = 0
        for future in as_completed(
            [pool.submit(run_group, list(group.values()), cache) for group in groups.values()]
        ):
            for cell in future.result():
                results.add(cell)
                done += 1
                on_cell(cell, done, total)


def _open_place(task: Task, cache: Path) -> None:
    torch.set_num_threads(1)
    task.place(cache)


def run_group(tasks: Sequence[Task], cache: Path) -> list[Cell]:
    """Run the cells of one alignment."""
    torch.set_num_threads(1)
    return [run_cell(task, cache) for task in tasks]


def run_cell(task: Task, cache: Path) -> Cell:
    """Align, or find aligned; let the customer come; give everything that was seen."""
    place = task.place(cache)
    aligned = align(place, task.arm, task.seed, cache)
    points = serve(aligned, task.customer, task.seed)
    return {
        "key": task.key,
        "arm": task.arm.name,
        "arm_spec": task.arm.spec(),
        "customer": task.customer_name,
        "customer_spec": task.customer.spec(),
        "seed": task.seed,
        "place": place.name,
        # A sandbox base is trained where it is used, and another processor's rounding makes another one of it.
        "base_sha256": place.base_sha256,
        "split": str(task.split),
        "prompt_set_hash": place.safety.prompt_set_hash,
        "alignment_seconds": aligned.seconds,
        "alignment_tokens": aligned.tokens,
        "alignment_passes": task.arm.passes * task.arm.steps,
        "points": [point.model_dump() for point in points],
    }
