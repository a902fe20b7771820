"""Renders templates: one environment, the filters that pages use, and the error page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from api.dashboard import wording
from api.dashboard.viewer import Viewer
from models.certificate_curves import marks_of

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the dashboard, as the navigation names it."""

    name: str
    address: str
    is_for_customers: bool = False


#: In the order in which a day goes: what needs a person first, what is set once last.
SECTIONS = (
    Section("Overview", "/dashboard/overview"),
    Section("Jobs", "/dashboard/jobs", is_for_customers=True),
    Section("Reviews", "/dashboard/reviews"),
    Section("Models", "/dashboard/models", is_for_customers=True),
    Section("Tenants", "/dashboard/tenants"),
    Section("Policies", "/dashboard/policies"),
    Section("Audit", "/dashboard/audit"),
    Section("System", "/dashboard/system"),
)


def sections(viewer: Viewer) -> tuple[Section, ...]:
    """Give the parts that this person may see."""
    return tuple(part for part in SECTIONS if viewer.is_staff or part.is_for_customers)


def _make_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "ago": wording.ago,
        "as_data": asdict,
        "clock": wording.clock,
        "duration": wording.duration,
        "marks_of": marks_of,
        "moment": wording.moment,
        "number": wording.number,
        "percent": wording.percent,
        "short": wording.short,
        "size": wording.size,
        "words": wording.words,
    }
    environment.globals["sections"] = sections
    return environment


environment = _make_environment()


def render(
    request: Request, template: str, *, status_code: int = 200, **context: object
) -> HTMLResponse:
    """Render a page. `viewer` is empty on the pages that anybody may see."""
    context.setdefault("viewer", None)
    html = environment.get_template(template).render(path=request.url.path, **context)
    return HTMLResponse(html, status_code, headers={"vary": "HX-Request"})


def is_partial(request: Request) -> bool:
    """Whether HTMX asks for the live part of a page only."""
    return "hx-request" in request.headers


def render_error(request: Request, status_code: int, message: str) -> HTMLResponse:
    """Render an error for a person, in a sentence."""
    return render(
        request, "error.html", status_code=status_code, status=status_code, message=message
    )
