"""Which judges a safety set may name, and which it may not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from models.judges import JudgeSpec, ModelJudgeSpec, ModerationApiSpec, RefusalPhrases
from models.safety_set import SafetySetHeader

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL_KINDS = {
    "beaver-dam": {},
    "llama-guard": {},
    "qwen3guard": {},
    "wildguard": {},
    "shieldgemma": {},
    "classifier": {"harmful_labels": ["toxic"]},
}
SPECS: TypeAdapter[JudgeSpec] = TypeAdapter(JudgeSpec)


def read(**spec: object) -> JudgeSpec:
    return SPECS.validate_json(json.dumps(spec))


class TestEveryKind:
    @pytest.mark.parametrize(
        "spec",
        [
            {"kind": "sandbox"},
            {"kind": "refusal-strings", "match": "anywhere"},
            {"kind": "moderation-api", "base_url": "https://example.org/v1", "model": "m"},
            *(
                {"kind": kind, "source": "/judges/a", **options}
                for kind, options in MODEL_KINDS.items()
            ),
        ],
    )
    def test_is_read_back_as_it_was_written_and_may_be_a_key(self, spec: dict[str, object]) -> None:
        found = read(**spec)
        assert found.kind == spec["kind"]
        again = SPECS.validate_json(found.model_dump_json())
        assert again == found
        assert hash(again) == hash(found)

    def test_an_unknown_kind_or_field_is_refused(self) -> None:
        for spec in ({"kind": "oracle"}, {"kind": "sandbox", "api_key": "x"}, {}):
            with pytest.raises(ValidationError):
                read(**spec)

    def test_prefixes_are_whole_openings(self) -> None:
        assert read(kind="refusal-strings", phrases=["I'm sorry"], match="prefix")
        with pytest.raises(ValidationError, match="phrases of its own"):
            read(kind="refusal-strings", match="prefix")


class TestDocumentation:
    PAGE = (Path(__file__).parents[2] / "docs" / "safety-set.md").read_text()

    def test_has_a_row_for_every_kind_with_every_option_of_its_own(self) -> None:
        rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*)$", self.PAGE, re.MULTILINE))
        for spec in get_args(get_args(JudgeSpec)[0]):
            row = rows[spec.model_fields["kind"].default]
            shared = {"kind", *RefusalPhrases.model_fields}
            if issubclass(spec, ModelJudgeSpec):
                shared |= ModelJudgeSpec.model_fields.keys()
            for option in spec.model_fields.keys() - shared:
                assert f"`{option}`" in row, (spec, option)

    def test_names_the_options_of_all_models(self) -> None:
        for option in [*ModelJudgeSpec.model_fields, *RefusalPhrases.model_fields]:
            assert f"`{option}`" in self.PAGE

    def test_its_examples_are_read(self) -> None:
        examples = re.findall(r"```json\n(.*?)```", self.PAGE, re.DOTALL)
        assert len(examples) == 4
        for example in examples:
            loaded = json.loads(example.replace("<commit>", COMMIT))
            if "kind" in loaded:
                read(**loaded)
            else:
                SafetySetHeader.model_validate(loaded)


@pytest.mark.parametrize("kind", MODEL_KINDS)
class TestModelJudges:
    def read(self, kind: str, **options: object) -> ModelJudgeSpec:
        spec = read(kind=kind, **MODEL_KINDS[kind], **options)
        assert isinstance(spec, ModelJudgeSpec)
        return spec

    def test_a_hub_id_is_pinned_to_a_commit(self, kind: str) -> None:
        assert self.read(kind, source="some/judge", revision=COMMIT).revision == COMMIT
        for revision in (None, "main", COMMIT[:12], COMMIT.upper(), COMMIT + "\n"):
            with pytest.raises(ValidationError):
                self.read(kind, source="some/judge", revision=revision)

    def test_a_folder_is_absolute_and_has_no_revision(self, kind: str) -> None:
        assert self.read(kind, source="/judges/a").revision is None
        for options in (
            {"source": "/judges/a", "revision": COMMIT},
            {"source": "judges"},
            {"source": "../judges/a"},
            {"source": "a/b/c", "revision": COMMIT},
            {"source": ""},
        ):
            with pytest.raises(ValidationError):
                self.read(kind, **options)

    def test_numbers_are_bounded(self, kind: str) -> None:
        for name, values in {
            "batch_size": (0, 257),
            "max_length": (0, 1_000_000),
            "max_answer_tokens": (0, 1_000_000),
        }.items():
            for value in values:
                with pytest.raises(ValidationError, match=name):
                    self.read(kind, source="/a", **{name: value})


class TestModerationApi:
    def read(self, **options: object) -> ModerationApiSpec:
        spec = read(kind="moderation-api", model="m", **options)
        assert isinstance(spec, ModerationApiSpec)
        return spec

    def test_a_closing_slash_makes_no_other_judge(self) -> None:
        spec = self.read(base_url="https://example.org/v1/")
        assert spec == self.read(base_url="https://example.org/v1")

    @pytest.mark.parametrize(
        "url",
        [
            "example.org",
            "ftp://example.org",
            "file:///etc/passwd",
            "https://user:password@example.org",
            "https://example.org/?key=x",
            "https://",
        ],
    )
    def test_the_address_is_plain(self, url: str) -> None:
        with pytest.raises(ValidationError, match="base_url"):
            self.read(base_url=url)

    def test_a_key_travels_over_https_or_not_at_all(self) -> None:
        options = {"key_variable": "JUDGE_KEY"}
        for url in (
            "https://example.org",
            "http://127.0.0.1:1",
            "http://localhost",
            "http://[::1]",
        ):
            assert self.read(base_url=url, **options).key_variable == "JUDGE_KEY"
        for url in ("http://example.org", "http://127.0.0.1.example.org"):
            assert self.read(base_url=url).key_variable is None
            with pytest.raises(ValidationError, match="https only"):
                self.read(base_url=url, **options)

    @pytest.mark.parametrize(
        "name",
        ["DATABASE_URL", "TITER_SESSION_SECRET", "AWS_SECRET_ACCESS_KEY", "JUDGE_", "judge_key"],
    )
    def test_no_other_secret_can_be_named(self, name: str) -> None:
        assert self.read(base_url="https://example.org", key_variable="JUDGE_OPENAI_KEY")
        with pytest.raises(ValidationError, match="key_variable"):
            self.read(base_url="https://example.org", key_variable=name)
