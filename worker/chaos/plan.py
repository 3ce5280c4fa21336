"""The plan of a run: which jobs and which faults, and when, all from one seed.

Read next: `planned_jobs.py` and `fault_kinds.py` (what can happen), `run.py` (who does it),
`oracle.py` (what must hold afterwards).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from batchmill.worker.service_errors import BenchFailed

from .fault_kinds import KINDS, Lane
from .planned_jobs import Order, PlannedJob, draw_orders

#: Mean seconds between the end of a fault and the next one of its lane.
_MEAN_GAPS_S = {Lane.PROCESS: 1.5, Lane.SERVER: 5.0, Lane.NETWORK: 3.0, Lane.RECEIVER: 4.0}
#: Faults begin only when the workers have been busy for a while.
_FIRST_FAULT_S = 0.5


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault."""

    number: int
    kind: str
    #: Seconds after the start.
    at_s: float
    duration_s: float
    #: Selects the program that it happens to, modulo their number; see `faults.py`.
    victim: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will happen in a run."""

    seed: int
    #: Seconds in which jobs are submitted and faults happen.
    duration_s: float
    orders: tuple[Order, ...]
    faults: tuple[PlannedFault, ...]

    @property
    def jobs(self) -> Iterator[tuple[Order, PlannedJob]]:
        """Every job, with its order."""
        return ((order, job) for order in self.orders for job in order.jobs)

    @property
    def digest(self) -> str:
        """Hash of the whole plan: two runs with the same one did the same."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_plan(
    *,
    seed: int,
    num_jobs: int,
    duration_s: float,
    lease_s: float,
    kinds: Sequence[str],
    has_stub: bool,
    gap_factor: float = 1.0,
) -> Plan:
    """Return the plan of a seed. Other options make another plan of the same seed.

    Args:
        seed: decides everything.
        num_jobs: number of jobs, lines of batches and parts of workflows included.
        duration_s: seconds in which jobs are submitted and faults happen.
        lease_s: of the workers; durations of faults are multiples of it.
        kinds: names of the kinds of faults.
        has_stub: whether the engine is the stub, which can be crashed by a prompt.
        gap_factor: multiplies the time between two faults of a lane.

    Raises:
        BenchFailed: a kind of fault is unknown.
    """
    for name in kinds:
        if name not in KINDS:
            raise BenchFailed(f"fault {name!r} is unknown; it must be one of {', '.join(KINDS)}")
    rng = random.Random(seed)
    orders = draw_orders(rng, num_jobs, duration_s, has_stub=has_stub)
    names = [name for name in KINDS if name in kinds]
    drawn: list[PlannedFault] = []
    for lane in Lane:
        of_lane = [name for name in names if KINDS[name].lane is lane]
        gap_s = gap_factor * _MEAN_GAPS_S[lane]
        drawn += _draw_lane(rng, of_lane, gap_s, duration_s, lease_s)
    drawn.sort(key=lambda fault: fault.at_s)
    faults = tuple(replace(fault, number=number) for number, fault in enumerate(drawn))
    return Plan(seed, duration_s, orders, faults)


def _draw_lane(
    rng: random.Random, names: Sequence[str], gap_s: float, duration_s: float, lease_s: float
) -> Iterator[PlannedFault]:
    """Yield the faults of one lane: each kind once, in random order, then all of them again."""
    at_s = _FIRST_FAULT_S + rng.uniform(0.0, gap_s)
    left: list[str] = []
    while names and at_s < duration_s:
        if not left:
            left = rng.sample(names, len(names))
        name = left.pop()
        fault_s = lease_s * rng.uniform(*KINDS[name].leases)
        yield PlannedFault(0, name, round(at_s, 3), round(fault_s, 3), rng.randint(0, 999))
        at_s += fault_s + rng.uniform(0.2 * gap_s, 1.8 * gap_s)
