"""The benchmark of `batchmill bench engine`: the engine alone, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from batchmill.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from batchmill.engine.errors import ConfigError, ModelLoadError
from batchmill.worker.errors import EngineStartError
from batchmill.worker.service_errors import BenchFailed

from .figures import BenchRow, BenchRun, ForeignLoad, RequestTimes, summarise
from .workloads import Workload, make_workload


def bench_engine(
    config: EngineConfig,
    names: Sequence[str],
    *,
    rounds: int,
    copies: int,
    say: Callable[[str], None],
) -> Iterator[BenchRow]:
    """Load the model, then run each workload `rounds` times after a warm-up, and yield its figures.

    Every run starts with an empty prefix cache, so it reuses only prefixes that it has computed.

    Args:
        config: of the engine.
        names: of the workloads.
        rounds: number of runs of each workload.
        copies: multiplies the number of requests.
        say: shows a line of progress.

    Raises:
        EngineStartError: the configuration is invalid or the model cannot be loaded.
        BenchFailed: a workload has requests that are too long for the engine.
    """
    started_at_s = time.perf_counter()
    try:
        engine = Engine(config)
    except (ConfigError, ModelLoadError) as error:
        raise EngineStartError(str(error)) from error
    say(f"{config.model} loaded in {time.perf_counter() - started_at_s:.1f} s")
    vocab_size = engine.tokenizer.vocab_size
    workloads = [make_workload(name, vocab_size=vocab_size, copies=copies) for name in names]
    for workload in workloads:
        _check_lengths(workload, config.max_model_len)
    for workload in workloads:
        _run_workload(engine, Workload(workload.name, workload.requests[:4]))  # warms up
        runs = []
        for number in range(rounds):
            runs.append(_run_workload(engine, workload))
            say(f"{workload.name} {number + 1} of {rounds}: {runs[-1].wall_s:.2f} s")
        yield summarise(workload.name, len(workload.requests), workload.num_prompt_tokens, runs)


def _check_lengths(workload: Workload, max_model_len: int) -> None:
    longest = max(len(request.prompt) + request.max_tokens for request in workload.requests)
    if longest > max_model_len:
        raise BenchFailed(
            f"workload {workload.name} has a request of {longest} tokens, but max_model_len is "
            f"{max_model_len}: raise it, or choose another --workload"
        )


def _run_workload(engine: Engine, workload: Workload) -> BenchRun:
    engine.reset_prefix_cache()
    prompts = [request.prompt for request in workload.requests]
    params = [
        SamplingParams(temperature=0, max_tokens=request.max_tokens, ignore_eos=True)
        for request in workload.requests
    ]
    load = ForeignLoad()
    started_at_s = time.perf_counter()
    outputs = engine.generate(prompts, params)
    wall_s = time.perf_counter() - started_at_s
    failures: dict[str, int] = {}
    for output in outputs:
        if output.error is not None:
            failures[output.error.code] = failures.get(output.error.code, 0) + 1
    return BenchRun(
        wall_s=wall_s,
        num_output_tokens=sum(len(output.token_ids) for output in outputs),
        foreign_cpus=load.mean_cpus(),
        requests=[_times(output) for output in outputs],
        failures=failures,
    )


def _times(output: RequestOutput) -> RequestTimes:
    metrics = output.metrics
    return RequestTimes(metrics.first_token_s, metrics.inter_token_s, metrics.finished_s)
