"""How an engine is set up: one frozen dataclass, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from batchmill.engine.text.tool_calls import FORMATS

from .errors import ConfigError

#: Number formats of weights, activations and the KV cache.
DTYPES = ("bfloat16", "float16", "float32")
#: Formats of weights other than the dtype.
QUANTIZATIONS = ("int8", "fp8")
#: Number formats of the KV cache; "auto" is that of the weights.
KV_CACHE_DTYPES = ("auto", "fp8")
#: Who may compute a model; see `EngineConfig.model_impl`.
MODEL_IMPLS = ("auto", "native", "transformers")
#: Spellings of calls, see `FORMATS` in `tool_calls.py`.
TOOL_CALL_PARSERS = ("auto", *FORMATS)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything that an `Engine` needs to know before it loads a model.

    Raises:
        ConfigError: a value cannot work; the message names it, its limit and the remedy.
    """

    #: A folder, a hub id, a GGUF file, or "demo" (SmolLM2-135M-Instruct).
    model: str
    #: Number format of weights, activations and KV cache: one of `DTYPES`.
    dtype: str = "bfloat16"
    #: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:<index>".
    device: str = "auto"
    #: Most tokens of one request, prompt and output together. Raising it needs a larger KV cache.
    max_model_len: int = 2048
    #: Most requests computed together. Raising it raises throughput and every request's latency.
    max_num_seqs: int = 64
    #: Most tokens computed in one step. Raising it prefills faster, and lengthens the steps that
    #: running requests wait for. At least `max_num_seqs`: each running request needs one token.
    max_num_batched_tokens: int = 2048
    #: Bytes for the KV cache; None takes what a GPU has left under `gpu_memory_utilization`, and on
    #: a CPU a quarter of the memory that is free, at most 4 GiB.
    kv_cache_bytes: int | None = None
    #: Number format of the KV cache: "auto" is `dtype`; "fp8" (e4m3) holds twice the tokens, on
    #: GPUs of compute capability 8.9 and later.
    kv_cache_dtype: str = "auto"
    #: Share of a GPU's memory that weights, steps and KV cache may take together.
    gpu_memory_utilization: float = 0.9
    #: Tokens a KV block holds. Raising it shortens block tables, and coarsens what can be shared.
    block_size: int = 16
    #: Keep the KV of finished requests and share it with those that start with the same tokens.
    enable_prefix_caching: bool = True
    #: "int8" multiplies 8-bit integers on a CPU, "fp8" 8-bit floats (e4m3) on GPUs of compute
    #: capability 8.9 and later: less memory, more tokens a second, other tokens. None keeps weights
    #: in `dtype`.
    quantization: str | None = None
    #: A request goes before those of the next lower priority that came up to so many seconds
    #: earlier. Raising it protects urgent requests longer, and lets the others wait longer.
    priority_ageing_s: float = 30.0
    #: "native" is our decoder, "transformers" is its model over our KV cache (any causal model,
    #: slower), and "auto" is native where our decoder knows the model.
    model_impl: str = "auto"
    #: How the model spells calls of functions: one of `TOOL_CALL_PARSERS`; "auto" reads it from the
    #: model's chat template.
    tool_call_parser: str = "auto"
    #: Whether the host schedules the next step while the device computes this one: `True`, `False`,
    #: or "auto", which is where there is a device beside the host. It changes no token; a request
    #: that ends by a stop token or string is computed one step too far. Never with
    #: `num_speculative_tokens`.
    overlap: bool | Literal["auto"] = "auto"
    #: Whether steps that only decode are recorded at the start, for 14 batch sizes, and replayed:
    #: `True`, `False`, or "auto", which is on a CUDA GPU where our decoder computes the model and
    #: reads nothing on the host meanwhile. It changes no token. `True` without a GPU repeats the
    #: recorded calls, and gains nothing.
    decode_graphs: bool | Literal["auto"] = "auto"
    #: Most tokens that are guessed for a request and checked in one step (prompt lookup); 0 is off.
    #: It changes no token but for rounding, as another batch size does. Guesses come out of the
    #: request's own prompt and output, so it gains where answers repeat them. Raising it gains more
    #: there; wrong guesses cost more.
    num_speculative_tokens: int = 0
    #: A guess is what came after an earlier place with the same last tokens: of these so many at
    #: most are looked for,
    prompt_lookup_max: int = 4
    #: and so many at least. Raising it guesses less often, and better.
    prompt_lookup_min: int = 2
    #: Tokens are guessed in steps of at most so many requests that decode: larger steps have enough
    #: to compute, and each wrong guess would hold all of them up.
    speculative_max_num_seqs: int = 4
    #: From it and the request id come the seeds of requests that name none.
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is empty: name a folder, a hub id, a GGUF file, or use 'demo'")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}: choose one of {', '.join(DTYPES)}")
        if self.model_impl not in MODEL_IMPLS:
            raise ConfigError(
                f"model_impl is {self.model_impl!r}: choose one of {', '.join(MODEL_IMPLS)}"
            )
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ConfigError(
                f"quantization is {self.quantization!r}: choose {' or '.join(QUANTIZATIONS)}, or "
                "leave it out"
            )
        if self.tool_call_parser not in TOOL_CALL_PARSERS:
            raise ConfigError(
                f"tool_call_parser is {self.tool_call_parser!r}: choose one of "
                f"{', '.join(TOOL_CALL_PARSERS)}"
            )
        for name, least in (
            ("max_model_len", 2),
            ("max_num_seqs", 1),
            ("max_num_batched_tokens", 1),
            ("block_size", 1),
            ("num_speculative_tokens", 0),
            ("prompt_lookup_min", 1),
            ("prompt_lookup_max", 1),
            ("speculative_max_num_seqs", 1),
        ):
            _check_integer(name, getattr(self, name), least)
        if self.kv_cache_bytes is not None:
            _check_integer("kv_cache_bytes", self.kv_cache_bytes, 1)
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            raise ConfigError(
                f"kv_cache_dtype is {self.kv_cache_dtype!r}: choose one of "
                f"{', '.join(KV_CACHE_DTYPES)}"
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization!r}: use a share above 0 "
                "and up to 1"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, fewer than max_num_seqs "
                f"{self.max_num_seqs}: a running request needs one token a step, so raise "
                "max_num_batched_tokens or lower max_num_seqs"
            )
        for name in ("overlap", "decode_graphs"):
            if getattr(self, name) not in (True, False, "auto"):
                raise ConfigError(f"{name} is {getattr(self, name)!r}: use True, False or 'auto'")
        self._check_speculation()
        if not 0 <= self.priority_ageing_s < float("inf"):
            raise ConfigError(
                f"priority_ageing_s is {self.priority_ageing_s!r}: use seconds, at least 0 and "
                "finite, or low priorities could wait for ever"
            )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ConfigError(f"seed is {self.seed!r}: use an integer")

    def overlaps_on(self, device_type: str) -> bool:
        """Whether steps overlap on a kind of device, "cpu" or "cuda"."""
        if self.overlap == "auto":
            return device_type != "cpu" and not self.num_speculative_tokens
        return bool(self.overlap)

    def records_decodes_on(self, device_type: str, *, is_capturable: bool) -> bool:
        """Whether decode steps are recorded, for a kind of device and of model."""
        if self.decode_graphs == "auto":
            return device_type == "cuda" and is_capturable
        return bool(self.decode_graphs)

    def _check_speculation(self) -> None:
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ConfigError(
                f"prompt_lookup_min is {self.prompt_lookup_min}, more than prompt_lookup_max "
                f"{self.prompt_lookup_max}: lower it, or raise that"
            )
        if self.num_speculative_tokens and self.overlap is True:
            raise ConfigError(
                f"num_speculative_tokens is {self.num_speculative_tokens} and overlap is on: a "
                "guess needs the tokens of the step before, so leave overlap at 'auto' or set it "
                "to False, or set num_speculative_tokens to 0"
            )


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}: use an integer of at least {least}")
