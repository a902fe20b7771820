"""`titer chat`: one question to a released model."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.connection import Json, connected


def chat(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A released model.")],
    text: Annotated[str, typer.Argument(help="What to say to it.")],
    system: Annotated[str | None, typer.Option(help="A system message before it.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Length at which to cut.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
) -> None:
    """Ask a model; the answer is printed as it comes."""
    connection = connected(context)
    messages = [{"role": "system", "content": system}] if system else []
    options = {"max_completion_tokens": max_tokens, "temperature": temperature}
    body: Json = {
        "model": model,
        "messages": [*messages, {"role": "user", "content": text}],
        "stream": True,
        **{name: value for name, value in options.items() if value is not None},
    }
    for event in connection.stream("/chat/completions", body):
        for choice in event["choices"]:
            typer.echo(choice["delta"].get("content") or "", nl=False)
    typer.echo()
