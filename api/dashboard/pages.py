"""Renders templates: one environment, the filters that pages use, and the error page."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from api.dashboard import wording

TEMPLATES = Path(__file__).with_name("templates")


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
        "clock": wording.clock,
        "duration": wording.duration,
        "moment": wording.moment,
        "number": wording.number,
        "percent": wording.percent,
        "words": wording.words,
    }
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
