"""`batchmill bench`: the speed of the engine alone, and of jobs through broker and workers."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import print_json, print_table

from .broker_connection import open_shards, resolve_broker
from .chaos import EPILOG as CHAOS_EPILOG
from .chaos import run_chaos_bench
from .command_settings import with_setting_flags
from .errors import CommandError, ExitCode, usage_error
from .failover import EPILOG as FAILOVER_EPILOG
from .failover import run_failover_bench
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.worker.bench.figures import BenchRow

_group = typer.Typer(
    help="Benchmarks of the engine alone and of the queue, and a test under random faults.",
    no_args_is_help=True,
)
_ENGINE_EPILOG = (
    "Examples:\n\n  batchmill bench engine\n\n"
    "  batchmill bench engine --model Qwen/Qwen3-0.6B --workload bulk --rounds 5 --json"
)
_QUEUE_EPILOG = (
    "Examples:\n\n  batchmill bench queue --own-stack\n\n"
    "  batchmill bench queue --broker-url redis://queue:6379/0 --model Qwen/Qwen3-0.6B --copies 8"
)
_Workloads = Annotated[
    list[str] | None,
    typer.Option(
        "--workload",
        help="bulk, shared-prefix, long-tail or single; may be repeated. Default: all.",
    ),
]
_Rounds = Annotated[int, typer.Option(min=1, max=1000, help="Runs of each workload.")]
_Copies = Annotated[int, typer.Option(min=1, max=10_000, help="Multiplies the number of requests.")]
_ServedModel = Annotated[
    str | None, typer.Option(help="Served name of the model. Default: BATCHMILL_MODEL, else demo.")
]
_VocabSize = Annotated[
    int,
    typer.Option(
        min=2, help="Token ids of the prompts are below this; all models have at least these."
    ),
]
_RunTimeout = Annotated[float, typer.Option(min=1, help="Maximum seconds for one run.")]
_OwnStack = Annotated[
    bool,
    typer.Option(
        "--own-stack",
        help="Start a separate broker and worker, configured by BATCHMILL_* variables.",
    ),
]


def add_bench_commands(app: typer.Typer) -> None:
    """Add `bench engine`, `bench queue`, `bench chaos` and `bench failover`."""
    _group.command("engine", epilog=_ENGINE_EPILOG)(with_setting_flags("engine", run_engine_bench))
    _group.command("queue", epilog=_QUEUE_EPILOG)(run_queue_bench)
    _group.command("chaos", epilog=CHAOS_EPILOG)(run_chaos_bench)
    _group.command("failover", epilog=FAILOVER_EPILOG)(run_failover_bench)
    app.add_typer(_group, name="bench")


def run_engine_bench(
    workload: _Workloads = None,
    rounds: _Rounds = 3,
    copies: _Copies = 1,
    as_json: JsonOption = False,
) -> None:
    """Load a model into this process and measure it, without broker or worker.

    All requests are submitted at once. Prompts are random token ids, decoding is greedy, and every
    output has its full length.
    """
    names = _workload_names(workload)
    from batchmill.engine import EngineConfig
    from batchmill.worker.bench.engine import bench_engine
    from batchmill.worker.settings import WorkerSettings

    settings = WorkerSettings()
    if settings.engine != "real":
        raise CommandError(
            "BATCHMILL_ENGINE is stub, and the stub engine computes nothing; unset it, or run "
            "`batchmill bench queue`",
            code="invalid_settings",
            exit_code=ExitCode.CONFIG,
        )
    config = EngineConfig(model=settings.model, **settings.engine_options())
    rows = bench_engine(config, names, rounds=rounds, copies=copies, say=_say)
    _report("engine", settings.model, rows, as_json=as_json)


def run_queue_bench(
    workload: _Workloads = None,
    model: _ServedModel = None,
    rounds: _Rounds = 3,
    copies: _Copies = 1,
    vocab_size: _VocabSize = 8192,
    timeout_s: _RunTimeout = 600.0,
    own_stack: _OwnStack = False,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit jobs and wait for them; the figures include everything that a producer waits for.

    The jobs share the workers with all other jobs in the queue. With several shards they take turns
    between them.
    """
    names = _workload_names(workload)
    from batchmill.producer import Client, ProducerSettings
    from batchmill.worker.bench.queue import bench_queue

    settings = ProducerSettings()
    with (
        _broker(broker_url, own_stack=own_stack) as url,
        Client(url) as client,
        open_shards(url) as stores,
    ):
        served = model or settings.served_name
        rows = bench_queue(
            client,
            stores,
            names,
            model=served,
            vocab_size=vocab_size,
            rounds=rounds,
            copies=copies,
            timeout_s=timeout_s,
            is_alone=own_stack,
            say=_say,
        )
        _report("queue", served, rows, as_json=as_json)


