"""Adapters to take along: who may have which, and what the stream carries."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import select

from api.export import service
from api.safety.signature import Signer, verify
from models.audit import AuditEntry
from models.model_version import Gate, ModelVersion
from models.settings import Settings
from models.storage import DamagedFolder, Storage
from tests.api.adapters import CONFIG, WEIGHTS, store, tuned
from tests.api.conftest import Place, Tenant

SEED = "0b" * 32
KEY = Signer(SEED).verifying_key


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"signing_key": SecretStr(SEED)})


@pytest.fixture
def released(place: Place, customer: Tenant, aligned: ModelVersion, tmp_path: Path) -> ModelVersion:
    return tuned(place, customer, aligned, tmp_path / "adapter")[0]


def allow(place: Place, version: ModelVersion, is_allowed: bool | None = True) -> None:
    header = {"name": "x", "judge": {"kind": "sandbox"}, "adapter_export": is_allowed}
    place.storage.put(f"{version.safety_prefix}/safety.json", json.dumps(header).encode())


def address(version: ModelVersion) -> str:
    return f"/v1/models/{version.id}/export"


def files(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
        assert all(member.isreg() and member.mode == 0o644 for member in members)
        return {m.name: archive.extractfile(m).read() for m in members}  # type: ignore[union-attr]


class TestExport:
    def test_carries_the_adapter_and_its_signed_report(
        self, place: Place, customer: Tenant, released: ModelVersion
    ) -> None:
        allow(place, released)
        response = customer.client.get(address(released))
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-tar"
        assert int(response.headers["content-length"]) == len(response.content)
        found = files(response.content)
        assert list(found) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "safety_report.json",
        ]
        assert (found["adapter_config.json"], found["adapter_model.safetensors"]) == (
            CONFIG,
            WEIGHTS,
        )
        report = verify(found["safety_report.json"], {KEY.id: KEY})
        assert report["weights"]["sha256"] == released.data_hashes["adapter"]
        entry = place.session.scalars(select(AuditEntry)).one()
        assert (entry.action, entry.subject_id) == ("model.exported", released.id)

    def test_carries_nothing_else_that_lies_beside_it(
        self, place: Place, customer: Tenant, released: ModelVersion, tmp_path: Path
    ) -> None:
        store(place, released, tmp_path / "more", **{"adapter_model.bin": b"pickle"})
        allow(place, released)
        found = files(customer.client.get(address(released)).content)
        assert set(found) == {*service.ADAPTER_FILES, service.REPORT_FILE}

    def test_is_off_unless_the_provider_says_so(
        self, place: Place, customer: Tenant, released: ModelVersion
    ) -> None:
        for is_allowed in (None, False):
            allow(place, released, is_allowed)
            refused = customer.client.get(address(released))
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "export_not_allowed"

    @pytest.mark.parametrize("gate", [Gate.PENDING, Gate.HELD, Gate.BLOCKED])
    def test_is_for_released_models_alone_whoever_asks(
        self,
        place: Place,
        customer: Tenant,
        operator: Tenant,
        aligned: ModelVersion,
        tmp_path: Path,
        gate: Gate,
    ) -> None:
        version, *_ = tuned(place, customer, aligned, tmp_path / "a", gate=gate)
        allow(place, version)
        for tenant in (customer, operator):
            refused = tenant.client.get(address(version))
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_blocked")

    def test_is_nobody_elses(
        self, place: Place, stranger: Tenant, anonymous: TestClient, released: ModelVersion
    ) -> None:
        allow(place, released)
        assert stranger.client.get(address(released)).status_code == 404
        assert anonymous.get(address(released)).status_code == 401

    def test_aligned_adapters_are_for_staff(
        self,
        place: Place,
        customer: Tenant,
        operator: Tenant,
        aligned: ModelVersion,
        tmp_path: Path,
    ) -> None:
        store(place, aligned, tmp_path / "a")
        allow(place, aligned)
        refused = customer.client.get(address(aligned))
        assert refused.json()["error"]["code"] == "export_not_allowed"
        assert set(files(operator.client.get(address(aligned)).content)) >= set(
            service.ADAPTER_FILES
        )

    def test_a_model_with_weights_of_its_own_has_no_adapter(
        self, place: Place, operator: Tenant, aligned: ModelVersion
    ) -> None:
        aligned.source = {**aligned.source, "form": "weights"}
        place.session.commit()
        refused = operator.client.get(address(aligned))
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_adapter")

    def test_files_that_were_not_measured_are_not_sent(
        self, place: Place, customer: Tenant, released: ModelVersion, tmp_path: Path
    ) -> None:
        allow(place, released)
        (tmp_path / "adapter" / "adapter_config.json").write_bytes(b"{}")
        place.storage.put_folder(released.source["prefix"], tmp_path / "adapter")
        refused = customer.client.get(address(released))
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "content_damaged")


class TestSetting:
    @pytest.fixture(params=["never", "always"])
    def settings(self, settings: Settings, request: pytest.FixtureRequest) -> Settings:
        return settings.model_copy(update={"adapter_export": request.param})

    def test_goes_before_the_safety_set(
        self, place: Place, customer: Tenant, released: ModelVersion, settings: Settings
    ) -> None:
        allow(place, released, settings.adapter_export == "never")
        wanted = 403 if settings.adapter_export == "never" else 200
        assert customer.client.get(address(released)).status_code == wanted


class TestStream:
    def test_ends_before_the_last_chunk_of_a_file_that_was_flipped(
        self, storage: Storage, released: ModelVersion
    ) -> None:
        export = service.prepare(storage, released, None)
        flipped = bytearray(WEIGHTS)
        flipped[-1] ^= 1
        storage.put(f"{export.prefix}/adapter_model.safetensors", bytes(flipped))
        sent: list[bytes] = []
        with pytest.raises(DamagedFolder):
            sent.extend(service.tar(storage, export))
        assert 0 < sum(map(len, sent)) < len(CONFIG) + len(WEIGHTS)

    def test_its_memory_does_not_grow_with_the_adapter(
        self, place: Place, released: ModelVersion, storage: Storage, tmp_path: Path
    ) -> None:
        large = bytes(48 * 1024 * 1024)
        store(place, released, tmp_path / "large", **{"adapter_model.safetensors": large})
        del large
        export = service.prepare(storage, released, None)
        tracemalloc.start()
        length = sum(map(len, service.tar(storage, export)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert length == export.bytes
        assert peak < 8 * 1024 * 1024
