"""A job's adapter, exported, in other hands: stock PEFT loads it, and it is the one that was measured."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from api.export import service
from models.job import JobStatus
from models.model_version import ModelVersion
from models.tuning import LoxConfig, TuningProtection
from tests.tiny_model import tiny_model
from tests.worker.toy_provider import ROWS, Provider
from worker.work import with_version

pytestmark = pytest.mark.long

IDS = torch.tensor([[1, 5, 9, 12, 7, 3]])


def exported(provider: Provider, version: ModelVersion, folder: Path) -> Path:
    storage = provider.shop.storage
    content = b"".join(service.tar(storage, service.prepare(storage, version, None)))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def stock_logits(folder: Path) -> torch.Tensor:
    """What the adapter does on the raw base, with nothing of ours but the base's weights."""
    with torch.no_grad():
        return PeftModel.from_pretrained(tiny_model(), folder).eval()(IDS).logits  # type: ignore[no-any-return]


def measured_logits(provider: Provider, version: ModelVersion) -> torch.Tensor:
    """What the evaluation stage asked."""
    with with_version(version, provider.base, provider.shop) as (_, model), torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


@pytest.fixture(params=["plain", "repaired"])
def version(request: pytest.FixtureRequest, provider: Provider) -> ModelVersion:
    provider.run(provider.align())
    tuning = (
        TuningProtection(repair=LoxConfig(rank=2), scales=(1.0, 0.5))
        if request.param == "repaired"
        else None
    )
    job = provider.run(provider.finetune(ROWS, provider.version("toy-sft"), tuning=tuning))
    assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
    return provider.version(job.result_model_id)


def test_stock_peft_computes_what_was_measured(
    provider: Provider, version: ModelVersion, tmp_path: Path
) -> None:
    folder = exported(provider, version, tmp_path / "mine")
    assert sorted(path.name for path in folder.iterdir()) == sorted(service.ADAPTER_FILES)
    ours, theirs = measured_logits(provider, version), stock_logits(folder)
    assert torch.allclose(ours, theirs, atol=1e-6)
    with torch.no_grad():
        assert not torch.allclose(tiny_model().eval()(IDS).logits, theirs, atol=1e-4)


def test_its_form_is_one_that_vllm_takes(
    provider: Provider, version: ModelVersion, tmp_path: Path
) -> None:
    folder = exported(provider, version, tmp_path / "mine")
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    # What vLLM's reader of adapters needs, and what it refuses.
    assert config["peft_type"] == "LORA"
    assert isinstance(config["r"], int)
    assert config["r"] > 0
    assert isinstance(config["lora_alpha"], int | float)
    assert isinstance(config["target_modules"], list)
    # By the last part of a module's name, as the tensors are.
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == linear
    assert config["bias"] == "none"
    assert config["init_lora_weights"] is True
    refused = (
        *("modules_to_save", "use_dora", "lora_bias", "alora_invocation_tokens"),
        *("layer_replication", "use_bdlora", "use_qalora", "rank_pattern", "alpha_pattern"),
    )
    assert not [name for name in refused if config.get(name)]
    # The name of this machine's folders is nobody's business.
    assert str(provider.folder) not in json.dumps(config)
