"""A chat request: what is carried out, what is ignored as harmless, and what is refused by name.

docs/inference.md has the table.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from api.inference.metering import estimate
from api.schemas import Identifier, Schema

MAX_MESSAGES = 256
MAX_NEW_TOKENS = 8_192
#: What the inference server takes where nothing is sent, if the context has room for it.
DEFAULT_NEW_TOKENS = 512
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 300
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
#: Options that would change the answer, and what may be sent for each because it changes nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "moderation": (),
    "web_search_options": (),
}

#: The bound is the body's own; with one, characters that no encoding can carry are refused as well.
Text = Annotated[str, Field(max_length=2 * 1024 * 1024)]
StopWord = Annotated[str, Field(min_length=1, max_length=256)]
#: A token's number, written as JSON's keys are; the length keeps Python's own limit on digits away.
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


def _without_none(value: object) -> object:
    return False if value is None else value


Flag = Annotated[bool, BeforeValidator(_without_none)]


class TextPart(Schema):
    """One part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(Schema):
    """One turn. The answer's own fields are accepted, so that a conversation can be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
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

    include_usage: Flag = False
    include_obfuscation: Flag = False


class SamplingOptions(Schema):
    """How the answer's tokens are chosen, and in what form they come; chat and completions alike."""

    model: Identifier
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default, is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    stop: StopWord | Annotated[list[StopWord], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: (
        Annotated[
            dict[TokenKey, Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=MAX_BIASES),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def unsupported(self) -> str | None:
        """Name the first option that asks for something Titer does not do."""
        return None

    def sampling(self) -> dict[str, object]:
        """Give these options as the inference server is sent them."""
        fields = set(SamplingOptions.model_fields) - {"stream_options"}
        carried = self.model_dump(exclude_none=True, include=fields)
        # Always sent, because other servers take another default: the served model is the measured one.
        carried.setdefault("temperature", 0.0)
        if self.stream and self.stream_options is not None:
            carried["stream_options"] = {"include_usage": self.stream_options.include_usage}
        return carried


class ChatRequest(SamplingOptions):
    """OpenAI's chat completion, as far as Titer carries it out."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "ft:my-base-titer:acme:mine:k3x9q2ab",
                    "messages": [
                        {"role": "system", "content": "Answer in one sentence."},
                        {"role": "user", "content": "Where is my order?"},
                    ],
                    "max_completion_tokens": 200,
                    "temperature": 0.5,
                    "seed": 1,
                },
            ]
        }
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    # They change nothing about the answer.
    user: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None
    prompt_cache_options: object = None
    prompt_cache_retention: object = None
    prediction: object = None
    metadata: object = None
    store: object = None
    service_tier: object = None
    parallel_tool_calls: object = None
    reasoning_effort: object = None
    verbosity: object = None

    # They would, so they are refused by name (see `UNSUPPORTED`).
    tools: object = None
    tool_choice: object = None
    functions: object = None
    function_call: object = None
    response_format: object = None
    modalities: object = None
    audio: object = None
    moderation: object = None
    web_search_options: object = None

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return value

    def unsupported(self) -> str | None:
        """Name the first option that asks for something Titer does not do."""
        for name, harmless in UNSUPPORTED.items():
            value = getattr(self, name)
            if value is not None and not any(
                value == same and type(value) is type(same) for same in harmless
            ):
                return name
        return None

    def estimated_tokens(self) -> int:
        """Reckon what the request takes at most: the prompt once, and as many whole answers as it asks for."""
        return estimate(
            (message.text for message in self.messages),
            answers=self.n or 1,
            max_tokens=self.max_completion_tokens or self.max_tokens or DEFAULT_NEW_TOKENS,
        )

    def to_serving(self) -> dict[str, object]:
        """Give the body that the inference server is sent."""
        carried = self.sampling()
        if self.max_completion_tokens is not None:
            carried["max_completion_tokens"] = self.max_completion_tokens
        if self.logprobs:
            carried["logprobs"] = True
            carried["top_logprobs"] = self.top_logprobs or 0
        carried["messages"] = [
            {"role": ROLES[message.role], "content": message.text} for message in self.messages
        ]
        return carried
