"""Base models: from a folder or a pinned hub revision to a model and tokenizer on this device.

Weights come from safetensors alone and no code is ever loaded with them. One base stays resident between
jobs, for loading it is the slowest part of a short one. Knows nothing of adapters or jobs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx2
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from models.errors import DomainError

# Never *.bin, *.pt or *.py: pickles and code are not even fetched.
WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]

# The named fallback for a base without a chat template: plain roles, each turn ended by the eos token.
FALLBACK_TEMPLATE_NAME = "fallback-plain"
FALLBACK_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)


class BaseUnavailable(DomainError):
    """The base model's files cannot be read."""

    code = "base_unavailable"


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base in memory, without any adapter."""

    id: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def pad_id(self) -> int:
        """The token that fills the ends of short rows; never read."""
        return int(self.tokenizer.pad_token_id)

    @property
    def context_length(self) -> int:
        """Most tokens that the model can read at once."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2048)


class ResidentBase:
    """Keeps the last base that was asked for."""

    def __init__(self) -> None:
        """Start with none; nothing touches the device before the first `get`."""
        self._loaded: LoadedBase | None = None

    @property
    def resident_id(self) -> str | None:
        """The base that is in memory."""
        # Another thread may ask while this one is let go.
        loaded = self._loaded
        return loaded.id if loaded else None

    def holds(self, base_id: str) -> bool:
        """Say whether this base is in memory."""
        return self.resident_id == base_id

    def get(self, base_id: str, find: Callable[[], Path]) -> LoadedBase:
        """Give the base, loading it from the folder that `find` gives unless it is the resident one.

        Raises:
            BaseUnavailable: its folder or hub revision cannot be read.
        """
        if self._loaded is None or not self.holds(base_id):
            self.drop()
            folder = find()
            self._loaded = LoadedBase(base_id, load_model(folder), load_tokenizer(folder))
        return self._loaded

    def drop(self) -> None:
        """Let the resident base go and give its memory back."""
        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def device() -> torch.device:
    """Choose the device of this process: its GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def locate(source: Mapping[str, object]) -> Path:
    """Give the folder with a base's files, fetching a hub revision when it is not cached.

    Raises:
        BaseUnavailable: the folder is gone, or the hub does not answer.
    """
    if "folder" in source:
        folder = Path(str(source["folder"]))
        if not (folder / "config.json").is_file():
            raise BaseUnavailable("The base model's folder is not readable on this worker.")
        return folder
    try:
        return Path(
            snapshot_download(
                str(source["repo"]), revision=str(source["revision"]), allow_patterns=WANTED_FILES
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx2.HTTPError, OSError) as error:
        raise BaseUnavailable("The base model cannot be fetched from the hub.") from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer and fill in what it lacks: a pad token, a chat template.

    Raises:
        BaseUnavailable: the files are not a tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, ImportError) as error:
        raise BaseUnavailable("The base model's tokenizer cannot be read.") from error
    if tokenizer.vocab_size <= len(tokenizer.all_special_ids):
        # Some classes come up without their files, and then read every text as nothing.
        raise BaseUnavailable("The base model's tokenizer has no vocabulary.")
    if tokenizer.pad_token_id is None:
        # Pads are masked everywhere, so an existing token serves and the embeddings keep their size.
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    return tokenizer


def load_model(
    folder: Path,
    family: type[AutoModelForCausalLM | AutoModelForSequenceClassification] = AutoModelForCausalLM,
    target: torch.device | None = None,
) -> PreTrainedModel:
    """Load the weights: bfloat16 on a GPU, float32 elsewhere, frozen.

    Args:
        folder: where the files are.
        family: what the model is used as.
        target: where it goes; none: onto this process's device.

    Raises:
        BaseUnavailable: the files are not such a model in safetensors, or lack some of its weights.
    """
    target = target or device()
    try:
        loaded = family.from_pretrained(
            folder,
            dtype=torch.bfloat16 if target.type == "cuda" else torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseUnavailable("The model's weights cannot be read.") from error
    model, found = cast(tuple[PreTrainedModel, Mapping[str, object]], loaded)
    if found["missing_keys"]:
        # They would be drawn at random: a model without its head still answers.
        raise BaseUnavailable("The model's files lack some of its weights.")
    model.requires_grad_(False)
    model.eval()
    return cast(PreTrainedModel, cast(torch.nn.Module, model).to(target))


def save_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a whole model with its tokenizer, safetensors alone, as any tool can load it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
