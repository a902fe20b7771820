"""The stock asynchronous client, strictly validating, on what no other test asks of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI

from models.model_version import ModelVersion
from tests.api.conftest import Tenant, rows
from tests.api.server import serve
from tests.api.test_moderations import judged
from tests.api.test_openai_client import ANSWER

# Each test starts a server.
pytestmark = pytest.mark.long

Use = Callable[[AsyncOpenAI], Coroutine[Any, Any, None]]
Run = Callable[[Tenant, Use], None]


@pytest.fixture
def run(app: FastAPI) -> Iterator[Run]:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/judgements":
            return judged(None)
        return httpx.Response(200, json=ANSWER)

    with serve(app) as address:
        app.state.serving = httpx.AsyncClient(
            transport=httpx.MockTransport(answer), base_url="http://serving"
        )

        async def with_client(tenant: Tenant, use: Use) -> None:
            async with AsyncOpenAI(
                base_url=f"{address}/v1",
                api_key=tenant.token,
                admin_api_key=tenant.token,
                max_retries=0,
                _strict_response_validation=True,
            ) as client:
                await use(client)

        yield lambda tenant, use: asyncio.run(with_client(tenant, use))


def test_answers_and_judgements(run: Run, customer: Tenant, aligned: ModelVersion) -> None:
    async def use(client: AsyncOpenAI) -> None:
        said = await client.chat.completions.create(
            model=aligned.id, messages=[{"role": "user", "content": "x"}]
        )
        assert said.choices[0].message.content == "hi"
        completed = await client.completions.create(model=aligned.id, prompt="x")
        assert completed.choices[0].text == "hi"
        judgement = await client.moderations.create(input="x", model=aligned.id)
        assert not judgement.results[0].flagged
        assert aligned.id in [model.id async for model in client.models.list()]
        assert (await client.models.retrieve(aligned.id)).id == aligned.id

    run(customer, use)


def test_an_upload_by_hand(run: Run, customer: Tenant) -> None:
    async def use(client: AsyncOpenAI) -> None:
        upload = await client.uploads.create(
            bytes=len(rows()), filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune"
        )
        part = await client.uploads.parts.create(upload.id, data=rows())
        made = await client.uploads.complete(upload.id, part_ids=[part.id])
        assert made.file is not None
        assert (await client.files.retrieve(made.file.id)).bytes == len(rows())

    run(customer, use)


def test_administration(run: Run, operator: Tenant) -> None:
    async def use(client: AsyncOpenAI) -> None:
        organization = client.admin.organization
        made = await organization.projects.create(name="new")
        assert made.id in [project.id async for project in organization.projects.list()]
        assert [key async for key in organization.projects.api_keys.list(made.id)] == []
        assert [entry async for entry in organization.audit_logs.list()]
        assert (await organization.projects.archive(made.id)).status == "archived"

    run(operator, use)
