"""Storage, the same tests on a folder and on a bucket: whole objects, whole folders, damage found out."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from models.digest import sha256_of
from models.rows import MAX_LINE_BYTES
from models.storage import MANIFEST, DamagedFolder, Storage, StorageMissing

BUCKET = "titer-test"


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """A bucket on a real S3 server on the loopback address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return Storage((tmp_path / "an object store").as_uri())
    return Storage(f"{request.getfixturevalue('s3_url')}/{tmp_path.name}")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "the cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file below another folder, and an empty file."""
    made = tmp_path / "an adapter"
    (made / "deep").mkdir(parents=True)
    (made / "weights.bin").write_bytes(bytes(range(256)) * 20)
    (made / "deep" / "config.json").write_text("{}")
    (made / "empty").touch()
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


class TestObjects:
    def test_what_is_put_is_got(self, store: Storage, tmp_path: Path) -> None:
        path = tmp_path / "a file"
        path.write_bytes(b"from a path")
        for content, expected in [
            (b"bytes", b"bytes"),
            (b"", b""),
            (path, b"from a path"),
            (io.BytesIO(b"from a handle"), b"from a handle"),
        ]:
            store.put("files/ab/key", content)
            assert store.get("files/ab/key") == expected
            assert store.exists("files/ab/key")

    def test_what_is_absent_is_missing(self, store: Storage) -> None:
        assert not store.exists("files/none")
        for read in (store.get, store.stream, store.lines):
            with pytest.raises(StorageMissing) as caught:
                read("files/none")
            assert caught.value.status_code == 404

    def test_delete(self, store: Storage) -> None:
        store.put("a/b", b"x")
        store.delete("a/b")
        assert not store.exists("a/b")
        store.delete("a/b")

    def test_large_objects_come_in_chunks(self, store: Storage) -> None:
        content = os.urandom(3 * 1024 * 1024 + 17)
        store.put("large", content)
        chunks = list(store.stream("large"))
        assert len(chunks) > 1
        assert b"".join(chunks) == content

    def test_lines(self, store: Storage) -> None:
        store.put("rows", b"one\n\ntwo\r\nthree")
        assert list(store.lines("rows")) == [b"one", b"", b"two\r", b"three"]
        long = [b"x" * 700_000, b"y" * 700_000, b"z" * 700_000]
        store.put("rows", b"\n".join(long) + b"\n")
        assert list(store.lines("rows")) == long

    def test_an_object_without_line_breaks_is_cut(self, store: Storage) -> None:
        store.put("rows", b"x" * (8 * MAX_LINE_BYTES))
        (line,) = store.lines("rows")
        assert MAX_LINE_BYTES < len(line) < 4 * MAX_LINE_BYTES


def _write_and_fail(write: Callable[[bytes], int], size: int) -> None:
    write(b"x" * size)
    raise KeyError


class TestWriting:
    def test_pieces_become_one_object_at_the_end_of_the_block(self, store: Storage) -> None:
        pieces = [bytes([i]) * 3_000_000 for i in range(9)]
        with store.writing("a/b") as write:
            for piece in pieces:
                write(piece)
            assert not store.exists("a/b")
        assert store.get("a/b") == b"".join(pieces)

    def test_nothing_written_is_an_empty_object(self, store: Storage) -> None:
        with store.writing("a"):
            pass
        assert store.get("a") == b""

    @pytest.mark.parametrize("size", [10, 20_000_000])
    def test_a_block_that_fails_leaves_nothing(self, store: Storage, size: int) -> None:
        with pytest.raises(KeyError), store.writing("a/b") as write:
            _write_and_fail(write, size)
        assert not store.exists("a/b")
        assert store.root is None or not [p for p in store.root.rglob("*") if p.is_file()]

    def test_moving_replaces_what_was_there(self, store: Storage) -> None:
        store.put("from", b"new")
        store.put("to/here", b"old")
        store.move("from", "to/here")
        assert store.get("to/here") == b"new"
        assert not store.exists("from")
        with pytest.raises(StorageMissing):
            store.move("from", "to/here")

    def test_what_is_old_is_removed_below_the_prefix_alone(self, store: Storage) -> None:
        for key in ("in/a", "in/b", "inside", "out/a"):
            store.put(key, b"x")
        now = datetime.now(UTC)
        assert store.delete_older("in", now - timedelta(hours=1)) == 0
        assert store.delete_older("nowhere", now) == 0
        assert store.delete_older("in", now + timedelta(hours=1)) == 2
        assert [store.exists(key) for key in ("in/a", "in/b", "inside", "out/a")] == [
            False,
            False,
            True,
            True,
        ]
        with pytest.raises(ValueError, match="does not name a folder"):
            store.delete_older("", now)

    def test_what_a_killed_process_left_in_a_folder_is_old_too(self, tmp_path: Path) -> None:
        store = Storage(tmp_path.as_uri())
        left = tmp_path / "in" / "a#1"
        left.parent.mkdir()
        left.write_bytes(b"x")
        assert store.delete_older("in", datetime.now(UTC) + timedelta(hours=1)) == 1
        assert not left.exists()


