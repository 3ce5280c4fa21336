"""The configuration of an engine: one frozen dataclass, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from batchmill.engine.contract.watermark import is_watermark_name, problem_of_secret
from batchmill.engine.text.thoughts import REASONING_PARSERS
from batchmill.engine.text.tool_calls import FORMATS

from .device_type import expected_device_type
from .errors import ConfigError

#: Number formats of weights, activations and the KV cache.
DTYPES: Final = ("auto", "bfloat16", "float16", "float32")
#: Number formats of weights other than the dtype.
QUANTIZATIONS: Final = ("int8", "int4", "fp8")
#: Number formats of the KV cache; "auto" is the dtype.
KV_CACHE_DTYPES: Final = ("auto", "fp8")
#: Implementations of a model; see `EngineConfig.model_impl`.
MODEL_IMPLS: Final = ("auto", "native", "transformers")
#: Sources of default sampling controls; see `EngineConfig.generation_config`.
GENERATION_CONFIGS: Final = ("auto", "none")
#: Formats of tool calls; see `FORMATS` in `tool_calls.py`.
TOOL_CALL_PARSERS: Final = ("auto", *FORMATS)

#: Key of a field's metadata that has its defaults by kind of device.
BY_DEVICE: Final = "by_device"

#: Returns what is wrong with a value, and the remedy; None if nothing is.
_Check = Callable[[Any], str | None]


def _checked(default: Any, check: _Check) -> Any:
    return field(default=default, metadata={"check": check})


def _one_of(default: str | None, choices: Sequence[str]) -> Any:
    """Return a field that takes one of some words, or its default."""
    named = f"choose one of {', '.join(choices)}" + (", or leave it out" if default is None else "")
    return _checked(default, lambda value: None if value in (default, *choices) else named)


def _integer(default: int | None, *, least: int | None = None) -> Any:
    """Return a field that takes integers of at least `least`, or its default."""
    bound = "" if least is None else f" of at least {least}"

    def check(value: object) -> str | None:
        if value is None and default is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            return f"use an integer{bound}"
        return f"use an integer{bound}" if least is not None and value < least else None

    return _checked(default, check)


def _by_device(cpu: int, cuda: int) -> Any:
    """Return a field that takes integers of at least 1; None becomes the kind of device's own."""
    checked = _integer(None, least=1)
    defaults = {BY_DEVICE: {"cpu": cpu, "cuda": cuda}}
    return field(default=None, metadata={**checked.metadata, **defaults})


