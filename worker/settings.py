"""Settings of a worker, from `BATCHMILL_*` variables: the only place where a worker reads them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from batchmill.producer.protocol import keys
from batchmill.producer.settings import ProducerSettings

#: Words of the engine's switches, as `EngineConfig` has them.
_SWITCH: Mapping[str, bool | str] = {"auto": "auto", "on": True, "off": False}


class WorkerSettings(ProducerSettings):
    """How a worker runs. Each field is `BATCHMILL_<NAME>` in upper case."""

    #: A folder, a hub id, a GGUF file, or "demo".
    model: str = "demo"
    #: Name that jobs ask for; by default the model's. A path cannot be a served name.
    served_model_name: str | None = None
    #: "real", or "stub": deterministic tokens without a model, for tests and measurements.
    engine: Literal["real", "stub"] = "real"
    #: Fields of `StubConfig`, JSON; only with `engine="stub"`.
    stub: dict[str, Any] = Field(default_factory=dict)

    #: Number format of weights, activations and KV cache.
    dtype: str = "bfloat16"
    #: "auto", "cpu", "cuda" or "cuda:<index>".
    device: str = "auto"
    #: Most tokens of one request, prompt and output together.
    max_model_len: int = Field(default=2048, ge=2)
    #: Most requests computed together.
    max_num_seqs: int = Field(default=64, ge=1)
    #: Most tokens computed in one step.
    max_num_batched_tokens: int = Field(default=2048, ge=1)
    #: Bytes for the KV cache; None takes a quarter of the memory that is free on a CPU, at most
    #: 4 GiB, and on a GPU what `gpu_memory_utilization` leaves.
    kv_cache_bytes: int | None = Field(default=None, ge=1)
    #: Number format of the KV cache: "auto" is `dtype`; "fp8" holds twice the tokens, on GPUs of
    #: compute capability 8.9 and later.
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    #: Tokens a KV block holds. Raising it shortens block tables, and coarsens what can be shared.
    block_size: int = Field(default=16, ge=1)
    #: Share of a GPU's memory that weights, steps and KV cache may take together.
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    #: Share the KV of equal prompt prefixes.
    enable_prefix_caching: bool = True
    #: Share it between tenants as well. How long an answer takes then tells a tenant whether
    #: another one has sent the same beginning of a prompt.
    prefix_cache_shared_across_tenants: bool = False
    #: "int8" multiplies 8-bit integers on a CPU, "fp8" 8-bit floats on GPUs of compute capability
    #: 8.9 and later: less memory, more tokens a second, other tokens. None keeps weights in
    #: `dtype`.
    quantization: Literal["int8", "fp8"] | None = None
    #: "native" is our decoder, "transformers" is its model over our KV cache; "auto" is native
    #: where our decoder knows the model.
    model_impl: Literal["auto", "native", "transformers"] = "auto"
    #: Schedule the next step while the device computes this one; "auto" is on where there is a GPU.
    overlap: Literal["auto", "on", "off"] = "auto"
    #: Record decode steps when the engine starts and replay them; "auto" is on for our decoder on a
    #: GPU.
    decode_graphs: Literal["auto", "on", "off"] = "auto"
    #: Most tokens that are guessed for a request and checked in one step, by prompt lookup; 0 is
    #: off. It changes no token but for rounding; single streams gain where answers repeat their
    #: prompts.
    num_speculative_tokens: int = Field(default=0, ge=0)
    #: Most of the last tokens that are looked for at an earlier place; what came after them there
    #: is the guess.
    prompt_lookup_max: int = Field(default=4, ge=1)
    #: Fewest of them: where not even so many are found, nothing is guessed.
    prompt_lookup_min: int = Field(default=2, ge=1)
    #: Guess only while at most so many requests decode: larger steps have enough to compute.
    speculative_max_num_seqs: int = Field(default=4, ge=1)
    #: How the model spells calls of functions; "auto" reads it from the model's chat template.
    tool_call_parser: Literal["auto", "hermes", "llama3_json", "mistral"] = "auto"

    #: Seconds after which a job of a silent worker goes to another one. Must exceed the longest
    #: step; a worker that is only slow loses its jobs otherwise.
    lease_s: float = Field(default=15.0, ge=0.5)
    #: Seconds without a turn of the engine's loop after which the engine is killed and replaced.
    engine_stall_s: float = Field(default=60.0, gt=0)
    #: A job with that many unsaved tokens makes a checkpoint of the batch due.
    checkpoint_tokens: int = Field(default=8, ge=1)
    #: Seconds that unsaved tokens wait at most.
    checkpoint_interval_s: float = Field(default=0.25, gt=0)
    #: Unsaved tokens on board at which generation pauses while Redis does not answer.
    max_backlog_tokens: int = Field(default=262_144, ge=1)
    #: Seconds that an orderly shutdown may take. Give the supervisor a few more before it kills.
    drain_timeout_s: float = Field(default=20.0, gt=0)
    #: Seconds between sweeps for lost leases and announcements.
    sweep_interval_s: float = Field(default=2.0, gt=0)
    #: Seconds after which a waiting job whose announcement is gone is announced again.
    reannounce_grace_s: float = Field(default=30.0, ge=0)
    #: Seconds between heartbeats.
    heartbeat_interval_s: float = Field(default=5.0, gt=0, lt=keys.WORKER_TTL_S)
    #: Threads that tell Celery how jobs ended.
    finisher_threads: int = Field(default=2, ge=1)

    #: Celery node name; one must not run twice on one Redis. None takes model, host and pid.
    worker_name: str | None = None
    #: Least severe lines that are logged.
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    #: "auto" is text on a terminal and JSON elsewhere.
    log_format: Literal["auto", "json", "text"] = "auto"

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        try:
            keys.queue_names(self.served_name)
        except ValueError as error:
            raise ValueError(f"{error}; set BATCHMILL_SERVED_MODEL_NAME") from None
        if self.stub and self.engine != "stub":
            raise ValueError(
                "stub is set, but engine is not: set BATCHMILL_ENGINE=stub, or neither"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, fewer than max_num_seqs "
                f"{self.max_num_seqs}: each running request needs one token a step"
            )
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ValueError(
                f"prompt_lookup_min is {self.prompt_lookup_min}, more than prompt_lookup_max "
                f"{self.prompt_lookup_max}: lower it, or raise that"
            )
        if self.num_speculative_tokens and self.overlap == "on":
            raise ValueError(
                f"num_speculative_tokens is {self.num_speculative_tokens} and overlap is on: a "
                "guess needs the tokens of the step before; set BATCHMILL_OVERLAP=off, or leave "
                "it at auto"
            )
        return self

    @property
    def served_name(self) -> str:
        """Name that jobs ask for."""
        return self.served_model_name or self.model

    @property
    def queues(self) -> tuple[str, ...]:
        """Queues that the worker consumes, highest priority first."""
        return keys.queue_names(self.served_name)

    @property
    def node_name(self) -> str:
        """Celery node name."""
        if self.worker_name is not None:
            return self.worker_name
        model = self.served_name.replace("/", "-").replace("@", "-")
        return f"{model}-{os.getpid()}@{socket.gethostname()}"

    def engine_options(self) -> Mapping[str, Any]:
        """Keyword arguments of the engine's configuration, without the model."""
        if self.engine == "stub":
            limits = {"max_num_seqs": self.max_num_seqs, "max_model_len": self.max_model_len}
            return limits | self.stub
        return {
            "dtype": self.dtype,
            "device": self.device,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "kv_cache_bytes": self.kv_cache_bytes,
            "kv_cache_dtype": self.kv_cache_dtype,
            "block_size": self.block_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "enable_prefix_caching": self.enable_prefix_caching,
            "quantization": self.quantization,
            "model_impl": self.model_impl,
            "overlap": _SWITCH[self.overlap],
            "decode_graphs": _SWITCH[self.decode_graphs],
            "num_speculative_tokens": self.num_speculative_tokens,
            "prompt_lookup_max": self.prompt_lookup_max,
            "prompt_lookup_min": self.prompt_lookup_min,
            "speculative_max_num_seqs": self.speculative_max_num_seqs,
            "tool_call_parser": self.tool_call_parser,
        }
