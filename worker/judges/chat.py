"""Exchanges as judges with a chat template read them.

Control tokens in prompts and answers are encoded as plain text: a tuned model could otherwise write the
judge's own turns into its answer, and with them the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from jinja2 import TemplateError

from worker.judgement import JudgeError
from worker.judges.loading import JudgeModel

#: A message's content as a template takes it: the text, or a list of typed parts.
Content = str | list[dict[str, str]]


def chat_encoder(
    loaded: JudgeModel, template: str, *, opens_turn: bool, **variables: str
) -> Callable[[str, str], list[int]]:
    """Give the function that shows an exchange to a model through a chat template.

    Args:
        loaded: the model.
        template: the template, Jinja.
        opens_turn: whether it is asked to open the turn that the model is to write.
        variables: what the template takes besides the messages.

    Raises:
        JudgeError: the template does not show the exchange.
    """
    # Typed for plain strings alone; templates take typed parts and variables of their own, too.
    render = cast(Callable[..., object], loaded.tokenizer.apply_chat_template)
    render = partial(render, chat_template=template, add_generation_prompt=opens_turn, **variables)
    content = _content_form(render)

    def encode(prompt: str, answer: str) -> list[int]:
        turns = _turns(content(prompt), content(answer))
        encoded = render(turns, sanitize_control_tokens=True)
        return list(cast(Mapping[str, list[int]], encoded)["input_ids"])

    return encode


def _content_form(render: Callable[..., object]) -> Callable[[str], Content]:
    """Find out how a template takes text: Llama Guard 3 8B as a string, its 1B sibling as typed parts."""
    probe = ("first-probe", "second-probe")
    for form in (_as_text, _as_parts):
        try:
            shown = str(render(_turns(form(probe[0]), form(probe[1])), tokenize=False))
        except (TemplateError, TypeError, ValueError):
            continue
        if all(text in shown for text in probe):
            return form
    raise JudgeError("The judge's chat template does not show the prompt and the answer.")


def _turns(prompt: Content, answer: Content) -> list[dict[str, Content]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _as_text(text: str) -> Content:
    return text


def _as_parts(text: str) -> Content:
    return [{"type": "text", "text": text}]
