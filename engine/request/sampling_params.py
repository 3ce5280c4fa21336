"""The sampling parameters of a request, under vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchmill.engine.contract.agreement import (
    check_guidance,
    check_lengths,
    check_structure_ends_output,
)
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.grammar import grammar_of
from batchmill.engine.contract.limits import (
    MAX_GUIDANCE_SCALE,
    MAX_LOGPROB_TOKEN_IDS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_SEED,
    MAX_TEMPERATURE,
    MIN_GUIDANCE_SCALE,
    MIN_REPETITION_PENALTY,
    MIN_SEED,
    MIN_TEMPERATURE,
)
from batchmill.engine.contract.watermark import check_watermark
from batchmill.engine.errors import RequestError

from .arguments import canonical_arguments
from .checks import (
    check_bad_words,
    check_flag,
    check_integer,
    check_list,
    check_logit_bias,
    check_negative_prompt,
    check_number,
    invalid_value_error,
)

_FLAGS = (
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "detokenize",
    "echo",
    "entropy",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Controls of one request. A name that is not listed here is a TypeError, never ignored.

    They apply to a step's logits in this order: `guidance_scale`, penalties, `logit_bias`, controls
    that forbid tokens (the structure, `allowed_token_ids`, `bad_words`, `no_repeat_ngram_size`,
    `min_tokens`),
    the end of a thought that `thinking_token_budget` forces, whatever these forbid,
    `temperature`, `min_p`, `typical_p`, `top_k`, `top_p`. At temperature 0 the likeliest token that
    is not forbidden is taken, and the last four have no effect. Their effect is a function of the
    prompt and the output so far, so a resumed request continues as if it had not been interrupted.

    Raises:
        RequestError: a value is out of range (code `invalid_request`).
    """

    #: Samples of the same prompt, each with its own seed; see `RequestOutput.completions`.
    n: int = 1
    #: 0 takes the likeliest token (greedy); 1 samples the model's own distribution.
    temperature: float = 1.0
    #: Keep the likeliest tokens that together reach this probability; 1 keeps all.
    top_p: float = 1.0
    #: Keep this many of the likeliest tokens; 0 (or vLLM's -1) keeps all.
    top_k: int = 0
    #: Keep tokens with at least this share of the likeliest token's probability; 0 keeps all.
    min_p: float = 0.0
    #: Keep the tokens whose surprise is nearest to its mean, up to this total probability; 1 keeps
    #: all.
    typical_p: float = 1.0
    #: Subtracted from the logit of each token that the output contains. -2 to 2.
    presence_penalty: float = 0.0
    #: Subtracted from a token's logit once per occurrence in the output. -2 to 2.
    frequency_penalty: float = 0.0
    #: Divides positive logits, and multiplies negative ones, of tokens in prompt or output.
    repetition_penalty: float = 1.0
    #: No run of this many tokens occurs twice in prompt and output; 0 is off.
    no_repeat_ngram_size: int = 0
    #: Added to the logits of these tokens: a mapping of token ids to -100 to 100.
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | None = ()
    #: Texts or lists of token ids that must not occur in prompt and output. A text stands for its
    #: own tokens, with a space before it and without; other tokens with the same text are not
    #: caught.
    bad_words: Sequence[str | Sequence[int]] | None = ()
    #: The only tokens that may be generated; None allows all.
    allowed_token_ids: Sequence[int] | None = None
    #: Classifier-free guidance: how far the distribution moves away from the one after the negative
    #: prompt. 1 is off; it takes a second request's memory and time.
    guidance_scale: float = 1.0
    #: What the output should be unlike: text, or token ids. In a chat, a text is a message of the
    #: user. None is the prompt's last token. Only with a `guidance_scale` above 1.
    negative_prompt: str | Sequence[int] | None = field(default=None, repr=False)
    #: Fixes the samples; None derives a seed from the engine's seed and the request id.
    seed: int | None = None
    #: Name of the operator's key that marks the output as generated: the noise of sampling comes
    #: from it. Refused at temperature 0, which has no noise. None is the operator's default.
    watermark: str | None = None
    #: Most tokens to generate; None generates up to the engine's `max_model_len`. With 0 the prompt
    #: is only scored (`prompt_logprobs`) or returned (`echo`).
    max_tokens: int | None = 16
    #: Tokens to generate before an end-of-text token, a stop token or a stop string can end it.
    min_tokens: int = 0
    #: Most tokens of a chat's thoughts, without their markup: a longer thought is ended, and the
    #: answer follows. The model's chat template must have the markup of thoughts. None sets no
    #: limit but `max_tokens`.
    thinking_token_budget: int | None = None
    #: Strings that end generation. The text ends before the first of them.
    stop: str | Sequence[str] | None = ()
    #: Tokens that end generation, besides the model's own end-of-text tokens.
    stop_token_ids: Sequence[int] | None = ()
    #: Keep the stop string or stop token that ended generation in the text.
    include_stop_str_in_output: bool = False
    #: Continue after an end-of-text token (for benchmarks).
    ignore_eos: bool = False
    #: OpenAI's form of a structure to follow: `text`, `json_object` or `json_schema`.
    response_format: Mapping[str, Any] | None = field(default=None, hash=False)
    #: vLLM's form: one of `json`, `json_object`, `regex`, `choice` and `grammar` (Lark).
    structured_outputs: Mapping[str, Any] | None = field(default=None, hash=False)
    #: Report the log probability of each output token, and of this many likeliest ones, in the
    #: model's own distribution, before any control. None reports none.
    logprobs: int | None = None
    #: Report the log probabilities of these tokens as well, however unlikely they are; without
    #: `logprobs`, those of each output token and of these.
    logprob_token_ids: Sequence[int] | None = None
    #: The same for the tokens of the prompt.
    prompt_logprobs: int | None = None
    #: Report the entropy of each step's own distribution, in nats.
    entropy: bool = False
    #: Begin the text with the prompt's. With `logprobs`, the prompt's tokens are scored as well.
    echo: bool = False
    #: Keep only this many of the prompt's last tokens; -1 keeps as many as leave room for
    #: `max_tokens`. None refuses a prompt that is too long.
    truncate_prompt_tokens: int | None = None
    #: Leave special tokens, such as `<|im_end|>`, out of the text.
    skip_special_tokens: bool = True
    #: Turn the tokens into text. Without it `text` stays empty and `stop` cannot be used.
    detokenize: bool = True

    def __post_init__(self) -> None:
        # Callers may pass one string or lists; the fields are kept as tuples.
        stop = (self.stop,) if isinstance(self.stop, str) else check_list("stop", self.stop)
        allowed, scored = self.allowed_token_ids, self.logprob_token_ids
        for name, value in (
            ("stop", stop),
            ("stop_token_ids", check_list("stop_token_ids", self.stop_token_ids)),
            (
                "allowed_token_ids",
                None if allowed is None else check_list("allowed_token_ids", allowed),
            ),
            (
                "logprob_token_ids",
                None if scored is None else check_list("logprob_token_ids", scored),
            ),
            ("logit_bias", check_logit_bias(self.logit_bias)),
            ("bad_words", check_bad_words(self.bad_words)),
            ("negative_prompt", check_negative_prompt(self.negative_prompt)),
        ):
            object.__setattr__(self, name, value)
        for name in _FLAGS:
            check_flag(name, getattr(self, name))
        self._check_distribution()
        self._check_penalties()
        self._check_lengths()
        self._check_stops()
        self._check_reports()
        self._check_structure()

    @classmethod
    def from_dict(cls, arguments: Mapping[str, Any]) -> SamplingParams:
        """Return the params that names and values of a job, or of a request's JSON, describe.

        The names of OpenAI and Hugging Face are accepted (`max_new_tokens`,
        `num_return_sequences`, `do_sample`, …), and None stands for a default.

        Raises:
            RequestError: `unsupported_parameter`, by name, for a control of other engines;
                `invalid_request` for an unknown name or a wrong value.
        """
        known = frozenset(cls.__dataclass_fields__)
        return cls(**canonical_arguments(arguments, known))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop`, always as a tuple."""
        return tuple(self.stop or ())

    @property
    def num_top_k(self) -> int:
        """`top_k` with vLLM's -1 read as off: 0 keeps all tokens."""
        return max(self.top_k, 0)

    @property
    def bias_by_token_id(self) -> dict[int, float]:
        """`logit_bias` as a mapping."""
        return dict(self.logit_bias or ())

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Likeliest tokens reported per prompt token: an echoed prompt is scored as the output."""
        if self.prompt_logprobs is None and self.echo:
            return self.logprobs
        return self.prompt_logprobs

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens reported per output token; None if no log probabilities are."""
        if self.logprobs is None and self.logprob_token_ids is not None:
            return 0
        return self.logprobs

    @property
    def grammar(self) -> str | None:
        """Grammar of the output in llguidance's format; None if any text will do."""
        return grammar_of(self.response_format, self.structured_outputs)

    def _check_distribution(self) -> None:
        temperature = self.temperature
        check_number("temperature", temperature)
        if temperature != 0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise invalid_value_error(
                "temperature",
                temperature,
                f"use 0 (greedy) or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}",
            )
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            check_number(name, value)
            if not 0 < value <= 1:
                raise invalid_value_error(name, value, "use more than 0, and at most 1")
        check_number("min_p", self.min_p, 0, 1)
        check_integer("top_k", self.top_k, -1, "use 0 to keep all tokens")
        check_integer("n", self.n, 1, most=MAX_N)
        check_number("guidance_scale", self.guidance_scale, MIN_GUIDANCE_SCALE, MAX_GUIDANCE_SCALE)
        try:
            check_guidance(
                self.guidance_scale, has_negative_prompt=self.negative_prompt is not None
            )
        except ContractError as refusal:
            raise RequestError.of(refusal) from None
        if self.seed is not None:
            check_integer("seed", self.seed, MIN_SEED, most=MAX_SEED)
        if self.watermark is not None:
            try:
                check_watermark(self.watermark, temperature)
            except ContractError as refusal:
                raise RequestError.of(refusal) from None

    def _check_penalties(self) -> None:
        check_number("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        check_number("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        check_number(
            "repetition_penalty",
            self.repetition_penalty,
            MIN_REPETITION_PENALTY,
            MAX_REPETITION_PENALTY,
        )
        check_integer("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, "0 is off")
        if self.allowed_token_ids is not None:
            for token_id in self.allowed_token_ids:
                check_integer("allowed_token_ids", token_id, 0, "use token ids of the vocabulary")
            if not self.allowed_token_ids:
                raise invalid_value_error("allowed_token_ids", [], "name a token, or leave it out")

    def _check_lengths(self) -> None:
        check_integer("min_tokens", self.min_tokens, 0, "0 sets no minimum")
        if self.thinking_token_budget is not None:
            remedy = "0 ends each thought where it begins"
            check_integer("thinking_token_budget", self.thinking_token_budget, 0, remedy)
        if self.truncate_prompt_tokens is not None:
            remedy = "or -1 for as many as fit"
            check_integer("truncate_prompt_tokens", self.truncate_prompt_tokens, -1, remedy)
        if self.max_tokens is not None:
            check_integer("max_tokens", self.max_tokens, 0, "leave it out for no limit")
        try:
            check_lengths(self)
        except ContractError as refusal:
            raise RequestError.of(refusal) from None

    def _check_stops(self) -> None:
        for text in self.stop_strings:
            if not isinstance(text, str) or not text:
                raise RequestError("invalid_request", "stop must be a list of non-empty strings")
        for token_id in self.stop_token_ids or ():
            check_integer("stop_token_ids", token_id, 0, "use token ids of the model's vocabulary")
        for name, is_given in (
            ("stop", bool(self.stop)),
            ("echo", self.echo),
            ("thinking_token_budget", self.thinking_token_budget is not None),
        ):
            if is_given and not self.detokenize:
                raise RequestError(
                    "invalid_request",
                    f"{name} needs text, and detokenize is false: set detokenize"
                    + (", or use stop_token_ids" if name == "stop" else ""),
                )

    def _check_reports(self) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                check_integer(name, value, 0, most=MAX_LOGPROBS)
        scored = self.logprob_token_ids
        if scored is None:
            return
        if not 1 <= len(scored) <= MAX_LOGPROB_TOKEN_IDS:
            raise RequestError(
                "invalid_request",
                f"logprob_token_ids has {len(scored)} token ids: use 1 to {MAX_LOGPROB_TOKEN_IDS}",
            )
        for token_id in scored:
            check_integer("logprob_token_ids", token_id, 0, "use token ids of the vocabulary")

    def _check_structure(self) -> None:
        try:
            if self.grammar is not None:
                check_structure_ends_output(self)
        except ContractError as refusal:
            raise RequestError.of(refusal) from None
