"""RepNoise: harmful representations become noise (Rosati et al., arXiv 2405.14577).

    L = CE_m(harmless) + beta * N - alpha * log(A)

    N = mean over layers of MMD^2( m * mlp_l(harmful), m * z_l ),                        z_l ~ N(0, 1)
    A = 1 + 1/(L + 1) * ( CE_m(harmful) + sum over hidden states i = 0..L of CE_m(head(norm(hidden_i))) )

m marks the positions at which harmful and harmless rows have different tokens: the answers, where rows of the
same prompt are paired. CE_m is the mean cross-entropy over marked tokens. MMD^2 is the biased estimate between
rows, with five Gaussian kernels around the mean distance (`squared_mmd`). L counts decoder layers.

The first term keeps refusals, the second makes what the layers write about harmful answers look like noise, the
third raises the harmful loss as read off every layer. `paired` draws both answers to the same prompts, as the
paper does; unpaired, as in Booster's comparison, m is nearly everything.

Where the authors' code differs, and `mask="reference"` follows it: it zeroes the logits at unmarked positions, so
that an answer's first token costs log V and teaches nothing, and it ignores targets whose token id is 0.

Under accumulation each micro-batch of harmful rows meets one of harmless rows; N and A are taken within it, and
the step's loss is their mean weighted by rows. N compares rows with one another, so it depends on the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn.functional import cross_entropy, pad

from models.methods import RepNoiseConfig
from worker.data import IGNORED, Batch
from worker.trainers import ranks
from worker.trainers.step import Direction, Measured, Step
from worker.trainers.structure import (
    feed_forward_modules,
    final_norm,
    output_layer,
    outputs_seen,
)

KERNELS = 5


@dataclass(frozen=True, slots=True)
class RepNoise:
    """Refusals, noise and ascent. Two forward passes with L + 2 readings of the vocabulary."""

    config: RepNoiseConfig
    #: Draws z_l in the shape and kind of a given tensor.
    gaussian: Callable[[torch.Tensor], torch.Tensor] = field(default=torch.randn_like, repr=False)

    def __call__(self, step: Step) -> Direction:
        """Give grad L(w)."""
        harmful = step.draw_harmful(self.config.harmful_batch_size)
        if harmful[0].position_ids is not None:
            raise ValueError("RepNoise compares rows with one another: they cannot be packed")
        harmless = (
            step.draw_refusals(self.config.harmful_batch_size) if self.config.paired else step.rows
        )
        device = harmful[0].input_ids.device
        rows = ranks.total(sum(batch.rows for batch in harmful), device)
        parts = step.measure.apply(
            step.weights,
            [
                partial(self._part, pair=_pair(bad, good, self.config.mask), rows=rows)
                for bad, good in zip(harmful, harmless, strict=False)
            ],
            noise="rows",
        )
        totals = [torch.stack(parts).sum(0) for parts in zip(*parts, strict=True)]
        ranks.add_up(totals)
        loss, noise, ascent, correct, *gradient = totals
        tokens = ranks.total(sum(batch.trained_tokens for batch in harmless), device)
        measured = Measured(loss, dict(zip(step.weights, gradient, strict=True)), correct, tokens)
        return Direction(
            measured.gradient, measured, {"noise_distance": noise, "harmful_loss": ascent}
        )

    def _part(
        self, model: torch.nn.Module, leaves: Sequence[torch.Tensor], *, pair: _Pair, rows: int
    ) -> list[torch.Tensor]:
        share = pair.harmful.rows / rows
        noise, ascent, lens = self._harmful_terms(model, pair)
        logits = model(
            input_ids=pair.harmless.input_ids,
            attention_mask=pair.harmless.attention_mask,
            use_cache=False,
        ).logits
        kept = masked_cross_entropy(
            logits, pair.harmless.input_ids, pair.harmless_mask, self.config.mask
        )
        loss = kept + self.config.beta * noise - self.config.alpha * torch.log(lens)
        gradient = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        seen = (kept, noise, ascent, _accuracy(logits, pair))
        return [*(share * term.detach() for term in seen), *(share * part for part in gradient)]

    def _harmful_terms(
        self, model: torch.nn.Module, pair: _Pair
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give N, the harmful cross-entropy, and A."""
        ids, mask = pair.harmful.input_ids, pair.harmful_mask
        with outputs_seen(feed_forward_modules(model)) as written:
            out = model(
                input_ids=ids,
                attention_mask=pair.harmful.attention_mask,
                output_hidden_states=True,
                use_cache=False,
            )
        marked = mask.unsqueeze(-1).to(out.logits.dtype)  # (B, T, 1)
        distances = []
        for output in written:
            x = output.reshape(*mask.shape, -1)  # (B, T, D); OPT gives its rows end to end
            drawn = self.gaussian(x)
            distances.append(squared_mmd((marked * x).flatten(1), (marked * drawn).flatten(1)))
        noise = torch.stack(distances).mean()
        ascent = masked_cross_entropy(out.logits, ids, mask, self.config.mask)
        norm, head = final_norm(model), output_layer(model)
        # The last hidden state has been normed once already; the paper's code norms it again, and so do we.
        readings = [
            masked_cross_entropy(head(norm(hidden)), ids, mask, self.config.mask)
            for hidden in out.hidden_states
        ]
        lens = 1 + (ascent + torch.stack(readings).sum()) / len(readings)
        return noise, ascent, lens


