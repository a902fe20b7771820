"""Logging for every process: structlog over the standard library, columns for people or JSON lines.

Every line carries what is bound where it is written: `request_id` in the api, `job_id` and `attempt` in a worker,
and `trace_id` wherever traces are on.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from models.tracing import trace_id


def configure_logging(*, as_json: bool, level: str = "INFO") -> None:
    """Route structlog and the standard library's loggers through one formatter on standard error."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_trace_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor
    if as_json:
        renderer = structlog.processors.JSONRenderer()
    else:
        # The default formatter shows local variables, and those hold rows and prompts.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
        # Uvicorn has given them handlers of its own by now, whose lines no machine could read.
        logger = logging.getLogger(name)
        logger.handlers.clear()
        # Its request log holds whole addresses, and asks nobody but this whether it is wanted. Ours has templates.
        logger.propagate = name != "uvicorn.access"
    # httpx logs every address it asks, and model ids in them belong to tenants.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _add_trace_id(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    if (found := trace_id()) is not None:
        line["trace_id"] = found
    return line
