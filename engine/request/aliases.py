"""Names of sampling parameters in other APIs: what they are called here, or that they are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from batchmill.engine.errors import RequestError

#: Name in another API -> name here. Hugging Face's, OpenAI's, and those of old vLLM versions.
ALIASES: Final[Mapping[str, str]] = {
    "bad_words_ids": "bad_words",
    "eos_token_id": "stop_token_ids",
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    "stop_sequences": "stop",
    "stop_strings": "stop",
}

_ABSENT: Final[tuple[Any, ...]] = (None,)
_OFF: Final[tuple[Any, ...]] = (None, False)
_ZERO: Final[tuple[Any, ...]] = (None, 0)
_ONE: Final[tuple[Any, ...]] = (None, 1)

#: Name -> the values that ask for nothing; any other value is refused by name.
UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "assistant_model": _ABSENT,
    "begin_suppress_tokens": _ABSENT,
    "best_of": _ONE,
    "diversity_penalty": _ZERO,
    "dola_layers": _ABSENT,
    "early_stopping": _OFF,
    "encoder_no_repeat_ngram_size": _ZERO,
    "encoder_repetition_penalty": _ONE,
    "epsilon_cutoff": _ZERO,
    "eta_cutoff": _ZERO,
    "exponential_decay_length_penalty": _ABSENT,
    "forced_bos_token_id": _ABSENT,
    "forced_eos_token_id": _ABSENT,
    "guidance_scale": _ONE,
    "guided_choice": _ABSENT,
    "guided_grammar": _ABSENT,
    "guided_json": _ABSENT,
    "guided_regex": _ABSENT,
    "length_penalty": _ONE,
    "logprob_token_ids": _ABSENT,
    "max_time": _ABSENT,
    "num_beam_groups": _ONE,
    "num_beams": _ONE,
    "penalty_alpha": _ZERO,
    "prompt_logprob_token_ids": _ABSENT,
    "prompt_lookup_num_tokens": _ABSENT,
    "renormalize_logits": _OFF,
    "repetition_detection": _ABSENT,
    "sequence_bias": _ABSENT,
    "spaces_between_special_tokens": (None, True),
    "suppress_tokens": _ABSENT,
    "thinking_token_budget": _ABSENT,
    "token_healing": _OFF,
    "top_h": _ABSENT,
    "truncation_side": (None, "left"),
    "use_beam_search": _OFF,
    "watermarking_config": _ABSENT,
}

#: What to do instead, where there is something.
REMEDIES: Final[Mapping[str, str]] = {
    "begin_suppress_tokens": "use logit_bias",
    "guided_choice": "use structured_outputs",
    "guided_grammar": "use structured_outputs",
    "guided_json": "use structured_outputs",
    "guided_regex": "use structured_outputs",
    "sequence_bias": "use logit_bias, or bad_words",
    "suppress_tokens": "use bad_words, with a list of one token id for each",
}


def canonical_arguments(arguments: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Arguments under the names of `SamplingParams`.

    Args:
        arguments: Under any API's names.
        known: Names of `SamplingParams`.

    Raises:
        RequestError: `unsupported_parameter`; or `invalid_request` for a name that is unknown or
            given twice.
    """
    found: dict[str, Any] = {}
    for given, value in arguments.items():
        name = ALIASES.get(given, given)
        if name in UNSUPPORTED:
            if not is_neutral(value, UNSUPPORTED[name]):
                remedy = REMEDIES.get(name, "leave it out")
                raise RequestError(
                    "unsupported_parameter", f"{name} is not supported by this version: {remedy}"
                )
        elif name in ("do_sample", "top_logprobs"):
            continue
        elif name not in known:
            raise RequestError(
                "invalid_request",
                f"{str(given)[:40]!r} is not a sampling parameter: check its spelling, or leave it "
                "out",
            )
        elif name in found:
            raise RequestError(
                "invalid_request", f"{given} is another name for {name}, which is given as well"
            )
        elif value is not None or name == "max_tokens":
            found[name] = value
    _read_do_sample(arguments, found)
    _read_openai_logprobs(arguments, found)
    if isinstance(found.get("stop_token_ids"), int):
        found["stop_token_ids"] = [found["stop_token_ids"]]
    return found


def is_neutral(value: object, neutral_values: tuple[Any, ...]) -> bool:
    """Whether a value is one of those that ask for nothing."""
    # By type as well: True is not the 1 of `n`, and 0 is not the False of `logprobs`.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in neutral_values
    )


def _read_do_sample(arguments: Mapping[str, Any], found: dict[str, Any]) -> None:
    """Hugging Face's `do_sample`: false is greedy, whatever the temperature."""
    do_sample = arguments.get("do_sample")
    if do_sample is False:
        found["temperature"] = 0
    elif do_sample not in (None, True):
        raise RequestError("invalid_request", f"do_sample is {do_sample!r}: use true or false")


def _read_openai_logprobs(arguments: Mapping[str, Any], found: dict[str, Any]) -> None:
    """OpenAI's chat API: `logprobs` is true or false, and `top_logprobs` a number."""
    top = arguments.get("top_logprobs")
    if found.get("logprobs") is True:
        found["logprobs"] = 0 if top is None else top
    elif top is not None and top != 0:
        raise RequestError(
            "invalid_request", "top_logprobs is given without logprobs: set logprobs to true"
        )
    elif found.get("logprobs") is False:
        del found["logprobs"]
