"""`batchmill bench chaos`: jobs under random faults, and a report of every broken promise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from batchmill.worker.terminal import print_json

from .errors import ExitCode, usage_error
from .options import JsonOption

EPILOG = (
    "Examples:\n\n  batchmill bench chaos --jobs 200 --seed 7\n\n"
    "  batchmill bench chaos --jobs 2000 --faults kill_worker,redis_kill,failover --json\n\n"
    "  batchmill bench chaos --jobs 10000 --seed 7 --plan"
)
#: Jobs per second that a plan submits if no duration is given.
_JOBS_PER_S = 25.0
_MIN_DURATION_S = 10.0

_Jobs = Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of jobs.")]
_Seed = Annotated[int, typer.Option(help="The same seed makes the same jobs and faults.")]
_Engine = Annotated[str, typer.Option(help="stub, or real for the model of BATCHMILL_MODEL.")]
_Faults = Annotated[
    str | None,
    typer.Option(help="Kinds of faults, separated by commas. Default: all; see --list-faults."),
]
_Duration = Annotated[
    float | None,
    typer.Option(
        min=1, help="Seconds of jobs and faults. Default: one per 25 jobs, but at least 10."
    ),
]
_Gap = Annotated[
    float,
    typer.Option(
        min=0.1,
        help="Multiplies the time between faults. On a busy machine workers need longer to start, "
        "and should also be ready for a while.",
    ),
]
_Workers = Annotated[int, typer.Option(min=1, max=64, help="Number of workers.")]
_Lease = Annotated[float, typer.Option(min=0.5, help="BATCHMILL_LEASE_S of the workers.")]
_Step = Annotated[float, typer.Option(min=0, help="Milliseconds per step of the stub engine.")]
_Places = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="BATCHMILL_MAX_NUM_SEQS of the workers. With few places jobs wait, and long ones move "
        "to workers with more room.",
    ),
]
_Slice = Annotated[
    int, typer.Option(min=0, help="BATCHMILL_TIME_SLICE_TOKENS of the workers; needs few --places.")
]
_Settle = Annotated[
    float, typer.Option(min=1, help="Maximum seconds from the last fault to the last end.")
]
_Broker = Annotated[
    str | None,
    typer.Option(
        "--broker-url",
        metavar="URL",
        help="An empty redis:// database to use instead of own servers. Faults of the server are "
        "then left out.",
    ),
]
_Plan = Annotated[bool, typer.Option("--plan", help="Print the plan, and run nothing.")]
_List = Annotated[bool, typer.Option("--list-faults", help="Print the kinds of faults.")]
_KeepLogs = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Keep the logs and the report there. By default they are kept if a promise is broken.",
    ),
]


def run_chaos_bench(
    jobs: _Jobs = 500,
    seed: _Seed = 1,
    engine: _Engine = "stub",
    faults: _Faults = None,
    duration_s: _Duration = None,
    fault_gap: _Gap = 1.0,
    workers: _Workers = 3,
    lease_s: _Lease = 3.0,
    step_ms: _Step = 5.0,
    places: _Places = None,
    slice_tokens: _Slice = 0,
    settle_s: _Settle = 120.0,
    broker_url: _Broker = None,
    plan: _Plan = False,
    list_faults: _List = False,
    keep_logs: _KeepLogs = None,
    as_json: JsonOption = False,
) -> None:
    """Run jobs while programs are killed and frozen and Redis and the network fail.

    Starts its own servers, workers, deliverers and receiver. Every job must end once with the right
    text, and every webhook and follow-up must arrive; the exit code is 1 if a promise is broken.
    """
    from batchmill.worker.chaos.fault_kinds import KINDS, SERVER_KINDS
    from batchmill.worker.chaos.plan import make_plan
    from batchmill.worker.chaos.run import RunOptions, run_chaos

    if list_faults:
        _print_kinds(as_json=as_json)
        return
    if engine not in ("stub", "real"):
        raise usage_error(f"--engine {engine!r} must be stub or real")
    kinds = [name for name in KINDS if broker_url is None or name not in SERVER_KINDS]
    if faults is not None:
        kinds = [name for name in faults.split(",") if name]
    made = make_plan(
        seed=seed,
        num_jobs=jobs,
        duration_s=duration_s or max(_MIN_DURATION_S, jobs / _JOBS_PER_S),
        lease_s=lease_s,
        kinds=kinds,
        has_stub=engine == "stub",
        gap_factor=fault_gap,
    )
    if plan:
        _print_plan(made, as_json=as_json)
        return
    options = RunOptions(
        engine=engine,
        num_workers=workers,
        lease_s=lease_s,
        step_time_s=step_ms / 1000,
        num_places=places,
        slice_tokens=slice_tokens,
        settle_s=settle_s,
        broker_url=broker_url,
        keep_logs=keep_logs,
    )
    report = run_chaos(made, options, _say)
    if as_json:
        print_json(report.as_json())
    else:
        print("\n".join(report.lines()))
    raise typer.Exit(ExitCode.OK if report.is_kept else ExitCode.FAILED)


def _print_kinds(*, as_json: bool) -> None:
    from batchmill.worker.chaos.fault_kinds import KINDS

    if as_json:
        print_json({kind.name: kind.summary for kind in KINDS.values()})
        return
    for kind in KINDS.values():
        print(f"{kind.name:<20} {kind.lane:<9} {kind.summary}")


def _print_plan(plan: Any, *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json({"plan": plan.digest, **asdict(plan)})
        return
    print(f"plan {plan.digest}: {sum(1 for _ in plan.jobs)} jobs in {len(plan.orders)} orders")
    rows = [(order.at_s, f"{order.kind} of {len(order.jobs)} jobs") for order in plan.orders]
    rows += [
        (fault.at_s, f"FAULT {fault.kind} for {fault.duration_s:g} s, victim {fault.victim}")
        for fault in plan.faults
    ]
    for at_s, what in sorted(rows):
        print(f"{at_s:>9.3f} s  {what}")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
