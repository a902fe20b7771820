"""A worker's log: every line about a job says which, and which attempt it is, whichever thread writes it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator

import pytest
import structlog
from huggingface_hub.utils.tqdm import enable_progress_bars
from sqlalchemy.exc import OperationalError
from transformers.utils.logging import enable_progress_bar

from tests.worker.toy_provider import ROWS, Provider
from worker import leased_job, pipeline
from worker.log import configure_worker_logging

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    kept = structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    enable_progress_bar()
    enable_progress_bars()
    structlog.configure(**kept)


def test_every_line_of_a_job_names_it_and_its_attempt(
    provider: Provider, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beaten = threading.Event()

    def away(*_: object, **__: object) -> None:
        beaten.set()
        raise OperationalError("", None, Exception())

    def wait(*_: object, **__: object) -> None:
        assert beaten.wait(20)
        raise RuntimeError("a defect")

    monkeypatch.setattr(leased_job, "heartbeat", away)
    monkeypatch.setattr(leased_job, "BEATS_PER_LEASE", 600)
    monkeypatch.setattr(pipeline, "train", wait)
    job_id = provider.finetune(ROWS)
    capsys.readouterr()
    configure_worker_logging(as_json=True, level="INFO")
    provider.run(job_id)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = {line["event"] for line in lines}
    assert {"job_claimed", "heartbeat_failed", "job_crashed"} <= told
    ours = [line for line in lines if line["logger"].startswith("worker")]
    assert {(line["job_id"], line["attempt"]) for line in ours} == {(job_id, 1)}
    assert "question 0" not in json.dumps(lines)
