"""A report on any model folder, with an adapter or without: the same numbers as a job's, and no service.

Knows neither the command line nor jobs; `worker.evaluate` is the command.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from models.endpoint import EndpointSpec
from models.errors import DomainError
from models.evaluation import EvaluationReport
from models.hyperparameters import ScorerName
from models.rows import Conversation
from models.safety_set import SafetySet
from worker import lora
from worker.base_models import BaseUnavailable, LoadedBase, load_model, load_tokenizer, locate
from worker.data import Example, check_prompts
from worker.drift import RowLosses, compare, read_text_rows, row_losses
from worker.endpoint import Endpoint
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
    """Measure a folder.

    Raises:
        DomainError: something that was asked for is missing, faulty or does not fit; see its message.
    """
    # What is found in a moment comes before what is loaded in minutes.
    _check(asked)
    safety_set = SafetySet.load(_folder(asked.safety_set))
    validation = read_task_rows(asked.validation, asked.task) if asked.validation else []
    references = read_task_rows(asked.references, "exact") if asked.references else []
    parent = _read_parent(asked, tell)
    base = _load(asked.folder, tell)
    _check_prompts(asked.validation, validation, base)
    _check_prompts(asked.references, references, base)
    if asked.drift is not None and parent is None:
        parent = _read(asked.drift, base, base.model, "Parent's text read", tell)
    model = _adapted(base, asked.adapter)
    drift = win_rate = None
    if asked.drift is not None and parent is not None:
        own = _read(asked.drift, base, model, "Model's text read", tell)
        if own.text != parent.text:
            raise BadRequest(
                "The parent reads the text as other tokens: perplexities cannot be compared."
            )
        drift = compare(own.losses, parent.losses)
    if asked.win_judge is not None:
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


def _check(asked: Asked) -> None:
    if asked.drift is not None and asked.parent is None and asked.adapter is None:
        raise BadRequest("Drift is measured from a parent; name its folder by --parent.")
    if (asked.references is None) != (asked.win_judge is None):
        raise BadRequest("A win rate needs rows with reference answers, and a judge.")
    if asked.win_judge is not None:
        with Endpoint(asked.win_judge):
            pass  # it has its key


def _check_prompts(path: Path | None, rows: Sequence[Conversation], base: LoadedBase) -> None:
    if path is not None:
        check_prompts(rows, base.tokenizer, base.context_length, param=path.name)


def _read_parent(asked: Asked, tell: Progress) -> Reading | None:
    """Let a parent folder read the general text, and let it go: the two may not fit at once."""
    if asked.drift is None or asked.parent is None:
        return None
    parent = _load(asked.parent, tell)
    reading = _read(asked.drift, parent, parent.model, "Parent's text read", tell)
    del parent
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return reading


def _read(
    path: Path, base: LoadedBase, model: PreTrainedModel, what: str, tell: Progress
) -> Reading:
    text = read_text_rows(path, base.tokenizer, _row_length(base))
    losses = row_losses(
        model, text, base.pad_id, on_progress=lambda done, total: tell(what, done, total)
    )
    return Reading(text, losses)


def _adapted(base: LoadedBase, adapter: Path | None) -> PreTrainedModel:
    if adapter is None:
        return base.model
    # A PEFT model answers to all that is asked of a transformers model here.
    return cast(PreTrainedModel, lora.load(base.model, _folder(adapter), trainable=False))


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
