"""Parameters of other engines that this version refuses by name, with the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_ABSENT: Final[tuple[Any, ...]] = (None,)


_OFF: Final[tuple[Any, ...]] = (None, False)


_ZERO: Final[tuple[Any, ...]] = (None, 0)


#: Name -> the values that ask for nothing, so that a request written for another API with its
#: defaults spelt out is accepted. Any other value is refused by name, never ignored.
UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "add_special_tokens": (None, True),
    "assistant_model": _ABSENT,
    "begin_suppress_tokens": _ABSENT,
    "best_of": (None, 1),
    "chat_template": _ABSENT,
    "custom_id": _ABSENT,
    "diversity_penalty": _ZERO,
    "dola_layers": _ABSENT,
    "early_stopping": _OFF,
    "encoder_no_repeat_ngram_size": _ZERO,
    "encoder_repetition_penalty": (None, 1),
    "epsilon_cutoff": _ZERO,
    "eta_cutoff": _ZERO,
    "exponential_decay_length_penalty": _ABSENT,
    "forced_bos_token_id": _ABSENT,
    "forced_eos_token_id": _ABSENT,
    "function_call": _ABSENT,
    "functions": _ABSENT,
    "guidance_scale": (None, 1),
    "guided_choice": _ABSENT,
    "guided_grammar": _ABSENT,
    "guided_json": _ABSENT,
    "guided_regex": _ABSENT,
    "length_penalty": (None, 1),
    "logprob_token_ids": _ABSENT,
    "lora": _ABSENT,
    "max_time": _ABSENT,
    "num_beam_groups": (None, 1),
    "num_beams": (None, 1),
    "penalty_alpha": _ZERO,
    "prompt_embeds": _ABSENT,
    "prompt_logprob_token_ids": _ABSENT,
    "prompt_lookup_num_tokens": _ABSENT,
    "reasoning_effort": _ABSENT,
    "renormalize_logits": _OFF,
    "repetition_detection": _ABSENT,
    "sequence_bias": _ABSENT,
    "service_tier": (None, "auto", "default"),
    "spaces_between_special_tokens": (None, True),
    "stream": _OFF,
    "stream_options": _ABSENT,
    "suffix": _ABSENT,
    "suppress_tokens": _ABSENT,
    "thinking_token_budget": _ABSENT,
    "token_healing": _OFF,
    "top_h": _ABSENT,
    "truncation_side": (None, "left"),
    "use_beam_search": _OFF,
    "user": _ABSENT,
    "watermarking_config": _ABSENT,
}


#: What to do instead, where there is something.
REMEDIES: Final[Mapping[str, str]] = {
    "begin_suppress_tokens": "use logit_bias",
    "chat_template": "it is a program: the operator puts it into the model's folder",
    "custom_id": "put it into metadata",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "guided_choice": "use structured_outputs",
    "guided_grammar": "use structured_outputs",
    "guided_json": "use structured_outputs",
    "guided_regex": "use structured_outputs",
    "max_time": "use ttl_s or deadline",
    "sequence_bias": "use logit_bias, or bad_words",
    "stream": "a job is not a held connection: poll its status, or use a webhook",
    "suppress_tokens": "use bad_words, with a list of one token id for each",
    "user": "use tenant, or put it into metadata",
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
