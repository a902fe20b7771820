"""The containers' files, read without an engine: what they start exists, and what they promise holds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from api.cli import app as command_line
from models.settings import environment_names

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
GPU: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("migrate", "api", "sweeper", "worker", "serving")
MONITORING = ("prometheus", "grafana")
DOCKERFILES = {path.name: path.read_text() for path in (ROOT / "docker").glob("*.Dockerfile")}
SECRETS = (
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "TITER_SERVING_TOKEN",
    "TITER_SESSION_SECRET",
    "TITER_SIGNING_KEY",
    "TITER_WEBHOOK_KEY",
)


def command_of(name: str) -> list[str]:
    """What a service runs: its own command, else its image's."""
    service = SERVICES[name]
    if "command" in service:
        return list(service["command"])
    text = DOCKERFILES[Path(service["build"]["dockerfile"]).name]
    found = re.search(r"^CMD (\[.*?\])$", text.replace("\\\n", ""), re.MULTILINE)
    assert found is not None
    return list(yaml.safe_load(found.group(1)))


class TestServices:
    def test_are_these(self) -> None:
        assert set(SERVICES) == {"postgres", "redis", *OURS, *MONITORING}

    def test_watching_is_asked_for_by_a_profile_and_costs_others_nothing(self) -> None:
        watching = [name for name in SERVICES if "profiles" in SERVICES[name]]
        assert tuple(watching) == MONITORING
        for name in watching:
            assert SERVICES[name]["profiles"] == ["monitoring"]
            assert re.fullmatch(r"\w+/\w+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])
            assert all(
                port.startswith(f"${{{name.upper()}_BIND:-127.0.0.1:")
                for port in SERVICES[name]["ports"]
            )
            for place in SERVICES[name]["volumes"]:
                if place.startswith("./"):
                    assert (ROOT / place.split(":")[0]).exists(), place
                    assert place.endswith(":ro")
        text = (ROOT / "docker-compose.yml").read_text()
        assert "TITER_METRICS_TOKEN:?" not in text, "it would be asked of those who do not watch"

    @pytest.mark.parametrize("name", ["postgres", "redis"])
    def test_servers_are_official_images_of_one_major_version(self, name: str) -> None:
        assert re.fullmatch(rf"{name}:\d+", SERVICES[name]["image"])

    @pytest.mark.parametrize("name", OURS)
    def test_our_processes_have_no_privilege_and_write_nowhere_else(self, name: str) -> None:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert "user" not in service, "the image's own user is the unprivileged one"

    @pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
    def test_come_back_after_a_crash(self, name: str) -> None:
        assert SERVICES[name]["restart"] == "unless-stopped"

    @pytest.mark.parametrize("name", sorted(set(OURS) - {"migrate"}))
    def test_wait_for_the_migrations(self, name: str) -> None:
        waits = SERVICES[name]["depends_on"]["migrate"]
        assert waits == {"condition": "service_completed_successfully"}

    @pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate", "sweeper"}))
    def test_say_whether_they_are_well(self, name: str) -> None:
        assert SERVICES[name]["healthcheck"]["test"]

    def test_only_the_api_and_who_watches_are_published_and_only_to_this_machine(self) -> None:
        published = [name for name in SERVICES if "ports" in SERVICES[name]]
        assert published == ["api", *MONITORING]
        assert SERVICES["api"]["ports"] == ["${API_BIND:-127.0.0.1:8000}:8000"]

    def test_the_servers_are_on_a_network_without_a_way_out(self) -> None:
        assert COMPOSE["networks"]["data"] == {"internal": True}
        assert SERVICES["postgres"]["networks"] == SERVICES["redis"]["networks"] == ["data"]

    def test_the_worker_is_stopped_as_titer_up_stops_it(self) -> None:
        assert SERVICES["worker"]["stop_signal"] == "SIGQUIT"

    def test_what_one_process_stores_the_others_find(self) -> None:
        for name in ("api", "worker", "serving"):
            places = dict(place.rsplit(":", 1) for place in SERVICES[name]["volumes"][:2])
            assert places == {
                "storage": "/var/lib/titer/storage",
                "cache": "/var/lib/titer/cache",
            }
            assert SERVICES[name]["environment"]["STORAGE_URL"].endswith(
                ":-file:///var/lib/titer/storage}"
            )


class TestCommands:
    @pytest.mark.parametrize(
        ("name", "module"),
        [
            ("api", "api.app"),
            ("sweeper", "api.sweeper"),
            ("worker", "worker.tasks"),
            ("serving", "worker.serving"),
        ],
    )
    def test_start_modules_that_exist(self, name: str, module: str) -> None:
        words = [word.split(":")[0] for word in command_of(name)]
        assert module in words
        assert importlib.util.find_spec(module) is not None

    def test_migrate_is_a_command_of_titer(self) -> None:
        program, *words = command_of("migrate")
        assert program == "titer"
        command: Any = get_command(command_line)
        for word in words:
            command = command.commands[word]

    def test_a_worker_holds_one_job_at_a_time(self) -> None:
        words = " ".join(command_of("worker"))
        for option in ("--pool prefork", "--concurrency 1", "--prefetch-multiplier 1"):
            assert option in words

    def test_a_worker_prints_nothing_that_is_no_line_of_the_log(self) -> None:
        program, option, *_ = command_of("worker")
        assert (program, option) == ("celery", "--quiet"), "its banner is not JSON"
        assert "MPLCONFIGDIR=/tmp/" in DOCKERFILES["worker.Dockerfile"], "matplotlib complains else"


class TestSettings:
    def test_every_setting_reaches_a_process(self) -> None:
        given = {name for service in OURS for name in SERVICES[service].get("environment", {})}
        assert set(environment_names()) <= given

    @pytest.mark.parametrize("name", OURS)
    def test_no_process_is_given_a_setting_that_it_would_refuse(self, name: str) -> None:
        given = {word for word in SERVICES[name]["environment"] if word.startswith("TITER_")}
        assert given <= set(environment_names())

    @pytest.mark.parametrize("secret", SECRETS)
    def test_secrets_have_no_default_and_say_what_to_do(self, secret: str) -> None:
        text = (ROOT / "docker-compose.yml").read_text()
        uses = re.findall(r"\$\{" + secret + r"(.*?)\}", text)
        assert uses
        assert all(use.startswith(":?set it in .env") for use in uses)

    def test_only_who_needs_a_secret_has_it(self) -> None:
        def holders(name: str) -> set[str]:
            return {s for s in OURS if name in SERVICES[s]["environment"]}

        assert holders("TITER_SESSION_SECRET") == {"api"}
        assert holders("TITER_SIGNING_KEY") == {"api"}
        assert holders("TITER_SERVING_TOKEN") == {"api", "serving"}
        assert holders("TITER_WEBHOOK_KEY") == {"api", "sweeper"}
        assert holders("TITER_METRICS_TOKEN") == {"api", "worker"}
        assert holders("REDIS_URL") == {"api", "sweeper", "worker"}

    def test_who_reads_or_deletes_what_is_stored_can_reach_it(self) -> None:
        for name in set(OURS) - {"migrate"}:
            assert "STORAGE_URL" in SERVICES[name]["environment"]
            assert any(v.startswith("storage:") for v in SERVICES[name]["volumes"])


class TestGpu:
    def test_reserves_named_devices_for_services_that_exist(self) -> None:
        assert set(GPU["services"]) == {"worker", "serving"}
        for service in GPU["services"].values():
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert device["driver"] == "nvidia"
            assert "gpu" in device["capabilities"]
            assert "count" not in device

    def test_is_in_its_own_file(self) -> None:
        assert "nvidia" not in (ROOT / "docker-compose.yml").read_text()


class TestImages:
    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_copy_only_what_is_there_and_let_in(self, name: str) -> None:
        let_in = {
            line[1:]
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line[:1] == "!"
        }
        for line in re.findall(r"^COPY (.+)$", DOCKERFILES[name], re.MULTILINE):
            *sources, _ = line.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source in let_in, source

    def test_nothing_is_let_in_that_no_image_takes(self) -> None:
        taken = set(re.findall(r"\S+", " ".join(DOCKERFILES.values())))
        for line in (ROOT / ".dockerignore").read_text().splitlines():
            if line.startswith("!"):
                assert line[1:] in taken, line

    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_install_pinned_versions_and_drop_root(self, name: str) -> None:
        text = DOCKERFILES[name]
        assert "-c constraints.txt" in text
        last = re.findall(r"^(?:USER|RUN) .*$", text, re.MULTILINE)[-1]
        assert last == "USER titer"
        assert "ARG PYTHON_IMAGE=python:3.11-slim-bookworm" in text

    def test_agree_on_the_owner_of_what_they_share(self) -> None:
        numbers = {
            re.search(r"useradd --uid (\d+)", text).group(1) for text in DOCKERFILES.values()
        }  # type: ignore[union-attr]
        assert len(numbers) == 1

    def test_the_api_takes_no_tensor_library_and_no_worker(self) -> None:
        text = DOCKERFILES["api.Dockerfile"]
        assert "worker]" not in text
        assert not re.search(r"^COPY .*worker", text, re.MULTILINE)
