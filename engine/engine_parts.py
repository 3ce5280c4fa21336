"""Makes the parts of an `Engine` from its configuration."""

from __future__ import annotations

from pathlib import Path

from batchmill.engine.adapters.pool import AdapterPool
from batchmill.engine.execution.kv_cache_sizing import (
    allocate_kv_cache,
    check_kv_cache_dtype,
    records_decodes,
)
from batchmill.engine.execution.step_pipeline import StepPipeline
from batchmill.engine.loading.load_options import resolve_device
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.media.feature_cache import FeatureCache
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.adapted_layers import lora_sites
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.kv_scales import check_kv_scales
from batchmill.engine.offload.host_blocks import HostBlocks
from batchmill.engine.offload.offload import KVOffload
from batchmill.engine.offload.sizing import num_host_blocks
from batchmill.engine.parallel.model import ParallelModel
from batchmill.engine.parallel.start import load_parallel
from batchmill.engine.scheduling.block_pool import BlockPool
from batchmill.engine.scheduling.scheduler import Scheduler
from batchmill.engine.scheduling.speculation import Speculation
from batchmill.engine.steering.vectors import SteeringVectors
from batchmill.engine.step.adapter_tiles import AdapterShape

from .config import EngineConfig
from .errors import ConfigError, UnsupportedModelError


def load(config: EngineConfig) -> LoadedModel:
    """Load the model of a configuration.

    Raises:
        ConfigError: the device cannot hold such a cache, or the model cannot run so.
        ModelLoadError: the model cannot be read, or is not supported.
    """
    # Checked before the weights are read, which may take minutes.
    check_kv_cache_dtype(config.kv_cache_dtype, resolve_device(config.device))
    if config.tensor_parallel_size > 1:
        return load_parallel(config)
    return load_model(
        config.model,
        dtype=config.dtype,
        device=config.device,
        quantization=config.quantization,
        model_impl=config.model_impl,
        max_model_len=config.max_model_len,
    )


def make_kv_cache(config: EngineConfig, loaded: LoadedModel) -> KVCache:
    """Allocate the KV cache, on every rank of a model that is divided.

    Raises:
        ConfigError: not even one request of `max_model_len` tokens fits, or the model was loaded on
            another number of ranks.
        RankError: a rank cannot allocate its part.
    """
    check_kv_scales(config.kv_cache_dtype, loaded.kv_scales)
    model = loaded.model
    feature_bytes = 0 if loaded.media is None else config.media_cache_bytes
    num_ranks = model.num_ranks if isinstance(model, ParallelModel) else 1
    if num_ranks != config.tensor_parallel_size:
        raise ConfigError(
            f"tensor_parallel_size is {config.tensor_parallel_size}, and the model was loaded on "
            f"{num_ranks} ranks: let the engine load it, or set tensor_parallel_size to {num_ranks}"
        )
    if not isinstance(model, ParallelModel):
        return allocate_kv_cache(config, model, feature_bytes=feature_bytes)
    kv_cache = allocate_kv_cache(config, model, model.memory_probe())
    model.share_cache(kv_cache, num_host_blocks(config, kv_cache.block_bytes))
    return kv_cache


def make_offload(config: EngineConfig, loaded: LoadedModel, kv_cache: KVCache) -> KVOffload | None:
    """Make room in host memory for KV blocks, on every rank; None if it is off.

    Raises:
        ConfigError: not a single block fits, or the host refuses so much memory.
    """
    if not config.kv_host_bytes:
        return None
    if not loaded.config.keeps_kv:
        raise ConfigError(
            f"kv_host_bytes is {config.kv_host_bytes}, and this model is an encoder, which keeps "
            "no KV: leave kv_host_bytes out"
        )
    host_blocks = HostBlocks(kv_cache, num_host_blocks(config, kv_cache.block_bytes))
    offload = KVOffload(kv_cache, host_blocks, bytes_per_s=config.kv_host_bytes_per_s)
    if isinstance(loaded.model, ParallelModel):
        loaded.model.share_host_blocks(host_blocks)
    return offload


