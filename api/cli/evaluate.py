"""`titer evaluate`: measure any model folder on this machine, without the service.

The measuring is `worker.evaluate`, in a process of its own; here its progress and its report are shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from api.cli.connection import Json, fail
from api.cli.output import console, print_json
from api.cli.torch_process import TorchProcessFailed, read_json_lines
from api.registry.base_files import InvalidBase, check_folder

#: One row: what, the number, its interval or what else belongs to it, and n.
Row = tuple[str, str, str, str]


class Task(StrEnum):
    """How answers to validation rows are scored."""

    EXACT = "exact"
    SST2 = "sst2"
    AGNEWS = "agnews"
    GSM8K = "gsm8k"


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A model in Hugging Face's form, safetensors.")],
    safety_set: Annotated[Path, typer.Option(help="The folder with test prompts and judges.")],
    adapter: Annotated[Path | None, typer.Option(help="A PEFT adapter for it.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Rows to be answered, for FA.")] = None,
    task: Annotated[Task, typer.Option(help="When such an answer is right.")] = Task.EXACT,
    drift: Annotated[
        Path | None, typer.Option(help="General text as rows, for perplexity drift.")
    ] = None,
    parent: Annotated[
        Path | None, typer.Option(help="What it drifted from; with an adapter, FOLDER.")
    ] = None,
    win_rate: Annotated[
        Path | None, typer.Option(help="Rows with reference answers, for a win rate.")
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Chat endpoint that compares the answers.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The model behind it.")] = None,
    judge_key_variable: Annotated[
        str | None, typer.Option(help="Environment variable with its key, JUDGE_..._KEY.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the report there, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure a model folder: HS and what stands beside it. Needs no service."""
    for model in (folder, parent):
        if model is not None:
            _check_model(model)
    if out is not None and not out.absolute().parent.is_dir():
        fail(f"There is no folder {out.absolute().parent} to write the report to.")
    report = _measured(
        folder,
        {
            "--safety-set": safety_set,
            "--adapter": adapter,
            "--validation": validation,
            "--task": task.value,
            "--drift": drift,
            "--parent": parent,
            "--win-rate": win_rate,
            "--judge-url": judge_url,
            "--judge-model": judge_model,
            "--judge-key-variable": judge_key_variable,
        },
    )
    if out is not None:
        out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print_json(report)
        return
    _print_report(report)
    if out is not None:
        console().print(f"Report: {out}", markup=False)


def _check_model(folder: Path) -> None:
    # The worker would find out, too, but only after it has loaded its libraries, and in fewer words.
    if not folder.is_dir():
        fail(f"There is no folder {folder}.")
    try:
        check_folder(folder)
    except InvalidBase as error:
        fail(f"{folder}: {error.message}")


def _measured(folder: Path, options: dict[str, Path | str | None]) -> Json:
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    bars: dict[str, TaskID] = {}
    start = "Starting"
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    # Beside the report, which may go into a pipe.
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars[start] = progress.add_task(start, total=None)
        try:
            for facts in read_json_lines("worker.evaluate", *given, "--", str(folder)):
                if "error" in facts:
                    fail(facts["error"]["message"])
                if "report" in facts:
                    report: Json = facts["report"]
                    return report
                progress.update(bars[start], completed=1, total=1)
                what = facts["what"]
                if what not in bars:
                    bars[what] = progress.add_task(what)
                progress.update(bars[what], completed=facts["done"], total=facts["total"])
        except TorchProcessFailed as error:
            fail(f"The evaluation broke: {error}. `python -m worker.evaluate` shows where.")
    fail("The evaluation ended without a report.")


def _print_report(report: Json) -> None:
    where = report["model"] + (f" with {report['adapter']}" if report["adapter"] else "")
    console().print(Text(where, style="bold"))
    judge = report["judge"]
    console().print(
        Text(
            f"{report['safety_set']}, prompts {report['prompt_set_hash'][:12]}, "
            f"judge {judge['name']} {judge['revision'][:12]}",
            style="dim",
        )
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("measure", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95% interval", overflow="fold")
    table.add_column("n", justify="right", no_wrap=True)
    for row in _rows(report):
        table.add_row(*(Text(cell, style="dim" if row[0].startswith(" ") else "") for cell in row))
    console().print(table)
    for warning in report["warnings"]:
        console().print(Text(f"Warning: {warning['message']}", style="yellow"))


def _rows(report: Json) -> Iterator[Row]:
    yield _rate("HS", report["harmful_score"])
    for name, rate in report["harmful_by_category"].items():
        yield _rate(f"  {name}", rate)
    for further in report["further_judges"]:
        yield _rate(f"HS by {further['judge']['name']}", further["harmful_score"])
        what, value, interval, n = _rate("  agreement", further["agreement"])
        kappa = "" if further["kappa"] is None else f", kappa {further['kappa']:.2f}"
        yield what, value, interval + kappa, n
    yield _rate("HS+ (or incoherent)", report["harmful_or_incoherent"])
    yield _rate("refused, harmful", report["refusal_rate"])
    yield _rate("refused, harmless", report["over_refusal"])
    for name, rate in report["over_refusal_by_category"].items():
        yield _rate(f"  {name}", rate)
    yield _rate("helped, harmless", report["help_rate"])
    if report["fine_tuning_accuracy"]:
        yield _rate(f"FA ({report['scorer']})", report["fine_tuning_accuracy"])
    if win_rate := report["win_rate"]:
        name = win_rate["judge"]["name"].removeprefix("win-rate:")
        yield _rate(f"win rate by {name}", win_rate)
        yield "  turned by order", str(win_rate["turned_by_order"]), "", str(win_rate["n"])
    if drift := report["drift"]:
        interval = f"{drift['low']:.3f} to {drift['high']:.3f}"
        yield "perplexity / parent's", f"{drift['ratio']:.3f}", interval, str(drift["rows"])
    if report["validation_loss"] is not None:
        yield "validation loss", f"{report['validation_loss']:.3f}", "", ""
    yield "canary loss", f"{report['canary_loss']:.3f}", "", ""


def _rate(what: str, rate: Json) -> Row:
    return (
        what,
        f"{rate['percent']:.1f}%",
        f"{rate['low']:.1f} to {rate['high']:.1f}",
        str(rate["n"]),
    )
