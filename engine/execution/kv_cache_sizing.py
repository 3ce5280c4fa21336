"""The size of the KV cache.

On a GPU: load the weights, run the largest possible step once, and give the cache what is left
under `gpu_memory_utilization`. On a CPU: a bounded share of the free memory of the host or its
container.

Source: the profile run of vLLM's workers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from batchmill.engine.config import EngineConfig
from batchmill.engine.errors import ConfigError, is_out_of_memory
from batchmill.engine.memory.device_memory import CudaMemory, MemoryProbe, dtype_name, gib
from batchmill.engine.memory.host_memory import available_memory_bytes
from batchmill.engine.memory.kv_cache import KVCache, default_cpu_kv_cache_bytes, kv_block_bytes
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.fp8_weights import fp8_remedy_bytes
from batchmill.engine.models.model import Model
from batchmill.engine.models.weights import weights_bytes
from batchmill.engine.offload.host_blocks import STAGING_BLOCKS
from batchmill.engine.offload.sizing import check_host_memory
from batchmill.engine.scheduling.batch_builder import MAX_DRAFT_TOKENS, MAX_SCORED_TOKENS
from batchmill.engine.step.step_inputs import StepInputs
from batchmill.kernels.ops.sample import sample

from .memory_plan import MemoryPlan, graph_reserve_bytes

#: Seconds of a start spent on pre-faulting a CPU's cache: the blocks that are allocated first, or
#: all of them if that is quick. An idle service does the rest.
_FIRST_PAGES_S = 0.5

_log = logging.getLogger(__name__)


def allocate_kv_cache(
    config: EngineConfig,
    model: Model,
    probe: MemoryProbe | None = None,
    *,
    feature_bytes: int = 0,
) -> KVCache:
    """Allocate the cache of a loaded model, with the configured size or as large as fits.

    Args:
        config: Limits, and the cache's size or share.
        model: Has its weights loaded.
        probe: Memory of the device; None is the real one, which on a CPU is read from the host.
        feature_bytes: Kept free on a GPU for features of media.

    Raises:
        ConfigError: not even one request of `max_model_len` tokens fits.
    """
    if not model.config.keeps_kv:
        return _without_layers(config, model)
    dtype = kv_cache_torch_dtype(config.kv_cache_dtype, model.dtype, model.device)
    if probe is None and model.device.type == "cuda":
        probe = CudaMemory(model.device)
    kv_cache_bytes = config.kv_cache_bytes
    check_host_memory(config)
    if kv_cache_bytes is not None:
        free_bytes = probe.free_bytes() if probe else _free_host_bytes(config)
        promised_bytes = 0 if probe else config.kv_host_bytes
        _check_given(kv_cache_bytes, free_bytes, model.device, promised_bytes)
    elif probe is None:
        kv_cache_bytes = _share_of_host(
            config, kv_block_bytes(model.config, dtype, config.block_size), dtype
        )
    else:
        kv_cache_bytes = measured_kv_cache_bytes(config, model, dtype, probe, feature_bytes)
    kv_cache = KVCache.allocate(
        num_layers=model.config.num_layers,
        num_kv_heads=model.config.num_kv_heads,
        head_dim=model.config.head_dim,
        dtype=dtype,
        device=model.device,
        block_size=config.block_size,
        max_model_len=config.max_model_len,
        kv_cache_bytes=kv_cache_bytes,
    )
    kv_cache.prefault(_FIRST_PAGES_S, num_threads=torch.get_num_threads())
    return kv_cache


def _without_layers(config: EngineConfig, model: Model) -> KVCache:
    """Return a cache that only counts tokens: as many as the running requests can have."""
    return KVCache(
        num_layers=0,
        num_blocks=config.max_num_seqs * -(-config.max_model_len // config.block_size),
        block_size=config.block_size,
        num_kv_heads=0,
        head_dim=0,
        dtype=model.dtype,
        device=model.device,
    )


def records_decodes(config: EngineConfig, model: Model) -> bool:
    """Return whether an engine records this model's decode steps."""
    if not model.config.generates:
        return False
    is_capturable = isinstance(model, DecoderModel) and model.is_capturable
    return config.records_decodes_on(model.device.type, is_capturable=is_capturable)