def make_adapter_pool(config: EngineConfig, loaded: LoadedModel) -> AdapterPool | None:
    """Make the pool of LoRA adapters; None if the configuration has no folder of them.

    Raises:
        ConfigError: the folder does not exist.
        UnsupportedModelError: the model cannot be computed with adapters.
    """
    if config.lora_folder is None:
        return None
    model = _native_decoder(loaded, "lora_folder", "adapters are computed")
    folder = _folder("lora_folder", config.lora_folder, "batchmill lora add")
    model.enable_adapters()
    return AdapterPool(
        folder,
        lora_sites(model.config),
        dtype=model.dtype,
        device=model.device,
        max_bytes=config.lora_bytes,
        max_rank=config.max_lora_rank,
    )


def make_steering(config: EngineConfig, loaded: LoadedModel) -> SteeringVectors | None:
    """Make the store of steering vectors; None if the configuration has no folder of them.

    Raises:
        ConfigError: the folder does not exist.
        UnsupportedModelError: the model cannot be steered.
    """
    if config.steering_folder is None:
        return None
    model = _native_decoder(loaded, "steering_folder", "steering vectors are added")
    folder = _folder("steering_folder", config.steering_folder, "batchmill steering add")
    return SteeringVectors(
        folder,
        num_layers=len(model.config.layers),
        hidden_size=model.config.hidden_size,
        dtype=model.dtype,
        device=model.device,
    )


def _native_decoder(loaded: LoadedModel, setting: str, what: str) -> DecoderModel:
    model = loaded.model
    if not isinstance(model, DecoderModel):
        kind = "an encoder" if not model.config.keeps_kv else "computed by transformers"
        raise UnsupportedModelError(
            f"{setting} is set, and this model is {kind}: {what} only by the native decoder, so "
            f"leave {setting} out or use a model of its families"
        )
    return model


def _folder(setting: str, path: str, command: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"{setting} is {path!r}, which is not a folder: make it, or run `{command}`"
        )
    return folder


def make_scheduler(
    config: EngineConfig,
    loaded: LoadedModel,
    num_blocks: int,
    adapters: AdapterPool | None = None,
    offload: KVOffload | None = None,
) -> Scheduler:
    """Make the scheduler over a pool of so many KV blocks."""
    speculation = None
    if config.num_speculative_tokens or config.num_forced_tokens or config.num_corpus_tokens:
        speculation = Speculation(
            config.num_speculative_tokens,
            config.speculative_max_num_seqs,
            config.num_forced_tokens,
            config.num_corpus_tokens,
        )
    return Scheduler(
        BlockPool(
            num_blocks,
            config.block_size,
            enable_prefix_caching=config.enable_prefix_caching and loaded.config.keeps_kv,
            evicted_blocks=None if offload is None else offload.index,
        ),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        ageing_s=config.priority_ageing_s,
        speculation=speculation,
        adapters=adapters,
    )


def make_feature_cache(config: EngineConfig, loaded: LoadedModel) -> FeatureCache | None:
    """Make the cache of the features of media; None if the model takes text only."""
    if loaded.media is None:
        return None
    return FeatureCache(loaded.media, config.media_cache_bytes)


def make_pipeline(
    config: EngineConfig,
    loaded: LoadedModel,
    kv_cache: KVCache,
    feature_cache: FeatureCache | None = None,
) -> StepPipeline:
    """Make the pipeline that computes the steps.

    Raises:
        EngineError: the steps cannot be recorded.
    """
    model = loaded.model
    adapter_shape = None
    if config.lora_folder is not None:
        sites = lora_sites(_native_decoder(loaded, "lora_folder", "adapters are computed").config)
        adapter_shape = AdapterShape(tuple(map(len, sites)), config.max_lora_rank)
    return StepPipeline(
        model,
        kv_cache,
        max_num_seqs=config.max_num_seqs,
        max_model_len=config.max_model_len,
        decode_graphs=records_decodes(config, model),
        score_head=loaded.score_head,
        feature_source=feature_cache,
        adapter_shape=adapter_shape,
    )
