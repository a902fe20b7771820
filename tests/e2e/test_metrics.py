"""What Prometheus is told by the running service: a worker that lives, and who asked for what."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.conftest import Running
from tests.e2e.test_upload_to_gate import wait

pytestmark = pytest.mark.processes


def test_the_service_tells_of_its_worker_and_of_its_requests(running: Running) -> None:
    token = (running.service.state / "metrics_token").read_text()
    address = f"{running.service.base_url}/metrics"

    def read() -> str:
        header = {"authorization": f"Bearer {token}"}
        return httpx.get(address, headers=header, trust_env=False).raise_for_status().text

    assert httpx.get(address, trust_env=False).status_code == 401
    running.client.models.list()
    # A worker speaks once it has loaded what it needs.
    text = wait(lambda: 'device="cpu"' in read() and read(), "a worker to speak")
    workers = [line for line in text.splitlines() if line.startswith("titer_workers{")]
    assert sum(float(line.rpartition(" ")[2]) for line in workers) == 1
    assert 'titer_http_request_seconds_count{method="GET",route="/v1/models",status="2xx"}' in text
    assert running.service.api_key not in text
