"""One answer at a time from one resident base and one adapter on it, piece by piece.

A lock guards the model: the built-in server is for small models, where waiting in line is cheaper than
holding several copies. Knows nothing of HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import cast

import torch
from peft import PeftModel
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from models.errors import DomainError
from models.model_version import ModelVersion
from models.rows import Message
from models.storage import Storage
from worker import lora
from worker.base_models import LoadedBase, ResidentBase
from worker.generation import answering, encode_prompt, stop_ids
from worker.work import root_folder

DEFAULT_NEW_TOKENS = 512
# No token takes this long; a generation thread that died without a word must not hang its reader.
TOKEN_TIMEOUT_SECONDS = 120.0


class PromptTooLong(DomainError):
    """The prompt does not fit the model's context."""

    code = "context_length_exceeded"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked for. `max_new_tokens` None: as many as fit, within a default."""

    messages: tuple[Message, ...]
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


class Speaker:
    """Keeps the last used base and adapter in memory and lends them to one completion at a time."""

    def __init__(self, storage: Storage, cache: Path) -> None:
        """Remember where adapters are; nothing is loaded yet."""
        self._storage = storage
        self._cache = cache
        self._bases = ResidentBase()
        self._adapted: tuple[str, PeftModel] | None = None
        self._lock = threading.Lock()

    def prepare(self, version: ModelVersion, root: ModelVersion, asked: Asked) -> Completion:
        """Check that the prompt fits, and give the completion, not yet begun.

        Raises:
            PromptTooLong: it does not fit.
            BaseUnavailable: the base cannot be loaded here.
        """
        with self._lock:
            base = self._base(root)
        prompt = encode_prompt(base.tokenizer, asked.messages)
        room = base.context_length - len(prompt)
        if room < 1 or (asked.max_new_tokens or 0) > room:
            raise PromptTooLong(
                f"The model reads {base.context_length} tokens; the prompt has {len(prompt)} and "
                f"{asked.max_new_tokens or 1} more are asked for.",
                param="messages",
            )
        limit = asked.max_new_tokens or min(room, DEFAULT_NEW_TOKENS)
        return Completion(self, version, root, asked, prompt, limit)

    def lend(self, version: ModelVersion, root: ModelVersion) -> tuple[LoadedBase, PreTrainedModel]:
        """Give base and model; the caller holds `lock`."""
        base = self._base(root)
        if self._adapted is not None and self._adapted[0] != version.id:
            self._take_off()
        if not version.is_adapter:
            return base, base.model
        if self._adapted is None:
            folder = self._storage.folder(version.source["prefix"], self._cache)
            self._adapted = (version.id, lora.load(base.model, folder, trainable=False))
        return base, cast(PreTrainedModel, self._adapted[1])

    @property
    def lock(self) -> threading.Lock:
        """Held while a completion uses the model."""
        return self._lock

    def _base(self, root: ModelVersion) -> LoadedBase:
        if not self._bases.holds(root.id):
            self._take_off()
        return self._bases.get(root.id, lambda: root_folder(root, self._storage, self._cache))

    def _take_off(self) -> None:
        if self._adapted is not None:
            lora.detach(self._adapted[1])
            self._adapted = None


class Completion:
    """One answer. `finish_reason` and `usage` are known once `pieces` has ended."""

    def __init__(
        self,
        speaker: Speaker,
        version: ModelVersion,
        root: ModelVersion,
        asked: Asked,
        prompt: list[int],
        limit: int,
    ) -> None:
        """Bind the parts; the model is touched by `pieces` alone."""
        self._speaker = speaker
        self._version, self._root = version, root
        self._asked, self._prompt, self._limit = asked, prompt, limit
        self._new_tokens = 0
        self._is_cut = False
        self.finish_reason = "stop"

    def usage(self) -> dict[str, int]:
        """Count tokens, as OpenAI's `usage` does."""
        return {
            "prompt_tokens": len(self._prompt),
            "completion_tokens": self._new_tokens,
            "total_tokens": len(self._prompt) + self._new_tokens,
        }

    def pieces(self) -> Iterator[str]:
        """Generate, giving text as it comes; ends early at a stop word or when the reader leaves."""
        with self._speaker.lock:
            base, model = self._speaker.lend(self._version, self._root)
            streamer = TextIteratorStreamer(
                base.tokenizer,
                skip_prompt=True,
                timeout=TOKEN_TIMEOUT_SECONDS,
                skip_special_tokens=True,
            )
            halt = _Halt()
            failure: list[BaseException] = []
            thread = threading.Thread(
                target=self._generate, args=(base, model, streamer, halt, failure), daemon=True
            )
            thread.start()
            try:
                yield from self._until_stop(streamer, halt)
            except Empty as error:
                raise RuntimeError("generation stalled") from error
            finally:
                halt.set()
                thread.join()
            if failure:
                raise failure[0]
            if self._is_cut:
                self.finish_reason = "stop"

    def _until_stop(self, streamer: TextIteratorStreamer, halt: _Halt) -> Iterator[str]:
        # A stop word may come in parts, so as much text as could begin one is held back.
        text, told = "", 0
        held = max((len(word) for word in self._asked.stop), default=1) - 1
        for piece in streamer:
            text += str(piece)
            at = min((i for w in self._asked.stop if (i := text.find(w)) >= 0), default=-1)
            if at >= 0:
                self._is_cut = True
                halt.set()
                yield text[told:at]
                return
            safe = max(told, len(text) - held)
            if safe > told:
                yield text[told:safe]
                told = safe
        if told < len(text):
            yield text[told:]

    def _generate(
        self,
        base: LoadedBase,
        model: PreTrainedModel,
        streamer: TextIteratorStreamer,
        halt: _Halt,
        failure: list[BaseException],
    ) -> None:
        try:
            with torch.random.fork_rng(enabled=self._asked.seed is not None):
                if self._asked.seed is not None:
                    torch.manual_seed(self._asked.seed)
                self._run(base, model, streamer, halt)
        except BaseException as error:
            failure.append(error)
            streamer.end()

    def _run(
        self, base: LoadedBase, model: PreTrainedModel, streamer: TextIteratorStreamer, halt: _Halt
    ) -> None:
        stops = stop_ids(base.model, base.tokenizer)
        drawing = (
            {
                "do_sample": True,
                "temperature": self._asked.temperature,
                "top_p": self._asked.top_p,
                "top_k": 0,
            }
            if self._asked.temperature > 0
            else {"do_sample": False}
        )
        ids = torch.tensor([self._prompt], device=base.model.device)
        config = GenerationConfig(
            max_new_tokens=self._limit, eos_token_id=stops, pad_token_id=base.pad_id, **drawing
        )
        generate = cast(Callable[..., torch.Tensor], model.generate)
        # As in every evaluation: what the model's folder wishes of decoding is set aside.
        with torch.no_grad(), answering(model, config):
            output = generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([halt]),
            )
        new = output[0, len(self._prompt) :].tolist()
        self._new_tokens = len(new)
        self.finish_reason = "stop" if new and new[-1] in stops else "length"


class _Halt(StoppingCriteria):
    """Ends a generation from another thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)
