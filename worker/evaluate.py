"""Evaluate any model folder from a shell: `python -m worker.evaluate FOLDER --safety-set SET [...]`.

Prints JSON lines for whoever started it: {"what", "done", "total"} on the way, at last {"report"} or
{"error"}. `titer evaluate` shows them; `worker.folder_report` does the work.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch
from pydantic import ValidationError

from models.endpoint import EndpointSpec
from models.errors import DomainError
from models.evaluation import EvaluationReport
from models.hyperparameters import ScorerName
from models.rows import InvalidRows
from worker.base_models import device
from worker.folder_report import Asked, BadRequest, evaluate


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
    return Asked(
        folder=given.folder,
        safety_set=given.safety_set,
        adapter=given.adapter,
        validation=given.validation,
        task=given.task,
        drift=given.drift,
        parent=given.parent,
        references=given.win_rate,
        win_judge=_judge(given) if given.win_rate is not None else None,
    )


def _judge(given: argparse.Namespace) -> EndpointSpec:
    if not (given.judge_url and given.judge_model):
        raise BadRequest("A win rate needs --judge-url and --judge-model.")
    try:
        return EndpointSpec(
            base_url=given.judge_url,
            model=given.judge_model,
            key_variable=given.judge_key_variable,
        )
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, fault["loc"])) or "the judge's address"
        raise BadRequest(f"{field}: {fault['msg']}") from error


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
