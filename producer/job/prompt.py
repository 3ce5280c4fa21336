"""The prompt of a job: text, or token ids."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from batchmill.engine.contract.limits import MAX_PROMPT_BYTES, MAX_PROMPT_TOKENS

from .field_checks import check_utf8

TokenId = Annotated[int, Field(ge=0, lt=2**32)]
#: As JSON.
PromptInput = (
    Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_BYTES)]
    | Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)]
)


def check_prompt(prompt: Any) -> Any:
    """Check a prompt by hand: pydantic's error for a union would name both of its branches."""
    if isinstance(prompt, str):
        num_bytes = len(check_utf8(prompt).encode())
        if num_bytes > MAX_PROMPT_BYTES:
            raise ValueError(f"has {num_bytes} bytes, the limit is {MAX_PROMPT_BYTES}; shorten it")
    elif isinstance(prompt, list):
        if len(prompt) > MAX_PROMPT_TOKENS:
            raise ValueError(
                f"has {len(prompt)} token ids, the limit is {MAX_PROMPT_TOKENS}; shorten it"
            )
        if not all(type(item) is int and 0 <= item < 2**32 for item in prompt):
            raise ValueError("must, as a list, hold token ids: integers from 0 to 2**32 - 1")
    else:
        raise ValueError("must be a string or a list of token ids")
    if not prompt:
        raise ValueError("is empty; give at least one token")
    return prompt
