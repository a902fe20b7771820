"""Logging: one formatter for every library, and no values that a traceback could carry along."""

from __future__ import annotations

import json
import logging
import logging.config
import warnings
from collections.abc import Iterator

import pytest
import structlog
import uvicorn

from models import tracing
from models.log import configure_logging
from tests.traces import Traces, traces

__all__ = ["traces"]

SECRET = "zebra-7719"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    httpx_level = logging.getLogger("httpx").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    logging.getLogger("httpx").setLevel(httpx_level)
    structlog.reset_defaults()


def crash() -> None:
    row = SECRET
    raise RuntimeError(f"a row of {len(row)} characters")


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_shows_no_local_variables(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    configure_logging(as_json=as_json)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            crash()
        except RuntimeError:
            structlog.get_logger("worker").exception("job_crashed", job_id="ftjob-1")
    shown = capsys.readouterr().err
    assert "job_crashed" in shown
    assert "a row of 10 characters" in shown
    assert SECRET not in shown


def test_json_lines_carry_the_facts_of_both_kinds_of_logger(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(as_json=True)
    with structlog.contextvars.bound_contextvars(job_id="ftjob-1"):
        structlog.get_logger("worker").info("job_claimed", attempt=2)
        logging.getLogger("celery").warning("broker %s", "down")
    ours, theirs = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["attempt"], ours["logger"]) == ("job_claimed", 2, "worker")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == (
        "broker down",
        "warning",
        "celery",
    )
    assert ours["job_id"] == theirs["job_id"] == "ftjob-1"


def test_lines_of_the_web_server_are_read_by_machines_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)
    configure_logging(as_json=True)
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    logging.getLogger("uvicorn.access").info('%s - "%s"', "127.0.0.1", "GET /")
    shown = capsys.readouterr()
    assert shown.out == ""
    events = [json.loads(line)["event"] for line in shown.err.splitlines()]
    assert events == ["Application startup complete."], "addresses are told by nobody"
    assert not logging.getLogger("uvicorn.access").hasHandlers(), (
        "what uvicorn asks before it tells"
    )


def test_lines_name_the_trace_where_there_is_one(
    capsys: pytest.CaptureFixture[str], traces: Traces
) -> None:
    configure_logging(as_json=True)
    with tracing.span("request"):
        structlog.get_logger("api").info("within")
        logging.getLogger("celery").warning("too")
        known = tracing.trace_id()
    structlog.get_logger("api").info("without")
    within, too, without = map(json.loads, capsys.readouterr().err.splitlines())
    assert within["trace_id"] == too["trace_id"] == known
    assert "trace_id" not in without
    traces.ended()


def test_warnings_are_lines_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # To be shown by the logger, which the context above would put back.
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old ways", FutureWarning, stacklevel=1)
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "old ways" in line["event"]


def test_the_level_holds_and_addresses_of_models_stay_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(as_json=True, level="INFO")
    logging.getLogger("worker").debug("detail")
    logging.getLogger("httpx").info("GET https://hub/tenant-model")
    assert capsys.readouterr().err == ""
