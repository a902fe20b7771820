"""Finds a base model in a folder or on a hub, checks its files, and pins what they are.

A folder is read as it lies; of a hub repository only the small files are fetched, at one pinned commit.
Knows nothing of the database and loads no tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
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

from api.registry.base_files import InvalidBase, check_files, check_folder, read_json
from models.digest import sha256_of
from models.errors import Unavailable

FALLBACK_TEMPLATE = "fallback-plain"
HASHED_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt"})
HUB_SECONDS = 10.0


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
        has_template = check_files(
            names, lambda name: read_json(Path(hf_hub_download(repo, name, revision=commit)))
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
