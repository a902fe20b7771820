"""Where judge models come from: folders by the hash of their files, hub ids by their commit."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from models.judges import BeaverDamSpec, LlamaGuardSpec
from tests.worker.judges.tiny_judges import beaver_folder, guard_folder
from worker import base_models
from worker.judge import open_judge
from worker.judgement import JudgeError
from worker.judges.loading import judge_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class TestHub:
    def test_fetches_the_pinned_commit_and_answers_to_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[str, str]] = []

        def fetch(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
            asked.append((repo, revision))
            assert not any("bin" in pattern or "py" in pattern for pattern in allow_patterns)
            return str(beaver_folder(tmp_path))

        monkeypatch.setattr(base_models, "snapshot_download", fetch)
        judge = open_judge(BeaverDamSpec(source="some/judge", revision=COMMIT))
        assert asked == [("some/judge", COMMIT)]
        assert judge.identity.revision.startswith(f"{COMMIT[:12]}-")
        judge.close()

    def test_a_hub_that_does_not_answer_is_no_judge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object, **kwargs: object) -> str:
            raise LocalEntryNotFoundError("offline")

        monkeypatch.setattr(base_models, "snapshot_download", fail)
        with pytest.raises(JudgeError, match="cannot be read"):
            open_judge(BeaverDamSpec(source="some/other", revision=COMMIT))


class TestJudgeModel:
    @pytest.fixture
    def spec(self, tmp_path: Path) -> LlamaGuardSpec:
        return LlamaGuardSpec(source=str(guard_folder(tmp_path, harmful="unsafe", safe="safe")))

    def test_is_one_while_it_is_held(self, spec: LlamaGuardSpec) -> None:
        assert judge_model(spec, "causal") is judge_model(spec, "causal")

    def test_its_hash_follows_from_what_is_loaded_alone(self, spec: LlamaGuardSpec) -> None:
        first = judge_model(spec, "causal").revision
        (Path(spec.source) / "README.md").write_text("not loaded")
        assert judge_model(spec, "causal").revision == first
        (Path(spec.source) / "chat_template.jinja").write_text("{{ messages }}")
        assert judge_model(spec, "causal").revision != first

    def test_is_frozen_and_in_evaluation_mode(self, spec: LlamaGuardSpec) -> None:
        model = judge_model(spec, "causal").model
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
