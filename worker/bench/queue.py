"""The benchmark of `batchmill bench queue`: jobs through a broker and its workers."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from batchmill.producer import Client, GenerationJob, JobResult, JobUnfinished
from batchmill.producer.protocol import keys
from batchmill.producer.shard_list import Shard, ShardList
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.service_errors import BenchFailed

from .figures import BenchRow, BenchRun, ForeignLoad, RequestTimes, summarise
from .workloads import FIRST_TOKEN_ID, Workload, make_workload, with_first_token


def bench_queue(
    client: Client,
    stores: Sequence[tuple[Shard, JobStore]],
    names: Sequence[str],
    *,
    model: str,
    vocab_size: int,
    rounds: int,
    copies: int,
    timeout_s: float,
    is_alone: bool,
    say: Callable[[str], None],
) -> Iterator[BenchRow]:
    """Submit each workload `rounds` times after a warm-up, wait for its jobs, yield its figures.

    The prompts of each run begin with a different token, so that no prefix cache holds them. With
    several shards, the jobs take turns between them, by their tenants.

    Args:
        client: submits the jobs.
        stores: of the same broker, or of all its shards.
        names: of the workloads.
        model: served name that the jobs ask for.
        vocab_size: token ids of the prompts are below it.
        rounds: number of runs of each workload.
        copies: multiplies the number of jobs.
        timeout_s: limit in seconds for one run.
        is_alone: whether the workers are children of this process, so that the load of other
            processes can be measured.
        say: shows a line of progress.

    Raises:
        BenchFailed: no worker serves the model, or none does in one of the shards.
        ResultTimeout: a run took longer; its jobs continue.
        BrokerUnavailable: the broker does not reply.
    """
    shards = ShardList(tuple(shard for shard, _ in stores))
    for shard, store in stores:
        if not shard.is_draining:
            _check_served(shard, store, model)
    tenants = _tenants(shards, model)
    for name in names:
        workload = make_workload(name, vocab_size=vocab_size, copies=copies)
        warm_up = Workload(name, workload.requests[:4])
        _run_workload(client, warm_up, model, tenants, vocab_size, timeout_s, is_alone)
        runs = []
        for number in range(rounds):
            runs.append(
                _run_workload(client, workload, model, tenants, vocab_size, timeout_s, is_alone)
            )
            say(f"{name} {number + 1} of {rounds}: {runs[-1].wall_s:.2f} s")
        yield summarise(name, len(workload.requests), workload.num_prompt_tokens, runs)


def _tenants(shards: ShardList, model: str) -> list[str]:
    """Return a tenant for each shard that takes new jobs; one broker gets the default tenant."""
    if shards.only is not None:
        return [keys.DEFAULT_TENANT]
    found: dict[str, str] = {}
    takers = [shard for shard in shards.shards if not shard.is_draining]
    for number in itertools.count():
        tenant = f"bench-{number}"
        found.setdefault(shards.of_work(model, tenant).name, tenant)
        if len(found) == len(takers):
            return list(found.values())
    raise AssertionError("each shard wins some tenant")


def _check_served(shard: Shard, store: JobStore, model: str) -> None:
    workers = store.list_workers()
    if not any(worker.state == "ready" and worker.model == model for worker in workers):
        served = ", ".join(sorted({worker.model for worker in workers})) or "-"
        place = f"in shard {shard.name}" if shard.name else "at this broker"
        raise BenchFailed(
            f"no worker serves {model!r} {place} (served: {served}); start one with "
            "`batchmill worker` or `batchmill up`, give another --model, or let --own-stack start "
            "everything"
        )


def _run_workload(
    client: Client,
    workload: Workload,
    model: str,
    tenants: Sequence[str],
    vocab_size: int,
    timeout_s: float,
    is_alone: bool,
) -> BenchRun:
    first_token = random.randint(min(FIRST_TOKEN_ID, vocab_size // 2), vocab_size - 1)
    jobs = [
        GenerationJob(
            model=model,
            tenant=tenant,
            prompt=request.prompt,
            max_tokens=request.max_tokens,
            temperature=0.0,
            ignore_eos=True,
        )
        for request, tenant in zip(
            with_first_token(workload, first_token).requests, itertools.cycle(tenants), strict=False
        )
    ]
    load = ForeignLoad() if is_alone else None
    failures: Counter[str] = Counter()
    times: list[RequestTimes] = []
    num_tokens = 0
    started_at_s = time.perf_counter()
    handles = client.submit_many(jobs)
    for ended in client.as_completed(handles, timeout_s=timeout_s):
        try:
            result = ended.result()
        except JobUnfinished as error:
            failures[error.code] += 1
        else:
            times.append(_times(result))
            num_tokens += result.usage.completion_tokens
    return BenchRun(
        wall_s=time.perf_counter() - started_at_s,
        num_output_tokens=num_tokens,
        foreign_cpus=None if load is None else load.mean_cpus(),
        requests=times,
        failures=dict(failures),
    )


def _times(result: JobResult) -> RequestTimes:
    metrics, num_tokens = result.metrics, result.usage.completion_tokens
    first = None
    if metrics.queue_time_s is not None and metrics.ttft_s is not None:
        first = metrics.queue_time_s + metrics.ttft_s
    inter = None
    if metrics.generate_time_s is not None and num_tokens > 1:
        inter = metrics.generate_time_s / (num_tokens - 1)
    return RequestTimes(first, inter, metrics.total_time_s)
