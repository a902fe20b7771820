"""Judge models in memory: loaded once for all open judges of one source, gone when none is open.

The identity of a model is the commit that its hub id is pinned to, or a hash of its folder's files. Weights
come from safetensors alone, in bfloat16 on a GPU (the published evaluations of some judges used float32).
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, assert_never
from weakref import WeakValueDictionary

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from models.judges import ModelJudgeSpec
from worker.base_models import (
    FALLBACK_TEMPLATE,
    WANTED_FILES,
    BaseUnavailable,
    load_model,
    load_tokenizer,
    locate,
)
from worker.judgement import JudgeError

Family = Literal["causal", "classifier"]


@dataclass(frozen=True, eq=False)
class JudgeModel:
    """A judge's model and tokenizer, frozen, on this process's device."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str

    @property
    def pad_id(self) -> int:
        """The token that fills up short rows: the model's own word for it, else the tokenizer's."""
        configured = self.model.config.get_text_config().pad_token_id
        chosen = self.tokenizer.pad_token_id if configured is None else configured
        return int(chosen or 0)

    @property
    def context_length(self) -> int:
        """Most tokens that the model can read at once."""
        config = self.model.config.get_text_config()
        limit = int(
            getattr(config, "max_position_embeddings", 0) or self.tokenizer.model_max_length
        )
        if getattr(config, "rope_parameters", None) is None:
            # Learned positions: some are reserved in RoBERTa and its kin, which the tokenizer knows.
            limit = min(limit, int(self.tokenizer.model_max_length))
        return limit

    @property
    def chat_template(self) -> str:
        """The template that the model ships.

        Raises:
            JudgeError: it ships none, and a judge must not be asked in words that it has never seen.
        """
        template = self.tokenizer.chat_template
        if isinstance(template, Mapping):
            template = template.get("default", FALLBACK_TEMPLATE)
        if template == FALLBACK_TEMPLATE:
            raise JudgeError("The judge's model has no chat template.")
        return str(template)


_open: WeakValueDictionary[tuple[Family, str, str | None], JudgeModel] = WeakValueDictionary()


def judge_model(spec: ModelJudgeSpec, family: Family) -> JudgeModel:
    """Give the model that a spec names; while an open judge holds it, the same one.

    Raises:
        JudgeError: its files cannot be read or do not fit into memory.
    """
    key = (family, spec.source, spec.revision)
    model = _open.get(key)
    if model is None:
        model = _open[key] = _load(spec, family)
    return model


def free_memory() -> None:
    """Give back the memory of models that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load(spec: ModelJudgeSpec, family: Family) -> JudgeModel:
    try:
        if spec.revision is None:
            folder = locate({"folder": spec.source})
            revision = _hash_of(folder)
        else:
            folder = locate({"repo": spec.source, "revision": spec.revision})
            revision = spec.revision
        return JudgeModel(load_model(folder, _auto_class(family)), load_tokenizer(folder), revision)
    except BaseUnavailable as error:
        raise JudgeError(
            "The judge's model cannot be read: its files are missing, incomplete or no safetensors."
        ) from error
    except torch.OutOfMemoryError as error:
        raise JudgeError("The judge's model does not fit into the memory that is left.") from error


def _auto_class(
    family: Family,
) -> type[AutoModelForCausalLM | AutoModelForSequenceClassification]:
    match family:
        case "causal":
            return AutoModelForCausalLM
        case "classifier":
            return AutoModelForSequenceClassification
    assert_never(family)


def _hash_of(folder: Path) -> str:
    """sha256 over all that is loaded from a folder: weights, configuration, tokenizer, template."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(fnmatch(path.name, wanted) for wanted in WANTED_FILES):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()
