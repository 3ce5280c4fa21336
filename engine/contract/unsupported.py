"""Parameters of other engines that this version refuses by name, each with a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_NO_REMEDY: Final = "leave it out"


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A parameter that is accepted only with a value that has no effect."""

    #: Alternative to it; None if it can only be left out.
    remedy: str | None = None
    #: Values without effect, so that a request that writes out another API's defaults is
    #: accepted. Any other value is refused by name, never ignored.
    neutral: tuple[Any, ...] = (None,)

    def is_neutral(self, value: object) -> bool:
        """Whether a value is the same as leaving the parameter out."""
        # By type as well: True is not the 1 of `n`, and 0 is not the False of `stream`.
        return any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
            for neutral in self.neutral
        )

    def message(self, name: str) -> str:
        """Return the error message for a parameter of this name."""
        return f"{name} is not supported by this version: {self.remedy or _NO_REMEDY}"


_ABSENT: Final = Unsupported()
_OFF: Final = Unsupported(neutral=(None, False))
_ZERO: Final = Unsupported(neutral=(None, 0))
_ONE: Final = Unsupported(neutral=(None, 1))
_GUIDED: Final = Unsupported("use structured_outputs")
_BEAMS: Final = "use beam_search of a job"

#: Controls of generation: refused in a job, and by `SamplingParams.from_dict`.
UNSUPPORTED_CONTROLS: Final[Mapping[str, Unsupported]] = {
    "assistant_model": _ABSENT,
    "begin_suppress_tokens": Unsupported("use logit_bias"),
    "best_of": Unsupported("use n, and select in a job", neutral=(None, 1)),
    "diversity_penalty": _ZERO,
    "dola_layers": _ABSENT,
    "early_stopping": Unsupported(_BEAMS, neutral=(None, False)),
    "encoder_no_repeat_ngram_size": _ZERO,
    "encoder_repetition_penalty": _ONE,
    "epsilon_cutoff": _ZERO,
    "eta_cutoff": _ZERO,
    "exponential_decay_length_penalty": _ABSENT,
    "forced_bos_token_id": _ABSENT,
    "forced_eos_token_id": _ABSENT,
    "guided_choice": _GUIDED,
    "guided_grammar": _GUIDED,
    "guided_json": _GUIDED,
    "guided_regex": _GUIDED,
    "length_penalty": Unsupported(_BEAMS, neutral=(None, 1)),
    "max_time": _ABSENT,
    "num_beam_groups": _ONE,
    "num_beams": Unsupported(_BEAMS, neutral=(None, 1)),
    "penalty_alpha": _ZERO,
    "prompt_logprob_token_ids": _ABSENT,
    "prompt_lookup_num_tokens": _ABSENT,
    "renormalize_logits": _OFF,
    "repetition_detection": _ABSENT,
    "sequence_bias": Unsupported("use logit_bias, or bad_words"),
    "spaces_between_special_tokens": Unsupported(neutral=(None, True)),
    "suppress_tokens": Unsupported("use bad_words, with a list of one token id for each"),
    "token_healing": _OFF,
    "top_h": _ABSENT,
    "truncation_side": Unsupported(neutral=(None, "left")),
    "use_beam_search": Unsupported(_BEAMS, neutral=(None, False)),
    "watermarking_config": _ABSENT,
}

#: Fields of a job: the controls, and the fields that the engine does not see. To the engine these
#: further names are unknown; `max_time` has a remedy only in a job.
UNSUPPORTED_FIELDS: Final[Mapping[str, Unsupported]] = {
    **UNSUPPORTED_CONTROLS,
    "add_special_tokens": Unsupported(neutral=(None, True)),
    "audio": _ABSENT,
    "chat_template": Unsupported("it is a program: the operator puts it into the model's folder"),
    "custom_id": Unsupported("put it into metadata"),
    "function_call": Unsupported("use tool_choice"),
    "functions": Unsupported("use tools"),
    "max_time": Unsupported("use ttl_s or deadline"),
    "modalities": Unsupported(neutral=(None, ["text"])),
    "prediction": _ABSENT,
    "prompt_cache_key": Unsupported("prefixes are shared without one; cache_salt separates"),
    "prompt_embeds": _ABSENT,
    "safety_identifier": Unsupported("use tenant, or put it into metadata"),
    "service_tier": Unsupported(neutral=(None, "auto", "default")),
    "store": _OFF,
    "stream": Unsupported(
        "submit it, then follow its text with Client.stream or batchmill stream",
        neutral=(None, False),
    ),
    "stream_options": _ABSENT,
    "suffix": _ABSENT,
    "user": Unsupported("use tenant, or put it into metadata"),
    "verbosity": Unsupported(neutral=(None, "medium")),
    "web_search_options": _ABSENT,
}

#: Names of `chat_template_kwargs` that are refused: a template gets these values by other means, or
#: they would steer the rendering itself.
RESERVED_TEMPLATE_KWARGS: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
