"""Puts the dashboard together: routes, cookie, security headers, error pages."""

from __future__ import annotations

import secrets
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dashboard import live_routes, sign_in_routes
from api.dashboard.audit import routes as audit
from api.dashboard.jobs import routes as jobs
from api.dashboard.jobs import text_routes as job_texts
from api.dashboard.models import routes as models
from api.dashboard.openid import OpenId
from api.dashboard.overview import routes as overview
from api.dashboard.pages import render_error
from api.dashboard.policies import routes as policies
from api.dashboard.reviews import routes as reviews
from api.dashboard.system import routes as system
from api.dashboard.tenants import routes as tenants
from api.dashboard.viewer import SignInRequired
from api.request_log import NO_TELEMETRY
from models.errors import DomainError
from models.settings import Settings

PREFIX = "/dashboard"
STATIC = Path(__file__).with_name("static")
SESSION_SECONDS = 12 * 3600

# Nothing from elsewhere, nothing inline: a hostile name that slipped through escaping could still run
# no script and load no picture.
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'; object-src 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def mount_dashboard(app: FastAPI, settings: Settings) -> None:
    """Mount the dashboard at `/dashboard`; it shares the API's `state` (sessions, doorbell)."""
    dashboard = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, telemetry=NO_TELEMETRY)
    dashboard.state = app.state
    app.state.openid = OpenId(settings) if settings.oidc_issuer else None
    dashboard.include_router(sign_in_routes.router)
    dashboard.include_router(overview.router)
    dashboard.include_router(jobs.router)
    dashboard.include_router(job_texts.router)
    dashboard.include_router(models.router)
    dashboard.include_router(policies.router)
    dashboard.include_router(reviews.router)
    dashboard.include_router(audit.router)
    dashboard.include_router(live_routes.router)
    dashboard.include_router(system.router)
    dashboard.include_router(tenants.router)
    dashboard.mount("/static", StaticFiles(directory=STATIC), name="static")
    dashboard.exception_handler(SignInRequired)(_ask_to_sign_in)
    dashboard.exception_handler(DomainError)(_show_domain_error)
    dashboard.exception_handler(RequestValidationError)(_show_invalid_request)
    dashboard.exception_handler(HTTPException)(_show_http_error)
    dashboard.exception_handler(DataError)(_show_unstorable)
    for outage in (OperationalError, InterfaceError, PoolTimeout):
        dashboard.exception_handler(outage)(_show_outage)
    dashboard.exception_handler(Exception)(_show_defect)
    dashboard.add_middleware(
        SessionMiddleware,
        secret_key=settings.session_secret.get_secret_value() or secrets.token_urlsafe(32),
        session_cookie="titer_dashboard",
        max_age=SESSION_SECONDS,
        path=PREFIX,
        same_site="lax",
        https_only=settings.https_only,
    )
    app.add_api_route(PREFIX, _enter, methods=["GET"], include_in_schema=False)
    app.mount(PREFIX, SecurityHeaders(dashboard), name="dashboard")


class SecurityHeaders:
    """Adds the security headers to every answer, and keeps pages out of caches."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap the application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and mark the answer."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    # A stored page may bring a policy of its own, narrower than this one.
                    headers.setdefault(name, value)
                # Files may be kept but are asked for again; pages are somebody's own.
                is_file = scope["path"].startswith(f"{PREFIX}/static/")
                headers["cache-control"] = "no-cache" if is_file else "no-store"
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _enter() -> RedirectResponse:
    return RedirectResponse(f"{PREFIX}/", status_code=303)


def _ask_to_sign_in(request: Request, error: SignInRequired) -> Response:
    if "hx-request" in request.headers:
        # A redirect would put the sign-in page into a corner of the page that asked.
        return Response(status_code=401, headers={"HX-Redirect": error.address})
    if "text/event-stream" in request.headers.get("accept", ""):
        # No page is shown for it: what follows asks for a page itself, and is led away then.
        return Response(status_code=401)
    return RedirectResponse(error.address, status_code=303)


def _show_domain_error(request: Request, error: DomainError) -> Response:
    return render_error(request, error.status_code, error.message)


def _show_invalid_request(request: Request, error: RequestValidationError) -> Response:
    fields = ", ".join(sorted({str(fault["loc"][-1])[:64] for fault in error.errors()}))
    return render_error(request, 400, f"The request has a missing or invalid field: {fields}.")


def _show_http_error(request: Request, error: HTTPException) -> Response:
    message = "There is no such page." if error.status_code == 404 else error.detail
    return render_error(request, error.status_code, message)


def _show_unstorable(request: Request, _: DataError) -> Response:
    # Nearly always a NUL character, which PostgreSQL's text cannot hold.
    return render_error(request, 400, "The request has a character that no name here can have.")


def _show_outage(request: Request, _: SQLAlchemyError) -> Response:
    return render_error(request, 503, "The database does not answer at the moment. Try again.")


def _show_defect(request: Request, _: Exception) -> Response:
    return render_error(request, 500, "The service made an error; its log says more.")
