"""What a worker counts of the jobs that it runs, and who may read it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from models.errors import DomainError
from models.job import JobStatus
from tests.worker.toy_provider import Provider, lose_at_step
from worker import pipeline
from worker.metrics import REGISTRY, serve_metrics

pytestmark = pytest.mark.long

TOKEN = "m" * 32


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def address() -> Iterator[str]:
    server = serve_metrics(host="127.0.0.1", port=0, token=TOKEN)
    assert server is not None
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()


class TestReaders:
    def test_who_knows_the_token_reads_them(self, address: str) -> None:
        answer = httpx.get(address, headers={"authorization": f"Bearer {TOKEN}"}, trust_env=False)
        assert answer.status_code == 200
        assert "titer_step_seconds" in answer.text

    @pytest.mark.parametrize("sent", ["", "Bearer", f"Bearer {TOKEN}x", "Bearer \xfc"])
    def test_others_are_refused(self, address: str, sent: str) -> None:
        header = {"authorization": sent.encode("latin-1")} if sent else {}
        answer = httpx.get(address, headers=header, trust_env=False)
        assert (answer.status_code, answer.text) == (401, "")

    def test_a_port_that_is_taken_stops_no_worker(self, address: str) -> None:
        port = int(httpx.URL(address).port or 0)
        assert serve_metrics(host="127.0.0.1", port=port, token=TOKEN) is None


class TestCounts:
    def test_steps_tokens_and_stages_of_a_job(self, provider: Provider) -> None:
        names = ("titer_step_seconds_count", "titer_trained_tokens_total")
        before = {name: count(name, kind="align") for name in names}
        stages = {
            stage: count("titer_stage_seconds_count", kind="align", stage=stage)
            for stage in ("train", "evaluate", "gate")
        }
        done = count("titer_attempts_total", kind="align", outcome="carried")
        job = provider.run(provider.align())
        assert job.status == JobStatus.SUCCEEDED
        steps, tokens = (count(name, kind="align") - before[name] for name in names)
        # Four steps have three times from one to the next.
        assert steps == 3
        assert 0 < tokens < (job.trained_tokens or 0)
        for stage, earlier in stages.items():
            # The base before alignment and the new model are one stage of evaluation.
            assert count("titer_stage_seconds_count", kind="align", stage=stage) == earlier + 1
        assert count("titer_attempts_total", kind="align", outcome="carried") == done + 1

    @pytest.mark.parametrize(
        ("fault", "outcome"),
        [(DomainError("no"), "failed"), (RuntimeError("a defect"), "crashed")],
    )
    def test_why_a_worker_let_go(
        self,
        provider: Provider,
        monkeypatch: pytest.MonkeyPatch,
        fault: Exception,
        outcome: str,
    ) -> None:
        def break_down(*_: object, **__: object) -> None:
            raise fault

        monkeypatch.setattr(pipeline, "train", break_down)
        before = count("titer_attempts_total", kind="align", outcome=outcome)
        provider.run(provider.align())
        assert count("titer_attempts_total", kind="align", outcome=outcome) == before + 1

    def test_a_lease_that_was_lost(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = count("titer_attempts_total", kind="align", outcome="lease_lost")
        job_id = provider.align()
        lose_at_step(provider, monkeypatch, job_id, step=2)
        provider.run(job_id)
        assert count("titer_attempts_total", kind="align", outcome="lease_lost") == before + 1