def _check_given(
    kv_cache_bytes: int, free_bytes: int, device: torch.device, promised_bytes: int
) -> None:
    """Refuse a size above the free memory; a host would fail only once the cache fills."""
    if kv_cache_bytes > free_bytes:
        promised = f" besides kv_host_bytes ({gib(promised_bytes)} GiB)" if promised_bytes else ""
        raise ConfigError(
            f"kv_cache_bytes is {kv_cache_bytes} ({gib(kv_cache_bytes)} GiB), and {device} has "
            f"{gib(free_bytes)} GiB free{promised}: lower it, or leave it out to use what fits"
        )


def _free_host_bytes(config: EngineConfig) -> int:
    """Return the free memory for each rank's cache on a host, without that for evicted blocks."""
    return available_memory_bytes() // config.tensor_parallel_size - config.kv_host_bytes


def _share_of_host(config: EngineConfig, block_bytes: int, dtype: torch.dtype) -> int:
    """Return the default size on a CPU; refuse one that cannot hold a single request."""
    num_ranks = config.tensor_parallel_size  # they share the host's memory
    share_bytes = default_cpu_kv_cache_bytes(config.kv_host_bytes * num_ranks) // num_ranks
    needed = -(-config.max_model_len // config.block_size) * block_bytes
    if share_bytes < needed:
        remedies = ["free memory"]
        if needed <= _free_host_bytes(config):
            remedies.append(f"set kv_cache_bytes to {needed} or more")
        num_tokens = share_bytes // block_bytes * config.block_size
        if config.kv_host_bytes:
            remedies.append("lower kv_host_bytes")
        if num_tokens >= 2:
            remedies.append(f"set max_model_len to {num_tokens} or less")
        if dtype == torch.float32 and needed / 2 <= share_bytes:
            remedies.append("set dtype to 'bfloat16', which takes half of it")
        raise ConfigError(
            f"the KV cache's share of this host's free memory is {gib(share_bytes)} GiB, one "
            f"request of max_model_len {config.max_model_len} needs {gib(needed)} GiB in "
            f"{dtype_name(dtype)}: {', or '.join(remedies)}"
        )
    return share_bytes


def kv_cache_torch_dtype(
    kv_cache_dtype: str, dtype: torch.dtype, device: torch.device
) -> torch.dtype:
    """Return the number format of the cache.

    Args:
        kv_cache_dtype: "auto", the model's own format, or "fp8".
        dtype: The model's format.
        device: The cache's device.

    Raises:
        ConfigError: the device does not support eight-bit floats.
    """
    check_kv_cache_dtype(kv_cache_dtype, device)
    return dtype if kv_cache_dtype == "auto" else torch.float8_e4m3fn


def check_kv_cache_dtype(kv_cache_dtype: str, device: torch.device) -> None:
    """Refuse a number format that the device does not support.

    Raises:
        ConfigError: the device does not support eight-bit floats.
    """
    if kv_cache_dtype == "auto":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"kv_cache_dtype is 'fp8' on {device}: only GPUs read an eight-bit cache; use 'auto'"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        raise ConfigError(
            f"kv_cache_dtype is 'fp8', this GPU has compute capability {capability[0]}."
            f"{capability[1]}, and eight-bit floats need 8.9: use 'auto'"
        )


def measured_kv_cache_bytes(
    config: EngineConfig,
    model: Model,
    dtype: torch.dtype,
    probe: MemoryProbe,
    feature_bytes: int = 0,
) -> int:
    """Run the largest possible step, and return how much memory it leaves for the cache.

    Raises:
        ConfigError: not even one request of `max_model_len` tokens fits.
    """
    held_bytes = probe.total_bytes() - probe.free_bytes()
    weight_bytes = probe.process_bytes()
    graph_bytes = 0
    if records_decodes(config, model):
        graph_bytes = graph_reserve_bytes(
            *(config.max_num_seqs, model.config.vocab_size),
            has_adapters=config.lora_folder is not None,
        )
    probe.reset_peak()
    try:
        run_largest_step(config, model, dtype)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"memory runs out in a step of max_num_batched_tokens {config.max_num_batched_tokens} "
            f"tokens, before there is a KV cache: {gib(held_bytes)} of "
            f"{gib(probe.total_bytes())} GiB are held (weights {gib(weight_bytes)}): lower "
            "max_num_batched_tokens and max_num_seqs, or use a GPU with more memory"
        ) from error
    # Read again: the step has loaded kernels and libraries, which torch's allocator does not count.
    held_bytes = probe.total_bytes() - probe.free_bytes()
    block_bytes = kv_block_bytes(model.config, dtype, config.block_size)
    plan = MemoryPlan(
        total_bytes=probe.total_bytes(),
        limit_bytes=int(probe.total_bytes() * config.gpu_memory_utilization),
        held_bytes=held_bytes,
        weight_bytes=weight_bytes,
        step_bytes=probe.peak_growth_bytes(),
        graph_bytes=graph_bytes,
        fp8_saved_bytes=_fp8_saved_bytes(config, model),
        adapter_bytes=0 if config.lora_folder is None else config.lora_bytes,
        feature_bytes=feature_bytes,
        staging_bytes=STAGING_BLOCKS * block_bytes if config.kv_host_bytes else 0,
    )
    plan.check(config, block_bytes)
    _log.info(
        "memory: %s of %s GiB may be used; held %s, largest step %s, graphs %s, KV cache %s",
        *map(gib, (plan.limit_bytes, plan.total_bytes, held_bytes, plan.step_bytes)),
        *map(gib, (plan.graph_bytes, plan.kv_cache_bytes)),
    )
    return plan.kv_cache_bytes


