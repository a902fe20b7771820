"""The application: every part of the api put together, from settings. Read this to find a route.

`uvicorn --factory api.app:create_app` runs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from api import health
from api.alignment.routes import router as alignment
from api.answer_headers import AnswerHeaders
from api.audit.routes import router as audit
from api.certification.routes import certificates
from api.certification.routes import router as certification
from api.completions.routes import router as completions
from api.dashboard import mount_dashboard
from api.errors import install_error_handlers
from api.evaluation.routes import router as evaluation
from api.event_stream.changes import Changes
from api.event_stream.routes import router as event_stream
from api.event_stream.service import Slots
from api.export.routes import router as export
from api.files.routes import router as files
from api.inference.routes import router as inference
from api.inference.service import make_client
from api.jobs.routes import router as jobs
from api.keys.routes import router as keys
from api.limits import BodyLimit
from api.metrics.routes import router as metrics
from api.metrics.service import make_registry
from api.moderations.routes import router as moderations
from api.openapi import describe
from api.organization.routes import router as organization
from api.policies.routes import router as policies
from api.queue import Doorbell
from api.rate_limits import RateLimiter
from api.registry.routes import router as registry
from api.request_log import NO_TELEMETRY, RequestLog
from api.reviews.routes import router as reviews
from api.safety.routes import router as safety
from api.system.routes import router as system
from api.uploads.routes import router as uploads
from api.webhooks.routes import router as webhooks
from models.log import configure_logging
from models.session import make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from models.tracing import configure_tracing, stop_tracing


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application. Nothing is connected before the first request.

    Args:
        settings: read from the environment when absent; then logging and tracing are set up as well.
    """
    if settings is None:
        settings = Settings()
        configure_logging(as_json=settings.log_json, level=settings.log_level)
        configure_tracing(settings.otel_exporter_otlp_endpoint, service="titer-api")
    engine = make_engine(settings.database_url)
    doorbell = Doorbell(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with make_client(settings.serving_url, settings.serving_token) as serving:
            app.state.serving = serving
            listening = asyncio.create_task(app.state.changes.listen())
            yield
            listening.cancel()
            await asyncio.wait([listening])
        doorbell.close()
        app.state.rate_limiter.close()
        engine.dispose()
        stop_tracing()

    app = FastAPI(
        title="Titer",
        description="Fine-tuning as a service whose models stay safe.",
        lifespan=lifespan,
        # The documentation pages load their scripts from elsewhere; the schema is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
    )
    app.state.settings = settings
    app.state.sessions = session_factory(engine)
    app.state.storage = Storage(settings.storage_url)
    app.state.doorbell = doorbell
    app.state.rate_limiter = RateLimiter(settings)
    app.state.changes = Changes(settings.database_url, settings.listen_url)
    app.state.event_slots = Slots(settings.max_event_streams)
    app.state.metrics = make_registry(app)
    install_error_handlers(app)
    # The registry last: there a model's name takes every path that follows it.
    for router in (files, uploads, jobs, alignment, certification, certificates, evaluation):
        app.include_router(router)
    for router in (safety, export, registry):
        app.include_router(router)
    for router in (inference, completions, moderations, keys, organization, health.router, metrics):
        app.include_router(router)
    for router in (webhooks, event_stream, audit, policies, reviews, system):
        app.include_router(router)
    mount_dashboard(app, settings)
    describe(app)
    # The last added is the outermost.
    app.add_middleware(
        BodyLimit,
        max_file_bytes=settings.max_file_bytes,
        max_request_bytes=settings.max_request_bytes,
    )
    app.add_middleware(AnswerHeaders)
    app.add_middleware(RequestLog)
    return app
