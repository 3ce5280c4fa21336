"""Makes the parts of an `Engine` from its configuration."""

from __future__ import annotations

from batchmill.engine.execution.kv_cache_sizing import check_kv_cache_dtype, records_decodes
from batchmill.engine.execution.step_pipeline import StepPipeline
from batchmill.engine.loading.load_options import resolve_device
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.scheduling.block_pool import BlockPool
from batchmill.engine.scheduling.scheduler import Scheduler
from batchmill.engine.scheduling.speculation import Speculation

from .config import EngineConfig


def load(config: EngineConfig) -> LoadedModel:
    """Load the model of a configuration.

    Raises:
        ConfigError: the device cannot hold such a cache, or the model cannot run so.
        ModelLoadError: the model cannot be read, or is not supported.
    """
    # Checked before the weights are read, which may take minutes.
    check_kv_cache_dtype(config.kv_cache_dtype, resolve_device(config.device))
    return load_model(
        config.model,
        dtype=config.dtype,
        device=config.device,
        quantization=config.quantization,
        model_impl=config.model_impl,
        max_model_len=config.max_model_len,
    )


def make_scheduler(config: EngineConfig, loaded: LoadedModel, num_blocks: int) -> Scheduler:
    """Make the scheduler over a pool of so many KV blocks."""
    speculation = None
    if config.num_speculative_tokens or config.num_forced_tokens:
        speculation = Speculation(
            config.num_speculative_tokens,
            config.speculative_max_num_seqs,
            config.num_forced_tokens,
        )
    return Scheduler(
        BlockPool(
            num_blocks,
            config.block_size,
            enable_prefix_caching=config.enable_prefix_caching and loaded.config.keeps_kv,
        ),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        ageing_s=config.priority_ageing_s,
        speculation=speculation,
    )


def make_pipeline(config: EngineConfig, loaded: LoadedModel, kv_cache: KVCache) -> StepPipeline:
    """Make the pipeline that computes the steps.

    Raises:
        EngineError: the steps cannot be recorded.
    """
    model = loaded.model
    return StepPipeline(
        model,
        kv_cache,
        max_num_seqs=config.max_num_seqs,
        max_model_len=config.max_model_len,
        decode_graphs=records_decodes(config, model),
        score_head=loaded.score_head,
    )
