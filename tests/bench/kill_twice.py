"""Two thousand real prompts on the demo model, with the command and then the worker killed.

`python tests/bench/kill_twice.py [prompts]` runs `batchmill bulk --webhook`, kills the command
(`kill -9`) when a quarter has answers and starts it again, kills the worker when half has and
starts another, and then compares: every prompt has one answer, none was submitted twice, the batch
has counted each once and owes one event. It ends with 1 where that is not so.
"""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bulk_mill import BulkMill, bulk_mill, load_average
from real_prompts import entries

from batchmill.producer.store.batches import batches, newest_batch_ids

HOOK = ("--webhook", "https://example.com/hook")
SETTINGS = {"BATCHMILL_MODEL": "demo", "BATCHMILL_MAX_NUM_SEQS": "64", "BATCHMILL_LEASE_S": "5"}
QUESTIONS = ("Say in one word what it is for.", "Name a thing that it is like.")


def lines(num_prompts: int) -> Iterator[dict[str, Any]]:
    """The input: two questions on each documented thing, with short answers."""
    asked = ((question, entry) for question in QUESTIONS for entry in entries())
    for number, (question, entry) in enumerate(itertools.islice(asked, num_prompts)):
        yield {
            "custom_id": f"c{number}",
            "messages": [{"role": "user", "content": f"{entry.text[:200]}\n{question}"}],
            "max_tokens": 6,
            "temperature": 0,
        }


def run(mill: BulkMill, num_prompts: int) -> None:
    """Run, killing both, and tell when."""
    source = mill.write_lines(lines(num_prompts))
    started_at = time.monotonic()

    def tell(what: str) -> None:
        elapsed_s = time.monotonic() - started_at
        print(f"{elapsed_s:6.1f} s, {mill.num_answers():4d} answers: {what}", flush=True)

    worker = mill.start_worker()
    tell("the worker is ready")
    command = mill.start_bulk(source, *HOOK)
    mill.wait_for(lambda: mill.num_answers() >= num_prompts // 4, command)
    command.send_signal(signal.SIGKILL)
    command.wait()
    tell("the command is killed, and started again")
    command = mill.start_bulk(source, *HOOK)
    mill.wait_for(lambda: mill.num_answers() >= num_prompts // 2, command)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    tell("the worker is killed, and another started")
    mill.start_worker()
    command.wait()
    tell(f"the command has ended with {command.returncode}")


def judge(mill: BulkMill, num_prompts: int) -> list[str]:
    """Return what is wrong."""
    ids = Counter(line["custom_id"] for line in mill.answers())
    totals = mill.store.counts().totals
    [batch] = mill.store.read(batches(mill.store.read(newest_batch_ids(9))))
    numbers = batch.request_counts
    events = mill.store.outbox_claim(owner="bench", limit=9, lease_ms=1000)
    print(
        f"{len(ids)} different ids in {ids.total()} answers, {mill.errors.stat().st_size} bytes of "
        f"errors; submitted {totals['submitted']}, completed {totals['completed']}; batch "
        f"{batch.status}: {numbers.completed} completed, {numbers.failed} failed; events: "
        f"{', '.join(event.type for event in events)}"
    )
    checks = {
        "an answer is missing": len(ids) == num_prompts,
        "an answer is there twice": ids.total() == len(ids),
        "a prompt failed": mill.errors.stat().st_size == 0,
        "a prompt was submitted twice": totals["submitted"] == num_prompts,
        "a job ended twice": totals["completed"] == num_prompts,
        "the batch has miscounted": (numbers.completed, numbers.failed) == (num_prompts, 0),
        "not one event": [event.type for event in events] == ["batch.completed"],
    }
    return [what for what, is_right in checks.items() if not is_right]


def main() -> int:
    """Run and tell; the exit code says whether all is right."""
    num_prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with bulk_mill(**SETTINGS) as mill:
        run(mill, num_prompts)
        wrong = judge(mill, num_prompts)
    print("; ".join(wrong) if wrong else "nothing is missing, nothing is there twice")
    print(load_average())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
