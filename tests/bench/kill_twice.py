"""Kills the command, then the worker, while two thousand real prompts run on the demo model.

`python tests/bench/kill_twice.py [prompts]` runs `batchmill bulk --webhook`. It kills the command
(`kill -9`) after a quarter of the results and starts it again, kills the worker after half of them
and starts another one. Then every prompt must have one result and one submission, and the batch
must have counted each once and owe one event. Otherwise the script exits with 1.
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
    """Yield the input: two questions about each entry, with short outputs."""
    asked = ((question, entry) for question in QUESTIONS for entry in entries())
    for number, (question, entry) in enumerate(itertools.islice(asked, num_prompts)):
        yield {
            "custom_id": f"c{number}",
            "messages": [{"role": "user", "content": f"{entry.text[:200]}\n{question}"}],
            "max_tokens": 6,
            "temperature": 0,
        }


def run(mill: BulkMill, num_prompts: int) -> None:
    """Run the prompts, kill command and worker, and print when."""
    source = mill.write_lines(lines(num_prompts))
    started_at = time.monotonic()

    def report(event: str) -> None:
        elapsed_s = time.monotonic() - started_at
        print(f"{elapsed_s:6.1f} s, {mill.num_output_lines():4d} results: {event}", flush=True)

    worker = mill.start_worker()
    report("the worker is ready")
    command = mill.start_bulk(source, *HOOK)
    mill.wait_for(lambda: mill.num_output_lines() >= num_prompts // 4, command)
    command.send_signal(signal.SIGKILL)
    command.wait()
    report("the command is killed, and started again")
    command = mill.start_bulk(source, *HOOK)
    mill.wait_for(lambda: mill.num_output_lines() >= num_prompts // 2, command)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    report("the worker is killed, and another started")
    mill.start_worker()
    command.wait()
    report(f"the command has ended with {command.returncode}")


def find_errors(mill: BulkMill, num_prompts: int) -> list[str]:
    """Compare results and counts with the input; return the differences."""
    ids = Counter(line["custom_id"] for line in mill.output_lines())
    totals = mill.store.counts().totals
    [batch] = mill.store.read(batches(mill.store.read(newest_batch_ids(9))))
    assert batch is not None
    numbers = batch.request_counts
    events = mill.store.outbox_claim(owner="bench", limit=9, lease_ms=1000)
    print(
        f"{len(ids)} different ids in {ids.total()} results, {mill.errors.stat().st_size} bytes of "
        f"errors; submitted {totals['submitted']}, completed {totals['completed']}; batch "
        f"{batch.status}: {numbers.completed} completed, {numbers.failed} failed; events: "
        f"{', '.join(event.type for event in events)}"
    )
    checks = {
        "a result is missing": len(ids) == num_prompts,
        "a result occurs twice": ids.total() == len(ids),
        "a prompt failed": mill.errors.stat().st_size == 0,
        "a prompt was submitted twice": totals["submitted"] == num_prompts,
        "a job ended twice": totals["completed"] == num_prompts,
        "the batch has miscounted": (numbers.completed, numbers.failed) == (num_prompts, 0),
        "the batch does not owe exactly one event": [event.type for event in events]
        == ["batch.completed"],
    }
    return [what for what, is_right in checks.items() if not is_right]


def main() -> int:
    """Run and print the differences; return the exit code."""
    num_prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with bulk_mill(**SETTINGS) as mill:
        run(mill, num_prompts)
        wrong = find_errors(mill, num_prompts)
    print("; ".join(wrong) if wrong else "every result exists once")
    print(load_average())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
