"""Looks at a base model's files, without loading them: is this something that Titer can tune and serve?

A folder is read as it lies; of a hub repository only the small files are fetched, at one pinned commit.
Knows nothing of the database and loads no tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from models.errors import DomainError, Unavailable
from models.storage import sha256_of

FALLBACK_TEMPLATE = "fallback-plain"
CAUSAL = "ForCausalLM"
# Causal models of the time before their class names said so.
CAUSAL_BY_OTHER_NAMES = frozenset({"GPT2LMHeadModel"})
TOKENIZERS = ({"tokenizer.json"}, {"tokenizer.model"}, {"vocab.json", "merges.txt"})
TEMPLATES = frozenset({"chat_template.jinja", "chat_template.json"})
HASHED_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt"})
MAX_JSON_BYTES = 64 * 1024 * 1024
HUB_SECONDS = 10.0


class InvalidBase(DomainError):
    """This is not a base model that Titer can use."""

    code = "invalid_base_model"


class RemoteCodeRefused(InvalidBase):
    """The model asks for code of its own to be run. Titer never runs code that comes with weights."""

    code = "remote_code_refused"


class HubUnavailable(Unavailable):
    """The model hub cannot be reached from the server. Give a folder on the server instead."""

    code = "hub_unavailable"


@dataclass(frozen=True, slots=True)
class FoundBase:
    """Where a base is, and what its files hash to."""

    source: dict[str, str]
    data_hashes: dict[str, str]


def find_base(source: str, revision: str | None) -> FoundBase:
    """Check a base in a folder of the server, or on the hub.

    Raises:
        InvalidBase: it is neither, or its files are not those of a causal language model in safetensors.
        HubUnavailable: the hub does not answer.
    """
    folder = Path(source).expanduser()
    # Unlike `Path.is_dir` this is false where the server may not look.
    if os.path.isdir(folder):
        if revision is not None:
            raise InvalidBase("A folder has no revision; leave it out.", param="revision")
        return inspect_folder(folder.resolve())
    if folder.is_absolute() or source.startswith((".", "~")):
        raise InvalidBase("There is no folder there that the server may read.", param="source")
    return inspect_hub(source, revision)


def check_folder(folder: Path) -> tuple[set[str], bool]:
    """Check a folder's files without hashing them; give their names, and whether there is a chat template.

    Raises:
        InvalidBase: they are not those of a causal language model in safetensors.
    """
    try:
        names = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        }
        has_template = _check_files(names, lambda name: _read_json(folder / name))
        for name in sorted(names):
            if name.endswith(".safetensors"):
                _check_header(folder / name)
    except OSError as error:
        raise InvalidBase("A file of the folder cannot be read.", param="source") from error
    return names, has_template


def inspect_folder(folder: Path) -> FoundBase:
    """Check a folder and hash its files."""
    names, has_template = check_folder(folder)
    try:
        hashed = {
            name: sha256_of(folder / name)
            for name in sorted(names)
            if Path(name).suffix in HASHED_SUFFIXES
        }
    except OSError as error:
        raise InvalidBase("A file of the folder cannot be read.", param="source") from error
    total = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
    return FoundBase(_source({"folder": str(folder)}, has_template), {"base": total})


def inspect_hub(repo: str, revision: str | None) -> FoundBase:
    """Check a repository of the hub and pin the commit that its revision means today."""
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=HUB_SECONDS)
        commit = info.sha
        if commit is None:
            raise InvalidBase("The hub names no commit for this repository.", param="source")
        names = {entry.rfilename for entry in info.siblings or []}
        has_template = _check_files(
            names, lambda name: _read_json(Path(hf_hub_download(repo, name, revision=commit)))
        )
    except RevisionNotFoundError as error:
        raise InvalidBase("The repository has no such revision.", param="revision") from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise InvalidBase(
            "There is no such folder on the server and no such repository on the hub "
            "(or it needs a token; set HF_TOKEN where the api runs).",
            param="source",
        ) from error
    except (HFValidationError, EntryNotFoundError) as error:
        raise InvalidBase(
            "There is no such folder on the server, and this is not a hub repository.",
            param="source",
        ) from error
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        httpx2.HTTPError,
        OSError,
    ) as error:
        raise HubUnavailable(param="source") from error
    return FoundBase(_source({"repo": repo, "revision": commit}, has_template), {"base": commit})


def _source(where: dict[str, str], has_template: bool) -> dict[str, str]:
    return where if has_template else {**where, "chat_template": FALLBACK_TEMPLATE}


def _check_files(names: set[str], read: Callable[[str], Mapping[str, object]]) -> bool:
    """Refuse what cannot be used; say whether there is a chat template."""
    if "config.json" not in names:
        raise InvalidBase("There is no config.json.", param="source")
    config = read("config.json")
    architectures = config.get("architectures")
    names_given = [str(name) for name in architectures] if isinstance(architectures, list) else []
    if not any(name.endswith(CAUSAL) or name in CAUSAL_BY_OTHER_NAMES for name in names_given):
        raise InvalidBase(
            "config.json does not name a causal language model "
            f"(its `architectures` have no …{CAUSAL}).",
            param="source",
        )
    tokenizer = read("tokenizer_config.json") if "tokenizer_config.json" in names else {}
    if "auto_map" in config or "auto_map" in tokenizer:
        raise RemoteCodeRefused(param="source")
    _check_weights(names, read)
    if not any(needed <= names for needed in TOKENIZERS):
        raise InvalidBase("There is no tokenizer (tokenizer.json).", param="source")
    return bool(tokenizer.get("chat_template")) or not TEMPLATES.isdisjoint(names)


def _check_weights(names: set[str], read: Callable[[str], Mapping[str, object]]) -> None:
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        advice = (
            " There are only pickled weights, which can run code when they are opened; "
            "convert them to safetensors."
            if any(name.endswith((".bin", ".pt", ".pth")) for name in names)
            else ""
        )
        raise InvalidBase(f"There are no weights in safetensors.{advice}", param="source")
    index = "model.safetensors.index.json"
    if index in names:
        shards = read(index).get("weight_map")
        wanted = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
        missing = sorted(wanted - names)
        if missing:
            raise InvalidBase(f"The weights' part {missing[0]!r} is missing.", param="source")


def _read_json(path: Path) -> Mapping[str, object]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InvalidBase(f"{path.name} is too large.", param="source")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidBase(f"{path.name} is not valid JSON.", param="source") from error
    if not isinstance(value, dict):
        raise InvalidBase(f"{path.name} is not a JSON object.", param="source")
    return value


def _check_header(path: Path) -> None:
    """Read a safetensors file's header: it tells a real file from a pointer or a cut-off download."""
    size = path.stat().st_size
    fault = InvalidBase(f"{path.name} is not a whole safetensors file.", param="source")
    with path.open("rb") as handle:
        start = handle.read(8)
        if len(start) < 8:
            raise fault
        (length,) = struct.unpack("<Q", start)
        if length > min(MAX_JSON_BYTES, size - 8):
            raise fault
        try:
            header = json.loads(handle.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
            raise fault from None
    if not all(isinstance(end, int) for end in ends) or 8 + length + max(ends, default=0) != size:
        raise fault
