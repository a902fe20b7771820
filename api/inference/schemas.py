"""A chat request: what is carried out, what is ignored as harmless, and what is refused by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from api.schemas import Identifier, Schema

MAX_MESSAGES = 256
MAX_NEW_TOKENS = 8_192
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
#: Options that would change the answer, and what may be sent for each because it changes nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "moderation": (),
}


class TextPart(Schema):
    """One part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Schema):
    """One turn. The answer's own fields are accepted, so that a conversation can be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[object], Field(max_length=0)] | None = None
    function_call: None = None
    audio: None = None
    annotations: list[object] | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(Schema):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(Schema):
    """OpenAI's chat completion, as far as Titer carries it out."""

    model: Identifier
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default, is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    stop: (
        Annotated[str, Field(min_length=1, max_length=256)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=4)]
        | None
    ) = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # They change nothing about the answer.
    user: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None
    prompt_cache_retention: object = None
    metadata: object = None
    store: object = None
    service_tier: object = None
    parallel_tool_calls: object = None
    reasoning_effort: object = None
    verbosity: object = None

    # They would, so they are refused by name (see `UNSUPPORTED`).
    n: object = None
    tools: object = None
    tool_choice: object = None
    functions: object = None
    function_call: object = None
    logprobs: object = None
    top_logprobs: object = None
    logit_bias: object = None
    presence_penalty: object = None
    frequency_penalty: object = None
    response_format: object = None
    modalities: object = None
    audio: object = None
    moderation: object = None

    def unsupported(self) -> str | None:
        """Name the first option that asks for something Titer does not do."""
        for name, harmless in UNSUPPORTED.items():
            value = getattr(self, name)
            if value is not None and not any(
                value == same and type(value) is type(same) for same in harmless
            ):
                return name
        return None

    def to_serving(self) -> dict[str, object]:
        """Give the body that the inference server is sent."""
        carried = self.model_dump(
            exclude_none=True,
            include={
                "model",
                "temperature",
                "top_p",
                "max_tokens",
                "max_completion_tokens",
                "stop",
                "seed",
                "stream",
            },
        )
        carried["messages"] = [
            {"role": ROLES[message.role], "content": message.text} for message in self.messages
        ]
        if self.stream and self.stream_options is not None:
            carried["stream_options"] = {"include_usage": self.stream_options.include_usage}
        return carried