def _workload_names(workload: list[str] | None) -> list[str]:
    from batchmill.worker.bench.workloads import WORKLOAD_NAMES

    for name in workload or ():
        if name not in WORKLOAD_NAMES:
            raise usage_error(f"--workload {name!r} must be one of {', '.join(WORKLOAD_NAMES)}")
    return list(workload or WORKLOAD_NAMES)


@contextmanager
def _broker(broker_url: str | None, *, own_stack: bool) -> Iterator[str]:
    """Yield the URL of the broker to measure; a stack that is started here ends with it."""
    if not own_stack:
        yield resolve_broker(broker_url)
        return
    if broker_url is not None:
        raise usage_error("--own-stack starts its own broker: leave out --broker-url")
    from batchmill.worker.local.stack import LocalStack, StackOptions

    with tempfile.TemporaryDirectory(prefix="batchmill-bench-") as name:
        folder = Path(name)
        stack = LocalStack(
            StackOptions(
                state_dir=folder,
                socket_path=folder / "broker.sock",
                environment={"BATCHMILL_LOG_FORMAT": "json"},
                with_flower=False,
                with_deliverer=False,
            ),
            _say,
        )
        try:
            stack.start()
            _say("waiting for the worker to load its model")
            stack.wait_until_ready(timeout_s=900.0, progress=lambda: None)
            yield stack.broker_url
        finally:
            stack.stop()


def _say(line: str) -> None:
    """Write a progress line to stderr, apart from the figures."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _report(kind: str, model: str, rows: Iterable[BenchRow], *, as_json: bool) -> None:
    """Print the figures; the exit code is 1 if a request failed."""
    from batchmill.worker.bench.figures import machine

    done = list(rows)
    if as_json:
        print_json(
            {
                "kind": kind,
                "model": model,
                "machine": machine(),
                "workloads": [asdict(row) for row in done],
            }
        )
    else:
        facts = ", ".join(f"{name} {value}" for name, value in machine().items())
        print(f"{kind}, {model}: {facts}")
        print_table("", ("", *(row.workload for row in done)), _figure_rows(done))
        for row in done:
            for code, number in sorted(row.failures.items()):
                print(f"{row.workload}: {number} requests ended with {code}")
    raise typer.Exit(ExitCode.FAILED if any(row.failures for row in done) else ExitCode.OK)


def _figure_rows(rows: Sequence[BenchRow]) -> list[tuple[Any, ...]]:
    """Return the rows of the table: one figure per row, one workload per column."""
    figures: dict[str, Callable[[BenchRow], Any]] = {
        "requests": lambda row: row.num_requests,
        "prompt tokens": lambda row: f"{row.num_prompt_tokens:,}",
        "output tokens": lambda row: f"{row.num_output_tokens:,}",
        "seconds": lambda row: f"{row.wall_s:.2f}",
        "  range": lambda row: f"{row.wall_min_s:.2f}-{row.wall_max_s:.2f}",
        "output tokens/s": lambda row: f"{row.output_tokens_per_s:.0f}",
        "requests/s": lambda row: f"{row.requests_per_s:.1f}",
        "first token s, p50 / p99": lambda row: _pair(
            row.first_token_p50_s, row.first_token_p99_s, 1, 2
        ),
        "between tokens ms, p50 / p99": lambda row: _pair(
            row.inter_token_p50_s, row.inter_token_p99_s, 1000, 1
        ),
        "whole request s, p50 / p99": lambda row: _pair(row.total_p50_s, row.total_p99_s, 1, 2),
        "CPUs used by other processes": lambda row: (
            "-" if row.foreign_cpus is None else f"{row.foreign_cpus:.2f}"
        ),
        "failed": lambda row: sum(row.failures.values()),
    }
    return [(name, *(show(row) for row in rows)) for name, show in figures.items()]


def _pair(first: float | None, second: float | None, factor: float, digits: int) -> str:
    """Return two figures side by side; a dash stands for a missing one."""
    shown = ("-" if x is None else f"{x * factor:.{digits}f}" for x in (first, second))
    return " / ".join(shown)
