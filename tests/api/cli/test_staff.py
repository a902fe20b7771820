"""`titer policies`, `titer reviews` and `titer audit` against a running app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from models.api_key import Project
from models.job import Job
from models.model_version import ModelVersion
from models.scope import Scope
from tests.api.conftest import Place
from tests.api.server import serve
from tests.api.test_cli import Cli

# Each test starts a server.
pytestmark = pytest.mark.long


@pytest.fixture
def project(place: Place) -> Project:
    return place.project()


@pytest.fixture
def cli(app: FastAPI, place: Place, project: Project) -> Iterator[Cli]:
    token = place.key(project, Scope.OPERATOR)
    place.session.commit()
    with serve(app) as url:
        yield Cli(url, token)


@pytest.fixture
def held(place: Place, project: Project, aligned: ModelVersion) -> tuple[ModelVersion, Job]:
    made = place.held(project, aligned)
    place.session.commit()
    return made


class TestPolicies:
    def test_create_try_and_activate(
        self, cli: Cli, held: tuple[ModelVersion, Job], tmp_path: Path
    ) -> None:
        file = tmp_path / "rules.json"
        file.write_text('{"max_harmful_score": 50, "min_prompts": 60}')
        rules = ("--file", file, "--set", "max_harmful_score=40", "--set", "data_action=drop")
        tried = cli("policies", "dry-run", *rules)
        assert "2 evaluations, 1 changes" in tried
        assert held[0].id in tried
        made = cli.json("policies", "create", *rules, "--note", "quarterly")
        assert made["active"] is False
        chosen: dict[str, object] = made["rules"]  # type: ignore[assignment]
        assert (chosen["max_harmful_score"], chosen["min_prompts"]) == (40, 60)
        assert chosen["data_action"] == "drop"
        shown = cli("policies", "activate", made["id"], "--reason", "agreed")  # type: ignore[arg-type]
        assert ["active", "yes"] in [line.split() for line in shown.splitlines()]
        listed = cli("policies", "list")
        assert "policy-2  service  yes" in " ".join(listed.split("\n")).replace("   ", "  ")
        assert "max_harmful_score" in cli("policies", "show", "2")

    def test_a_projects_own_policy_comes_and_goes(self, cli: Cli, project: Project) -> None:
        made = cli.json("policies", "create", "--project", project.id, "--activate")
        assert (made["project"], made["active"]) == (project.id, True)
        assert cli.json("policies", "deactivate", "2")["active"] is False

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--set", "max_harm=1"), "The rules are max_harmful_score"),
            (("--set", "max_harmful_score"), "no RULE=VALUE"),
            (("--set", "max_harmful_score=101"), "less than or equal to 100"),
            (("--file", "/none"), "cannot be read"),
        ],
    )
    def test_mistakes_are_said_plainly(self, cli: Cli, options: tuple[str, ...], said: str) -> None:
        assert said in cli.failing("policies", "create", *options)


class TestReviews:
    def test_list_show_and_release(self, cli: Cli, held: tuple[ModelVersion, Job]) -> None:
        version, job = held
        line = next(line for line in cli("reviews", "list").splitlines() if job.id in line)
        assert line.split()[:6] == [job.id, version.id, "acme", "gate", "15.0%", "36.0"]
        assert "1 attempts of 1 models" in cli("reviews", "show", job.id)
        shown = cli("reviews", "release", job.id, "--reason", "harmless")
        assert "released (job succeeded)" in shown
        assert "harmless" in cli("audit", "list", "--action", "model.released")
        assert "does not wait" in cli.failing("reviews", "reject", job.id, "--reason", "r")

    def test_reject_and_reevaluate(self, cli: Cli, held: tuple[ModelVersion, Job]) -> None:
        job_id = held[1].id
        assert cli.json("reviews", "reject", job_id, "--reason", "r")["status"] == "blocked"
        again = cli.json("reviews", "reevaluate", job_id, "--reason", "r")
        assert (again["status"], again["job_status"]) == ("evaluating", "queued")

    def test_data_is_decided_on_in_the_same_way(
        self, cli: Cli, place: Place, project: Project, aligned: ModelVersion
    ) -> None:
        job = place.held_data(project, aligned)
        line = next(line for line in cli("reviews", "list").splitlines() if job.id in line)
        assert line.split()[2:5] == ["acme", "data", "16.7%"]
        assert "2 of 12 training rows" in cli("reviews", "show", job.id)
        shown = cli("reviews", "release", job.id, "--reason", "about locks that they sell")
        assert "released (job queued)" in shown
        risk = cli("jobs", "risk", job.id)
        assert ["review", "released"] in [line.split() for line in risk.splitlines()]
        assert ["data", "review", "released"] in [
            line.split() for line in cli("jobs", "show", job.id).splitlines()
        ]


class TestAudit:
    @pytest.fixture
    def filled(self, cli: Cli) -> Cli:
        for number in range(3):
            cli("keys", "create", f"k{number}")
        return cli

    def test_export_is_verified_without_the_service(self, filled: Cli, tmp_path: Path) -> None:
        whole = filled("audit", "verify")
        head = next(line.split()[-1] for line in whole.splitlines() if line.startswith("head"))
        path = tmp_path / "audit.jsonl"
        assert "3 entries" in filled("audit", "export", path)
        assert filled("audit", "export") == path.read_text()
        filled.environment["TITER_URL"] = "http://127.0.0.1:1"
        assert filled.json("audit", "verify", "--file", path, "--head", head)["whole"] is True
        path.write_text(path.read_text().replace('"k1"', '"kX"'))
        output = filled.failing("audit", "verify", "--file", path)
        assert "BROKEN" in output
        assert "Entry 2 was changed" in output
        path.write_text('["x"]\n')
        assert "cannot be read" in filled.failing("audit", "verify", "--file", path)

    def test_a_break_in_the_database_exits_with_1(self, filled: Cli, place: Place) -> None:
        place.session.execute(text("alter table audit_entries disable trigger all"))
        place.session.execute(text("delete from audit_entries where position = 2"))
        place.session.commit()
        assert "Entry 2 is missing" in filled.failing("audit", "verify")

    def test_a_head_that_is_not_in_the_chain(self, filled: Cli) -> None:
        assert "not in the chain" in filled.failing("audit", "verify", "--head", f"2:{'0' * 64}")
        assert "POSITION:SHA256" in filled.failing("audit", "verify", "--head", "2")
