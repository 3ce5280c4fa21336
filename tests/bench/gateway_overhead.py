"""Measures what the gateway costs beside the direct client.

`python tests/bench/gateway_overhead.py [rounds]` starts a worker with the stub engine and a
gateway. In turn by `batchmill.Client` and by the gateway with the stock `openai` client, it sends
requests of one token one after another, and follows eight streams at once. It prints each round,
the ratio of its two sides, and the gateway's processor time.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bulk_mill import STUB, bulk_mill, load_average
from openai import OpenAI
from worker_overhead import cpu_s

from batchmill.producer import Client
from batchmill.worker.local.flower import free_port

NUM_REQUESTS = 100
NUM_STREAMS, NUM_TOKENS = 8, 1000
HELLO: Any = [{"role": "user", "content": "hello"}]


def direct_request(client: Client) -> None:
    """Run one job of one token."""
    client.submit(messages=HELLO, model="demo", max_tokens=1).result()


def gateway_request(openai: OpenAI) -> None:
    """Run one job of one token by the gateway."""
    openai.chat.completions.create(model="demo", messages=HELLO, max_tokens=1)


def direct_stream(client: Client) -> None:
    """Follow one job to its end."""
    job = client.submit(messages=HELLO, model="demo", max_tokens=NUM_TOKENS)
    words = sum(len(piece.text.split()) for piece in job.stream())
    assert words == NUM_TOKENS, words


def gateway_stream(openai: OpenAI) -> None:
    """Follow one chat to its end."""
    stream = openai.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=NUM_TOKENS, stream=True
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert sum(len(text.split()) for text in texts) == NUM_TOKENS


def one_by_one(work: Callable[[], None]) -> float:
    """Return the median seconds of a request."""
    taken = []
    for _ in range(NUM_REQUESTS):
        began_s = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began_s)
    return statistics.median(taken)


def at_once(work: Callable[[], None]) -> float:
    """Return the tokens per second of several streams together."""
    began_s = time.perf_counter()
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        list(pool.map(lambda _: work(), range(NUM_STREAMS)))
    return NUM_STREAMS * NUM_TOKENS / (time.perf_counter() - began_s)


def main() -> None:
    """Run the rounds and print them."""
    num_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    port = free_port(8000)
    with bulk_mill(**STUB) as mill, Client(mill.url) as client:
        mill.start_worker()
        gateway = mill.start_gateway(port)
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused") as openai:
            direct_request(client)
            gateway_request(openai)
            print(load_average())
            costs, requests, streams = [], [], []
            for _ in range(num_rounds):
                direct_s = one_by_one(lambda: direct_request(client))
                before_s = cpu_s(gateway.pid)
                gateway_s = one_by_one(lambda: gateway_request(openai))
                costs.append((cpu_s(gateway.pid) - before_s) * 1000 / NUM_REQUESTS)
                requests.append(gateway_s - direct_s)
                print(
                    f"request: direct {direct_s * 1000:.1f} ms, gateway {gateway_s * 1000:.1f} ms, "
                    f"{costs[-1]:.1f} ms of the gateway's processor time",
                    flush=True,
                )
                direct = at_once(lambda: direct_stream(client))
                before_s = cpu_s(gateway.pid)
                through = at_once(lambda: gateway_stream(openai))
                used_s = cpu_s(gateway.pid) - before_s
                streams.append(through / direct)
                print(
                    f"{NUM_STREAMS} streams: direct {direct:.0f} tokens/s, gateway {through:.0f}, "
                    f"ratio {streams[-1]:.2f}, {used_s * 1e6 / NUM_STREAMS / NUM_TOKENS:.0f} µs of "
                    "the gateway's processor time per token",
                    flush=True,
                )
            print(
                f"medians: {statistics.median(requests) * 1000:.1f} ms more per request, "
                f"{statistics.median(costs):.1f} ms of processor time; streams at "
                f"{statistics.median(streams):.2f} of the direct client's tokens/s; "
                f"{load_average()}"
            )


if __name__ == "__main__":
    main()
