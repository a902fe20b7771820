"""Evaluate any model folder from a shell: `python -m worker.evaluate FOLDER --safety-set SET [...]`.

The same measurements as a job's, without service, database or gate. Prints JSON lines for whoever started
it: {"what", "done", "total"} on the way, at last {"report"} or {"error"}. `titer evaluate` shows them.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast, get_args

import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from models.errors import DomainError
from models.evaluation import EvaluationReport
from models.hyperparameters import ScorerName
from models.rows import InvalidRows
from models.safety_set import SafetySet
from worker import lora
from worker.base_models import (
    BaseUnavailable,
    LoadedBase,
    device,
    load_model,
    load_tokenizer,
    locate,
)
from worker.data import Example, check_prompts
from worker.drift import RowLosses, compare, read_text_rows, row_losses
from worker.endpoint import EndpointSpec
from worker.report import Progress, make_report
from worker.task_rows import read_task_rows
from worker.win_rate import measure_win_rate

# Enough for every data set that papers report; the rest of a larger file is sampled.
MAX_ROWS = 10_000
# Tokens of a row whose loss is taken; longer rows lose their end.
MAX_LENGTH = 2_048


class BadRequest(DomainError):
    """What was asked for does not fit together."""

    code = "bad_request"


@dataclass(frozen=True, slots=True)
class Asked:
    """What to evaluate, and on what."""

    folder: Path
    safety_set: Path
    adapter: Path | None = None
    validation: Path | None = None
    task: ScorerName = "exact"
    drift: Path | None = None
    parent: Path | None = None
    references: Path | None = None
    win_judge: EndpointSpec | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """General text as a model's tokens, and what it lost on it."""

    text: list[Example]
    losses: RowLosses


def evaluate(asked: Asked, tell: Progress) -> EvaluationReport:
    """Measure a folder, with an adapter or without.

    Raises:
        DomainError: something that was asked for is missing, faulty or does not fit; see its message.
    """
    if asked.drift is not None and asked.parent is None and asked.adapter is None:
        raise BadRequest("Drift is measured from a parent; name its folder by --parent.")
    # What is read in a moment comes before what is loaded in minutes.
    safety_set = SafetySet.load(_folder(asked.safety_set))
    validation = read_task_rows(asked.validation, asked.task) if asked.validation else []
    references = read_task_rows(asked.references, "exact") if asked.references else []
    parent = _read_parent(asked, tell)
    base = _load(asked.folder, tell)
    for path, rows in ((asked.validation, validation), (asked.references, references)):
        if path is not None:
            check_prompts(rows, base.tokenizer, base.context_length, param=path.name)
    text = _read_text(asked, base)
    if parent is None and text:
        parent = Reading(text, _losses(base, base.model, text, "Parent's text read", tell))
    if parent is not None and parent.text != text:
        raise BadRequest(
            "The parent reads the text as other tokens: perplexities cannot be compared."
        )
    model = base.model
    if asked.adapter is not None:
        # A PEFT model answers to all that is asked of a transformers model here.
        adapted = lora.load(model, _folder(asked.adapter), trainable=False)
        model = cast(PreTrainedModel, adapted)
    drift = None
    if parent is not None:
        drift = compare(_losses(base, model, text, "Model's text read", tell), parent.losses)
    win_rate = None
    if references and asked.win_judge is not None:
        win_rate = measure_win_rate(
            model, base.tokenizer, references, asked.win_judge, on_progress=tell
        )
    return make_report(
        base,
        model,
        safety_set,
        max_length=_row_length(base),
        validation=validation,
        scorer=asked.task,
        max_rows=MAX_ROWS,
        drift=drift,
        win_rate=win_rate,
        on_progress=tell,
    )


def _read_parent(asked: Asked, tell: Progress) -> Reading | None:
    """Let a parent folder read the general text, and let it go: the two may not fit at once."""
    if asked.drift is None or asked.parent is None:
        return None
    parent = _load(asked.parent, tell)
    text = _read_text(asked, parent)
    losses = _losses(parent, parent.model, text, "Parent's text read", tell)
    del parent
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Reading(text, losses)