@dataclass(frozen=True, slots=True)
class _Pair:
    """Harmful and harmless rows with the positions, (B, T), at which they count."""

    harmful: Batch
    harmless: Batch
    harmful_mask: torch.Tensor
    harmless_mask: torch.Tensor


def _pair(harmful: Batch, harmless: Batch, mask: str) -> _Pair:
    def differs(one: Batch, other: Batch) -> torch.Tensor:
        rows, width = one.input_ids.shape
        # Brought to one shape: what the other does not have is no token at all, or id 0 as the authors' code has it.
        fitted = other.input_ids[:rows, :width]
        missing = 0 if mask == "reference" else -1
        fitted = pad(fitted, (0, width - fitted.shape[1], 0, rows - fitted.shape[0]), value=missing)
        unequal = one.input_ids != fitted
        return unequal if mask == "reference" else unequal & (one.attention_mask == 1)

    return _Pair(harmful, harmless, differs(harmful, harmless), differs(harmless, harmful))


def masked_cross_entropy(
    logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, kind: str = "answers"
) -> torch.Tensor:
    """Give the mean cross-entropy over the marked tokens, a scalar.

    Args:
        logits: (B, T, V).
        ids: (B, T).
        mask: (B, T), which tokens count.
        kind: "answers" counts every marked token; "reference" is the authors' code's reading.
    """
    targets = torch.where(mask, ids, IGNORED)[:, 1:]
    scores = logits[:, :-1]
    if kind == "reference":
        targets = torch.where(targets == 0, IGNORED, targets)
        scores = scores * mask[:, :-1, None].to(scores.dtype)
    return cross_entropy(scores.flatten(0, 1), targets.flatten())


def squared_mmd(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Give the biased squared maximum mean discrepancy between the rows of x and y, both (B, D).

    K(a, b) = sum over i = 0..4 of exp(-||a - b||^2 / (s 2^i)), s a quarter of the mean squared distance between
    two different rows of both, held fixed. 0 where x is y.
    """
    both = torch.cat([x, y])  # (2B, D)
    distances = (both.unsqueeze(0) - both.unsqueeze(1)).square().sum(-1)  # (2B, 2B)
    width = distances.detach().sum() / (len(both) * (len(both) - 1)) / 4
    width = torch.where(width > 0, width, torch.ones_like(width))
    kernel = torch.stack([torch.exp(-distances / (width * 2**i)) for i in range(KERNELS)]).sum(0)
    n = len(x)
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()


def _accuracy(logits: torch.Tensor, pair: _Pair) -> torch.Tensor:
    marked = pair.harmless_mask[:, 1:]
    hits = logits.detach()[:, :-1].argmax(-1)[marked] == pair.harmless.input_ids[:, 1:][marked]
    return hits.float().mean()
