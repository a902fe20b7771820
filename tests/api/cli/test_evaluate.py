"""`titer evaluate` as a person sees it: a report, or one sentence on what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.cli import app as titer
from api.cli import evaluate as evaluate_module
from api.cli.torch_process import TorchProcessFailed, read_json_lines
from models.evaluation import (
    EvaluationWarning,
    FurtherJudge,
    JudgeIdentity,
    PerplexityDrift,
    WinRate,
)
from models.rate import Rate
from tests.api.base_folders import write_base
from tests.models.factories import make_report
from tests.worker.toy_provider import toy_safety_set
from tests.worker.toy_provider import write_base as write_toy_base


def run(*arguments: str | Path, columns: int = 80) -> Result:
    return CliRunner().invoke(
        titer, ["evaluate", *map(str, arguments)], env={"COLUMNS": str(columns)}
    )


def failing(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    return result.output


REPORT = {
    "model": "base",
    "adapter": "adapter",
    "safety_set": "safety",
    **make_report(
        12,
        harmful_by_category={"locks": Rate(count=12, n=100)},
        over_refusal_by_category={"homonyms": Rate(count=1, n=20)},
        fine_tuning_accuracy=Rate(count=3, n=4),
        scorer="gsm8k",
        help_rate=Rate(count=90, n=100),
        validation_loss=1.5,
        canary_loss=2.25,
        further_judges=(
            FurtherJudge(
                judge=JudgeIdentity(name="second", revision="1"),
                harmful_score=Rate(count=20, n=100),
                refusal_rate=Rate(count=80, n=100),
                agreement=Rate(count=92, n=100),
                kappa=0.71,
            ),
        ),
        drift=PerplexityDrift(
            loss=2.0, parent_loss=1.9, ratio=1.105, low=1.05, high=1.16, rows=300, tokens=9000
        ),
        win_rate=WinRate(
            judge=JudgeIdentity(name="win-rate:m", revision="1"),
            wins=3,
            ties=0,
            losses=1,
            points=3.0,
            turned_by_order=1,
            answer_characters=10,
            reference_characters=10,
        ),
        warnings=(EvaluationWarning(code="single_category", message="One category only."),),
    ).to_wire(),
}


class TestWhatIsShown:
    @pytest.fixture(autouse=True)
    def _measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arguments: tuple[str, ...] = ()

        def lines(module: str, *arguments: str) -> Iterator[dict[str, Any]]:
            assert module == "worker.evaluate"
            self.arguments = arguments
            yield {"what": "Safety prompts answered", "done": 1, "total": 2}
            yield {"report": REPORT}

        monkeypatch.setattr(evaluate_module, "read_json_lines", lines)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_base(tmp_path / "base")

    def test_a_table_that_fits_eighty_columns(self, folder: Path) -> None:
        result = run(folder, "--safety-set", "safety")
        assert result.exit_code == 0, result.output
        shown = [" ".join(line.split()) for line in result.stdout.splitlines()]
        for expected in (
            "base with adapter",
            "HS 12.0% 7.0 to 19.8 100",
            "locks 12.0% 7.0 to 19.8 100",
            "HS by second 20.0% 13.3 to 28.9 100",
            "agreement 92.0% 85.0 to 95.9, kappa 0.71 100",
            "homonyms 5.0% 0.9 to 23.6 20",
            "FA (gsm8k) 75.0% 30.1 to 95.4 4",
            "win rate by m 75.0% 30.1 to 95.4 4",
            "turned by order 1 4",
            "perplexity / parent's 1.105 1.050 to 1.160 300",
            "canary loss 2.250",
            "Warning: One category only.",
        ):
            assert expected in shown, result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80

    def test_json_is_the_report_and_nothing_else(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "report.json"
        result = run(folder, "--safety-set", "safety", "--json", "--out", out)
        assert json.loads(result.stdout) == REPORT
        assert json.loads(out.read_text()) == REPORT

    def test_what_was_asked_is_passed_on(self, folder: Path) -> None:
        run(folder, "--safety-set", "a b", "--adapter", "-x", "--task", "gsm8k", "--drift", "d")
        assert self.arguments == (
            "--safety-set=a b",
            "--adapter=-x",
            "--task=gsm8k",
            "--drift=d",
            "--",
            str(folder),
        )


class TestWhatIsWrong:
    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        assert "There is no folder" in failing(tmp_path / "none", "--safety-set", tmp_path)

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        assert "no config.json" in failing(tmp_path, "--safety-set", tmp_path)

    def test_weights_that_are_pickled(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "base")
        (base / "model.safetensors").rename(base / "pytorch_model.bin")
        assert "convert them to safetensors" in failing(base, "--safety-set", tmp_path)

    def test_a_parent_that_is_no_model(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "base")
        output = failing(base, "--safety-set", tmp_path, "--parent", tmp_path / "none")
        assert "There is no folder" in output

    def test_a_report_that_could_not_be_written(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "base")
        out = tmp_path / "none" / "report.json"
        assert "to write the report to" in failing(base, "--safety-set", tmp_path, "--out", out)

    def test_a_process_that_breaks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def lines(*_: str) -> Iterator[dict[str, Any]]:
            raise TorchProcessFailed("KeyError")
            yield {}

        monkeypatch.setattr(evaluate_module, "read_json_lines", lines)
        base = write_base(tmp_path / "base")
        assert "broke: KeyError" in failing(base, "--safety-set", tmp_path)


@pytest.mark.processes
class TestTheProcess:
    def test_a_tiny_model_from_end_to_end(self, tmp_path: Path) -> None:
        write_toy_base(tmp_path / "base")
        toy_safety_set(prompts=4).save(tmp_path / "safety")
        arguments = (tmp_path / "base", "--safety-set", tmp_path / "safety", "--json")
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["harmful_score"]["n"] == 4
        assert "no folder" in failing(*arguments, "--adapter", tmp_path / "none")

    def test_an_exception_is_named_without_its_text(self) -> None:
        with pytest.raises(TorchProcessFailed) as caught:
            list(read_json_lines("timeit", "raise KeyError('secret')"))
        assert str(caught.value) == "KeyError"

    def test_leaving_early_ends_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = (
            "import os, time\nprint('noise')\nprint('{\"pid\": %d}' % os.getpid(), flush=True)\n"
        )
        (tmp_path / "endless.py").write_text(program + "time.sleep(600)\n")
        monkeypatch.chdir(tmp_path)
        lines = read_json_lines("endless")
        pid = next(lines)["pid"]
        os.kill(pid, 0)
        lines.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
