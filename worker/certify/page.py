"""The certificate as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models.certificate import Certificate, Escape, Estimate
from models.certificate_curves import figures
from worker.certify.chart import lay_out

TEMPLATE = "certificate.html"


def draw_page(certificate: Certificate) -> str:
    """Give the page."""
    charts = [lay_out(figure) for figure in figures(certificate)]
    template = _environment.get_template(TEMPLATE)
    return template.render(certificate=certificate, summary=certificate.summary, charts=charts)


def _share(estimate: Estimate) -> str:
    return f"{estimate.percent:.1f}%"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.low:.1f}\N{EN DASH}{estimate.high:.1f}"


def _escape(found: Escape | None) -> str:
    if found is None:
        return "not exceeded"
    return f"by step {found.by:,}" if found.by else "before any step"


# Names of models and safety sets come from other people: everything is escaped.
_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    "share": _share,
    "interval": _interval,
    "escaped": _escape,
}
