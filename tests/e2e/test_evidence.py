"""Evidence from a whole running service: a screened job, its model's signed report, and its adapter in stock PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from api.cli import app as titer
from tests.e2e.conftest import Running
from tests.e2e.test_upload_to_gate import get, post, submit, wait_for_verdict

pytestmark = pytest.mark.processes
BASE, ALIGNED = "evidence-world", "evidence-aligned"


@pytest.fixture(scope="module")
def aligned(running: Running) -> str:
    client, world = running.client, running.world
    body = {"source": str(world.base), "safety_set": str(world.safety), "name": BASE}
    post(client, "/base_models", body)
    asked = {
        "model": BASE,
        "method": {"name": "sft"},
        "hyperparameters": {"steps": 10},
        "name": ALIGNED,
    }
    release(running, f"/alignment/jobs/{post(client, '/alignment/jobs', asked)['id']}")
    return ALIGNED


def release(running: Running, path: str) -> dict[str, Any]:
    """Wait for a job's verdict; a person releases what the gate holds."""
    job = wait_for_verdict(running.client, path)
    if job["stage"] == "review" and job["status"] == "running":
        decision = {"decision": "release", "reason": "A base of forty steps knows no better."}
        post(running.client, f"/models/{job['result_model']}/review", decision)
        job = get(running.client, path)
    assert job["status"] == "succeeded", job["error"]
    return job


def test_from_screening_to_an_adapter_in_other_hands(
    running: Running, aligned: str, tmp_path: Path
) -> None:
    client = running.client
    job = submit(running, aligned, extra_body={"screen": True})
    done = release(running, f"/fine_tuning/jobs/{job.id}")

    # A tenth of the 500 rows is harmful, and the world's judge is exact.
    share = done["data_risk"]["harmful_share"]
    assert (share["count"], share["n"]) == (50, 500)
    assert done["safety"]["data_risk"] == done["data_risk"]
    page = get(client, f"/fine_tuning/jobs/{job.id}/data_risk?flagged=true&limit=1000")
    assert len(page["data"]) == 50
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    checks = [event.data for event in events if str(event.type) == "moderation_checks"]
    assert [data["stage"] for data in reversed(checks)] == ["data", "model"]  # type: ignore[index]

    def run(*arguments: object) -> Any:
        environment = {"TITER_URL": running.service.base_url, "TITER_API_KEY": client.api_key}
        return CliRunner().invoke(titer, [str(a) for a in arguments], env=environment)

    folder = tmp_path / "mine"
    result = run("models", "export", done["result_model"], "--out", folder)
    assert result.exit_code == 0, result.output
    result = run("verify", folder / "safety_report.json", "--adapter", folder)
    assert (result.exit_code, "The signature is good." in result.output) == (0, True)
    # Stock libraries, and the base as its owner has it.
    base = AutoModelForCausalLM.from_pretrained(running.world.base)
    PeftModel.from_pretrained(base, folder)

    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = run("verify", folder / "safety_report.json", "--adapter", folder)
    assert (result.exit_code, "NOT VALID" in result.output) == (1, True)