class TestFolders:
    def test_what_is_stored_comes_back(self, store: Storage, folder: Path, cache: Path) -> None:
        store.put_folder("models/m1", folder)
        assert store.has_folder("models/m1")
        assert contents(store.folder("models/m1", cache)) == contents(folder)

    def test_the_hash_follows_the_content(self, store: Storage, folder: Path) -> None:
        first = store.put_folder("models/m1", folder)
        assert store.put_folder("models/m2", folder) == first
        (folder / "weights.bin").write_bytes(b"other")
        assert store.put_folder("models/m2", folder) != first

    def test_the_manifest_is_written_last(
        self, store: Storage, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = []
        put = store.put
        monkeypatch.setattr(
            store, "put", lambda key, content: (keys.append(key), put(key, content))
        )
        store.put_folder("models/m1", folder)
        assert len(keys) == 4
        assert keys[-1] == f"models/m1/{MANIFEST}"

    @pytest.mark.parametrize("puts", [1, 2, 3])
    def test_a_half_written_folder_is_invisible(
        self,
        store: Storage,
        folder: Path,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
        puts: int,
    ) -> None:
        # Once where nothing was before, once over an older folder: never a mix of both.
        for is_first in (True, False):
            left = puts
            put = store.put

            def failing(key: str, content: bytes | Path, put=put) -> None:  # type: ignore[no-untyped-def]
                nonlocal left
                left -= 1
                if left < 0:
                    raise ConnectionError
                put(key, content)

            with monkeypatch.context() as patch:
                patch.setattr(store, "put", failing)
                with pytest.raises(ConnectionError):
                    store.put_folder("models/m1", folder)
            assert not store.has_folder("models/m1")
            assert store.folders("models") == []
            with pytest.raises(StorageMissing):
                store.folder("models/m1", cache)
            if is_first:
                store.put_folder("models/m1", folder)

    def test_a_file_of_an_older_folder_does_not_stay(
        self, store: Storage, folder: Path, cache: Path
    ) -> None:
        store.put_folder("models/m1", folder)
        (folder / "empty").unlink()
        store.put_folder("models/m1", folder)
        assert contents(store.folder("models/m1", cache)) == contents(folder)
        assert not store.exists("models/m1/empty")

    def test_a_folder_from_a_storage_can_be_stored_again(
        self, store: Storage, folder: Path, cache: Path
    ) -> None:
        first = store.put_folder("models/m1", folder)
        assert store.put_folder("models/m2", store.folder("models/m1", cache)) == first
        assert contents(store.folder("models/m2", cache)) == contents(folder)

    def test_folders_are_listed_once_whole(self, store: Storage, folder: Path) -> None:
        for name in ("step-2", "step-1"):
            store.put_folder(f"runs/a/{name}", folder)
        store.put_folder("runs/ab/step-9", folder)
        store.put("runs/a/step-3/weights.bin", b"no manifest yet")
        assert store.folders("runs/a") == ["step-1", "step-2"]
        assert store.folders("runs/none") == []

    def test_names_are_of_what_lies_directly_below_whole_or_not(
        self, store: Storage, folder: Path
    ) -> None:
        assert store.names("runs") == []
        store.put_folder("runs/b/1", folder)
        store.put("runs/a/half", b"x")
        store.put("runs-of-others/c/x", b"x")
        assert store.names("runs") == ["a", "b"]

    def test_delete_removes_one_folder_and_no_neighbour(
        self, store: Storage, folder: Path, cache: Path
    ) -> None:
        for prefix in ("models/m1", "models/m10", "models/m1x/deep"):
            store.put_folder(prefix, folder)
        store.delete_folder("models/m1")
        assert not store.has_folder("models/m1")
        assert not store.exists("models/m1/deep/config.json")
        assert contents(store.folder("models/m10", cache)) == contents(folder)
        assert contents(store.folder("models/m1x/deep", cache)) == contents(folder)
        store.delete_folder("models/m1")

    @pytest.mark.parametrize("prefix", ["", "/", "..", "models/..", "../models", "/etc", "a//b"])
    def test_a_prefix_that_could_name_everything_is_refused(
        self, store: Storage, folder: Path, cache: Path, prefix: str
    ) -> None:
        store.put("kept", b"x")
        with pytest.raises(ValueError, match="does not name a folder"):
            store.delete_folder(prefix)
        with pytest.raises(ValueError, match="does not name a folder"):
            store.put_folder(prefix, folder)
        with pytest.raises(ValueError, match="does not name a folder"):
            store.folder(prefix, cache)
        assert store.exists("kept")


class TestDamage:
    @pytest.mark.parametrize("content", [b"", b"short", bytes(5120)])
    def test_a_changed_file_is_found_out(
        self, store: Storage, folder: Path, cache: Path, content: bytes
    ) -> None:
        store.put_folder("models/m1", folder)
        # The last content is as long as the true one: only its hash tells.
        store.put("models/m1/weights.bin", content)
        with pytest.raises(DamagedFolder, match="models/m1 is damaged"):
            store.folder("models/m1", cache)

    def test_a_lost_file_is_found_out(self, store: Storage, folder: Path, cache: Path) -> None:
        store.put_folder("models/m1", folder)
        store.delete("models/m1/deep/config.json")
        with pytest.raises(StorageMissing):
            store.folder("models/m1", cache)

    @pytest.mark.parametrize(
        "manifest",
        [
            b"",
            b"[]",
            b'{"files": {"a": {}}}',
            b'{"files": {"../../escape": {"sha256": "0"}}}',
            b'{"files": {"/tmp/escape": {"sha256": "0"}}}',
        ],
    )
    def test_a_manifest_that_is_not_ours_is_refused(
        self, store: Storage, folder: Path, cache: Path, manifest: bytes
    ) -> None:
        store.put_folder("models/m1", folder)
        store.put(f"models/m1/{MANIFEST}", manifest)
        with pytest.raises(DamagedFolder):
            store.folder("models/m1", cache)
        assert not (cache.parent / "escape").exists()

    def test_a_repaired_folder_is_read_again(
        self, store: Storage, folder: Path, cache: Path
    ) -> None:
        store.put_folder("models/m1", folder)
        store.put("models/m1/empty", b"x")
        with pytest.raises(DamagedFolder):
            store.folder("models/m1", cache)
        store.put("models/m1/empty", b"")
        assert contents(store.folder("models/m1", cache)) == contents(folder)


class TestCache:
    @pytest.fixture
    def bucket(self, s3_url: str, tmp_path: Path, folder: Path) -> Storage:
        bucket = Storage(f"{s3_url}/{tmp_path.name}")
        bucket.put_folder("models/m1", folder)
        return bucket

    def test_a_copy_is_made_once(
        self, bucket: Storage, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = bucket.folder("models/m1", cache)
        monkeypatch.setattr(bucket, "stream", None)
        assert bucket.folder("models/m1", cache) == first
        assert [path.name for path in cache.iterdir()] == [first.name]

    @pytest.mark.parametrize("content", [None, b"other"])
    def test_a_copy_that_lost_something_is_made_anew(
        self, bucket: Storage, cache: Path, folder: Path, content: bytes | None
    ) -> None:
        copy = bucket.folder("models/m1", cache)
        (copy / "weights.bin").unlink()
        if content is not None:
            (copy / "weights.bin").write_bytes(content)
        assert contents(bucket.folder("models/m1", cache)) == contents(folder)

    def test_new_content_under_an_old_name_is_not_mixed_up(
        self, bucket: Storage, cache: Path, folder: Path
    ) -> None:
        old = bucket.folder("models/m1", cache)
        (folder / "weights.bin").write_bytes(b"new")
        bucket.put_folder("models/m1", folder)
        new = bucket.folder("models/m1", cache)
        assert new != old
        assert (new / "weights.bin").read_bytes() == b"new"


class TestAddress:
    def test_a_folder_whose_name_has_a_space(self, tmp_path: Path) -> None:
        root = tmp_path / "a b ü%20#"
        Storage(root.as_uri()).put("k/v", b"x")
        assert (root / "k" / "v").read_bytes() == b"x"

    @pytest.mark.parametrize(
        "url", ["file://srv/titer", "file:///srv/titer?x", "file:///srv/a#b", "/srv/titer"]
    )
    def test_an_address_that_means_another_place_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - two libraries, two sentences
            Storage(url)

    def test_a_local_folder_is_lent_and_not_copied(self, tmp_path: Path, folder: Path) -> None:
        store = Storage((tmp_path / "store").as_uri())
        store.put_folder("models/m1", folder)
        assert store.folder("models/m1", tmp_path / "cache") == tmp_path / "store/models/m1"
        assert not (tmp_path / "cache").exists()
        manifest = json.loads((tmp_path / "store/models/m1" / MANIFEST).read_bytes())
        assert manifest["files"]["weights.bin"] == {
            "sha256": sha256_of(folder / "weights.bin"),
            "bytes": 5120,
        }
