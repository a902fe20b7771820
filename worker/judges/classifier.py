"""Any sequence classifier: encoders and decoders with a head, by the names of their harmful labels.

Multi-label: an answer is harmful if the probability (sigmoid) of a harmful label is above the threshold.
Single-label: if the probabilities (softmax) of the harmful labels are above it together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from models.judges import ClassifierSpec
from worker.judgement import JudgeError
from worker.judges.chat import chat_encoder
from worker.judges.loading import JudgeModel
from worker.judges.model_judge import Method, ModelJudge
from worker.judges.opinion import Opinion, finite
from worker.padding import padded

#: Each token with its segment: 0, or 1 for the second text of a pair.
Row = list[tuple[int, int]]
Probabilities = list[float]


def open_classifier(spec: ClassifierSpec) -> ModelJudge[Row, Probabilities]:
    """Open a classifier.

    Raises:
        JudgeError: the model cannot be read, or has no label of such a name.
    """
    return ModelJudge(spec, spec.kind, "classifier", lambda model: _method(spec, model))


def _method(spec: ClassifierSpec, loaded: JudgeModel) -> Method[Row, Probabilities]:
    model = loaded.model
    label_ids = _harmful_ids(spec, loaded)
    # Decoders find a row's last token by this id, and refuse batches without it.
    model.config.get_text_config().pad_token_id = loaded.pad_id
    has_segments = "token_type_ids" in signature(model.forward).parameters

    @torch.no_grad()
    def ask(batch: list[Row]) -> list[Probabilities]:
        ids, mask = padded([[token for token, _ in row] for row in batch], loaded.pad_id, "right")
        inputs = {"input_ids": ids, "attention_mask": mask}
        if has_segments:
            inputs["token_type_ids"], _ = padded([[s for _, s in row] for row in batch], 0, "right")
        output = cast(Callable[..., SequenceClassifierOutput], model)(
            **{name: tensor.to(model.device) for name, tensor in inputs.items()}
        )
        logits = finite(cast(torch.Tensor, output.logits))  # (B, labels)
        shares = logits.sigmoid() if spec.multi_label else logits.softmax(dim=1)
        return shares[:, label_ids].tolist()

    def conclude(outputs: Sequence[Probabilities]) -> Opinion:
        (probabilities,) = outputs
        highest = max(probabilities)
        harm = highest if spec.multi_label else sum(probabilities)
        category = spec.harmful_labels[probabilities.index(highest)]
        return Opinion(is_harmful=harm > spec.threshold, category=category)

    return Method(_encoder(spec, loaded), ask, conclude)


def _harmful_ids(spec: ClassifierSpec, loaded: JudgeModel) -> list[int]:
    own = loaded.model.config.id2label or {}
    ids = {str(label): int(number) for number, label in own.items()}
    if not ids.keys() >= set(spec.harmful_labels):
        raise JudgeError("The judge's model lacks a label that the safety set calls harmful.")
    return [ids[label] for label in spec.harmful_labels]


def _encoder(spec: ClassifierSpec, loaded: JudgeModel) -> Callable[[str, str], list[Row]]:
    tokenizer = loaded.tokenizer
    match spec.reads:
        case "chat":
            chat = chat_encoder(loaded, loaded.chat_template, opens_turn=False)
            return lambda prompt, answer: [[(token, 0) for token in chat(prompt, answer)]]
        case "pair":
            return lambda prompt, answer: [_texts(tokenizer, prompt, answer)]
        case "answer":
            return lambda _, answer: [_texts(tokenizer, answer)]


def _texts(tokenizer: PreTrainedTokenizerBase, *texts: str) -> Row:
    encoded = tokenizer(*texts, split_special_tokens=True)
    ids = encoded["input_ids"]
    return list(zip(ids, encoded.get("token_type_ids", [0] * len(ids)), strict=True))
