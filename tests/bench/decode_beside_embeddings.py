"""Tokens per second of decoding, alone and while the same engine embeds: run it as a script."""

from __future__ import annotations

import argparse
import os
import statistics
import time

from batchmill.engine import Engine, EngineConfig, SamplingParams

_NUM_DECODING = 8


def tokens_per_s(engine: Engine, num_tokens: int, num_texts: int) -> tuple[float, int]:
    """Return the speed of decoding until its end, and how many texts were embedded by then."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    for number in range(_NUM_DECODING):
        engine.add_request(f"decode {number}", f"Story number {number}.", params)
    for number in range(num_texts):
        # All different, so that the prefix cache has none of them.
        engine.add_pooled_request(f"text {number}", f"{time.monotonic_ns()} " + "mill stone " * 30)
    started, num_decoding, num_embedded, took_s = time.perf_counter(), _NUM_DECODING, 0, 0.0
    while engine.has_unfinished():
        for output in engine.step():
            if not output.finished:
                continue
            if output.request_id.startswith("text"):
                num_embedded += num_decoding > 0
                continue
            num_decoding -= 1
            if not num_decoding:
                took_s = time.perf_counter() - started
    return _NUM_DECODING * num_tokens / took_s, num_embedded


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    engine = Engine(EngineConfig(model="demo", max_model_len=512, kv_cache_bytes=1 << 28))
    rounds = [
        (tokens_per_s(engine, given.tokens, 0), tokens_per_s(engine, given.tokens, given.texts))
        for _ in range(given.rounds + 1)
    ][1:]
    for place, name in enumerate(("alone", f"beside {given.texts} texts")):
        speeds = [each[place][0] for each in rounds]
        done = rounds[-1][place][1]
        print(
            f"{name}: {statistics.median(speeds):.1f} tok/s, {[round(each, 1) for each in speeds]}"
            f"; {done} texts embedded before decoding ended"
        )
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
