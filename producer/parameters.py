"""Parameters other engines know and this version cannot do, and the limits of those it can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MAX_PROMPT_BYTES: Final = 1 << 20
#: As many token ids as fit the byte limit at four bytes each.
MAX_PROMPT_TOKENS: Final = MAX_PROMPT_BYTES // 4
MAX_MESSAGES: Final = 4096
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 64
MAX_STOP_TOKEN_IDS: Final = 256
MAX_METADATA_PAIRS: Final = 16
MAX_METADATA_KEY_CHARS: Final = 64
MAX_METADATA_BYTES: Final = 2048
MAX_URL_CHARS: Final = 2048
MAX_IDEMPOTENCY_KEY_CHARS: Final = 255
#: 30 days.
MAX_TTL_S: Final = 30 * 24 * 3600.0

_ABSENT: Final[tuple[Any, ...]] = (None,)
_OFF: Final[tuple[Any, ...]] = (None, False)
_ZERO: Final[tuple[Any, ...]] = (None, 0)

#: Name -> the values that ask for nothing, so that a request written for another API with its
#: defaults spelt out is accepted. Any other value is refused by name, never ignored.
UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "add_generation_prompt": (None, True),
    "add_special_tokens": (None, True),
    "allowed_token_ids": _ABSENT,
    "bad_words": _ABSENT,
    "best_of": (None, 1),
    "cache_salt": _ABSENT,
    "chat_template": _ABSENT,
    "chat_template_kwargs": _ABSENT,
    "continue_final_message": _OFF,
    "custom_id": _ABSENT,
    "do_sample": _ABSENT,
    "documents": _ABSENT,
    "early_stopping": _OFF,
    "echo": _OFF,
    "eos_token_id": _ABSENT,
    "frequency_penalty": _ZERO,
    "guidance_scale": (None, 1),
    "length_penalty": (None, 1),
    "logit_bias": (None, {}),
    "logprobs": _OFF,
    "lora": _ABSENT,
    "min_p": _ZERO,
    "min_tokens": _ZERO,
    "n": (None, 1),
    "no_repeat_ngram_size": _ZERO,
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "parallel_tool_calls": _ABSENT,
    "presence_penalty": _ZERO,
    "prompt_embeds": _ABSENT,
    "prompt_logprobs": _ABSENT,
    "reasoning_effort": _ABSENT,
    "repetition_penalty": (None, 1),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "stream": _OFF,
    "stream_options": _ABSENT,
    "structured_outputs": _ABSENT,
    "suffix": _ABSENT,
    "suppress_tokens": _ABSENT,
    "tags": _ABSENT,
    "tenant": _ABSENT,
    "tool_choice": (None, "none"),
    "tools": (None, []),
    "top_logprobs": _ZERO,
    "truncate_prompt_tokens": _ABSENT,
    "typical_p": (None, 1),
    "use_beam_search": _OFF,
    "user": _ABSENT,
}

#: What to do instead, where there is something.
REMEDIES: Final[Mapping[str, str]] = {
    "custom_id": "put it into metadata",
    "do_sample": "use temperature: 0 takes the likeliest token",
    "eos_token_id": "use stop_token_ids",
    "n": "submit one job for each",
    "num_return_sequences": "submit one job for each",
    "stream": "a job is not a held connection: poll its status, or use a webhook",
    "tags": "put them into metadata",
    "tenant": "put it into metadata",
    "user": "put it into metadata",
}


def asks_for_nothing(name: str, value: object) -> bool:
    """Whether a value of an unsupported parameter is the same as leaving it out."""
    # By type as well: True is not the 1 of `n`, and 0 is not the False of `logprobs`.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in UNSUPPORTED[name]
    )


def refusal(name: str) -> str:
    """The message for an unsupported parameter."""
    remedy = REMEDIES.get(name, "leave it out")
    return f"{name} is not supported by this version: {remedy}"
