"""One embedded service for the run, with the sandbox's machinery at a fraction of its size.

The world is real (its tokenizer, its judge, its prompts), but its base is trained for a moment only: these
tests ask whether jobs go their way, not whether a defence works; `benchmarks/` asks that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from openai import OpenAI

from api.embedded.service import EmbeddedService
from worker.sandbox.build import SandboxPaths, build
from worker.sandbox.pretrain import PretrainConfig

#: Long enough for a loaded machine; nothing waits for it when all is well.
DEADLINE_SECONDS = 180.0


@dataclass(frozen=True)
class Running:
    """A running service, the stock client on it, and the world on disk."""

    service: EmbeddedService
    client: OpenAI
    world: SandboxPaths


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> SandboxPaths:
    config = PretrainConfig(steps=40)
    return build(tmp_path_factory.mktemp("sandbox") / "small world", seed=0, config=config)


@pytest.fixture(scope="session")
def running(
    tmp_path_factory: pytest.TempPathFactory, small_world: SandboxPaths
) -> Iterator[Running]:
    state = tmp_path_factory.mktemp("embedded") / "state with a space"
    fast = {"TITER_LEASE_SECONDS": "4", "TITER_SWEEP_SECONDS": "0.5", "OMP_NUM_THREADS": "1"}
    with EmbeddedService(state, environment=fast) as service:
        client = OpenAI(base_url=f"{service.base_url}/v1", api_key=service.api_key, max_retries=0)
        yield Running(service, client, small_world)
