"""The monitoring files name nothing that the code does not tell, and the handbook names everything that it does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Metric
from sqlalchemy.orm import Session

from api.metrics import counts
from api.metrics.database import DatabaseMetrics
from api.metrics.readings import read_all
from tests.test_compose import SERVICES
from worker.metrics import REGISTRY

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docker" / "monitoring"
PROMETHEUS: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
BOARDS = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
PAGE = (ROOT / "docs" / "operations.md").read_text()
SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_count", "_sum"),
    "gaugehistogram": ("_bucket", "_gcount", "_gsum"),
    "gauge": ("",),
}
NAMES = re.compile(r"\b(?:titer|process)_\w+")


@pytest.fixture
def told(session: Session) -> dict[str, Metric]:
    """Every metric of every process, by its name."""
    here = CollectorRegistry()
    for metric in counts.ALL:
        here.register(metric)
    nowhere = DatabaseMetrics(lambda: pytest.fail("asked"))  # type: ignore[arg-type, return-value]
    assert not list(nowhere.describe())
    around = [
        Metric("titer_database_up", "", "gauge"),
        Metric("titer_database_read_seconds", "", "gauge"),
    ]
    found = [*here.collect(), *REGISTRY.collect(), *read_all(session), *around]
    return {metric.name: metric for metric in found}


@pytest.fixture
def samples(told: dict[str, Metric]) -> set[str]:
    """Every name that a query may ask for."""
    return {metric.name + suffix for metric in told.values() for suffix in SUFFIXES[metric.type]}


def queries(board: Path) -> Iterator[str]:
    for panel in json.loads(board.read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


class TestRules:
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
    def test_ask_for_what_is_told(self, rule: dict[str, Any], samples: set[str]) -> None:
        asked = set(NAMES.findall(rule["expr"]))
        assert asked <= samples
        assert asked or 'up{job="titer-api"}' in rule["expr"]

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
    def test_say_how_urgent_they_are_and_what_is_the_matter(self, rule: dict[str, Any]) -> None:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".")

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
    def test_have_a_paragraph_that_says_what_to_do(self, rule: dict[str, Any]) -> None:
        assert f"| `{rule['alert']}` |" in PAGE

    def test_of_a_page_no_alert_is_missing(self) -> None:
        written = set(re.findall(r"^\| `(Titer\w+)` \|", PAGE, re.MULTILINE))
        assert written == {rule["alert"] for rule in RULES}


class TestBoards:
    @pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
    def test_ask_for_what_is_told(self, board: Path, samples: set[str]) -> None:
        for query in queries(board):
            asked = set(NAMES.findall(query))
            assert asked, query
            assert asked <= samples, query

    @pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
    def test_show_each_panel_once_and_side_by_side(self, board: Path) -> None:
        loaded = json.loads(board.read_text())
        assert loaded["uid"] == board.stem
        taken: set[tuple[int, int]] = set()
        for panel in loaded["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells = {
                (place["x"] + x, place["y"] + y)
                for x in range(place["w"])
                for y in range(place["h"])
            }
            assert not cells & taken, panel["title"]
            taken |= cells

    def test_leave_nothing_of_the_service_out(self, told: dict[str, Metric]) -> None:
        everything = " ".join(query for board in BOARDS for query in queries(board))
        forgotten = {name for name in told if name.startswith("titer_") and name not in everything}
        assert not forgotten


class TestHandbook:
    def test_says_what_each_metric_means(self, told: dict[str, Metric]) -> None:
        written = set(re.findall(r"^\| `(titer_\w+)` \|", PAGE, re.MULTILINE))
        assert written == {
            name + ("_total" if metric.type == "counter" else "")
            for name, metric in told.items()
            if name.startswith("titer_")
        }


class TestPrometheus:
    def test_looks_where_compose_puts_the_processes(self) -> None:
        jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
        for name in ("api", "worker"):
            job = jobs[f"titer-{name}"]
            (place,) = job["dns_sd_configs"]
            assert place["names"] == [name]
            assert set(SERVICES[name]["networks"]) & set(SERVICES["prometheus"]["networks"])
            assert job["authorization"] == {"credentials_file": "/run/secrets/metrics_token"}
        assert jobs["titer-api"]["dns_sd_configs"][0]["port"] == 8000
        port = jobs["titer-worker"]["dns_sd_configs"][0]["port"]
        worker = SERVICES["worker"]["environment"]
        assert worker["TITER_METRICS_PORT"] == f"${{TITER_METRICS_PORT:-{port}}}"
        assert worker["TITER_METRICS_HOST"] == "0.0.0.0"

    def test_reads_the_rules_that_lie_beside_it(self) -> None:
        for name in PROMETHEUS["rule_files"]:
            assert (FOLDER / name).exists()