def _read_text(asked: Asked, base: LoadedBase) -> list[Example]:
    if asked.drift is None:
        return []
    return read_text_rows(asked.drift, base.tokenizer, _row_length(base))


def _losses(
    base: LoadedBase, model: PreTrainedModel, text: Sequence[Example], what: str, tell: Progress
) -> RowLosses:
    return row_losses(
        model, text, base.pad_id, on_progress=lambda done, total: tell(what, done, total)
    )


def _load(folder: Path, tell: Progress) -> LoadedBase:
    tell(f"Loading {folder.name}", 0, 1)
    found = locate({"folder": _folder(folder)})
    if not any(found.glob("*.safetensors")):
        raise BaseUnavailable(f"{folder} has no weights in safetensors.")
    base = LoadedBase(folder.name, load_model(found), load_tokenizer(found))
    tell(f"Loading {folder.name}", 1, 1)
    return base


def _row_length(base: LoadedBase) -> int:
    return min(base.context_length, MAX_LENGTH)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise BadRequest(f"There is no folder {path}.")
    return path


def _parse(arguments: Sequence[str] | None) -> Asked:
    parser = argparse.ArgumentParser(prog="python -m worker.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, help="a model in Hugging Face's form")
    parser.add_argument("--safety-set", type=Path, required=True, help="test prompts and judges")
    parser.add_argument("--adapter", type=Path, help="a PEFT adapter's folder")
    parser.add_argument("--validation", type=Path, help="rows to be answered, for FA")
    parser.add_argument("--task", choices=get_args(ScorerName), default="exact")
    parser.add_argument("--drift", type=Path, help="general text, for perplexity drift")
    parser.add_argument("--parent", type=Path, help="what it drifted from; default: the base")
    parser.add_argument("--win-rate", type=Path, help="requests with reference answers")
    parser.add_argument("--judge-url", help="chat endpoint that compares answers")
    parser.add_argument("--judge-model", help="the model behind it")
    parser.add_argument("--judge-key-variable", help="environment variable with its key")
    given = parser.parse_args(arguments)
    if given.win_rate is not None and not (given.judge_url and given.judge_model):
        raise BadRequest("A win rate needs --judge-url and --judge-model.")
    try:
        judge = (
            EndpointSpec(
                base_url=given.judge_url,
                model=given.judge_model,
                key_variable=given.judge_key_variable,
            )
            if given.win_rate is not None
            else None
        )
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, fault["loc"])) or "the judge's address"
        raise BadRequest(f"{field}: {fault['msg']}") from error
    return Asked(
        folder=given.folder,
        safety_set=given.safety_set,
        adapter=given.adapter,
        validation=given.validation,
        task=given.task,
        drift=given.drift,
        parent=given.parent,
        references=given.win_rate,
        win_judge=judge,
    )


def _facts(asked: Asked, report: EvaluationReport, seconds: float) -> dict[str, object]:
    """Give the report as JSON, with what it was made from and by."""
    named = {
        name: str(path) if path is not None else None
        for name, path in (
            ("model", asked.folder),
            ("adapter", asked.adapter),
            ("safety_set", asked.safety_set),
            ("validation_file", asked.validation),
            ("drift_file", asked.drift),
            ("parent", asked.parent),
            ("win_rate_file", asked.references),
        )
    }
    made_by = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {
        **named,
        **report.to_wire(),
        "device": str(device()),
        "versions": made_by,
        "seconds": round(seconds, 1),
    }


def _print(facts: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate what the arguments name; exit with status 1 after an error."""
    started = time.monotonic()
    try:
        asked = _parse(arguments)
        report = evaluate(
            asked, lambda what, done, total: _print({"what": what, "done": done, "total": total})
        )
    except DomainError as error:
        # Lines alone do not tell which of several files they are in.
        where = f"{error.param}: " if isinstance(error, InvalidRows) and error.param else ""
        _print({"error": {"code": error.code, "message": f"{where}{error.message}"}})
        sys.exit(1)
    except torch.OutOfMemoryError:
        message = "The model does not fit into this machine's memory."
        _print({"error": {"code": "out_of_memory", "message": message}})
        sys.exit(1)
    _print({"report": _facts(asked, report, time.monotonic() - started)})


if __name__ == "__main__":
    main()
