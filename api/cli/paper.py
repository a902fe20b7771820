"""`titer paper`: the studies of the methods, on the sandbox or on a base of one's own, without the service."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from api.cli.connection import fail
from api.cli.output import console
from api.cli.torch_process import TorchProcessFailed, read_json_lines


class Study(StrEnum):
    """A grid of ways to align and of customers that come."""

    TUNE = "tune"
    SHIPPED = "shipped"
    TABLE1 = "table1"
    STATISTICS = "statistics"
    LAMBDA_ALPHA = "lambda-alpha"
    SAMPLES = "samples"
    HARMFUL_SIZE = "harmful-size"
    OVERHEAD = "overhead"
    COMBINATION = "combination"
    EXTENSIONS = "extensions"
    LAMBDA_RATIO = "lambda-ratio"
    SOURCES = "sources"
    BALANCE = "balance"
    HIDDEN = "hidden"
    CHAT = "chat"
    ATTACKS = "attacks"
    NO_ATTACK = "no-attack"
    STACK = "stack"
    CHEAP = "cheap"
    LAMBDA_5 = "lambda-5"
    SPACES = "spaces"
    INSTRUCTIONS = "instructions"


def paper(
    studies: Annotated[list[Study], typer.Argument(help="Which, one or more.")],
    out: Annotated[Path, typer.Option(help="Where tables, figures and single results go.")] = Path(
        "paper"
    ),
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Instead of the study's own; repeat it.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Cells at once.")] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; write what there is.")
    ] = False,
    base: Annotated[
        Path | None, typer.Option(help="A model folder, instead of the sandbox's worlds.")
    ] = None,
    safety_set: Annotated[Path | None, typer.Option(help="Its safety set.")] = None,
    customer: Annotated[Path | None, typer.Option(help="Customers' harmless rows.")] = None,
    attack: Annotated[Path | None, typer.Option(help="Customers' harmful rows.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Rows that FA is measured on.")] = None,
) -> None:
    """Run a study: align by every method, let customers come, write tables and figures.

    What is done is kept in OUT: started again, it goes on.
    """
    arguments = [study.value for study in studies] + ["--out", str(out)]
    for seed in seeds or []:
        arguments += ["--seeds", str(seed)] if "--seeds" not in arguments else [str(seed)]
    own = {
        "--base": base,
        "--safety-set": safety_set,
        "--customer": customer,
        "--attack": attack,
        "--validation": validation,
    }
    if any(own.values()) and not all(own.values()):
        fail(f"These go together: {', '.join(own)}.")
    if processes is not None:
        arguments += ["--processes", str(processes)]
    arguments += ["--report-only"] if report_only else []
    for name, path in own.items():
        arguments += [name, str(path)] if path else []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(studies[0].value, total=None)
        try:
            for facts in read_json_lines("worker.study", *arguments):
                if "done" in facts:
                    progress.update(
                        bar,
                        description=f"{facts['arm']} ← {facts['customer']}, seed {facts['seed']}",
                        completed=facts["done"],
                        total=facts["total"],
                    )
                for path in facts.get("written", []):
                    console().print(f"{facts['study']}: {path}")
        except TorchProcessFailed as failure:
            fail(f"The study stopped: {failure}")
