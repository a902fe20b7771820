"""A legacy completion request: what is carried out, what is ignored, and what is refused by name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from api.inference.metering import estimate
from api.inference.schemas import SamplingOptions, Text

MAX_PROMPTS = 16
MAX_TOP_LOGPROBS = 5
# OpenAI's own default for this endpoint.
DEFAULT_NEW_TOKENS = 16


class CompletionRequest(SamplingOptions):
    """OpenAI's legacy completion, as far as Titer carries it out."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None

    # It changes nothing about the answer.
    user: object = None

    # They would, so they are refused by name.
    suffix: object = None
    best_of: object = None

    @property
    def prompts(self) -> list[str]:
        """The prompts, also where there is one."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def choices(self) -> int:
        """How many answers each prompt gets."""
        return self.n or 1

    def unsupported(self) -> str | None:
        """Name the first option that asks for something Titer does not do."""
        if self.suffix not in (None, ""):
            return "suffix"
        if self.best_of is not None and self.best_of != self.choices:
            return "best_of"
        # The prompt's own log probabilities would be asked for with it.
        if self.echo and self.logprobs is not None:
            return "echo"
        return None

    def estimated_tokens(self) -> int:
        """Reckon what the request takes at most: each prompt once, and as many whole answers as it asks for."""
        return estimate(
            self.prompts,
            answers=self.choices * len(self.prompts),
            max_tokens=self.max_tokens or DEFAULT_NEW_TOKENS,
        )

    def to_serving(self, prompt: str) -> dict[str, object]:
        """Give the chat request that one prompt becomes."""
        carried = self.sampling()
        carried.setdefault("max_tokens", DEFAULT_NEW_TOKENS)
        if self.logprobs is not None:
            carried["logprobs"] = True
            carried["top_logprobs"] = self.logprobs
        if self.stream:
            # Always counted, because the counts of several prompts have to be added.
            carried["stream_options"] = {"include_usage": True}
        carried["messages"] = [{"role": "user", "content": prompt}]
        return carried
