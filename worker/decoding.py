"""The two hooks through which an answer's options reach transformers' own decoding loop.

Before each token `Draw` changes the scores as the request asks and draws; after it `Watch` reads the tokens,
tells the text and ends the choices that have come to their end. A greedy request without options leaves
every score as it is: its text is that of the evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from worker.transcript import Piece, Transcript, Weighed


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Penalties count the tokens of the answer so far, as OpenAI's do."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()


class Draw(LogitsProcessor):
    """Chooses the next token of each row; where it draws, all other scores become -inf.

    The draw is made here rather than by the loop, from a random state of its own: the same seed gives the
    same text whatever else the process does.
    """

    def __init__(self, sampling: Sampling, prompt_length: int, *, keeps_logprobs: bool) -> None:
        """Take the options of one request."""
        self._sampling = sampling
        self._prompt_length = prompt_length
        self._keeps_logprobs = keeps_logprobs
        self._generator: torch.Generator | None = None
        #: What the model itself gave the tokens at the present place, (B, V).
        self.logprobs: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Give the scores, (B, V), whose greatest is the token to take; `input_ids` is (B, T)."""
        if self._keeps_logprobs:
            self.logprobs = scores.log_softmax(dim=-1)
        scores = self._adjusted(input_ids, scores)
        if self._sampling.temperature == 0:
            return scores
        chosen = torch.multinomial(
            self._shares(scores), 1, generator=self._random(scores.device)
        )  # (B, 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    def _adjusted(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wanted = self._sampling
        if wanted.logit_bias:
            ids, biases = zip(*wanted.logit_bias, strict=True)
            scores = scores.clone()
            scores[:, list(ids)] += scores.new_tensor(biases)
        if wanted.presence_penalty or wanted.frequency_penalty:
            new = input_ids[:, self._prompt_length :]
            counts = torch.zeros_like(scores).scatter_add(
                1, new, torch.ones_like(new, dtype=scores.dtype)
            )
            scores = scores - wanted.frequency_penalty * counts
            scores = scores - wanted.presence_penalty * (counts > 0)
        return scores

    def _shares(self, scores: torch.Tensor) -> torch.Tensor:
        # The greatest is brought to 0 first, so that the smallest temperature overflows nothing.
        scores = (scores - scores.amax(dim=-1, keepdim=True)) / self._sampling.temperature
        shares = scores.softmax(dim=-1)
        if self._sampling.top_p == 1:
            return shares
        ordered, ids = shares.sort(dim=-1, descending=True)
        # A token stays while those before it are less than top_p, so that the first always stays.
        before = ordered.cumsum(dim=-1) - ordered
        ordered = ordered.masked_fill(before >= self._sampling.top_p, 0.0)
        return torch.zeros_like(shares).scatter(1, ids, ordered)

    def _random(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device)
            if self._sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self._sampling.seed)
        return self._generator


class Watch(StoppingCriteria):
    """Reads the tokens as they come. A row is one choice; `finish_reasons` has those that ended."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        draw: Draw,
        transcripts: list[Transcript],
        *,
        stops: Collection[int],
        limit: int,
        top_logprobs: int,
        tell: Callable[[int, Piece], None],
        is_unwanted: Callable[[], bool],
    ) -> None:
        """Take what one request's rows share.

        Args:
            tokenizer: names the tokens whose log probabilities are told.
            draw: has these log probabilities.
            transcripts: one for each row.
            stops: tokens that end an answer.
            limit: most tokens of a row.
            top_logprobs: how many rivals are told beside each token.
            tell: is given a row's number and its next piece.
            is_unwanted: whether the reader has gone; everything ends then.
        """
        self._tokenizer = tokenizer
        self._draw = draw
        self._transcripts = transcripts
        self._stops = stops
        self._limit = limit
        self._top_logprobs = top_logprobs
        self._tell = tell
        self._is_unwanted = is_unwanted
        self.finish_reasons: dict[int, str] = {}
        self.new_tokens = 0
        self._steps = 0

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """Take the last column of `input_ids`, (B, T); give which rows are done, (B,)."""
        rows = len(input_ids)
        if self._is_unwanted():
            return torch.ones(rows, dtype=torch.bool, device=input_ids.device)
        self._steps += 1
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if row not in self.finish_reasons:
                self._take(row, token)
        done = [row in self.finish_reasons for row in range(rows)]
        return torch.tensor(done, device=input_ids.device)

    def _take(self, row: int, token: int) -> None:
        self.new_tokens += 1
        transcript = self._transcripts[row]
        if token in self._stops:
            piece, reason = transcript.end(), "stop"
        else:
            piece, reason = transcript.add(token, self._weighed(row, token)), None
            if self._steps == self._limit and not transcript.is_cut:
                rest, reason = transcript.end(), "length"
                piece = Piece(piece.text + rest.text, piece.tokens + rest.tokens)
            if transcript.is_cut:
                reason = "stop"
        if piece:
            self._tell(row, piece)
        if reason is not None:
            self.finish_reasons[row] = reason

    def _weighed(self, row: int, token: int) -> Weighed | None:
        if self._draw.logprobs is None:
            return None
        own = self._draw.logprobs[row]  # (V,)
        best = own.topk(self._top_logprobs)
        return Weighed(
            self._name(token),
            float(own[token]),
            tuple(
                (self._name(other), logprob)
                for other, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ),
        )

    def _name(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))
