"""Measures the memory and the speed of `batchmill bulk` with a hundred thousand lines.

`python tests/bench/bulk_100k.py [lines]` starts an embedded broker and a worker with the stub
engine, writes the input, and prints the memory (resident set) of the bulk command while it runs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bulk_mill import STUB, BulkMill, bulk_mill, load_average

#: Rows of the table.
NUM_ROWS = 20


def resident_mb(process: subprocess.Popen[bytes], field: str = "VmRSS") -> float:
    """Return a process's memory, now or (`VmHWM`) at its peak, in MiB; 0 after its end."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return next((int(row.split()[1]) for row in text.splitlines() if field in row), 0) / 1024


def watch(mill: BulkMill, command: subprocess.Popen[bytes], num_lines: int) -> float:
    """Print a row after every twentieth of the lines; return the command's peak memory."""
    started_at, next_row, peak_mb = time.monotonic(), 0, 0.0
    print("results   seconds   command's memory   Redis' memory")
    while command.poll() is None:
        peak_mb = max(peak_mb, resident_mb(command, "VmHWM"))
        done = mill.num_output_lines()
        if done >= next_row:
            next_row = done - done % (num_lines // NUM_ROWS) + num_lines // NUM_ROWS
            redis_mb = int(mill.store.client.info("memory")["used_memory"]) / 2**20
            elapsed_s = time.monotonic() - started_at
            memory = f"{resident_mb(command):13.1f} MB {redis_mb:12.0f} MB"
            print(f"{done:7d} {elapsed_s:9.1f}   {memory}", flush=True)
        time.sleep(0.2)
    return peak_mb


def main() -> None:
    """Run the command and print the figures."""
    num_lines = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with bulk_mill(**STUB) as mill:
        source = mill.write_lines(
            {"custom_id": f"c{i}", "prompt": f"Line {i}: " + "x" * 200, "max_tokens": 8}
            for i in range(num_lines)
        )
        print(f"input: {num_lines} lines, {source.stat().st_size / 2**20:.1f} MB; {load_average()}")
        mill.start_worker()
        command = mill.start_bulk(source)
        peak_mb = watch(mill, command, num_lines)
        summary = mill.summary()
        ids = {line["custom_id"] for line in mill.output_lines()}
    rate = num_lines / summary["elapsed_s"]
    print(f"{summary['completed']} completed, {summary['failed']} failed, {len(ids)} different ids")
    print(f"{summary['elapsed_s']:.1f} s, {rate:.0f} jobs/s; peak memory {peak_mb:.1f} MB")
    print(load_average())


if __name__ == "__main__":
    main()
