"""Files and folders kept for good: a local folder or a bucket, chosen by one URL.

Keys are paths with `/`. A folder counts as stored only once its manifest is, which is written last: a
process killed half-way leaves litter, never half a model. Knows nothing of the database.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import NotFoundError as ObjectNotFound
from obstore.store import LocalStore, ObjectStore, from_url

from models.digest import sha256_of
from models.errors import NotFound
from models.rows import split_lines

MANIFEST = "manifest.json"
CHUNK_BYTES = 1024 * 1024
# What `writing` holds in memory: a part that fills, and one that is on its way. Buckets take no smaller ones.
WRITTEN_PART_BYTES = 5 * 1024 * 1024
WRITTEN_AT_ONCE = 1


class StorageMissing(NotFound):
    """The stored bytes are not there."""

    code = "content_missing"


class DamagedFolder(StorageMissing):
    """A stored folder is damaged: its files are not those that its manifest names."""

    code = "content_damaged"

    def __init__(self, prefix: str) -> None:
        """Name the folder."""
        super().__init__(f"The stored folder {prefix} is damaged.")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a stored folder."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a stored folder holds, by name; `sha256` is the manifest's own hash, which `put_folder` gave."""

    sha256: str
    files: Mapping[str, StoredFile]


class Storage:
    """Reads and writes objects below one URL, such as `file:///srv/titer` or `s3://bucket/prefix`."""

    def __init__(self, url: str) -> None:
        """Open the store; a local folder is made when it is absent."""
        parts = urlsplit(url)
        self.url = url
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
                raise ValueError("A storage folder is file:///, then its path with %-escapes.")
            # A folder's name may hold spaces; as a URL they are escaped, as a path they are not.
            self.root: Path | None = Path(unquote(parts.path))
            self.store: ObjectStore = LocalStore(prefix=self.root, mkdir=True)
        else:
            self.root = None
            self.store = from_url(url)

    def put(self, key: str, content: bytes | Path | IO[bytes]) -> None:
        """Write one object; readers see the old bytes or the new ones, never a part."""
        obstore.put(self.store, key, content)

    @contextmanager
    def writing(self, key: str) -> Iterator[Callable[[bytes], int]]:
        """Lend a function that appends to a new object, in constant memory.

        The object is there once the block ends; when it ends by an exception, nothing is.
        """
        with obstore.open_writer(
            self.store,
            key,
            buffer_size=WRITTEN_PART_BYTES,
            max_concurrency=WRITTEN_AT_ONCE,
        ) as writer:
            yield writer.write

    def move(self, key: str, to: str) -> None:
        """Give an object another key; what was there before is replaced at once.

        Raises:
            StorageMissing: there is no such object.
        """
        try:
            obstore.rename(self.store, key, to)
        except (ObjectNotFound, FileNotFoundError) as error:
            raise StorageMissing from error

    def get(self, key: str) -> bytes:
        """Read one object whole.

        Raises:
            StorageMissing: there is no such object.
        """
        try:
            return bytes(obstore.get(self.store, key).bytes())
        except (ObjectNotFound, FileNotFoundError) as error:
            raise StorageMissing from error

    def exists(self, key: str) -> bool:
        """Say whether the object is there."""
        try:
            obstore.head(self.store, key)
        except (ObjectNotFound, FileNotFoundError):
            return False
        return True

    def stream(self, key: str) -> Iterator[bytes]:
        """Read one object in chunks of about a mebibyte.

        Raises:
            StorageMissing: there is no such object (raised here, before the first chunk).
        """
        try:
            result = obstore.get(self.store, key)
        except (ObjectNotFound, FileNotFoundError) as error:
            raise StorageMissing from error
        return (bytes(chunk) for chunk in result.stream(min_chunk_size=CHUNK_BYTES))

    def lines(self, key: str) -> Iterator[bytes]:
        """Read one object line by line, as `split_lines` does.

        Raises:
            StorageMissing: there is no such object (raised here, before the first line).
        """
        return split_lines(self.stream(key))

    def delete(self, key: str) -> None:
        """Remove one object; an absent one is no error."""
        try:
            obstore.delete(self.store, key)
        except (ObjectNotFound, FileNotFoundError):
            return

    def delete_older(self, prefix: str, than: datetime) -> int:
        """Remove objects, and pieces of objects never finished, that nobody wrote to since; count them.

        Unfinished pieces in a bucket are not seen: its own life-cycle rule for multipart uploads ends them.
        """
        _check_prefix(prefix)
        removed = 0
        if self.root is None:
            for batch in obstore.list(self.store, prefix):
                for entry in batch:
                    if entry["last_modified"] < than:
                        self.delete(entry["path"])
                        removed += 1
            return removed
        for path in (self.root / prefix).rglob("*"):
            try:
                if path.is_file() and path.stat().st_mtime < than.timestamp():
                    path.unlink()
                    removed += 1
            except FileNotFoundError:
                continue
        return removed

    def put_folder(self, prefix: str, folder: Path) -> str:
        """Store every file of a folder, then its manifest; give the manifest's hash.

        What was stored at `prefix` before is gone as soon as this begins.
        """
        self.delete_folder(prefix)
        entries = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            # A folder that came out of a storage brings the manifest of its old place along.
            if name == MANIFEST:
                continue
            entries[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            self.put(f"{prefix}/{name}", path)
        manifest = json.dumps({"files": entries}, sort_keys=True, indent=1).encode()
        self.put(f"{prefix}/{MANIFEST}", manifest)
        return hashlib.sha256(manifest).hexdigest()

    def has_folder(self, prefix: str) -> bool:
        """Say whether the folder was stored to its end."""
        return self.exists(f"{prefix}/{MANIFEST}")

    def manifest(self, prefix: str) -> Manifest:
        """Give what a stored folder holds, without reading its files.

        Raises:
            StorageMissing: the folder was never stored to its end, or its manifest is damaged.
        """
        _check_prefix(prefix)
        content = self.get(f"{prefix}/{MANIFEST}")
        return Manifest(hashlib.sha256(content).hexdigest(), _read_manifest(prefix, content))

    def folders(self, prefix: str) -> list[str]:
        """Name the folders below `prefix` that were stored to their end, in order."""
        found = set()
        for batch in obstore.list(self.store, prefix):
            for entry in batch:
                name, _, rest = entry["path"].removeprefix(f"{prefix}/").partition("/")
                if rest == MANIFEST:
                    found.add(name)
        return sorted(found)

    def names(self, prefix: str) -> list[str]:
        """Name everything that lies directly below `prefix`, stored to its end or not, in order."""
        below = obstore.list_with_delimiter(self.store, prefix)["common_prefixes"]
        return sorted(path.removeprefix(f"{prefix}/").rstrip("/") for path in below)

    def folder(self, prefix: str, cache: Path) -> Path:
        """Give a local path with the folder's files, checked against the manifest.

        A local store gives its own folder (read only, by agreement); a bucket is copied below `cache` once.

        Raises:
            StorageMissing: the folder was never stored to its end, or a file of it is damaged.
        """
        _check_prefix(prefix)
        manifest = self.get(f"{prefix}/{MANIFEST}")
        files = _read_manifest(prefix, manifest)
        if self.root is not None:
            folder = self.root / prefix
            if not _matches(folder, files):
                raise DamagedFolder(prefix)
            return folder
        target = cache / hashlib.sha256(prefix.encode() + manifest).hexdigest()[:32]
        if target.exists():
            if _matches(target, files):
                return target
            # The cache may lose files at any time; what is left of this copy is of no use.
            shutil.rmtree(target, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            copy = Path(scratch) / "folder"
            copy.mkdir()
            for name in files:
                path = copy / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as handle:
                    for chunk in self.stream(f"{prefix}/{name}"):
                        handle.write(chunk)
            if not _matches(copy, files):
                raise DamagedFolder(prefix)
            try:
                copy.rename(target)
            except OSError:
                # Another process made the same copy first; theirs is as good.
                if not target.exists():
                    raise
        return target

    def delete_folder(self, prefix: str) -> None:
        """Remove a stored folder, its manifest first; an absent one is no error."""
        _check_prefix(prefix)
        self.delete(f"{prefix}/{MANIFEST}")
        for batch in obstore.list(self.store, prefix):
            for entry in batch:
                self.delete(entry["path"])
        if self.root is not None:
            shutil.rmtree(self.root / prefix, ignore_errors=True)


def _check_prefix(prefix: str) -> None:
    # Callers build prefixes from ids. One that is empty or climbs would name, and remove, all there is.
    if any(part in ("", ".", "..") for part in prefix.split("/")):
        raise ValueError(f"{prefix!r} does not name a folder of the storage.")


def _read_manifest(prefix: str, manifest: bytes) -> dict[str, StoredFile]:
    """Give each file's hash and size. A name that leads out of the folder was not written by us."""
    try:
        files = {
            str(name): StoredFile(str(facts["sha256"]), int(facts["bytes"]))
            for name, facts in json.loads(manifest)["files"].items()
        }
        for name in files:
            _check_prefix(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFolder(prefix) from error
    return files


def _matches(folder: Path, files: Mapping[str, StoredFile]) -> bool:
    # Hashes, not sizes alone: a silent flip in an adapter would be served as if it had been judged.
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == stored.sha256
        for name, stored in files.items()
    )
