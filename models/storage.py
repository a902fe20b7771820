"""Files and folders kept for good: a local folder or a bucket, chosen by one URL.

Keys are paths with `/`. A folder counts as stored only once its manifest is, which is written last: a
process killed half-way leaves litter, never half a model. Knows nothing of the database.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import NotFoundError as ObjectNotFound
from obstore.store import LocalStore, ObjectStore, from_url

from models.errors import NotFound

MANIFEST = "manifest.json"
CHUNK_BYTES = 1024 * 1024


class StorageMissing(NotFound):
    """The stored bytes are not there."""

    code = "content_missing"


def sha256_of(path: Path) -> str:
    """Hash a file without holding it in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class Storage:
    """Reads and writes objects below one URL, such as `file:///srv/titer` or `s3://bucket/prefix`."""

    def __init__(self, url: str) -> None:
        """Open the store; a local folder is made when it is absent."""
        parts = urlsplit(url)
        self.url = url
        if parts.scheme == "file":
            # A folder's name may hold spaces; as a URL they are escaped, as a path they are not.
            self.root: Path | None = Path(unquote(parts.path))
            self.store: ObjectStore = LocalStore(prefix=self.root, mkdir=True)
        else:
            self.root = None
            self.store = from_url(url)

    def put(self, key: str, content: bytes | Path | IO[bytes]) -> None:
        """Write one object; readers see the old bytes or the new ones, never a part."""
        obstore.put(self.store, key, content)

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
        """Read one object line by line, with constant memory for lines of ordinary length."""
        rest = b""
        for chunk in self.stream(key):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def delete(self, key: str) -> None:
        """Remove one object; an absent one is no error."""
        try:
            obstore.delete(self.store, key)
        except (ObjectNotFound, FileNotFoundError):
            return

    def put_folder(self, prefix: str, folder: Path) -> str:
        """Store every file of a folder, then its manifest; give the manifest's hash."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        entries = {}
        for path in files:
            name = path.relative_to(folder).as_posix()
            entries[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            self.put(f"{prefix}/{name}", path)
        manifest = json.dumps({"files": entries}, sort_keys=True, indent=1).encode()
        self.put(f"{prefix}/{MANIFEST}", manifest)
        return hashlib.sha256(manifest).hexdigest()

    def has_folder(self, prefix: str) -> bool:
        """Say whether the folder was stored to its end."""
        return self.exists(f"{prefix}/{MANIFEST}")

    def folders(self, prefix: str) -> list[str]:
        """Name the folders below `prefix` that were stored to their end, in order."""
        found = set()
        for batch in obstore.list(self.store, prefix):
            for entry in batch:
                name, _, rest = entry["path"].removeprefix(f"{prefix}/").partition("/")
                if rest == MANIFEST:
                    found.add(name)
        return sorted(found)

    def folder(self, prefix: str, cache: Path) -> Path:
        """Give a local path with the folder's files, checked against the manifest.

        A local store gives its own folder (read only, by agreement); a bucket is copied below `cache` once.

        Raises:
            StorageMissing: the folder was never stored to its end, or a file of it is damaged.
        """
        manifest = self.get(f"{prefix}/{MANIFEST}")
        if self.root is not None:
            return self.root / prefix
        target = cache / hashlib.sha256(prefix.encode() + manifest).hexdigest()[:32]
        if target.exists():
            return target
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            copy = Path(scratch) / "folder"
            for name, facts in json.loads(manifest)["files"].items():
                path = copy / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as handle:
                    for chunk in self.stream(f"{prefix}/{name}"):
                        handle.write(chunk)
                if sha256_of(path) != facts["sha256"]:
                    raise StorageMissing(f"A stored file of {prefix} is damaged.")
            try:
                copy.rename(target)
            except OSError:
                # Another process made the same copy first; theirs is as good.
                if not target.exists():
                    raise
        return target

    def delete_folder(self, prefix: str) -> None:
        """Remove a stored folder, its manifest first."""
        self.delete(f"{prefix}/{MANIFEST}")
        for batch in obstore.list(self.store, prefix):
            for entry in batch:
                self.delete(entry["path"])
        if self.root is not None:
            shutil.rmtree(self.root / prefix, ignore_errors=True)
