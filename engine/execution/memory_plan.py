"""The memory plan of a GPU: its parts, and the remedies if a model does not fit."""

from __future__ import annotations

from dataclasses import dataclass

from batchmill.engine.config import EngineConfig
from batchmill.engine.errors import ConfigError
from batchmill.engine.memory.device_memory import gib

from .decode_graphs import GRAPH_SIZES
from .special_rows import special_rows_bytes

#: Reserved on a GPU for captured steps: the nodes of about 30 graphs of about 300 kernels (those of
#: special rows have 20 at most). An
#: estimate, to be measured on a GPU.
GRAPH_NODE_BYTES = 512 * 1024**2


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How the memory of a GPU is divided.

    Attributes:
        total_bytes: Memory of the GPU.
        limit_bytes: The part that may be used.
        held_bytes: In use once the weights are loaded, by this process and by others.
        weight_bytes: The weights' part of it.
        step_bytes: Additional memory of the largest step.
        graph_bytes: Reserved for captured decode steps, see `graph_reserve_bytes`.
        adapter_bytes: Reserved for LoRA adapters.
        feature_bytes: Reserved for features of pictures and sounds.
        staging_bytes: Taken for copies of KV blocks to and from host memory.
        fp8_saved_bytes: Memory that fp8 weights would save; 0 if the weights are or cannot be fp8.
    """

    total_bytes: int
    limit_bytes: int
    held_bytes: int
    weight_bytes: int
    step_bytes: int
    graph_bytes: int
    fp8_saved_bytes: int = 0
    adapter_bytes: int = 0
    feature_bytes: int = 0
    staging_bytes: int = 0

    @property
    def kv_cache_bytes(self) -> int:
        """The remainder for the cache; negative if not even the other parts fit."""
        others = self.held_bytes + self.step_bytes + self.graph_bytes + self.staging_bytes
        return self.limit_bytes - others - self.adapter_bytes - self.feature_bytes

    def check(self, config: EngineConfig, block_bytes: int) -> None:
        """Refuse a plan whose cache would not hold one request of `max_model_len` tokens.

        Args:
            config: The limits that the plan was made for.
            block_bytes: Size of one KV block over all layers.

        Raises:
            ConfigError: it does not fit; the message has the numbers and the remedies.
        """
        needed = -(-config.max_model_len // config.block_size) * block_bytes
        if self.kv_cache_bytes >= needed:
            return
        raise ConfigError(
            f"the model does not fit: of {gib(self.total_bytes)} GiB, gpu_memory_utilization "
            f"{config.gpu_memory_utilization:g} leaves {gib(self.limit_bytes)} to use; "
            f"{gib(self.held_bytes)} are held (weights {gib(self.weight_bytes)}), a step of "
            f"{config.max_num_batched_tokens} tokens takes {gib(self.step_bytes)}, CUDA graphs "
            f"{gib(self.graph_bytes)}, LoRA adapters {gib(self.adapter_bytes)}, features of media "
            f"{gib(self.feature_bytes)}, copies of KV blocks {gib(self.staging_bytes)}, and one "
            f"request of max_model_len {config.max_model_len} "
            f"needs {gib(needed)} of KV cache, {gib(needed - self.kv_cache_bytes)} more than is "
            f"left. Each is enough alone: {'; '.join(self._remedies(config, block_bytes, needed))}"
        )

    def _remedies(self, config: EngineConfig, block_bytes: int, needed: int) -> list[str]:
        """List what to change, the cheapest first; each is enough alone."""
        lacking = needed - self.kv_cache_bytes
        remedies = []
        num_tokens = self.kv_cache_bytes // block_bytes * config.block_size
        if num_tokens >= 2:
            remedies.append(f"max_model_len {num_tokens} or less")
        if config.kv_cache_dtype == "auto" and self.kv_cache_bytes >= needed // 2:
            remedies.append("kv_cache_dtype 'fp8', if the GPU supports it")
        step_tokens = int(config.max_num_batched_tokens * (1 - lacking / max(1, self.step_bytes)))
        if step_tokens >= 16:
            remedies.append(
                f"max_num_batched_tokens {step_tokens} or less (and max_num_seqs not above it)"
            )
        if config.dtype == "float32" and self.weight_bytes // 2 >= lacking:
            remedies.append("dtype 'bfloat16', with half the weights")
        if self.fp8_saved_bytes >= max(1, lacking):
            remedies.append("quantization 'fp8', if the GPU supports it; it changes the tokens")
        if self.adapter_bytes >= lacking:
            remedies.append(f"lora_bytes {self.adapter_bytes - lacking} or less")
        if self.feature_bytes >= lacking:
            remedies.append(f"media_cache_bytes {self.feature_bytes - lacking} or less")
        if self.staging_bytes >= max(1, lacking):
            remedies.append("kv_host_bytes 0")
        other_bytes = self.total_bytes - self.limit_bytes
        if other_bytes and lacking <= other_bytes * 0.6:
            share = (self.limit_bytes + lacking) / self.total_bytes
            remedies.append(
                f"gpu_memory_utilization {share + 0.005:.2f}, if no other process needs it"
            )
        least = (self.limit_bytes + lacking) / config.gpu_memory_utilization
        remedies.append(f"a GPU of {gib(least)} GiB or more")
        return remedies


def graph_reserve_bytes(max_num_seqs: int, vocab_size: int, *, has_adapters: bool = False) -> int:
    """Return the reserve for captured decode steps: nodes, and twice the largest one's logits.

    Steps with LoRA adapters are captured in as many graphs again. Special rows have tables.
    """
    node_bytes = GRAPH_NODE_BYTES * (1 + has_adapters)
    logits_bytes = 4 * min(max_num_seqs, GRAPH_SIZES[-1]) * vocab_size
    return node_bytes + 2 * logits_bytes + special_rows_bytes(vocab_size)
