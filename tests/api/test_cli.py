"""The command line against a running app: what it prints, and how it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select
from typer.testing import CliRunner

from api.cli import app as titer
from api.cli import follow as follow_module
from api.cli import jobs as jobs_module
from api.cli.jobs import FINETUNE
from models.api_key import Project
from models.evaluation import EvaluationWarning, FurtherJudge, JudgeIdentity
from models.job import Job, JobKind, JobStatus, append_event, fail, succeed
from models.job_checkpoint import JobCheckpoint
from models.model_version import Gate, ModelVersion, VersionKind
from models.rate import Rate
from models.scope import Scope
from tests.api.base_folders import write_base, write_safety_set
from tests.api.certificates import SMALL_PLAN, certify, supply
from tests.api.conftest import Place, rows
from tests.api.server import serve
from tests.api.test_dpo import pairs
from tests.worker.certify.made import certificate as made_by_hand

# Each test starts a server.
pytestmark = pytest.mark.long


class Cli:
    """Runs commands as a shell would, with the address and key in the environment."""

    def __init__(self, url: str, token: str) -> None:
        self.environment = {"TITER_URL": url, "TITER_API_KEY": token, "COLUMNS": "300"}
        self.runner = CliRunner()

    def __call__(self, *arguments: str | Path) -> str:
        result = self.runner.invoke(titer, [str(a) for a in arguments], env=self.environment)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str | Path) -> dict[str, object]:
        return dict(json.loads(self(*arguments, "--json")))

    def failing(self, *arguments: str | Path) -> str:
        result = self.runner.invoke(titer, [str(a) for a in arguments], env=self.environment)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
        return result.output


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serve(app) as address:
        yield address


@pytest.fixture
def project(place: Place) -> Project:
    return place.project()


@pytest.fixture
def cli(url: str, place: Place, project: Project) -> Cli:
    token = place.key(project, Scope.CUSTOMER, Scope.OPERATOR)
    place.session.commit()
    return Cli(url, token)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows())
    return path


class TestFindingTheService:
    def test_the_state_folder_of_a_running_service_is_enough(
        self, url: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = tmp_path / "work folder" / ".titer"
        state.mkdir(parents=True)
        (state / "api_key").write_text(cli.environment["TITER_API_KEY"] + "\n")
        (state / "url").write_text(url + "\n")
        monkeypatch.chdir(state.parent)
        result = CliRunner().invoke(titer, ["files", "list", "--json"])
        assert json.loads(result.stdout)["data"] == []

    def test_options_win_and_v1_may_be_left_on_the_address(self, url: str, cli: Cli) -> None:
        token = cli.environment.pop("TITER_API_KEY")
        cli.environment["TITER_URL"] = "http://127.0.0.1:1"
        cli("--url", f"{url}/v1/", "--api-key", token, "files", "list")

    def test_without_a_key_it_says_where_one_is_had(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(titer, ["jobs", "list"])
        assert result.exit_code == 1
        assert "TITER_API_KEY" in result.output
        assert CliRunner().invoke(titer, ["jobs", "create", "--help"]).exit_code == 0

    def test_a_service_that_is_down_is_said_plainly(self, cli: Cli) -> None:
        cli.environment["TITER_URL"] = "http://127.0.0.1:1"
        assert "Nothing answers at http://127.0.0.1:1" in cli.failing("models", "list")

    def test_a_wrong_key_is_said_plainly(self, cli: Cli) -> None:
        cli.environment["TITER_API_KEY"] = "wrong"
        assert "API key" in cli.failing("models", "list")


class TestFiles:
    def test_upload_and_list(self, cli: Cli, data: Path) -> None:
        file = cli.json("files", "upload", data)
        assert file["rows"] == 12
        assert str(file["id"]) in cli("files", "list")
        assert ["rows", "12"] in [
            line.split() for line in cli("files", "upload", data).splitlines()
        ]

    @pytest.mark.parametrize(
        ("given", "seconds"), [("3600", 3600), ("90m", 5400), ("12h", 43_200), ("30d", 2_592_000)]
    )
    def test_a_file_may_expire(self, cli: Cli, data: Path, given: str, seconds: int) -> None:
        file = cli.json("files", "upload", data, "--expires-after", given)
        assert file["expires_at"] == int(str(file["created_at"])) + seconds
        assert "expires" in cli("files", "upload", data, "--expires-after", given)

    def test_a_life_that_is_too_short_or_no_time_is_said_plainly(
        self, cli: Cli, data: Path
    ) -> None:
        assert "expires_after" in cli.failing("files", "upload", data, "--expires-after", "5m")
        result = cli.runner.invoke(titer, ["files", "upload", str(data), "--expires-after", "soon"])
        assert result.exit_code == 2
        assert "such as 12h" in result.output

    def test_every_faulty_row_has_its_line(self, cli: Cli, tmp_path: Path) -> None:
        path = tmp_path / "bad.jsonl"
        path.write_bytes(rows(1) + b'x\n{"prompt": "p"}\n')
        output = cli.failing("files", "upload", path)
        assert "2 faulty rows:" in output
        assert "line 2: not valid JSON" in output
        assert "line 3, completion: is missing" in output

    def test_an_absent_file_is_said_plainly(self, cli: Cli, tmp_path: Path) -> None:
        assert "No such file" in cli.failing("files", "upload", tmp_path / "none.jsonl")


class TestJobs:
    def test_a_job_that_learns_from_pairs(
        self, cli: Cli, aligned: ModelVersion, tmp_path: Path
    ) -> None:
        path = tmp_path / "pairs.jsonl"
        path.write_bytes(pairs())
        asked = ("jobs", "create", "--model", aligned.id, "--training-file", path)
        job = cli.json(*asked, "--method", "dpo", "--beta", "0.2", "--epochs", "2")
        assert job["method"] == {
            "type": "dpo",
            "dpo": {
                "hyperparameters": {
                    "n_epochs": 2,
                    "batch_size": 10,
                    "learning_rate_multiplier": 1.0,
                    "beta": 0.2,
                }
            },
        }
        assert "--method dpo" in cli.failing(*asked, "--beta", "0.2")
        assert "for the method 'dpo'" in cli.failing(*asked)

    def test_create_uploads_what_is_a_local_file(
        self, cli: Cli, data: Path, aligned: ModelVersion
    ) -> None:
        options = ("--epochs", "2", "--suffix", "mine", "--metadata", "team=a", "--seed", "3")
        job = cli.json(
            *("jobs", "create", "--model", aligned.id, "--training-file", data),
            *("--validation-file", data, *options),
        )
        assert job["status"] == "queued"
        assert job["validation_file"]
        assert job["metadata"] == {"team": "a"}
        hyperparameters = job["hyperparameters"]
        assert isinstance(hyperparameters, dict)
        assert hyperparameters["n_epochs"] == 2
        assert str(job["id"]) in cli("jobs", "list")
        assert "queued" in cli("jobs", "show", str(job["id"]))
        assert "cancelled" in cli("jobs", "cancel", str(job["id"]))
        assert "cannot become" in cli.failing("jobs", "cancel", str(job["id"]))

    def test_pause_and_resume(self, cli: Cli, data: Path, aligned: ModelVersion) -> None:
        job = cli.json("jobs", "create", "--model", aligned.id, "--training-file", data)
        job_id = str(job["id"])
        assert cli("jobs", "pause", job_id).split() == ["paused"]
        assert "paused" in cli("jobs", "list")
        assert "cannot become paused" in cli.failing("jobs", "pause", job_id)
        resumed = cli.json("jobs", "resume", job_id)
        assert (resumed["status"], resumed["state"]) == ("queued", "queued")
        assert "cannot be resumed" in cli.failing("jobs", "resume", job_id)
        assert cli.json("jobs", "cancel", job_id)["status"] == "cancelled"

    def test_an_alignment_job_can_be_paused_too(self, cli: Cli, base: ModelVersion) -> None:
        job = cli.json("align", "--base", base.id, "--method", "sft", "--name", "hardened")
        assert "paused" in cli("jobs", "pause", str(job["id"]))
        assert "queued" in cli("jobs", "resume", str(job["id"]))

    def test_lists_by_label(self, cli: Cli, data: Path, aligned: ModelVersion) -> None:
        options = ("jobs", "create", "--model", aligned.id, "--training-file", data)
        one = cli.json(*options, "--metadata", "team=a", "--metadata", "run=1")
        two = cli.json(*options, "--metadata", "team=a")
        cli.json(*options)

        def listed(*labels: str) -> list[object]:
            given = [word for label in labels for word in ("--metadata", label)]
            jobs = cli.json("jobs", "list", *given)["data"]
            assert isinstance(jobs, list)
            return [job["id"] for job in jobs]

        assert listed("team=a") == [two["id"], one["id"]]
        assert listed("team=a", "run=1") == [one["id"]]
        assert listed("team=b") == []
        assert "key=value" in cli.failing("jobs", "list", "--metadata", "team")
        assert "labels" in cli.failing("jobs", "list", "--alignment", "--metadata", "a=b")

    def test_checkpoints_are_a_table(
        self, cli: Cli, place: Place, project: Project, aligned: ModelVersion
    ) -> None:
        job = place.job(project, aligned)
        name = f"{job.result_model_id}:ckpt-step-3"
        place.session.add(
            JobCheckpoint(
                job_id=job.id,
                step=3,
                version_name=name,
                metrics={"step": 3, "train_loss": 1.25, "canary_loss": None},
            )
        )
        version = place.version(name, VersionKind.TUNED, parent=aligned, project=project)
        place.evaluation(version, harmful=7)
        place.session.commit()
        line = cli("jobs", "checkpoints", job.id).splitlines()[1]
        assert line.split() == ["3", "1.2500", "7.0%", "released", name]
        data = cli.json("jobs", "checkpoints", job.id)["data"]
        assert isinstance(data, list)
        assert data[0]["usable"] is True

    def test_an_alignment_job_is_found_by_its_id_too(self, cli: Cli, base: ModelVersion) -> None:
        job = cli.json(
            *("align", "--base", base.id, "--method", "booster", "--lambda", "3"),
            *("--alpha", "0.1", "--steps", "9", "--name", "hardened"),
        )
        assert job["kind"] == "align"
        method = job["method"]
        assert isinstance(method, dict)
        assert method["alignment"]["lambda"] == 3
        assert str(job["id"]) in cli("jobs", "list", "--alignment")
        shown = cli("jobs", "show", str(job["id"]))
        assert "hardened" in shown
        assert "lambda 3" in shown

    @pytest.mark.parametrize("job_id", ["ftjob-none", "../keys", "a b"])
    def test_an_unknown_job_is_said_plainly(self, cli: Cli, job_id: str) -> None:
        assert job_id in cli.failing("jobs", "show", job_id)

    def test_odd_labels_are_refused(self, cli: Cli, aligned: ModelVersion, data: Path) -> None:
        output = cli.failing(
            "jobs", "create", "--model", aligned.id, "--training-file", data, "--metadata", "x"
        )
        assert "key=value" in output


class TestFollow:
    @pytest.fixture
    def job(self, place: Place, project: Project, aligned: ModelVersion) -> Job:
        job = place.job(project, aligned)
        for step in (1, 2):
            append_event(
                place.session,
                job,
                f"Step {step}/2",
                type="metrics",
                data={
                    "step": step,
                    "total_steps": 2,
                    "train_loss": 0.5,
                    "canary_loss": 2.25 if step == 1 else None,
                },
            )
        append_event(
            place.session,
            job,
            "Evaluating.",
            type="progress",
            data={"stage": "evaluate", "done": 1, "total": 2},
        )
        place.session.commit()
        return job

    def test_a_released_model_ends_well(
        self, cli: Cli, place: Place, project: Project, aligned: ModelVersion, job: Job
    ) -> None:
        version = place.version(
            job.result_model_id, VersionKind.TUNED, parent=aligned, project=project, job=job
        )
        place.evaluation(version, harmful=1)
        job.status = JobStatus.RUNNING
        succeed(place.session, job)
        place.session.commit()
        output = cli("jobs", "follow", job.id)
        assert "The job has successfully completed." in output
        assert ["HS", "1.0%"] in [line.split()[:2] for line in output.splitlines()]
        assert "100%" in output
        assert "canary 2.250" in output

    def test_a_blocked_model_ends_with_a_status_for_scripts(
        self, cli: Cli, place: Place, job: Job
    ) -> None:
        fail(place.session, job, code="harmful_score_exceeded", message="HS is 90%.")
        place.session.commit()
        assert "HS is 90%." in cli.failing("jobs", "follow", job.id)

    def test_a_held_model_is_not_waited_for(
        self, cli: Cli, place: Place, project: Project, aligned: ModelVersion
    ) -> None:
        _, job = place.held(project, aligned)
        place.session.commit()
        output = cli.failing("jobs", "follow", job.id)
        assert "running (review)" in output

    def test_pages_of_events_are_told_once_and_in_order(
        self, cli: Cli, place: Place, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(follow_module, "PAGE", 2)
        connection = follow_module.Connection(
            cli.environment["TITER_URL"], cli.environment["TITER_API_KEY"]
        )
        path = f"{FINETUNE}/{job.id}"
        first = follow_module._new_events(connection, path, None)
        assert [e["message"] for e in first] == ["Created.", "Step 1/2", "Step 2/2", "Evaluating."]
        append_event(place.session, job, "Later.")
        place.session.commit()
        rest = follow_module._new_events(connection, path, first[-1]["id"])
        assert [e["message"] for e in rest] == ["Later."]


class TestModels:
    def test_add_list_show(self, cli: Cli, tmp_path: Path) -> None:
        base = write_base(tmp_path / "bases" / "tiny one")
        safety = write_safety_set(tmp_path / "safety")
        model = cli.json("models", "add", base, "--safety-set", safety, "--name", "org/tiny")
        assert model["kind"] == "base"
        assert "org/tiny" in cli("models", "list")
        assert str(base) in cli("models", "show", "org/tiny")

    def test_show_sets_other_judges_and_warnings_beside_the_score(
        self, cli: Cli, place: Place, aligned: ModelVersion
    ) -> None:
        rate = Rate(count=3, n=100)
        further = FurtherJudge(
            judge=JudgeIdentity(name="second", revision="1"),
            harmful_score=rate,
            refusal_rate=rate,
            agreement=Rate(count=98, n=100),
            kappa=0.5,
        )
        warning = EvaluationWarning(code="single_category", message="One category only.")
        place.evaluation(aligned, harmful=1, further_judges=(further,), warnings=(warning,))
        place.session.commit()
        shown = [" ".join(line.split()) for line in cli("models", "show", aligned.id).splitlines()]
        assert "HS by second 3.0% (1.0 to 8.4, n = 100), agrees on 98.0%, kappa 0.50" in shown
        assert "warning One category only." in shown

    def test_a_fault_of_the_base_is_said_plainly(self, cli: Cli, tmp_path: Path) -> None:
        base = write_base(tmp_path / "tiny")
        (base / "config.json").unlink()
        safety = write_safety_set(tmp_path / "safety")
        assert "no config.json" in cli.failing("models", "add", base, "--safety-set", safety)

    def test_a_held_model_is_decided_on(
        self, cli: Cli, place: Place, project: Project, aligned: ModelVersion
    ) -> None:
        version, _ = place.held(project, aligned)
        place.session.commit()
        output = cli("models", "review", version.id, "release", "--reason", "looked at it")
        assert "released" in output
        assert "looked at it" in output
        place.session.expire_all()
        assert place.session.get_one(ModelVersion, version.id).gate == Gate.RELEASED
        assert "does not wait" in cli.failing(
            "models", "review", version.id, "reject", "--reason", "again"
        )


class TestKeys:
    def test_create_list_revoke(self, cli: Cli) -> None:
        key = cli.json("keys", "create", "ci", "--project", "globex", "--scope", "customer")
        assert str(key["key"]).startswith("titer-")
        listed = cli("keys", "list")
        assert "globex" in listed
        assert str(key["key"]) not in listed
        assert "is revoked" in cli("keys", "revoke", str(key["id"]))


class TestChat:
    def test_the_answer_is_printed_as_it_comes(
        self, app: FastAPI, cli: Cli, aligned: ModelVersion
    ) -> None:
        def answer(_: httpx.Request) -> httpx.Response:
            chunks = [{"choices": [{"delta": {"content": word}}]} for word in ("one ", "two")]
            lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
            return httpx.Response(200, text="".join(lines) + "data: [DONE]\n\n")

        app.state.serving = httpx.AsyncClient(
            transport=httpx.MockTransport(answer), base_url="http://serving"
        )
        assert cli("chat", aligned.id, "hello") == "one two\n"

    def test_a_server_that_is_down_is_said_plainly(self, cli: Cli, aligned: ModelVersion) -> None:
        assert "inference server" in cli.failing("chat", aligned.id, "hello")


def test_the_database_is_brought_up_to_date(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    result = CliRunner().invoke(titer, ["db", "upgrade"])
    assert result.exit_code == 0
    monkeypatch.setenv("DATABASE_URL", "postgresql://titer@127.0.0.1:1/none")
    result = CliRunner().invoke(titer, ["db", "upgrade"])
    assert result.exit_code == 1
    assert "Traceback" not in result.output


def test_an_alignment_job_is_followed_too(
    cli: Cli, place: Place, project: Project, base: ModelVersion
) -> None:
    job = place.job(project, base, kind=JobKind.ALIGN)
    fail(place.session, job, code="out_of_memory", message="It does not fit.")
    place.session.commit()
    assert "It does not fit." in cli.failing("jobs", "follow", job.id)


class TestEvaluateModel:
    def test_starts_a_job_and_shows_what_it_measured(
        self, cli: Cli, place: Place, aligned: ModelVersion, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = cli("models", "evaluate", aligned.id).strip()
        assert job_id in cli("jobs", "list", "--evaluation")
        assert "evaluate" in cli("jobs", "show", job_id)
        assert "has not ended" in cli.failing("models", "evaluate", aligned.id)
        assert "cancelled" in cli("jobs", "cancel", job_id)
        real = jobs_module.follow

        def finish_then_follow(connection: follow_module.Connection, path: str) -> object:
            # What a worker would have done by now.
            job = place.session.get_one(Job, path.rsplit("/", 1)[1])
            job.status = JobStatus.RUNNING
            evaluation = place.evaluation(aligned, harmful=41)
            evaluation.job_id, evaluation.gate, evaluation.policy_version = job.id, None, None
            succeed(place.session, job)
            place.session.commit()
            return real(connection, path)

        monkeypatch.setattr(jobs_module, "follow", finish_then_follow)
        assert "41.0%" in cli("models", "evaluate", aligned.id, "--follow")


class TestCertify:
    def test_starts_a_job_and_says_what_it_costs(
        self, cli: Cli, place: Place, aligned: ModelVersion
    ) -> None:
        supply(place, aligned)
        output = cli("certify", aligned.id)
        assert "plan quick" in output
        assert "33 runs, 2,640 optimiser steps" in output
        job_id = output.splitlines()[0]
        assert job_id in cli("jobs", "list", "--certification")
        assert "certify" in cli("jobs", "show", job_id)
        assert "cancelled" in cli("jobs", "cancel", job_id)
        assert cli.json("certify", aligned.id, "--plan", "standard")["kind"] == "certify"

    def test_a_drill_takes_chosen_attacks(
        self, cli: Cli, place: Place, aligned: ModelVersion
    ) -> None:
        supply(place, aligned)
        output = cli(
            "drill", aligned.id, "--family", "pure", "--family", "style", "--steps", "8", "--fresh"
        )
        assert "drill: 6 runs, 48 optimiser steps" in output
        job = place.session.get_one(Job, output.splitlines()[0])
        assert {c["start"] for c in job.recipe["customers"]} == {"fresh"}
        assert "steps" in cli.failing("drill", aligned.id, "--steps", "1")

    def test_a_plan_of_ones_own_comes_from_a_file(
        self, cli: Cli, place: Place, aligned: ModelVersion, tmp_path: Path
    ) -> None:
        supply(place, aligned)
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(SMALL_PLAN))
        assert "plan mine" in cli("certify", aligned.id, "--plan", path)
        path.write_text("{")
        assert "not a readable JSON file" in cli.failing("certify", aligned.id, "--plan", path)
        path.write_text("[]")
        assert "not a JSON object" in cli.failing("certify", aligned.id, "--plan", path)

    def test_costs_are_told_without_starting_anything(
        self, cli: Cli, aligned: ModelVersion
    ) -> None:
        output = cli("certify", aligned.id, "--cost")
        assert [line.split()[0] for line in output.splitlines()] == [
            "PLAN",
            "quick",
            "standard",
            "full",
        ]
        assert "33 runs" in output
        assert len(cli.json("certify", aligned.id, "--cost")["data"]) == 3  # type: ignore[arg-type]
        assert "certify" not in cli("jobs", "list", "--certification")

    def test_a_refusal_is_said_plainly(self, cli: Cli, aligned: ModelVersion) -> None:
        assert "has no attack.jsonl" in cli.failing("certify", aligned.id)

    def test_following_shows_each_run_and_then_the_certificate(
        self, cli: Cli, place: Place, aligned: ModelVersion, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        supply(place, aligned)
        real = jobs_module.follow

        def finish_then_follow(connection: follow_module.Connection, path: str) -> object:
            # What a worker would have done by now.
            job = place.session.scalars(select(Job).where(Job.kind == JobKind.CERTIFY)).one()
            job.status = JobStatus.RUNNING
            data = {"stage": "evaluate", "done": 1, "total": 30, "customer": "mix", "seed": 2}
            append_event(
                place.session,
                job,
                "1 of 30",
                type="progress",
                data={**data, "harmful_score": 41.25},
            )
            succeed(place.session, job)
            store_report(place, aligned)
            return real(connection, path)

        monkeypatch.setattr(jobs_module, "follow", finish_then_follow)
        output = cli("certify", aligned.id, "--follow")
        assert "The job has successfully completed." in output
        assert "2 steps to HS above 15%" in output
        assert "highest HS" in output
        assert "mix 10%, 20 rows" in output

    def test_a_run_is_told_with_its_score(self) -> None:
        data = {"customer": "mix 10%", "seed": 2, "harmful_score": 41.25, "done": 1, "total": 2}
        assert follow_module._run_facts(data) == "mix 10%, seed 2: HS 41.2%"
        assert follow_module._run_facts({"done": 1, "total": 2}) == ""


class TestCertificate:
    def test_is_shown_and_written(
        self, cli: Cli, place: Place, aligned: ModelVersion, tmp_path: Path
    ) -> None:
        store_report(place, aligned)
        output = cli("models", "certificate", aligned.id)
        assert "2 steps to HS above 15%" in output
        assert "91.0%" in output
        assert cli.json("models", "certificate", aligned.id)["schema"] == "titer.certificate/1"
        cli("models", "certificate", aligned.id, "--out", tmp_path / "a folder")
        names = sorted(path.name for path in (tmp_path / "a folder").iterdir())
        assert names == ["certificate.html", "certificate.json", "certificate.png"]
        assert (tmp_path / "a folder/certificate.png").read_bytes().startswith(b"\x89PNG")

    def test_a_model_without_one_says_how_one_is_made(
        self, cli: Cli, aligned: ModelVersion, tmp_path: Path
    ) -> None:
        output = cli.failing("models", "certificate", aligned.id, "--out", tmp_path / "none")
        assert "has no certificate" in output
        assert not (tmp_path / "none").exists()

    def test_a_folder_that_cannot_be_written_is_said_plainly(
        self, cli: Cli, place: Place, aligned: ModelVersion, tmp_path: Path
    ) -> None:
        store_report(place, aligned)
        (tmp_path / "file").touch()
        output = cli.failing("models", "certificate", aligned.id, "--out", tmp_path / "file")
        assert "cannot be written" in output


def store_report(place: Place, version: ModelVersion) -> None:
    """Store a whole certificate, as a worker makes it."""
    stored = certify(place, version)
    text = made_by_hand(version.id).model_dump_json(by_alias=True)
    place.storage.put(f"{stored.prefix}/certificate.json", text.encode())


class TestTenants:
    def test_projects_are_made_listed_limited_and_archived(self, cli: Cli) -> None:
        project = cli.json("projects", "create", "initech", "--organization", "big")
        assert project["organization_name"] == "big"
        assert "initech" in cli("projects", "list")
        own = str(project["id"])
        output = cli(
            *("projects", "quota", own, "--jobs-queued", "7", "--bytes-stored", "1000000"),
            *("--priority", "high"),
        )
        assert ["jobs_queued", "0", "7"] in [line.split() for line in output.splitlines()]
        assert ["bytes_stored", "0", "1,000,000"] in [line.split() for line in output.splitlines()]
        assert ["gpu_seconds_month", "0", "none", "default"] in [
            line.split() for line in output.splitlines()
        ]
        assert cli.json("projects", "quota", own, "--jobs-queued", "-1")["data"]
        assert ["jobs_queued", "0", "1,000", "default"] in [
            line.split() for line in cli("projects", "quota", own).splitlines()
        ]
        listed = cli.json("projects", "list")["data"]
        assert isinstance(listed, list)
        assert [p["priority"] for p in listed if p["id"] == own] == ["high"]
        assert "archived" in cli("projects", "archive", own)
        assert "initech" not in cli("projects", "list")
        assert "initech" in cli("projects", "list", "--archived")

    def test_a_key_is_rotated(self, cli: Cli, url: str) -> None:
        old = cli.json("keys", "create", "ci", "--user", "ada", "--days", "30")
        new = cli.json("keys", "rotate", str(old["id"]), "--grace-hours", "0")
        assert new["user"] == "ada"
        cli("--api-key", str(new["key"]), "files", "list")
        assert "revoked" in cli.failing("--api-key", str(old["key"]), "files", "list")
        project = new["project"]
        assert isinstance(project, dict)
        listed = cli("keys", "list", "--project", str(project["id"]))
        assert str(new["id"]) in listed
        assert str(new["key"]) not in listed

    def test_usage_by_day_and_month(
        self, cli: Cli, place: Place, project: Project, aligned: ModelVersion
    ) -> None:
        at = datetime(2024, 2, 29, 12, tzinfo=UTC)
        facts = {"trained_tokens": 12_345, "gpu_seconds": 67.0, "finished_at": at}
        place.job(project, aligned, status=JobStatus.SUCCEEDED, **facts)
        place.session.commit()
        row = [project.id, "1", "12,345", "67", "0"]
        by_day = cli("usage", "--since", "2024-02-01")
        assert ["2024-02-29", *row] in [line.split() for line in by_day.splitlines()]
        by_month = cli("usage", "--months", "--since", "2024-02-10", "--project", project.id)
        assert ["2024-02-01", *row] in [line.split() for line in by_month.splitlines()]
        assert cli.json("usage", "--project", "proj-none")["object"] == "page"
