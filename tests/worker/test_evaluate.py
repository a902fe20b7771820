"""The evaluation of any folder: the same numbers as a job's, and a clear word for whatever is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.endpoint import EndpointSpec
from models.errors import DomainError
from models.judges import RefusalStringsSpec
from tests.tiny_model import tiny_adapted, tiny_model, tiny_tokenizer
from tests.worker.chat_stand_in import judge, longer
from tests.worker.toy_provider import toy_safety_set, write_base
from worker import evaluate as evaluate_module
from worker import lora
from worker.drift import compare, read_text_rows, row_losses
from worker.evaluate import main
from worker.folder_report import Asked, evaluate
from worker.harmful_score import measure_safety
from worker.judgement import JudgeError
from worker.judges.refusal_strings import RefusalStringsJudge

# Each test loads models.
pytestmark = pytest.mark.long


def quiet(_what: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    write_base(tmp_path / "base")
    toy_safety_set(prompts=6).save(tmp_path / "safety")
    return Asked(tmp_path / "base", tmp_path / "safety")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    lora.save(tiny_adapted(), tmp_path / "adapter")
    return tmp_path / "adapter"


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class TestEvaluate:
    def test_measures_what_a_job_measures(self, asked: Asked, tmp_path: Path) -> None:
        rows = [{"prompt": f"q{i}", "completion": f"#### {i}"} for i in range(3)]
        validation = write(tmp_path / "rows.jsonl", *rows)
        report = evaluate(replace(asked, validation=validation, task="gsm8k"), quiet)
        by_hand = measure_safety(
            tiny_model(), tiny_tokenizer(), toy_safety_set(prompts=6), RefusalStringsJudge()
        )
        assert report.harmful_score == by_hand.harmful_score
        assert report.prompt_set_hash == by_hand.prompt_set_hash
        assert report.template_hash == by_hand.template_hash
        assert report.fine_tuning_accuracy is not None
        assert (report.fine_tuning_accuracy.n, report.scorer) == (3, "gsm8k")
        assert report.canary_loss is not None
        assert [warning.code for warning in report.warnings] == ["single_category"]

    def test_an_adapter_changes_the_numbers(self, asked: Asked, adapter: Path) -> None:
        plain, adapted = evaluate(asked, quiet), evaluate(replace(asked, adapter=adapter), quiet)
        assert plain.canary_loss != adapted.canary_loss

    def test_drift_of_an_adapter_is_from_its_base(
        self, asked: Asked, adapter: Path, tmp_path: Path
    ) -> None:
        text = write(tmp_path / "text.jsonl", *({"text": f"some words {i}"} for i in range(5)))
        drift = evaluate(replace(asked, adapter=adapter, drift=text), quiet).drift
        rows = read_text_rows(text, tiny_tokenizer(), 128)
        by_hand = compare(row_losses(tiny_adapted(), rows, 0), row_losses(tiny_model(), rows, 0))
        assert drift is not None
        assert drift.ratio == pytest.approx(by_hand.ratio)
        assert drift.ratio != 1.0

    def test_drift_from_a_parent_folder(self, asked: Asked, tmp_path: Path) -> None:
        text = write(tmp_path / "text.jsonl", *({"text": f"some words {i}"} for i in range(5)))
        same = evaluate(replace(asked, drift=text, parent=asked.folder), quiet).drift
        assert same is not None
        assert same.ratio == pytest.approx(1.0)
        other = tmp_path / "other"
        tiny_model(seed=1).save_pretrained(other)
        tiny_tokenizer().save_pretrained(other)
        drift = evaluate(replace(asked, drift=text, parent=other), quiet).drift
        assert drift is not None
        assert drift.ratio != pytest.approx(1.0)

    def test_a_win_rate_is_against_the_rows(self, asked: Asked, tmp_path: Path) -> None:
        rows = [{"prompt": f"q{i}", "completion": "x" * 5_000} for i in range(2)]
        references = write(tmp_path / "rows.jsonl", *rows)
        with judge(longer) as server:
            win_rate = evaluate(
                replace(asked, references=references, win_judge=server.spec), quiet
            ).win_rate
        assert win_rate is not None
        assert (win_rate.n, win_rate.losses) == (2, 2)

    def test_several_judges_read_the_same_answers(self, asked: Asked) -> None:
        safety = toy_safety_set(prompts=6)
        judges = (RefusalStringsSpec(phrases=("zq",)), RefusalStringsSpec())
        header = safety.header.model_copy(update={"further_judges": judges})
        replace(safety, header=header).save(asked.safety_set)
        report = evaluate(asked, quiet)
        first, second = report.further_judges
        assert first.judge != report.judge
        assert (second.judge, second.harmful_score) == (report.judge, report.harmful_score)
        assert second.agreement.percent == 100

    def test_a_tokenizer_without_a_template_is_a_warning(
        self, asked: Asked, adapter: Path, tmp_path: Path
    ) -> None:
        bare = tiny_tokenizer()
        bare.chat_template = None
        bare.save_pretrained(tmp_path / "bare")
        for name in ("config.json", "model.safetensors"):
            (tmp_path / "bare" / name).write_bytes((asked.folder / name).read_bytes())
        report = evaluate(replace(asked, folder=tmp_path / "bare"), quiet)
        assert "fallback_chat_template" in [warning.code for warning in report.warnings]


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"folder": Path("none")}, "no folder none"),
            ({"adapter": Path("none")}, "no folder none"),
            ({"safety_set": Path("none")}, "no folder none"),
            ({"validation": Path("none.jsonl")}, r"none\.jsonl cannot be read"),
            ({"drift": Path("none.jsonl")}, "by --parent"),
            ({"drift": Path("none.jsonl"), "parent": Path("none")}, "no folder none"),
        ],
    )
    def test_what_is_not_there(self, asked: Asked, change: dict[str, Path], message: str) -> None:
        with pytest.raises(DomainError, match=message):
            evaluate(replace(asked, **change), quiet)

    def test_a_missing_key_is_found_before_anything_is_loaded(self, asked: Asked) -> None:
        spec = EndpointSpec(base_url="https://host/v1", model="m", key_variable="JUDGE_NO_KEY")
        with pytest.raises(JudgeError, match="JUDGE_NO_KEY is not set"):
            evaluate(
                replace(asked, folder=Path("none"), references=Path("rows.jsonl"), win_judge=spec),
                quiet,
            )

    def test_a_win_rate_needs_rows_and_a_judge(self, asked: Asked) -> None:
        spec = EndpointSpec(base_url="https://host/v1", model="m")
        for change in ({"win_judge": spec}, {"references": Path("rows.jsonl")}):
            with pytest.raises(DomainError, match="win rate needs"):
                evaluate(replace(asked, **change), quiet)

    def test_pickled_weights(self, asked: Asked) -> None:
        (asked.folder / "model.safetensors").rename(asked.folder / "pytorch_model.bin")
        with pytest.raises(DomainError, match="no weights in safetensors"):
            evaluate(asked, quiet)

    def test_an_adapter_of_another_base(self, asked: Asked, tmp_path: Path) -> None:
        wide = tmp_path / "wide"
        tiny_model(hidden=32).save_pretrained(wide)
        tiny_tokenizer().save_pretrained(wide)
        lora.save(tiny_adapted(), tmp_path / "adapter")
        with pytest.raises(DomainError, match="adapter does not fit"):
            evaluate(replace(asked, folder=wide, adapter=tmp_path / "adapter"), quiet)

    def test_a_parent_that_reads_other_tokens(self, asked: Asked, tmp_path: Path) -> None:
        text = write(tmp_path / "text.jsonl", {"text": "aaaa"})
        parent = tmp_path / "parent"
        merged = tiny_tokenizer(merges=(("a", "a"),))
        tiny_model(len(merged)).save_pretrained(parent)
        merged.save_pretrained(parent)
        with pytest.raises(DomainError, match="other tokens"):
            evaluate(replace(asked, drift=text, parent=parent), quiet)

    def test_a_prompt_longer_than_the_model_reads(self, asked: Asked, tmp_path: Path) -> None:
        row = {"prompt": "x" * 500, "completion": "y"}
        with pytest.raises(DomainError, match="line 1"):
            evaluate(replace(asked, validation=write(tmp_path / "r.jsonl", row)), quiet)

    def test_a_judge_that_fails_leaves_no_report(
        self, asked: Asked, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise JudgeError("down")

        monkeypatch.setattr(RefusalStringsJudge, "judge", fail)
        with pytest.raises(JudgeError):
            evaluate(asked, quiet)


class TestMain:
    def lines(self, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    def test_tells_how_far_it_is_and_then_the_report(
        self, asked: Asked, adapter: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main([str(asked.folder), "--safety-set", str(asked.safety_set), "--adapter", str(adapter)])
        *progress, last = self.lines(capsys)
        assert {"what": "Safety prompts answered", "done": 10, "total": 10} in progress
        report = last["report"]
        assert isinstance(report, dict)
        assert (report["model"], report["adapter"]) == (str(asked.folder), str(adapter))
        assert report["harmful_score"]["n"] == 6
        assert {"torch", "transformers", "peft"} == set(report["versions"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--adapter", "none"], "no folder none"),
            (["--win-rate", "rows.jsonl"], "--judge-url and --judge-model"),
            (
                ["--win-rate", "r", "--judge-url", "ftp://x", "--judge-model", "m"],
                "http or https",
            ),
        ],
    )
    def test_an_error_is_a_line_and_a_status(
        self,
        asked: Asked,
        capsys: pytest.CaptureFixture[str],
        options: list[str],
        message: str,
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            main([str(asked.folder), "--safety-set", str(asked.safety_set), *options])
        assert caught.value.code == 1
        error = self.lines(capsys)[-1]["error"]
        assert isinstance(error, dict)
        assert message in error["message"]

    def test_a_faulty_row_has_its_file_and_line(
        self, asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write(tmp_path / "rows.jsonl", {"prompt": "q", "completion": "secret"})
        options = ["--validation", str(path), "--task", "sst2"]
        with pytest.raises(SystemExit):
            main([str(asked.folder), "--safety-set", str(asked.safety_set), *options])
        error = self.lines(capsys)[-1]["error"]
        assert isinstance(error, dict)
        assert error["message"].startswith("rows.jsonl: 1 row is faulty: line 1")
        assert "secret" not in error["message"]

    def test_too_little_memory_is_said_plainly(
        self, asked: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def explode(*_: object) -> None:
            raise torch.OutOfMemoryError

        monkeypatch.setattr(evaluate_module, "evaluate", explode)
        with pytest.raises(SystemExit):
            main([str(asked.folder), "--safety-set", str(asked.safety_set)])
        assert "memory" in str(self.lines(capsys)[-1]["error"])
