"""Measures KV in host memory on this machine: `python tests/bench/kv_host.py [rounds]`.

Two loads of the demo model, each with and without `kv_host_bytes`, in turns:

- prefixes: prompts begin with one of 12 prefixes of 448 tokens, in an order in which each prefix
  has been evicted when it comes again; the cache holds a third of them.
- preemption: 16 requests of 64 prompt and 96 output tokens, in a cache that holds two fifths of
  their tokens.

It prints the tokens that went through the model, output tokens per second, and the ratio.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from dataclasses import dataclass

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.config import EngineConfig as Config
from batchmill.engine.engine_parts import load
from batchmill.engine.loading.loading import LoadedModel

#: Tokens that the host holds.
HOST_TOKENS = 8192
BYTES_PER_TOKEN = 2 * 30 * 3 * 64 * 2


@dataclass(frozen=True)
class Load:
    """Prompts, computed `num_together` at a time, each with as many output tokens."""

    name: str
    prompts: list[list[int]]
    num_together: int
    num_output: int
    #: Tokens that the cache holds.
    cache_tokens: int


def loads() -> list[Load]:
    """Return the two loads."""
    rng = random.Random(0)
    prefixes = [[rng.randrange(100, 40000) for _ in range(448)] for _ in range(12)]
    turns = [[*prefix, 100 + turn, 200] for turn in range(3) for prefix in prefixes]
    alone = [[rng.randrange(100, 40000) for _ in range(64)] for _ in range(16)]
    return [Load("prefixes", turns, 2, 8, 2048), Load("preemption", alone, 16, 96, 1024)]


def make(loaded: LoadedModel, cache_tokens: int, kv_host_bytes: int) -> Engine:
    """Return an engine with a small cache."""
    config = EngineConfig(
        model="demo",
        dtype="bfloat16",
        device="cpu",
        max_num_seqs=16,
        max_model_len=512,
        kv_cache_bytes=cache_tokens * BYTES_PER_TOKEN,
        kv_host_bytes=kv_host_bytes,
    )
    return Engine(config, loaded=loaded)


def measure(engine: Engine, each: Load) -> tuple[float, list[list[int]]]:
    """Run a load; return output tokens per second, and the tokens."""
    params = SamplingParams(temperature=0, max_tokens=each.num_output, ignore_eos=True)
    started_at_s, tokens = time.perf_counter(), []
    for start in range(0, len(each.prompts), each.num_together):
        some = engine.generate(each.prompts[start : start + each.num_together], params)
        tokens += [output.token_ids for output in some]
    time_s = time.perf_counter() - started_at_s
    return sum(map(len, tokens)) / time_s, tokens


def main(num_rounds: int) -> None:
    """Print a line per load."""
    loaded = load(Config(model="demo", dtype="bfloat16", device="cpu"))
    for each in loads():
        speeds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(num_rounds):
            found = {}
            for is_on in (False, True):
                engine = make(loaded, each.cache_tokens, HOST_TOKENS * BYTES_PER_TOKEN * is_on)
                engine.generate([[1, 2, 3]], SamplingParams(max_tokens=2))
                speed, found[is_on] = measure(engine, each)
                speeds[is_on].append(speed)
                stats, counts = engine.stats(), engine.offload_counts()
                print(
                    f"{each.name} host={'on' if is_on else 'off'}: {stats.num_computed_tokens} "
                    f"tokens computed, {stats.num_preemptions} preemptions, {speed:.0f} tokens/s, "
                    f"{counts}",
                    flush=True,
                )
            num_equal = sum(map(list.__eq__, found[False], found[True]))
            print(f"{num_equal} of {len(found[True])} outputs are equal")
        off, on = statistics.median(speeds[False]), statistics.median(speeds[True])
        ratio = statistics.median(b / a for a, b in zip(speeds[False], speeds[True], strict=True))
        print(
            f"== {each.name}: {off:.0f} tokens/s without, {on:.0f} with, ratio {ratio:.2f}; "
            f"load average {os.getloadavg()[0]:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
