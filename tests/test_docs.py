"""What is written about the project is still true: settings, commands, links."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from models.methods import AlignmentMethod, BoosterConfig, OuterLoss
from models.presets import PRESETS
from models.settings import Settings, environment_names

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("worker/**/*.md")])
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


class TestEnvExample:
    EXAMPLE = re.compile(r"^# ([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)

    def shown(self) -> dict[str, str]:
        found = self.EXAMPLE.findall((ROOT / ".env.example").read_text())
        assert len(found) == len(dict(found)), "a setting is shown twice"
        return dict(found)

    def test_shows_every_setting_once_in_the_settings_order(self) -> None:
        assert list(self.shown()) == list(environment_names())

    def test_shows_the_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        default = Settings()
        for name, value in self.shown().items():
            monkeypatch.setenv(name, value)
        assert Settings() == default

    def test_sets_nothing_by_itself(self) -> None:
        for line in (ROOT / ".env.example").read_text().splitlines():
            assert not line or line.startswith("#")


class TestMethodsPage:
    PAGE = (ROOT / "docs" / "methods.md").read_text()

    @pytest.mark.parametrize(
        "config", get_args(get_args(AlignmentMethod)[0]), ids=lambda c: c.__name__
    )
    def test_names_every_method_and_the_fields_of_boosters_extensions(self, config: type) -> None:
        name = config.model_fields["name"].default
        assert f"| `{name}` |" in self.PAGE
        if issubclass(config, BoosterConfig):
            fields = {field.alias or key for key, field in config.model_fields.items()}
            missing = {
                f for f in fields - {"name", "harmful_batch_size"} if f"`{f}`" not in self.PAGE
            }
            assert not missing

    def test_names_every_preset_and_outer_loss(self) -> None:
        for word in (*PRESETS, *OuterLoss):
            assert f"`{word}`" in self.PAGE


class TestPages:
    def test_the_pages_that_a_newcomer_looks_for_are_there(self) -> None:
        assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= set(IDS)
        assert "Apache License" in (ROOT / "LICENSE").read_text()

    @pytest.mark.parametrize("page", PAGES, ids=IDS)
    def test_links_lead_somewhere(self, page: Path) -> None:
        targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        for target in targets:
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / target).exists(), target

    @pytest.mark.parametrize("page", PAGES, ids=IDS)
    def test_make_commands_exist(self, page: Path) -> None:
        known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        text = page.read_text()
        named = re.findall(r"(?:`|^ {4}|^\$ )make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= known

    def test_the_changelog_begins_with_the_version_that_is_built(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        first = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
        assert first is not None
        assert first.group(1) == project["version"]