def _fp8_saved_bytes(config: EngineConfig, model: Model) -> int:
    """Return the bytes that fp8 weights would save; 0 if the weights are or cannot be fp8."""
    if config.quantization is not None or not isinstance(model, DecoderModel):
        return 0
    fp8_bytes = fp8_remedy_bytes(model.config, model.dtype)
    return 0 if fp8_bytes is None else weights_bytes(model.config, model.dtype) - fp8_bytes


def run_largest_step(config: EngineConfig, model: Model, dtype: torch.dtype) -> None:
    """Compute a step with the most tokens and the most rows of logits that a step can have.

    Its prompts share the only block of a temporary cache, so the step needs hardly any cache.
    """
    kv_cache = KVCache(
        num_layers=model.config.num_layers,
        num_blocks=1,
        block_size=config.block_size,
        num_kv_heads=model.config.num_kv_heads,
        head_dim=model.config.head_dim,
        dtype=dtype,
        device=model.device,
    )
    most = config.max_num_batched_tokens
    length = max(min(most, config.max_model_len), -(-most // config.max_num_seqs))
    lengths = [length] * (most // length) + [most % length] * (most % length > 0)
    inputs = _prompts(lengths, config, model.device)
    num_rows = len(inputs.sample_rows)
    with torch.inference_mode():
        logits = torch.empty(num_rows, model.config.vocab_size, device=model.device)
        model.forward(inputs, kv_cache, logits)
        ones = torch.ones(num_rows, device=model.device)
        whole = torch.ones(num_rows, dtype=torch.int64, device=model.device)
        sample(logits, ones, whole, ones, -ones, whole, whole)
        torch.log_softmax(logits[:MAX_SCORED_TOKENS], dim=-1)  # as the scorer does


def _most_logits(config: EngineConfig) -> int:
    """Return the most rows of logits that a step can need."""
    num_looked_up = config.speculative_max_num_seqs * config.num_speculative_tokens
    num_others = config.max_num_seqs * max(config.num_forced_tokens, config.num_corpus_tokens)
    num_drafts = min(MAX_DRAFT_TOKENS, max(num_looked_up, num_others))
    return config.max_num_seqs + MAX_SCORED_TOKENS + num_drafts


def _prompts(lengths: Sequence[int], config: EngineConfig, device: torch.device) -> StepInputs:
    """Build whole prompts of these lengths, all of whose tokens lie in block 0."""
    num_tokens = sum(lengths)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    positions = torch.cat([torch.arange(length) for length in lengths])
    num_blocks = -(-max(lengths) // config.block_size)
    num_rows = min(num_tokens, _most_logits(config))
    return StepInputs(
        input_ids=torch.zeros(num_tokens, dtype=torch.int64, device=device),
        positions=positions.to(device),
        slot_mapping=(positions % config.block_size).to(device),
        block_tables=torch.zeros(len(lengths), num_blocks, dtype=torch.int32, device=device),
        cu_seqlens_q=starts.to(device, torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        sample_rows=torch.arange(num_tokens - num_rows, num_tokens, device=device),
        max_query_len=max(lengths),
        max_seq_len=max(lengths),
    )
