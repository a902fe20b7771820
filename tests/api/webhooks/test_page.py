"""What docs/webhooks.md says is true: its receiver runs, its tables are complete."""

from __future__ import annotations

import asyncio
import re
import threading
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

from api.webhooks.sender import Message, Sender
from api.webhooks.signing import new_secret
from models.base import utc_now
from models.webhook import WebhookEventType

PAGE = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()


def send(url: str, secret: str) -> int:
    async def once() -> int:
        message = Message("evt_1", WebhookEventType.MODEL_HELD, utc_now(), {"id": "ft:tiny"})
        async with Sender(allow_private=True) as sender:
            return await sender.send(url, message, (secret,))

    return asyncio.run(once())


def test_the_receiver_takes_what_is_signed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"```python receiver\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    *program, last = found.group(1).strip().splitlines()
    assert last == 'HTTPServer(("127.0.0.1", 9000), Hook).serve_forever()'
    secret = new_secret()
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", secret)
    names: dict[str, Any] = {}
    exec("\n".join(program), names)
    names["Hook"].log_message = lambda *_: None
    with HTTPServer(("127.0.0.1", 0), names["Hook"]) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        try:
            assert send(url, secret) == 204
            assert send(url, new_secret()) == 400
        finally:
            server.shutdown()
            thread.join()
    assert capsys.readouterr().out == "titer.model.held ft:tiny\n"


@pytest.mark.parametrize("type", WebhookEventType)
def test_every_type_is_in_the_table(type: WebhookEventType) -> None:
    assert f"`{type}`" in PAGE


def test_every_reason_for_no_answer_is_named() -> None:
    source = (Path(__file__).parents[3] / "api" / "webhooks").glob("*.py")
    reasons = {
        reason
        for path in source
        for reason in re.findall(
            r'(?:NotDelivered\(\s*|Outcome\(error=)"([a-z_]+)"', path.read_text()
        )
    }
    assert len(reasons) == 8
    assert {reason for reason in reasons if f"`{reason}`" not in PAGE} == set()
