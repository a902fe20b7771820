"""Models over HTTP: registering bases, who sees what, deletion, and decisions on held models."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from fastapi.testclient import TestClient
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError
from sqlalchemy import select

from api.registry import base_models
from models.job import Job, JobEvent, JobKind, JobStatus
from models.model_version import Gate, ModelVersion, VersionKind
from tests.api.base_folders import safetensors, write_base, write_safety_set
from tests.api.conftest import Place, Tenant

MODELS, BASES = "/v1/models", "/v1/base_models"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_base(tmp_path / "models of ours" / "tiny-base")


@pytest.fixture
def safety_set(tmp_path: Path) -> Path:
    return write_safety_set(tmp_path / "safety set")


def refused(operator: Tenant, folder: Path, safety_set: Path) -> dict[str, object]:
    response = operator.client.post(
        BASES, json={"source": str(folder), "safety_set": str(safety_set)}
    )
    assert response.status_code == 400, response.text
    return dict(response.json()["error"])


class TestRegister:
    def test_only_operators(self, anonymous: TestClient, customer: Tenant) -> None:
        body = {"source": "x", "safety_set": "y"}
        assert anonymous.post(BASES, json=body).status_code == 401
        assert customer.client.post(BASES, json=body).status_code == 403

    def test_a_folder_is_hashed_and_its_safety_set_kept(
        self, operator: Tenant, folder: Path, safety_set: Path, place: Place
    ) -> None:
        body = {"source": str(folder), "safety_set": str(safety_set)}
        model = operator.client.post(BASES, json=body).json()
        assert (model["id"], model["kind"], model["gate"]) == ("tiny-base", "base", "pending")
        assert model["root"] == "tiny-base"
        assert model["source"] == {"folder": str(folder)}
        assert set(model["data_hashes"]) == {"base", "safety_set"}
        version = place.session.get_one(ModelVersion, "tiny-base")
        assert version.safety_prefix == f"safety/{model['data_hashes']['safety_set']}"
        assert place.storage.has_folder(version.safety_prefix)
        again = operator.client.post(BASES, json=body)
        assert again.status_code == 409
        assert again.json()["error"]["code"] == "model_name_taken"
        other = operator.client.post(BASES, json={**body, "name": "org/other"}).json()
        assert other["id"] == "org/other"
        assert other["data_hashes"] == model["data_hashes"]

    def test_the_hash_follows_the_weights(
        self, operator: Tenant, folder: Path, safety_set: Path
    ) -> None:
        body = {"source": str(folder), "safety_set": str(safety_set)}
        one = operator.client.post(BASES, json=body).json()
        (folder / "model.safetensors").write_bytes(safetensors()[:-1] + b"\x01")
        two = operator.client.post(BASES, json={**body, "name": "changed"}).json()
        assert one["data_hashes"]["base"] != two["data_hashes"]["base"]

    def test_a_missing_chat_template_is_recorded_by_name(
        self, operator: Tenant, folder: Path, safety_set: Path
    ) -> None:
        (folder / "tokenizer_config.json").write_text("{}")
        body = {"source": str(folder), "safety_set": str(safety_set)}
        model = operator.client.post(BASES, json=body).json()
        assert model["source"]["chat_template"] == "fallback-plain"

    def test_a_template_in_a_file_of_its_own_counts(
        self, operator: Tenant, folder: Path, safety_set: Path
    ) -> None:
        (folder / "tokenizer_config.json").unlink()
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        body = {"source": str(folder), "safety_set": str(safety_set)}
        assert "chat_template" not in operator.client.post(BASES, json=body).json()["source"]

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
    def test_a_missing_file_is_named(
        self, operator: Tenant, folder: Path, safety_set: Path, name: str
    ) -> None:
        (folder / name).unlink()
        error = refused(operator, folder, safety_set)
        assert error["code"] == "invalid_base_model"
        assert error["param"] == "source"

    def test_a_folder_that_the_system_will_not_look_at_is_refused(
        self, operator: Tenant, folder: Path, safety_set: Path
    ) -> None:
        # As root, who tests may be, no folder is shut; but for everybody a name may be too long.
        nowhere = folder / ("x" * 300)
        assert refused(operator, nowhere, safety_set)["code"] == "invalid_base_model"
        assert refused(operator, folder, nowhere)["code"] == "invalid_safety_set"

    def test_pickled_weights_are_refused_with_the_reason(
        self, operator: Tenant, folder: Path, safety_set: Path
    ) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "pickled" in str(refused(operator, folder, safety_set)["message"])

    @pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
    def test_code_that_comes_with_weights_is_refused(
        self, operator: Tenant, folder: Path, safety_set: Path, name: str
    ) -> None:
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
        assert refused(operator, folder, safety_set)["code"] == "remote_code_refused"

    @pytest.mark.parametrize(
        "config",
        ["", "[]", "{}", '{"architectures": []}', '{"architectures": ["BertForMaskedLM"]}'],
    )
    def test_what_is_no_causal_model_is_refused(
        self, operator: Tenant, folder: Path, safety_set: Path, config: str
    ) -> None:
        (folder / "config.json").write_text(config)
        assert refused(operator, folder, safety_set)["code"] == "invalid_base_model"

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n",
            safetensors()[:-1],
            safetensors() + b"x",
            b"\xff" * 64,
        ],
    )
    def test_weights_that_are_not_whole_are_refused(
        self, operator: Tenant, folder: Path, safety_set: Path, content: bytes
    ) -> None:
        (folder / "model.safetensors").write_bytes(content)
        assert "not a whole" in str(refused(operator, folder, safety_set)["message"])

    def test_a_missing_shard_is_named(
        self, operator: Tenant, folder: Path, safety_set: Path
    ) -> None:
        index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "model-00002" in str(refused(operator, folder, safety_set)["message"])

    def test_a_faulty_safety_set_is_refused(
        self, operator: Tenant, folder: Path, safety_set: Path, tmp_path: Path
    ) -> None:
        (safety_set / "canary.jsonl").unlink()
        error = refused(operator, folder, safety_set)
        assert (error["code"], error["param"]) == ("invalid_safety_set", "safety_set")
        assert "canary.jsonl" in str(error["message"])
        assert refused(operator, folder, tmp_path / "none")["code"] == "invalid_safety_set"

    def test_an_absent_folder_is_refused(self, operator: Tenant, safety_set: Path) -> None:
        error = refused(operator, Path("/no/such/folder"), safety_set)
        assert error["param"] == "source"


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> SimpleNamespace:
        """A hub that holds one repository, the same as the folder, and may be made to fail."""
        hub = SimpleNamespace(error=None, asked=[])

        def model_info(_: object, repo: str, **facts: object) -> SimpleNamespace:
            hub.asked.append((repo, facts["revision"]))
            if hub.error is not None:
                raise hub.error
            names = [SimpleNamespace(rfilename=path.name) for path in folder.iterdir()]
            return SimpleNamespace(sha="c0ffee", siblings=names)

        def download(_: str, name: str, **facts: object) -> str:
            assert facts["revision"] == "c0ffee"
            return str(folder / name)

        monkeypatch.setattr(base_models.HfApi, "model_info", model_info)
        monkeypatch.setattr(base_models, "hf_hub_download", download)
        return hub

    def test_a_revision_is_pinned_to_its_commit(
        self, operator: Tenant, safety_set: Path, hub: SimpleNamespace
    ) -> None:
        body = {"source": "org/tiny", "revision": "main", "safety_set": str(safety_set)}
        model = operator.client.post(BASES, json=body).json()
        assert model["id"] == "org/tiny"
        assert model["source"] == {"repo": "org/tiny", "revision": "c0ffee"}
        assert hub.asked == [("org/tiny", "main")]

    @pytest.mark.parametrize(
        "error", [OfflineModeIsEnabled("offline"), httpx2.ConnectError("no route"), OSError("dns")]
    )
    def test_an_unreachable_hub_is_said_plainly(
        self, operator: Tenant, safety_set: Path, hub: SimpleNamespace, error: Exception
    ) -> None:
        hub.error = error
        body = {"source": "org/tiny", "safety_set": str(safety_set)}
        response = operator.client.post(BASES, json=body)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "hub_unavailable"
        assert "folder" in response.json()["error"]["message"]

    def test_an_unknown_repository_is_a_fault_of_the_request(
        self, operator: Tenant, safety_set: Path, hub: SimpleNamespace
    ) -> None:
        answer = httpx2.Response(404, request=httpx2.Request("GET", "http://hub"))
        hub.error = RepositoryNotFoundError("gone", response=answer)
        body = {"source": "org/none", "safety_set": str(safety_set)}
        assert operator.client.post(BASES, json=body).status_code == 400


class TestSeeing:
    @pytest.fixture
    def names(self, place: Place, customer: Tenant, aligned: ModelVersion) -> None:
        base = place.session.get_one(ModelVersion, "tiny")
        place.version("bad", VersionKind.ALIGNED, gate=Gate.BLOCKED, parent=base)
        for name, gate in (("ft:mine", Gate.RELEASED), ("ft:held", Gate.HELD)):
            place.version(
                name, VersionKind.TUNED, gate=gate, parent=aligned, project=customer.project
            )
        place.session.commit()

    @pytest.mark.usefixtures("names")
    def test_lists(self, customer: Tenant, stranger: Tenant, operator: Tenant) -> None:
        def listed(tenant: Tenant) -> set[str]:
            return {model["id"] for model in tenant.client.get(MODELS).json()["data"]}

        assert listed(customer) == {"tiny-booster", "ft:mine"}
        assert listed(stranger) == {"tiny-booster"}
        assert listed(operator) == {"tiny", "tiny-booster", "bad", "ft:mine", "ft:held"}

    @pytest.mark.usefixtures("names")
    @pytest.mark.parametrize(
        ("model", "for_customer", "for_stranger"),
        [
            ("tiny", 404, 404),
            ("bad", 404, 404),
            ("tiny-booster", 200, 200),
            ("ft:mine", 200, 404),
            ("ft:held", 200, 404),
            ("none", 404, 404),
        ],
    )
    def test_one(
        self,
        anonymous: TestClient,
        customer: Tenant,
        stranger: Tenant,
        operator: Tenant,
        model: str,
        for_customer: int,
        for_stranger: int,
    ) -> None:
        assert anonymous.get(f"{MODELS}/{model}").status_code == 401
        assert customer.client.get(f"{MODELS}/{model}").status_code == for_customer
        assert stranger.client.get(f"{MODELS}/{model}").status_code == for_stranger
        expected = 404 if model == "none" else 200
        assert operator.client.get(f"{MODELS}/{model}").status_code == expected

    def test_anonymous_is_asked_for_a_key(self, anonymous: TestClient) -> None:
        assert anonymous.get(MODELS).status_code == 401

    def test_a_name_with_slashes_is_found_either_way(self, operator: Tenant, place: Place) -> None:
        place.version("meta/tiny", VersionKind.BASE)
        place.session.commit()
        for address in ("meta/tiny", "meta%2Ftiny"):
            assert operator.client.get(f"{MODELS}/{address}").json()["id"] == "meta/tiny"

    def test_safety_shows_before_and_after(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        version, _ = place.held(customer.project, aligned)
        shown = customer.client.get(f"{MODELS}/{version.id}").json()
        assert shown["safety"]["harmful_score"]["percent"] == 15.0
        assert shown["safety"]["base"]["harmful_score"]["percent"] == 2.0
        assert shown["owned_by"] == customer.project.organization_id
        assert shown["source"] is None


class TestDelete:
    def test_own_tuned_models_only(
        self,
        anonymous: TestClient,
        customer: Tenant,
        stranger: Tenant,
        aligned: ModelVersion,
        place: Place,
    ) -> None:
        own = place.version("ft:mine", VersionKind.TUNED, parent=aligned, project=customer.project)
        place.storage.put("m/ft:mine/manifest.json", b"{}")
        place.session.commit()
        address = f"{MODELS}/{own.id}"
        assert anonymous.delete(address).status_code == 401
        assert stranger.client.delete(address).status_code == 404
        assert customer.client.delete(f"{MODELS}/{aligned.id}").status_code == 403
        assert customer.client.delete(address).json() == {
            "id": own.id,
            "object": "model",
            "deleted": True,
        }
        assert customer.client.get(address).status_code == 404
        assert not place.storage.has_folder("m/ft:mine")

    def test_what_something_rests_on_stays(
        self, customer: Tenant, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        own = place.version("ft:mine", VersionKind.TUNED, parent=aligned, project=customer.project)
        job = place.job(customer.project, own)
        place.session.commit()
        response = operator.client.delete(f"{MODELS}/{aligned.id}")
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "model_in_use"
        assert customer.client.delete(f"{MODELS}/{own.id}").status_code == 409
        job.status = JobStatus.CANCELLED
        place.session.commit()
        assert operator.client.delete(f"{MODELS}/{own.id}").status_code == 200
        assert operator.client.delete(f"{MODELS}/{aligned.id}").status_code == 200

    def test_a_measurement_that_the_provider_has_paused_keeps_no_model(
        self, customer: Tenant, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        own = place.version("ft:mine", VersionKind.TUNED, parent=aligned, project=customer.project)
        measuring = place.job(
            operator.project, own, kind=JobKind.EVALUATE, result_model_id=own.id, recipe={}
        )
        place.session.commit()
        assert customer.client.delete(f"{MODELS}/{own.id}").status_code == 409
        measuring.status = JobStatus.PAUSED
        place.session.commit()
        assert customer.client.delete(f"{MODELS}/{own.id}").status_code == 200

    def test_a_model_whose_job_still_runs_stays(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        version, _ = place.held(customer.project, aligned)
        place.session.commit()
        assert customer.client.delete(f"{MODELS}/{version.id}").status_code == 409


class TestReview:
    def test_only_operators(
        self, anonymous: TestClient, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        version, _ = place.held(customer.project, aligned)
        place.session.commit()
        body = {"decision": "release", "reason": "r"}
        address = f"{MODELS}/{version.id}/review"
        assert anonymous.post(address, json=body).status_code == 401
        assert customer.client.post(address, json=body).status_code == 403

    @pytest.mark.parametrize(
        ("decision", "gate", "status", "code"),
        [
            ("release", "released", "succeeded", None),
            ("reject", "blocked", "failed", "harmful_score_exceeded"),
        ],
    )
    def test_a_decision_ends_the_job_and_is_kept(
        self,
        customer: Tenant,
        operator: Tenant,
        aligned: ModelVersion,
        place: Place,
        decision: str,
        gate: str,
        status: str,
        code: str | None,
    ) -> None:
        version, job = place.held(customer.project, aligned)
        place.session.commit()
        body = {"decision": decision, "reason": "looked at twenty answers"}
        answer = operator.client.post(f"{MODELS}/{version.id}/review", json=body).json()
        assert answer["model"]["gate"] == gate
        assert "looked at twenty answers" in answer["model"]["gate_reasons"][-1]
        assert (answer["job"], answer["status"]) == (job.id, status)
        place.session.expire_all()
        stored = place.session.get_one(Job, job.id)
        assert stored.error_code == code
        event = place.session.scalars(
            select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.type == "review")
        ).one()
        assert event.data is not None
        assert (event.data["decision"], event.data["reason"]) == (decision, body["reason"])
        assert str(event.data["key"]).startswith("key-")
        again = operator.client.post(f"{MODELS}/{version.id}/review", json=body)
        assert again.status_code == 409
        assert again.json()["error"]["code"] == "model_not_held"

    @pytest.mark.parametrize("model", ["tiny", "tiny-booster"])
    def test_what_nobody_waits_for_is_a_conflict(
        self, operator: Tenant, aligned: ModelVersion, model: str
    ) -> None:
        body = {"decision": "release", "reason": "r"}
        assert operator.client.post(f"{MODELS}/{model}/review", json=body).status_code == 409

    def test_a_cancelled_jobs_model_cannot_be_released(
        self, customer: Tenant, operator: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        version, job = place.held(customer.project, aligned)
        place.session.commit()
        customer.client.post(f"/v1/fine_tuning/jobs/{job.id}/cancel")
        body = {"decision": "release", "reason": "r"}
        assert operator.client.post(f"{MODELS}/{version.id}/review", json=body).status_code == 409
        place.session.expire_all()
        assert place.session.get_one(ModelVersion, version.id).gate != Gate.RELEASED

    @pytest.mark.parametrize(
        "body", [{}, {"decision": "maybe", "reason": "r"}, {"decision": "release", "reason": ""}]
    )
    def test_a_reason_is_needed(
        self, operator: Tenant, aligned: ModelVersion, body: dict[str, str]
    ) -> None:
        response = operator.client.post(f"{MODELS}/{aligned.id}/review", json=body)
        assert response.status_code == 400

    def test_alignment_jobs_are_reviewed_the_same_way(
        self, operator: Tenant, base: ModelVersion, place: Place
    ) -> None:
        job = place.job(
            operator.project,
            base,
            kind=JobKind.ALIGN,
            result_model_id="tiny-sft",
            status=JobStatus.RUNNING,
            stage="review",
        )
        place.version("tiny-sft", VersionKind.ALIGNED, gate=Gate.HELD, parent=base, job=job)
        place.session.commit()
        body = {"decision": "release", "reason": "r"}
        answer = operator.client.post(f"{MODELS}/tiny-sft/review", json=body).json()
        assert answer["status"] == "succeeded"
