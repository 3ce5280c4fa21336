"""The tokens of labels: each must be one token after the prompt, and no two the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from batchmill.engine.errors import RequestError
from batchmill.engine.text.tokenizer import Tokenizer

#: Tokens before the label with which it is split into tokens again.
_NUM_TAIL_TOKENS: Final = 8


def label_token_ids(
    tokenizer: Tokenizer, prompt_token_ids: Sequence[int], labels: Sequence[str]
) -> list[int]:
    """Return the token of each label.

    Args:
        tokenizer: The model's.
        prompt_token_ids: The prompt, up to the generation prompt of the model's template.
        labels: Such as `A`, `B` or `Yes`, `No`.

    Raises:
        RequestError: `unsupported_parameter`: a label is not one token of its own for this model,
            or it merges with the end of the prompt.
    """
    tail = tokenizer.decode(prompt_token_ids[-_NUM_TAIL_TOKENS:], skip_special_tokens=False)
    alone = tokenizer.encode_plain(tail)
    found: list[int] = []
    for label in labels:
        token_ids = tokenizer.encode_plain(label)
        after_prompt = tokenizer.encode_plain(tail + label)
        if len(token_ids) != 1 or after_prompt != [*alone, *token_ids]:
            raise RequestError(
                "unsupported_parameter",
                f"decision: {label!r} is not one token after this model's prompt: ask with fewer "
                "options, or use a model whose vocabulary has the labels",
            )
        found += token_ids
    if len(set(found)) < len(found):
        raise RequestError(
            "unsupported_parameter",
            "decision: two labels are the same token for this model: use another model",
        )
    return found
