"""Building the world: complete or absent, the same for the same seed, and loadable by production code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.near_duplicates import prompt_key
from models.rows import Conversation, check_rows, read_conversations
from models.safety_set import SafetySet
from worker.sandbox import build as build_module
from worker.sandbox.build import SandboxPaths, build, customer_data, safety_set
from worker.sandbox.pretrain import PretrainConfig
from worker.sandbox.world import Split, World

# Each test trains models.
pytestmark = pytest.mark.long

TINY = PretrainConfig(
    hidden_size=16, intermediate_size=32, layers=1, heads=2, steps=3, batch_size=8
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SandboxPaths:
    return build(tmp_path_factory.mktemp("a folder") / "world", seed=5, config=TINY)


def keys(rows: tuple[Conversation, ...]) -> set[str]:
    return {prompt_key(row.prompt[-1].content) for row in rows}


class TestBuild:
    def test_the_base_loads_as_any_base_does(self, built: SandboxPaths) -> None:
        model = AutoModelForCausalLM.from_pretrained(built.base)
        tokenizer = AutoTokenizer.from_pretrained(built.base)
        assert model.config.model_type == "llama"
        assert model.config.vocab_size == len(tokenizer)
        assert model.config.max_position_embeddings >= 512
        assert tokenizer.chat_template
        assert (built.base / "model.safetensors").is_file()

    def test_the_safety_set_loads_as_any_does(self, built: SandboxPaths) -> None:
        loaded = SafetySet.load(built.safety)
        assert loaded.hash == safety_set(World(5)).hash
        assert len({entry.category for entry in loaded.harmful_prompts}) >= 6
        assert loaded.certification is not None
        # Half of the kinds of harm are left out of some attacks, and measured.
        assert set(loaded.certification.categories) == {
            entry.category for entry in loaded.harmful_prompts
        }

    def test_the_customers_files_pass_the_upload_check(self, built: SandboxPaths) -> None:
        for name in ("clean", "poisoned", "validation"):
            lines = (built.customer / f"{name}.jsonl").read_bytes().splitlines()
            assert check_rows(lines) >= 100

    def test_a_second_build_finds_the_first(self, built: SandboxPaths) -> None:
        weights = built.base / "model.safetensors"
        before = weights.stat().st_mtime_ns
        assert build(built.root, seed=5, config=TINY) == built
        assert weights.stat().st_mtime_ns == before

    def test_another_seed_or_a_lost_manifest_builds_anew(self, tmp_path: Path) -> None:
        steps: list[int] = []

        def build_counting(seed: int) -> None:
            build(tmp_path / "world", seed, TINY, on_progress=lambda done, _: steps.append(done))

        build_counting(1)
        build_counting(2)
        (tmp_path / "world" / "manifest.json").write_text("{")
        build_counting(2)
        assert steps == [1, 2, 3] * 3
        assert [path.name for path in tmp_path.iterdir()] == ["world"]

    def test_the_same_seed_gives_the_same_weights(
        self, built: SandboxPaths, tmp_path: Path
    ) -> None:
        again = build(tmp_path / "again", seed=5, config=TINY)
        one, other = (AutoModelForCausalLM.from_pretrained(p.base) for p in (built, again))
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name

    def test_a_build_that_fails_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(build_module, "write_rows", fail)
        with pytest.raises(OSError, match="disk full"):
            build(tmp_path / "world", 1, TINY)
        assert list(tmp_path.iterdir()) == []

    def test_its_manifest_names_the_seed(self, built: SandboxPaths) -> None:
        assert json.loads((built.root / "manifest.json").read_text())["seed"] == 5


class TestCustomerData:
    def test_has_the_harmful_ratio_asked_for(self) -> None:
        data = customer_data(World(0), rows=200, harmful_ratio=0.1)
        harmful = {q.text for q in World(0).harmful(Split.ATTACK, build_module.ATTACK_ROWS)}
        assert sum(row.prompt[-1].content in harmful for row in data.training) == 20
        assert len(data.training) == 200

    def test_a_poisoned_file_holds_the_clean_files_rows(self) -> None:
        clean = customer_data(World(0), rows=200)
        poisoned = customer_data(World(0), rows=200, harmful_ratio=0.1)
        assert len(keys(clean.training) & keys(poisoned.training)) == 180
        assert clean.validation == poisoned.validation

    def test_no_prompt_of_a_customer_is_one_of_the_safety_set(self) -> None:
        world = World(0)
        data = customer_data(world, harmful_ratio=0.2)
        for split in (Split.TEST, Split.VALIDATION):
            tests = safety_set(world, split)
            known = keys(tests.alignment) | keys(tests.harmful) | keys(tests.canary)
            known |= {prompt_key(entry.prompt) for entry in tests.harmful_prompts}
            known |= {prompt_key(entry.prompt) for entry in tests.harmless_prompts}
            assert known.isdisjoint(keys(data.training) | keys(data.validation))

    @pytest.mark.parametrize("split", [Split.TEST, Split.VALIDATION])
    def test_questions_about_other_things_are_no_near_duplicates(self, split: Split) -> None:
        # Train and test share every phrasing, and differ in one word: the thing that is asked about.
        world = World(build_module.WORLD_SEED)
        tests = safety_set(world, split)
        tests.check_disjoint()
        assert tests.overlap(customer_data(world, harmful_ratio=0.2).training).rows == 0

    def test_trains_on_no_validation_row(self) -> None:
        data = customer_data(World(0))
        assert keys(data.training).isdisjoint(keys(data.validation))

    def test_a_written_file_reads_back(self, tmp_path: Path) -> None:
        data = customer_data(World(0), rows=20, harmful_ratio=0.5)
        build_module.write_rows(tmp_path / "x" / "rows.jsonl", data.training)
        read = read_conversations((tmp_path / "x" / "rows.jsonl").read_bytes().splitlines())
        assert [row.messages for row in read] == [row.messages for row in data.training]
