"""Whether files are those of a base model that Titer can tune and serve, without loading them.

Knows neither where they are nor any library of models.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from models.errors import DomainError

CAUSAL = "ForCausalLM"
# Causal models of the time before their class names said so.
CAUSAL_BY_OTHER_NAMES = frozenset({"GPT2LMHeadModel"})
TOKENIZERS = ({"tokenizer.json"}, {"tokenizer.model"}, {"vocab.json", "merges.txt"})
TEMPLATES = frozenset({"chat_template.jinja", "chat_template.json"})
MAX_JSON_BYTES = 64 * 1024 * 1024


class InvalidBase(DomainError):
    """This is not a base model that Titer can use."""

    code = "invalid_base_model"


class RemoteCodeRefused(InvalidBase):
    """The model asks for code of its own to be run. Titer never runs code that comes with weights."""

    code = "remote_code_refused"


def check_folder(folder: Path) -> tuple[set[str], bool]:
    """Check a folder's files without hashing them; give their names, and whether there is a chat template.

    Raises:
        InvalidBase: they are not those of a causal language model in safetensors.
    """
    try:
        names = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        }
        has_template = check_files(names, lambda name: read_json(folder / name))
        for name in sorted(names):
            if name.endswith(".safetensors"):
                _check_header(folder / name)
    except OSError as error:
        raise InvalidBase("A file of the folder cannot be read.", param="source") from error
    return names, has_template


def check_files(names: set[str], read: Callable[[str], Mapping[str, object]]) -> bool:
    """Refuse what cannot be used; say whether there is a chat template.

    Args:
        names: of all files, from the top folder.
        read: gives the content of a JSON file.

    Raises:
        InvalidBase: they are not those of a causal language model in safetensors.
    """
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


def read_json(path: Path) -> Mapping[str, object]:
    """Read a file that must hold one JSON object.

    Raises:
        InvalidBase: it does not, or is too large.
        OSError: it cannot be read.
    """
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
