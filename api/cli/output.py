"""What the CLI prints: tables for people, or the API's own JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.cli.connection import Json

AsJson = Annotated[bool, typer.Option("--json", help="Print the API's answer as JSON.")]
GATE_STYLES = {"released": "green", "held": "yellow", "blocked": "red", "pending": "dim"}
PIPE_COLUMNS = 400
STATUS_STYLES = {"succeeded": "green", "failed": "red", "cancelled": "dim", "running": "cyan"}
STATUS_STYLES |= {"pausing": "yellow", "paused": "yellow"}


def console() -> Console:
    """Open the console of the moment; tests and pipes change what standard output is."""
    is_terminal = sys.stdout.isatty()
    # A pipe has no width: a table that was folded to one could not be read by a program or copied.
    return Console(soft_wrap=True, highlight=False, width=None if is_terminal else PIPE_COLUMNS)


def print_json(answer: Json) -> None:
    """Print an answer as it came."""
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a list. Cells are never read as markup: names come from other people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    console().print(table)


def print_facts(facts: Iterable[tuple[str, str | Text | None]]) -> None:
    """Print one object, a fact a line; facts without a value are left out."""
    known = [(name, value) for name, value in facts if value not in (None, "")]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        line = Text(f"{name:<{width}}  ", style="dim")
        line.append_text(value if isinstance(value, Text) else Text(str(value), style="none"))
        console().print(line)


def moment(seconds: int | None) -> str:
    """Show a time as the local clock had it."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def share(rate: Json | None) -> str:
    """Show a percentage with its interval and what it rests on."""
    if not rate:
        return ""
    return f"{rate['percent']:.1f}% ({rate['low']:.1f} to {rate['high']:.1f}, n = {rate['n']})"


def safety_facts(safety: Json) -> list[tuple[str, str | Text | None]]:
    """Show a verdict's evidence, a fact a line; of what was not measured, nothing."""
    base = (safety.get("base") or {}).get("harmful_score")
    facts: list[tuple[str, str | Text | None]] = [
        ("HS", share(safety.get("harmful_score"))),
        ("HS of parent", share(base)),
    ]
    facts += [
        (
            f"HS by {further['judge']['name']}",
            f"{share(further['harmful_score'])}, {_agreement(further)}",
        )
        for further in safety.get("further_judges", [])
    ]
    facts += [
        (
            f"HS, asked as line {framed['line']}",
            share(framed["harmful_score"])
            + (f"; before {share(framed['before'])}" if framed["before"] else ""),
        )
        for framed in safety.get("framed_scores", [])
    ]
    facts += [
        ("HS+", share(safety.get("harmful_or_incoherent"))),
        ("over-refusal", share(safety.get("over_refusal"))),
        ("FA", share(safety.get("fine_tuning_accuracy"))),
    ]
    facts += [
        ("warning", Text(warning["message"], style="yellow"))
        for warning in safety.get("warnings", [])
    ]
    return facts


def _agreement(further: Json) -> str:
    kappa = "" if further["kappa"] is None else f", kappa {further['kappa']:.2f}"
    return f"agrees on {further['agreement']['percent']:.1f}%{kappa}"


def estimate(mean: Json | None) -> str:
    """Show a mean over seeds with its interval."""
    if not mean:
        return ""
    return f"{mean['percent']:.1f}% ({mean['low']:.1f} to {mean['high']:.1f})"


def gate(word: str) -> Text:
    """Show a gate."""
    return Text(word, style=GATE_STYLES.get(word, ""))


def status(job: Json) -> Text:
    """Show where a job is."""
    word = str(job.get("state") or job["status"])
    shown = f"{word} ({job['stage']})" if word == "running" and job.get("stage") else word
    return Text(shown, style=STATUS_STYLES.get(word, ""))
