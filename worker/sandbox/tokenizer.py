"""The sandbox world's tokenizer: one token for each word of the world, bytes for everything else.

Text is mapped to bytes first, so any text has tokens and comes back from them unchanged. The vocabulary is
the 256 bytes, the world's words as they stand in its sentences, and the markers of the chat template.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
ROLE_MARKERS = ("<|system|>", "<|user|>", "<|assistant|>")
MAX_CONTEXT = 1024

# Each turn is closed by the end token, which is also where generation stops.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# A word of the world always wins over its bytes, whatever its length.
_WORD_SCORE, _BYTE_SCORE = -1.0, -10.0


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Make the tokenizer whose words are those of `texts`, which must be the world's whole language."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [(piece, _BYTE_SCORE) for piece in alphabet]
    pieces += [(piece, _WORD_SCORE) for piece in sorted(words - set(alphabet))]
    backend = Tokenizer(models.Unigram(pieces, unk_id=None, byte_fallback=False))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    markers = [PAD, END, *ROLE_MARKERS]
    backend.add_special_tokens(
        [AddedToken(marker, special=True, normalized=False) for marker in markers]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=list(ROLE_MARKERS),
        model_max_length=MAX_CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