def _switch() -> Any:
    """Return a field that is `True`, `False` or "auto"."""
    return _checked(
        "auto",
        lambda value: None if value in (True, False, "auto") else "use True, False or 'auto'",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything that an `Engine` needs to know before it loads a model.

    A field is complete with its type, its default, its check and its comment: `batchmill worker`
    makes its environment variable, its flag and its help from them.

    Raises:
        ConfigError: a value cannot work; the message names it, its limit and the remedy.
    """

    #: A folder, a hub id, a GGUF file, or "demo" (SmolLM2-135M-Instruct).
    model: str
    #: Number format of weights, activations and KV cache: bfloat16, float16 or float32. "auto" is
    #: bfloat16 on a GPU and on CPUs with AVX512_BF16, and float32 on other CPUs, which compute it
    #: faster; float32 takes twice the memory.
    dtype: str = _one_of("auto", DTYPES)
    #: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<index>".
    device: str = "auto"
    #: Most tokens of one request, prompt and output together. Raising it needs a larger KV cache.
    max_model_len: int = _integer(2048, least=2)
    #: Most requests computed together. Raising it raises throughput and every request's latency.
    #: None is 64 on a CPU and 256 on a GPU.
    max_num_seqs: int = _by_device(cpu=64, cuda=256)
    #: Most tokens computed in one step. Raising it speeds up prefill, and lengthens the steps that
    #: running requests wait for. At least `max_num_seqs`: each running request needs one token.
    #: None is 2,048 on a CPU and 8,192 on a GPU.
    max_num_batched_tokens: int = _by_device(cpu=2048, cuda=8192)
    #: Bytes for the KV cache of each rank. None takes what `gpu_memory_utilization` leaves on a
    #: GPU; on a CPU all ranks together take a quarter of the free memory, at most 4 GiB.
    kv_cache_bytes: int | None = _integer(None, least=1)
    #: Bytes of host memory of each rank for KV blocks that the cache has to give up: they are
    #: copied back where that takes less time than computing their tokens again. 0 is off. On a GPU
    #: the memory is page-locked. Raising it helps if prompts share more than the cache holds, or if
    #: requests are preempted.
    kv_host_bytes: int = _integer(0, least=0)
    #: Speed at which KV blocks are taken to be copied between host and device, bytes per second.
    #: None measures it when the engine starts.
    kv_host_bytes_per_s: int | None = _integer(None, least=1)
    #: Number format of the KV cache: "auto" is `dtype`; "fp8" (e4m3) holds twice the tokens, on
    #: GPUs of compute capability 8.9 and later.
    kv_cache_dtype: str = _one_of("auto", KV_CACHE_DTYPES)
    #: Share of a GPU's memory that weights, steps and KV cache may take together.
    gpu_memory_utilization: float = _checked(
        0.9, lambda value: None if 0 < value <= 1 else "use a share above 0 and up to 1"
    )
    #: Tokens per KV block. Raising it shortens block tables, and coarsens what can be shared. None
    #: is 16 on a CPU and 64 on a GPU, whose attention kernels read blocks of 64 faster.
    block_size: int = _by_device(cpu=16, cuda=64)
    #: Keep the KV of finished requests and share it with those that start with the same tokens.
    enable_prefix_caching: bool = True
    #: "int8" multiplies 8-bit integers on a CPU, "int4" weights of 4 bits (on a GPU those that a
    #: checkpoint holds), "fp8" 8-bit floats (e4m3) on GPUs of compute capability 8.9 and later:
    #: less memory, more tokens per second, other tokens. None keeps weights in `dtype`.
    quantization: str | None = _one_of(None, QUANTIZATIONS)
    #: Ranks that compute the model together, each with a share of its heads and weights: as many
    #: GPUs, from `device` on, or processes on a CPU, which gain nothing. 1 is off. Raising it takes
    #: models that one GPU cannot hold. Only for decoders of text in `dtype`, without LoRA adapters
    #: and steering vectors.
    tensor_parallel_size: int = _integer(1, least=1)
    #: A request goes before those of the next lower priority that arrived up to this many seconds
    #: earlier. Raising it protects urgent requests longer, and lets the others wait longer.
    priority_ageing_s: float = _checked(
        30.0,
        lambda value: (
            None
            if 0 <= value < float("inf")
            else "use finite seconds, at least 0, or low priorities could wait for ever"
        ),
    )
    #: "native" is our decoder, "transformers" is its model over our KV cache (any causal model,
    #: slower), and "auto" is native if our decoder knows the model.
    model_impl: str = _one_of("auto", MODEL_IMPLS)
    #: How the model writes tool calls: hermes, llama3_json, mistral, qwen3_xml, glm45, minimax_m2,
    #: kimi_k2, deepseek_v3, deepseek_v31, granite or phi4_mini; "auto" reads it from the model's
    #: chat template.
    tool_call_parser: str = _one_of("auto", TOOL_CALL_PARSERS)
    #: "auto" takes the thoughts of a chat out of its text, if the model's chat template has the
    #: markup of thoughts; "none" leaves them in the text.
    reasoning_parser: str = _one_of("auto", REASONING_PARSERS)
    #: Sampling controls that a request leaves out: "auto" takes those that the model's
    #: `generation_config.json` recommends (temperature, top_k, top_p, min_p, repetition_penalty);
    #: "none" samples the model's own distribution.
    generation_config: str = _one_of("auto", GENERATION_CONFIGS)
    #: Whether the host schedules the next step while the device computes this one; "auto" is on for
    #: a GPU. It changes no token; a request that ends by a stop token or string is computed one
    #: step too far. Never with `num_speculative_tokens`.
    overlap: bool | Literal["auto"] = _switch()
    #: Whether steps are recorded when the engine starts and replayed: decodes for 14 batch sizes,
    #: and steps with prompts for some sizes up to 512 tokens; "auto" is on for our decoder on a
    #: CUDA GPU if it reads nothing on the host meanwhile. It changes no token, and gains nothing
    #: without a GPU.
    decode_graphs: bool | Literal["auto"] = _switch()
    #: Most draft tokens of a request that one step checks (prompt lookup); 0 is off. It changes no
    #: token but for rounding, as another batch size does. Drafts come from the request's own prompt
    #: and output, so single streams gain if outputs repeat them. Raising it gains more there;
    #: rejected drafts cost more.
    num_speculative_tokens: int = _integer(0, least=0)
    #: Most tokens that a structure forces, such as the names of a schema's keys, and that one step
    #: takes as drafts without asking the model first; 0 is off. It changes no token but for
    #: rounding.
    num_forced_tokens: int = _integer(8, least=0)
    #: Most draft tokens of a request that one step checks and that come from outputs of earlier
    #: requests of the same kind, if the caller provides some; 0 is off. It changes no token but for
    #: rounding. Fewer are taken if they are less probable.
    num_corpus_tokens: int = _integer(8, least=0)
    #: Most tokens at the end of a request that are looked up earlier in it; the tokens that follow
    #: them there are the draft.
    prompt_lookup_max: int = _integer(4, least=1)
    #: Fewest tokens at the end of a request that must occur earlier in it. Raising it drafts less
    #: often, and better.
    prompt_lookup_min: int = _integer(2, least=1)
    #: Draft only in steps in which at most this many requests decode: larger steps have enough to
    #: compute, and each rejected draft would hold all of them up.
    speculative_max_num_seqs: int = _integer(4, least=1)
    #: Name of the watermark key for requests that sample and name none; see `watermark_keys`. None
    #: marks only requests that name one.
    watermark: str | None = _checked(
        None,
        lambda value: (
            None
            if value is None or is_watermark_name(value)
            else "use the name of a key: 1 to 64 letters, digits, _ and -"
        ),
    )
    #: Secrets that mark outputs as generated, by the names that jobs give (`watermark`): JSON such
    #: as `{"press": "…"}`. `batchmill watermark new-key` makes a secret. All workers of a model
    #: need the same ones.
    watermark_keys: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    #: Folder of LoRA adapters, each under its digest, as `batchmill lora add` writes it. None
    #: refuses requests with an adapter.
    lora_folder: str | None = _checked(
        None,
        lambda value: (
            None if value is None or (isinstance(value, str) and value) else "name a folder"
        ),
    )
    #: Most memory of all adapters that are loaded at one time, bytes. Raising it lets requests of
    #: more adapters run together.
    lora_bytes: int = _integer(1024**3, least=1)
    #: Largest rank of an adapter. Raising it lets larger ones be used, which slow their steps down.
    max_lora_rank: int = _integer(64, least=1)
    #: Most memory of the features of pictures and sounds that are kept for later requests, bytes.
    #: Raise it if many are computed more than once.
    media_cache_bytes: int = _integer(256 * 1024**2, least=0)
    #: Folder of steering vectors, each under its digest, as `batchmill steering add` writes them.
    #: None refuses requests with one.
    steering_folder: str | None = _checked(
        None,
        lambda value: (
            None if value is None or (isinstance(value, str) and value) else "name a folder"
        ),
    )
    #: Requests that name no seed get theirs from this one and the request id.
    seed: int = _integer(0)

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is empty: name a folder, a hub id, a GGUF file, or use 'demo'")
        self._take_defaults_of_device()
        for each in fields(self):
            self.check_value(each.name, getattr(self, each.name))
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, fewer than max_num_seqs "
                f"{self.max_num_seqs}: a running request needs one token per step, so raise "
                "max_num_batched_tokens or lower max_num_seqs"
            )
        self._check_watermark()
        self._check_tensor_parallel()
        if self.kv_host_bytes and not self.enable_prefix_caching:
            raise ConfigError(
                f"kv_host_bytes is {self.kv_host_bytes} and enable_prefix_caching is off: blocks "
                "in host memory are found by the prefix cache, so switch it on, or set "
                "kv_host_bytes to 0"
            )
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ConfigError(
                f"prompt_lookup_min is {self.prompt_lookup_min}, more than prompt_lookup_max "
                f"{self.prompt_lookup_max}: lower prompt_lookup_min or raise prompt_lookup_max"
            )
        if self.num_speculative_tokens and self.overlap is True:
            raise ConfigError(
                f"num_speculative_tokens is {self.num_speculative_tokens} and overlap is on: "
                "drafts need the tokens of the step before, so leave overlap at 'auto' or switch "
                "it off, or set num_speculative_tokens to 0"
            )

    def _check_watermark(self) -> None:
        for name, secret in self.watermark_keys.items():
            if (problem := problem_of_secret(name, secret)) is not None:
                raise ConfigError(f"watermark_keys: {problem}")
        if self.watermark is not None and self.watermark not in self.watermark_keys:
            raise ConfigError(
                f"watermark is {self.watermark!r}, and watermark_keys has no key of this name: add "
                "its secret, or name another key"
            )

    def _check_tensor_parallel(self) -> None:
        """Refuse what is not computed on several ranks."""
        if self.tensor_parallel_size == 1:
            return
        for name, off in (
            ("quantization", None),
            ("lora_folder", None),
            ("steering_folder", None),
            ("decode_graphs", "auto"),
        ):
            value = getattr(self, name)
            if value != off and value is not False:
                raise ConfigError(
                    f"tensor_parallel_size is {self.tensor_parallel_size} and {name} is {value!r}, "
                    f"which is computed by one rank only: leave {name} out, or set "
                    "tensor_parallel_size to 1"
                )

    def _take_defaults_of_device(self) -> None:
        device_type = expected_device_type(self.device)
        for each in fields(self):
            defaults = each.metadata.get(BY_DEVICE)
            if defaults is not None and getattr(self, each.name) is None:
                object.__setattr__(self, each.name, defaults[device_type])

    @classmethod
    def check_value(cls, name: str, value: object) -> None:
        """Check one field's value by itself.

        Raises:
            ConfigError: it cannot work.
        """
        (found,) = (each for each in fields(cls) if each.name == name)
        check: _Check | None = found.metadata.get("check")
        if check is not None and (problem := check(value)) is not None:
            raise ConfigError(f"{name} is {value!r}: {problem}")

    def overlaps_on(self, device_type: str) -> bool:
        """Whether steps overlap on a kind of device, "cpu" or "cuda"."""
        if self.overlap == "auto":
            return device_type != "cpu" and not self.num_speculative_tokens
        return self.overlap

    def records_decodes_on(self, device_type: str, *, is_capturable: bool) -> bool:
        """Whether decode steps are recorded, for a kind of device and of model."""
        if self.decode_graphs == "auto":
            return device_type == "cuda" and is_capturable
        return self.decode_graphs
