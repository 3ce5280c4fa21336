"""Tries random inputs for some time: each must be answered, or refused by name.

`python -m tests.fuzz.fuzz --seconds 60 --seed 1` prints what became of the inputs, and each defect
with the words that repeat it: `--subject records --seed 1 --only 4711`.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

from .subjects import SUBJECTS

#: CPU time of this process that no input may exceed. A chat's template has 2 s; structures are
#: compiled in processes with limits of their own.
MAX_CPU_S = 10.0
#: No input may take longer on an idle machine, a server's work and all waits included: a check of a
#: structure has 8 s, and there may be several. On a busy machine it may take as many times longer
#: as there are processes per core that want to run.
MAX_IDLE_S = 40.0


@dataclass(slots=True)
class Outcome:
    """What became of the inputs of one subject."""

    verdicts: Counter[str] = field(default_factory=Counter)
    #: Number of the input, and what happened.
    defects: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    most_cpu_s: float = 0.0


def fuzz(subject: str, *, seed: int, seconds: float, only: int | None = None) -> Outcome:
    """Try inputs until the time is over; at least one is tried.

    Args:
        subject: name of what is fuzzed.
        seed: with the input's number, it decides the input.
        seconds: how long to try.
        only: number of the single input to try.
    """
    outcome = Outcome()
    deadline_s = time.monotonic() + seconds
    number = only or 0
    with SUBJECTS[subject]() as trial:
        while True:
            started_s, cpu_started_s = time.monotonic(), time.process_time()
            try:
                outcome.verdicts[trial(random.Random(f"{subject}:{seed}:{number}"))] += 1
            except Exception:
                outcome.defects.append((number, traceback.format_exc(limit=-4)))
            taken_s = time.monotonic() - started_s
            cpu_s = time.process_time() - cpu_started_s
            outcome.slowest_s = max(outcome.slowest_s, taken_s)
            outcome.most_cpu_s = max(outcome.most_cpu_s, cpu_s)
            if reason := too_slow(taken_s, cpu_s, load_per_core=_load_per_core()):
                outcome.defects.append((number, reason))
            number += 1
            if only is not None or time.monotonic() > deadline_s:
                return outcome


def too_slow(taken_s: float, cpu_s: float, *, load_per_core: float) -> str | None:
    """Return why an input took too long; None if it did not.

    Args:
        taken_s: how long it took, in seconds.
        cpu_s: CPU time of this process meanwhile, in seconds.
        load_per_core: processes per core that want to run; below 1 the machine is idle in part.
    """
    if cpu_s > MAX_CPU_S:
        return f"it took {cpu_s:.1f} s of CPU time; {MAX_CPU_S:g} s is the limit"
    limit_s = MAX_IDLE_S * max(1.0, load_per_core)
    if taken_s > limit_s:
        return f"it took {taken_s:.1f} s; {limit_s:.0f} s is the limit at this load"
    return None


def _load_per_core() -> float:
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def main() -> int:
    """Run the command; return 1 if there are defects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", choices=sorted(SUBJECTS), action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="per subject")
    parser.add_argument("--only", type=int)
    given = parser.parse_args()
    num_defects = 0
    for subject in given.subject or SUBJECTS:
        outcome = fuzz(subject, seed=given.seed, seconds=given.seconds, only=given.only)
        num_defects += len(outcome.defects)
        print(
            f"{subject}: {outcome.verdicts.total() + len(outcome.defects)} inputs, "
            f"{len(outcome.defects)} defects, slowest {outcome.slowest_s:.1f} s, "
            f"most CPU time {outcome.most_cpu_s:.1f} s; "
            + ", ".join(f"{count} {name}" for name, count in outcome.verdicts.most_common(12)),
            flush=True,
        )
        for number, what in outcome.defects[:5]:
            print(f"--subject {subject} --seed {given.seed} --only {number}\n{what}", flush=True)
    return 1 if num_defects else 0


if __name__ == "__main__":
    sys.exit(main())
