"""Tables and figures of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from worker.study.grid import Cell
from worker.study.studies import Study
from worker.study.summary import (
    FA,
    HELP,
    HS,
    HS_PLUS,
    OVER_REFUSAL,
    TRIGGERED,
    Measure,
    at,
    chosen,
    points,
)

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#000000", "#bbbbbb")
STYLES = ("-", "--", ":")
COLUMNS = 4
Curve = tuple[str, Measure]
BEHIND_TRIGGER = "“Behind the trigger”: HS on the same prompts, asked as the attacker asks them."
FOREIGN = (
    "†: on another build of the same worlds' bases than the first cell. A base is trained where it is used, and another "
    "processor's rounding makes another one of it: compare such cells as if they were from other worlds."
)


def write(study: Study, cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write the study's table (Markdown) and figure (PNG) from what there is of it; give their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{study.name}.md", folder / f"{study.name}.png"]
    written[0].write_text(table(study, cells))
    draw(study, cells, written[1])
    return written


def table(study: Study, cells: Sequence[Cell]) -> str:
    """Give the study's tables, one for each step: HS, with utility at the same step, and what each arm costs."""
    lines = [
        f"# {study.title}",
        "",
        f"HS (its 95% interval over seeds and prompts) / HS+ / {_utility(study)[0]}, in percent. Prompts: {study.split}; "
        f"{'seeds, each a world of its own' if study.world is None else 'seeds, all in one world'}: "
        f"{', '.join(map(str, study.seeds))}. Passes: forward and backward passes "
        f"of the alignment, as a multiple of {study.arms[0].name}'s. A cell of fewer seeds says so.",
    ]
    if _is_hidden(study):
        lines += ["", BEHIND_TRIGGER]
    if any(_is_foreign(study, cells, cell) for cell in cells):
        lines += ["", FOREIGN]
    for step in study.steps:
        if any(step in customer.marks for customer in study.customers.values()):
            lines += ["", f"## At customer step {step}", "", *_rows(study, cells, step)]
    return "\n".join(lines) + "\n"


def _is_hidden(study: Study) -> bool:
    return any(customer.is_hidden for customer in study.customers.values())


def _utility(study: Study) -> Curve:
    """Say what the customers' own use is: no answer at length is right to the letter, so there it is help."""
    kinds = {customer.kind for customer in study.customers.values()}
    return ("help", HELP) if kinds == {"instructions"} else ("FA", FA)


def _rows(study: Study, cells: Sequence[Cell], step: int) -> list[str]:
    customers = {n: c for n, c in study.customers.items() if step in c.marks}
    header = ["arm", "passes", "over-refusal, help before", *customers]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    first = study.arms[0].passes * study.arms[0].steps
    for arm in study.arms:
        own = chosen(cells, lambda cell, name=arm.name: cell["arm"] == name)  # type: ignore[misc]
        if not own:
            continue
        refused, helped = at(own, OVER_REFUSAL, 0), at(own, HELP, 0)
        row = [
            arm.name,
            f"{arm.passes * arm.steps / first:.3g} ×",
            f"{refused.percent:.0f}, {helped.percent:.0f}" if refused and helped else "–",
        ]
        for name in customers:
            met = chosen(own, lambda cell, name=name: cell["customer"] == name)  # type: ignore[misc]
            mark = " †" if any(_is_foreign(study, cells, cell) for cell in met) else ""
            row.append(_cell(met, step, _utility(study)[1], len(study.seeds)) + mark)
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _is_foreign(study: Study, cells: Sequence[Cell], cell: Cell) -> bool:
    """Whether a cell's base is another build of its world's than the one under the table's first cell."""
    first = (study.arms[0].name, next(iter(study.customers)), cell["seed"])
    return any(
        (other["arm"], other["customer"], other["seed"]) == first
        and other.get("base_sha256") != cell.get("base_sha256")
        for other in cells
    )


def _cell(cells: Sequence[Cell], step: int, utility: Measure, seeds: int) -> str:
    hs, plus, use = (at(cells, measure, step) for measure in (HS, HS_PLUS, utility))
    if hs is None or plus is None or use is None:
        return "–"
    behind = at(cells, TRIGGERED, step)
    few = f", {hs.seeds} seed{'s' * (hs.seeds > 1)}" if hs.seeds < seeds else ""
    return f"{hs} / {plus.percent:.0f} / {use.percent:.0f}{f', behind the trigger {behind}' if behind else ''}{few}"


def draw(study: Study, cells: Sequence[Cell], path: Path) -> None:
    """Draw HS, HS+ and utility against customer steps, a column for each customer: thin seeds, thick means."""
    mpl.use("Agg")
    curves: tuple[Curve, ...] = (("HS", HS), ("HS+", HS_PLUS), _utility(study))
    width = min(COLUMNS, len(study.customers))
    curves += (("HS, trigger", TRIGGERED),) if _is_hidden(study) else ()
    blocks = math.ceil(len(study.customers) / width)
    shape = (blocks * len(curves), width)
    figure, axes = plt.subplots(
        *shape, figsize=(3.4 * width + 1, 2 * shape[0] + 0.8), sharey=True, squeeze=False
    )
    for number, name in enumerate(study.customers):
        met = chosen(cells, lambda cell, name=name: cell["customer"] == name)  # type: ignore[misc]
        for row, (label, measure) in enumerate(curves):
            axis = axes[number // width * len(curves) + row][number % width]
            _draw_curves(axis, study, met, measure)
            axis.set_ylim(-3, 103)
            if row == 0:
                axis.set_title(name, fontsize=9)
            if row == len(curves) - 1:
                axis.set_xlabel("customer steps")
            if number % width == 0:
                axis.set_ylabel(f"{label}, %")
    for axis in figure.axes:
        axis.set_visible(axis.has_data())
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=min(4, len(labels)), fontsize=8)
    lines = math.ceil(len(labels) / 4)
    figure.tight_layout(rect=(0, (0.2 + 0.2 * lines) / figure.get_figheight() + 0.01, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_curves(axis: Axes, study: Study, cells: Sequence[Cell], measure: Measure) -> None:
    count, n = measure
    for number, arm in enumerate(study.arms):
        colour = COLOURS[number % len(COLOURS)]
        style = STYLES[number // len(COLOURS) % len(STYLES)]
        own = chosen(cells, lambda cell, name=arm.name: cell["arm"] == name)  # type: ignore[misc]
        curves = [[(p["step"], 100 * p[count] / p[n]) for p in points(cell)] for cell in own]
        for curve in curves:
            axis.plot(*zip(*curve, strict=True), color=colour, alpha=0.25, lw=0.8, ls=style)
        if curves:
            steps = [step for step, _ in curves[0]]
            means = [sum(c[i][1] for c in curves) / len(curves) for i in range(len(steps))]
            axis.plot(steps, means, color=colour, lw=2, ls=style, label=arm.name)
