"""Starts the ranks of a model, and loads rank 0's shard meanwhile."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from batchmill.engine.config import EngineConfig
from batchmill.engine.errors import ConfigError
from batchmill.engine.loading.load_options import resolve_device, resolve_dtype
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.loading.model_source import model_folder

from .collectives import Collectives
from .messages import Connect, RankSpec
from .model import ParallelModel
from .rank_processes import START_TIMEOUT_S, RankProcesses
from .rendezvous import open_store
from .step_buffer import StepBuffer, largest_step_bytes


def load_parallel(config: EngineConfig) -> LoadedModel:
    """Load a model on all ranks of a configuration; every rank loads only its shard.

    Returns:
        What `load_model` returns, with a `ParallelModel`, whose ranks end with it.

    Raises:
        ConfigError: this machine has too few GPUs, or the model cannot run so.
        ModelLoadError: the model cannot be read, or is not divided here.
        RankError: another rank cannot start; the message names it.
    """
    num_ranks = config.tensor_parallel_size
    devices = rank_devices(config.device, num_ranks)
    # Before other ranks read it: it may have to be downloaded or converted.
    folder = model_folder(config.model, config.max_model_len)
    half_bytes = largest_step_bytes(config)
    specs = [
        RankSpec(
            rank,
            replace(
                config,
                model=str(folder),
                device=str(device),
                dtype=resolve_dtype(config.dtype, device),
                watermark=None,
                watermark_keys={},
            ),
            num_threads=max(1, torch.get_num_threads() // num_ranks),
            half_bytes=half_bytes,
        )
        for rank, device in enumerate(devices)
    ]
    buffer_fd = StepBuffer.create_file(half_bytes)
    try:
        processes = RankProcesses(specs[1:], buffer_fd)
        try:
            collectives = Collectives(0, num_ranks, devices[0])
            loaded = _load_own(config, specs[0].config, collectives)
            processes.wait_done(START_TIMEOUT_S)
            store, port = open_store(num_ranks)
            processes.send(Connect(port))
            collectives.connect(store)
            processes.wait_done(START_TIMEOUT_S)
            buffer = StepBuffer(buffer_fd, half_bytes, collectives, devices[0])
        except BaseException:
            processes.end()
            raise
    finally:
        os.close(buffer_fd)
    return replace(loaded, model=ParallelModel(loaded.model, processes, buffer))


def _load_own(config: EngineConfig, own: EngineConfig, collectives: Collectives) -> LoadedModel:
    return load_model(
        config.model,
        dtype=own.dtype,
        device=own.device,
        model_impl=config.model_impl,
        max_model_len=config.max_model_len,
        ranks=collectives,
    )


def rank_devices(device: str, num_ranks: int) -> list[torch.device]:
    """Return the device of each rank: GPUs from the configured one on, or the CPU for all.

    Raises:
        ConfigError: this machine has too few GPUs.
    """
    first = resolve_device(device)
    if first.type != "cuda":
        return [first] * num_ranks
    start, num_gpus = first.index or 0, torch.cuda.device_count()
    if start + num_ranks > num_gpus:
        raise ConfigError(
            f"tensor_parallel_size is {num_ranks} and device is {device!r}, but torch finds "
            f"{num_gpus} CUDA GPUs on this machine: use {num_gpus - start} or less"
        )
    return [torch.device("cuda", start + rank) for rank in range(num_ranks)]
