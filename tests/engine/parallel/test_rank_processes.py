"""Ranks as processes: start, failures by name, their end, and two engines on one host."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.errors import ConfigError, EngineError, RankError
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.parallel import rank_processes
from batchmill.engine.parallel.collectives import Collectives
from batchmill.engine.parallel.messages import RankSpec
from batchmill.engine.parallel.model import ParallelModel
from batchmill.engine.parallel.rank_processes import RankProcesses
from batchmill.engine.parallel.start import load_parallel
from batchmill.engine.parallel.step_buffer import StepBuffer
from batchmill.engine.step.step_inputs import StepInputs

from ...support.processes import wait_until
from ..tiny_model import POISON, save_model

if TYPE_CHECKING:
    from batchmill.engine.memory.kv_cache import KVCache
    from batchmill.engine.models.model import Model

PROMPTS = ["a prompt", "another, longer prompt", "x"]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return EngineConfig(
        model=str(folder),
        dtype="float32",
        device="cpu",
        max_model_len=64,
        block_size=4,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        kv_cache_bytes=2**18,
        tensor_parallel_size=2,
    )


@pytest.fixture(scope="module")
def loaded(config: EngineConfig) -> Iterator[LoadedModel]:
    """A model on two ranks that no test ends."""
    yield load_parallel(config)
    gc.collect()


@pytest.fixture(scope="module")
def expected(config: EngineConfig) -> list[list[int]]:
    """The tokens of one rank."""
    engine = Engine(replace(config, tensor_parallel_size=1))
    return _tokens(engine)


def _tokens(engine: Engine) -> list[list[int]]:
    return [output.token_ids for output in engine.generate(PROMPTS, GREEDY)]


def _run_to_end(engine: Engine) -> None:
    while engine.has_unfinished():
        engine.step()


def _pids(loaded: LoadedModel) -> list[int]:
    assert isinstance(loaded.model, ParallelModel)
    return loaded.model.rank_pids


def test_processes_compute_the_tokens_of_one_rank(
    config: EngineConfig, loaded: LoadedModel, expected: list[list[int]]
) -> None:
    engine = Engine(config, loaded=loaded)

    assert _tokens(engine) == expected
    # One block in so many of a rank holds as many tokens as one of a whole model, at half the size.
    whole = Engine(replace(config, tensor_parallel_size=1))
    assert engine.stats().num_blocks == 2 * whole.stats().num_blocks


def test_blocks_of_a_failed_request_are_zeroed_on_every_rank(
    config: EngineConfig, loaded: LoadedModel, expected: list[list[int]]
) -> None:
    engine = Engine(replace(config, kv_cache_bytes=2**14), loaded=loaded)
    for _ in range(2):
        (failed,) = engine.generate([[5, POISON, *range(20)]], GREEDY)
        assert failed.finish_reason == "error"
        # Attention reads masked slots of a last block, so a NaN left there would show.
        assert _tokens(engine) == expected


def test_an_engine_whose_ranks_serve_another_one_says_so(
    config: EngineConfig, loaded: LoadedModel
) -> None:
    first = Engine(config, loaded=loaded)
    Engine(config, loaded=loaded)

    with pytest.raises(EngineError, match="another engine uses the ranks"):
        first.generate(PROMPTS, GREEDY)


def test_blocks_that_another_engine_zeroes_are_not_those_of_the_ranks(
    config: EngineConfig, loaded: LoadedModel, expected: list[list[int]]
) -> None:
    first = Engine(config, loaded=loaded)
    engine = Engine(config, loaded=loaded)
    assert _tokens(engine) == expected  # the blocks of the prompts stay in the cache

    first._kv_cache.zero_blocks(range(first._kv_cache.num_blocks))

    assert _tokens(engine) == expected


def test_an_interrupted_step_ends_the_ranks() -> None:
    class Interrupted:
        def forward(self, *step: object) -> None:
            raise KeyboardInterrupt

    device, shard = torch.device("cpu"), cast("Model", Interrupted())
    fd = StepBuffer.create_file(4096)
    buffer = StepBuffer(fd, 4096, Collectives(0, 1, device), device)
    model = ParallelModel(shard, RankProcesses([], fd), buffer)
    os.close(fd)
    ids, sizes = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    inputs = StepInputs(ids, ids, ids, sizes[:, None], sizes.repeat(2), sizes, ids, 1, 1)
    step = (inputs, cast("KVCache", None), torch.empty(0))

    with pytest.raises(KeyboardInterrupt):
        model.forward(*step)
    # The other ranks may have been anywhere within that step.
    with pytest.raises(RankError, match=r"rank 0 \(KeyboardInterrupt"):
        model.forward(*step)


def test_a_killed_rank_fails_its_engine_by_name_and_no_other(
    config: EngineConfig, loaded: LoadedModel, expected: list[list[int]]
) -> None:
    engine, other = Engine(config), Engine(config, loaded=loaded)
    (pid,) = _pids(engine._loaded)
    engine.add_request("0", PROMPTS[0], GREEDY)
    engine.step()

    os.kill(pid, signal.SIGKILL)

    for _ in range(2):
        with pytest.raises(RankError, match=rf"rank 1 \(process {pid}\) was ended by signal 9"):
            _run_to_end(engine)
    assert _tokens(other) == expected


def test_the_failed_start_of_a_rank_is_told_by_name(config: EngineConfig, tmp_path: Path) -> None:
    half_bytes = 4096
    fd = StepBuffer.create_file(half_bytes)
    spec = RankSpec(1, replace(config, model=str(tmp_path)), 1, half_bytes)
    processes = RankProcesses([spec], fd)
    os.close(fd)
    try:
        with pytest.raises(RankError, match=r"rank 1 \(process \d+\) failed: .*config.json"):
            processes.wait_done(60)
    finally:
        processes.end()
    (pid,) = processes.pids
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the rank")


def test_ranks_that_started_end_if_another_one_cannot(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    spawn = rank_processes._spawn

    def spawn_one(connection_fd: int, buffer_fd: int) -> subprocess.Popen[bytes]:
        if started:
            raise OSError("no memory for another process")
        started.append(spawn(connection_fd, buffer_fd))
        return started[0]

    monkeypatch.setattr(rank_processes, "_spawn", spawn_one)
    fd = StepBuffer.create_file(4096)
    try:
        with pytest.raises(RankError, match=r"rank 2 .* cannot be started"):
            RankProcesses([RankSpec(rank, config, 1, 4096) for rank in (1, 2)], fd)
    finally:
        os.close(fd)
    wait_until(lambda: started[0].poll() is not None, "the end of rank 1")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"quantization": "int8"}, "quantization is 'int8'"),
        ({"lora_folder": "adapters"}, "lora_folder is 'adapters'"),
        ({"steering_folder": "vectors"}, "steering_folder is 'vectors'"),
        ({"decode_graphs": True}, "decode_graphs is True"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_one_rank_computes_only_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel_size is 2 and {problem}"):
        EngineConfig(model="tiny", tensor_parallel_size=2, **settings)


def test_a_model_loaded_on_another_number_of_ranks_is_refused(config: EngineConfig) -> None:
    loaded = load_model(config.model, dtype="float32", device="cpu")

    with pytest.raises(ConfigError, match="the model was loaded on 1 ranks"):
        Engine(config, loaded=loaded)
