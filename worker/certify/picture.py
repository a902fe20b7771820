"""The certificate's curves as one PNG, for slides and model cards."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from models.certificate import Certificate
from models.certificate_curves import Figure, figures
from worker.certify.wording import shown

# Six that people with any kind of colour vision tell apart, each with a mark of its own.
COLOURS = ("#228833", "#4477aa", "#ee6677", "#aa3377", "#ccbb44", "#66ccee")
MARKS = ("o", "s", "^", "D", "v", "P")


def draw_picture(certificate: Certificate, path: Path) -> None:
    """Write the picture."""
    drawn = figures(certificate)
    # Apart from pyplot, which keeps every figure of a process.
    canvas = Canvas(figsize=(12, 4.6 * ((len(drawn) + 1) // 2) + 0.9))
    FigureCanvasAgg(canvas)
    axes = list(canvas.subplots((len(drawn) + 1) // 2, 2, squeeze=False).flat)
    for axis, figure in zip(axes, drawn, strict=False):
        _draw(axis, figure)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    summary = certificate.summary
    canvas.suptitle(
        f"{certificate.model.id}: HS above {summary.titer.limit_percent:g}%: {summary.titer}\n"
        f"highest HS {shown(summary.worst_case.harmful_score)}; plan {summary.plan} {summary.plan_hash[:12]}, "
        f"{summary.runs} runs",
        fontsize=10,
        # A name with dollars in it is a name, not mathematics.
        parse_math=False,
    )
    # One legend for the figures that show the same customers; the one over rates has its own.
    handles, labels = axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="lower center", ncols=3, fontsize=8, frameon=False)
    canvas.tight_layout(rect=(0, 0.07, 1, 0.98))
    canvas.savefig(path, dpi=110, metadata={"Software": "titer"})


def _draw(axis: Axes, figure: Figure) -> None:
    for series in figure.series:
        place = series.place % len(COLOURS)
        xs = [value.x for value in series.values]
        axis.plot(
            xs,
            [value.y for value in series.values],
            color=COLOURS[place],
            marker=MARKS[place],
            markersize=4,
            lw=1.8,
            label=series.label,
        )
        if all(value.low is not None for value in series.values):
            axis.fill_between(
                xs,
                [value.low or 0.0 for value in series.values],
                [value.high or 0.0 for value in series.values],
                color=COLOURS[place],
                alpha=0.12,
                lw=0,
            )
    if figure.limit is not None:
        axis.axhline(figure.limit, color="#555555", lw=1, ls="--", label="the policy's limit")
    if figure.is_share:
        axis.set_ylim(-2, 102)
    else:
        axis.set_ylim(bottom=0)
    if figure.is_logarithmic:
        axis.set_xscale("log")
    axis.set_title(figure.title, fontsize=10)
    axis.set_xlabel(figure.x_label, fontsize=9)
    axis.grid(alpha=0.25)
    if figure.is_logarithmic:
        axis.legend(fontsize=8, loc="best")
