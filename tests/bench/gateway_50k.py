"""Measures the memory of gateway and client with a batch file of fifty thousand lines.

`python tests/bench/gateway_50k.py [lines]` starts an embedded broker, a worker with the stub engine
and a gateway, and uploads, completes and reads a batch by the stock `openai` client. It prints the
memory (resident set) of the gateway and of the client's process in each phase.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bulk_100k import resident_mb
from bulk_mill import STUB, bulk_mill, load_average
from openai import OpenAI

from batchmill.worker.local.flower import free_port

CLIENT = """
import json, os, sys, time
from openai import OpenAI

def memory(field):
    rows = open("/proc/self/status").read().splitlines()
    return next(int(row.split()[1]) for row in rows if field in row) / 1024

def say(phase, **facts):
    now_mb, peak_mb = memory("VmRSS"), memory("VmHWM")
    print(json.dumps({"phase": phase, "now_mb": now_mb, "peak_mb": peak_mb, **facts}), flush=True)

client = OpenAI()
client.models.list()
say("connected")
with open(sys.argv[1], "rb") as file:
    uploaded = client.files.create(file=file, purpose="batch")
say("uploaded", bytes=uploaded.bytes)
batch = client.batches.create(
    input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
)
shown = ""
while batch.status in ("validating", "in_progress", "finalizing"):
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)
    if batch.status != shown:
        shown = batch.status
        say(shown, completed=batch.request_counts.completed)
num_lines, num_bytes = 0, 0
with client.files.with_streaming_response.content(batch.output_file_id) as response:
    for piece in response.iter_bytes():
        num_lines += piece.count(b"\\n")
        num_bytes += len(piece)
say("read", lines=num_lines, bytes=num_bytes)
"""


def main() -> None:
    """Run the batch and print the figures."""
    num_lines = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    with bulk_mill(**STUB) as mill:
        source = mill.write_lines(
            {
                "custom_id": f"c{i}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": "demo",
                    "max_tokens": 4,
                    "messages": [{"role": "user", "content": f"Line {i}: " + "x" * 200}],
                },
            }
            for i in range(num_lines)
        )
        print(f"input: {num_lines} lines, {source.stat().st_size / 2**20:.1f} MB; {load_average()}")
        mill.start_worker()
        port = free_port(8000)
        gateway = mill.start_gateway(port)
        url = f"http://127.0.0.1:{port}/v1"
        with OpenAI(base_url=url, api_key="unused") as client:
            client.models.list()  # so that everything is imported
        print(f"gateway before: {resident_mb(gateway):.1f} MB")
        started_at_s = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(source)],
            env=os.environ | {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "unused"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for text in process.stdout:
            told = json.loads(text)
            print(
                f"{time.monotonic() - started_at_s:7.1f} s  {told.pop('phase'):12} "
                f"client {told.pop('now_mb'):6.1f} MB (peak {told.pop('peak_mb'):6.1f}), gateway "
                f"{resident_mb(gateway):6.1f} MB (peak {resident_mb(gateway, 'VmHWM'):6.1f}) "
                f"{told or ''}",
                flush=True,
            )
        print(f"client ended with {process.wait()}; {load_average()}")


if __name__ == "__main__":
    main()
