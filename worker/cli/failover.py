"""`batchmill bench failover`: a Redis that fails over under load, and what that cost."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from batchmill.worker.terminal import print_json, print_table

from .errors import ExitCode
from .options import JsonOption

EPILOG = (
    "Examples:\n\n  batchmill bench failover --seed 7 --kills 3\n\n"
    "  batchmill bench failover --min-replicas 1 --json"
)
_Seed = Annotated[int, typer.Option(help="The same seed submits the same jobs.")]
_Jobs = Annotated[int, typer.Option(min=2, max=10_000, help="Number of jobs before the kills.")]
_Kills = Annotated[int, typer.Option(min=1, max=50, help="Primaries to kill, one after another.")]
_Workers = Annotated[int, typer.Option(min=1, max=16, help="Number of workers.")]
_Replicas = Annotated[
    int,
    typer.Option(
        min=0,
        max=1,
        help="Replicas that must have a job before its sender is told: "
        "BATCHMILL_BROKER_MIN_REPLICAS.",
    ),
]
_Step = Annotated[float, typer.Option(min=0, help="Milliseconds per step of the stub engine.")]


def run_failover_bench(
    seed: _Seed = 1,
    jobs: _Jobs = 60,
    kills: _Kills = 2,
    workers: _Workers = 2,
    min_replicas: _Replicas = 0,
    step_ms: _Step = 20.0,
    as_json: JsonOption = False,
) -> None:
    """Kill primaries that three Sentinels watch, while their replica lacks the last writes.

    Starts its own servers, Sentinels, workers, deliverer and receiver. The exit code is 1 if a job
    is lost, has two results or two webhook ids, or if a lost claim wrote anything.
    """
    from batchmill.worker.failover.run import FailoverOptions, run_failover

    options = FailoverOptions(
        seed=seed,
        num_jobs=jobs,
        num_kills=kills,
        num_workers=workers,
        min_replicas=min_replicas,
        step_time_s=step_ms / 1000,
    )
    report = run_failover(options, _say)
    if as_json:
        print_json(report.as_json())
    else:
        data = report.as_json()
        columns = tuple(name for name in data if name != "broken")
        print_table("Failover", columns, [tuple(str(data[name]) for name in columns)])
        for broken in report.broken:
            print(f"BROKEN {broken.promise}: {broken.key}: {broken.detail}")
    raise typer.Exit(ExitCode.FAILED if report.broken else ExitCode.OK)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
