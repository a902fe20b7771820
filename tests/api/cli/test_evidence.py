"""Evidence on the command line: risk, report, export and verify, with everything that can be wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from api.safety.signature import Signer
from models.job import Job
from models.model_version import ModelVersion
from models.settings import Settings
from tests.api.adapters import CONFIG, WEIGHTS, tuned
from tests.api.conftest import Place, Tenant, rows
from tests.api.server import serve
from tests.api.test_cli import Cli
from tests.api.test_safety import screened

# Each test starts a server.
pytestmark = pytest.mark.long

SEED = "0c" * 32


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"signing_key": SecretStr(SEED), "adapter_export": "always"})


@pytest.fixture
def cli(app: FastAPI, customer: Tenant) -> Iterator[Cli]:
    with serve(app) as url:
        yield Cli(url, customer.token)


@pytest.fixture
def released(place: Place, customer: Tenant, aligned: ModelVersion, tmp_path: Path) -> ModelVersion:
    return tuned(place, customer, aligned, tmp_path / "stored")[0]


@pytest.fixture
def exported(cli: Cli, released: ModelVersion, tmp_path: Path) -> Path:
    cli("models", "export", released.id, "--out", tmp_path / "mine")
    return tmp_path / "mine"


class TestRisk:
    def test_shows_flagged_lines_and_the_sum(
        self, cli: Cli, place: Place, customer: Tenant, aligned: ModelVersion
    ) -> None:
        job = place.job(customer.project, aligned)
        screened(place, job, [0, 1, 0, 1])
        shown = cli("jobs", "risk", job.id)
        assert "50.0%" in shown
        assert "fraud 2" in shown
        lines = [line.split() for line in shown.splitlines()]
        assert ["2", "1", "fraud", "yes"] in lines
        assert ["1", "0"] not in lines
        assert ["1", "0"] in [
            line.split() for line in cli("jobs", "risk", job.id, "--all").splitlines()
        ]
        assert (
            "--after 2"
            in cli.runner.invoke(*_invocation(cli, "jobs", "risk", job.id, "--limit", "1")).stderr
        )

    def test_a_job_that_was_not_screened_says_how_to(
        self, cli: Cli, place: Place, customer: Tenant, aligned: ModelVersion
    ) -> None:
        job = place.job(customer.project, aligned)
        place.session.commit()
        assert '"screen": true' in cli.failing("jobs", "risk", job.id)

    def test_is_asked_for_at_creation(
        self, cli: Cli, place: Place, aligned: ModelVersion, tmp_path: Path
    ) -> None:
        (tmp_path / "rows.jsonl").write_bytes(rows())
        made = cli.json(
            "jobs",
            "create",
            *("--model", aligned.id, "--training-file", tmp_path / "rows.jsonl", "--screen"),
        )
        assert place.session.get_one(Job, str(made["id"])).recipe["screen"] is True


class TestReport:
    def test_is_shown_and_written_as_it_was_signed(
        self, cli: Cli, released: ModelVersion, tmp_path: Path
    ) -> None:
        shown = cli("models", "report", released.id)
        assert released.id in shown
        assert Signer(SEED).verifying_key.id in shown
        assert "+3.0 points" in shown
        cli("models", "report", released.id, "--out", tmp_path / "r.json")
        assert "The signature is good." in cli("verify", tmp_path / "r.json")
        assert (
            cli.json("models", "report", released.id)["report"]
            == json.loads((tmp_path / "r.json").read_bytes())["report"]
        )

    def test_a_file_that_cannot_be_written_is_said_plainly(
        self, cli: Cli, released: ModelVersion, tmp_path: Path
    ) -> None:
        assert "cannot be written" in cli.failing(
            "models", "report", released.id, "--out", tmp_path
        )


class TestExport:
    def test_makes_a_folder_that_verifies(self, cli: Cli, exported: Path) -> None:
        assert (exported / "adapter_config.json").read_bytes() == CONFIG
        assert (exported / "adapter_model.safetensors").read_bytes() == WEIGHTS
        shown = cli("verify", exported / "safety_report.json", "--adapter", exported)
        assert "holds the files that were measured" in shown

    def test_never_writes_over_what_is_there(
        self, cli: Cli, released: ModelVersion, exported: Path
    ) -> None:
        before = (exported / "adapter_config.json").read_bytes()
        assert "there already" in cli.failing("models", "export", released.id, "--out", exported)
        assert (exported / "adapter_config.json").read_bytes() == before

    def test_a_stream_that_breaks_off_leaves_nothing(
        self, cli: Cli, place: Place, released: ModelVersion, tmp_path: Path
    ) -> None:
        key = f"{released.source['prefix']}/adapter_model.safetensors"
        place.storage.put(key, WEIGHTS[:-1] + b"\x00")
        # The server runs in this process, so what it logs of the fault is in the output as well.
        out = str(tmp_path / "mine")
        result = cli.runner.invoke(*_invocation(cli, "models", "export", released.id, "--out", out))
        assert result.exit_code == 1
        assert "broke" in result.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["object store", "stored"]


class TestVerify:
    def test_needs_no_service_with_a_key_file(self, exported: Path, tmp_path: Path) -> None:
        nowhere = Cli("http://127.0.0.1:1", "none")
        key = Signer(SEED).verifying_key
        (tmp_path / "key.pem").write_text(key.pem)
        (tmp_path / "keys.json").write_text(json.dumps({"data": [{"pem": key.pem}]}))
        for name in ("key.pem", "keys.json"):
            shown = nowhere(
                "verify",
                exported / "safety_report.json",
                *("--adapter", exported, "--key", tmp_path / name),
            )
            assert "The signature is good." in shown

    @pytest.mark.parametrize("place_of_change", [0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
    def test_one_changed_byte_of_the_report_is_found(
        self, cli: Cli, exported: Path, place_of_change: float
    ) -> None:
        path = exported / "safety_report.json"
        content = bytearray(path.read_bytes())
        content[int(place_of_change * len(content))] ^= 1
        path.write_bytes(content)
        assert "NOT VALID" in cli.failing("verify", path)

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_one_changed_byte_of_the_adapter_is_found(
        self, cli: Cli, exported: Path, name: str
    ) -> None:
        content = bytearray((exported / name).read_bytes())
        content[len(content) // 2] ^= 1
        (exported / name).write_bytes(content)
        told = cli.failing("verify", exported / "safety_report.json", "--adapter", exported)
        assert f"NOT VALID. {name} is not the file that was measured." in told

    def test_files_that_are_missing_or_more_are_found(self, cli: Cli, exported: Path) -> None:
        (exported / "adapter_config.json").rename(exported / "adapter_model.bin")
        told = cli.failing("verify", exported / "safety_report.json", "--adapter", exported)
        assert "adapter_config.json is missing." in told
        assert "adapter_model.bin is not in the report." in told

    def test_another_signer_is_not_believed(self, cli: Cli, exported: Path, tmp_path: Path) -> None:
        path = exported / "safety_report.json"
        forged = json.loads(path.read_bytes())["report"]
        forged["safety"]["harmful_score"]["percent"] = 0.0
        path.write_bytes(Signer("0d" * 32).sign(forged))
        assert "not among the trusted" in cli.failing("verify", path)

    def test_a_signed_report_without_files_is_said_plainly(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "r.json").write_bytes(Signer(SEED).sign({"weights": []}))
        told = cli.failing("verify", tmp_path / "r.json", "--adapter", tmp_path)
        assert "names no files" in told

    def test_faulty_arguments_are_said_plainly(
        self, cli: Cli, exported: Path, tmp_path: Path
    ) -> None:
        report = exported / "safety_report.json"
        assert "cannot be read" in cli.failing("verify", tmp_path / "none.json")
        assert "no folder" in cli.failing("verify", report, "--adapter", tmp_path / "none")
        (tmp_path / "key").write_text("not a key")
        assert "no Ed25519" in cli.failing("verify", report, "--key", tmp_path / "key")
        assert "cannot be read" in cli.failing("verify", report, "--key", tmp_path / "none")


def _invocation(cli: Cli, *arguments: str) -> tuple[object, list[str], None, dict[str, str]]:
    from api.cli import app

    return app, list(arguments), None, cli.environment
