"""Many LoRA adapters over few places in memory: `python tests/bench/lora_slots.py`.

Requests of 100 adapters, in random order, over a tiny model on a CPU whose memory holds 8 of them,
and in turn over one that holds them all. Prints tokens per second, loads, the engine thread's time
in the pool of adapters (waiting for a load while nothing can run is named apart), and the latest
first token by arrival: how many requests that came later began before it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from batchmill.engine import Engine, SamplingParams
from batchmill.engine.adapters.folder import read_files, store_files
from batchmill.engine.adapters.pool import AdapterPool
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.worker.bench.figures import ForeignLoad, machine
from tests.engine.tiny_model import save_model, tiny_engine
from tests.support.adapters import write_adapter

PARAMS = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


class Watch:
    """Measures the time that the engine's thread spends in some methods of a pool."""

    def __init__(self, pool: AdapterPool) -> None:
        """Put a stopwatch around the methods."""
        self.calls_s: dict[str, list[float]] = {}
        for name in ("load_ahead", "is_ready", "wait", "find"):
            self._watch(pool, name)

    def _watch(self, pool: AdapterPool, name: str) -> None:
        method: Callable[..., Any] = getattr(pool, name)
        calls_s = self.calls_s.setdefault(name, [])

        def timed(*arguments: Any) -> Any:
            started_at_s = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                calls_s.append(time.perf_counter() - started_at_s)

        setattr(pool, name, timed)


def serve(engine: Engine, digests: list[str], num_requests: int) -> dict[str, float]:
    """Run requests of random adapters; return the figures."""
    rng = random.Random(0)
    pool = engine._adapters
    assert pool is not None
    watch = Watch(pool)
    order: dict[str, int] = {}
    steps_s = []
    for number in range(num_requests):
        prompt = [rng.randrange(20, 250) for _ in range(12)]
        engine.add_request(f"{number}", prompt, PARAMS, lora=rng.choice(digests))
    started_at_s = time.perf_counter()
    while engine.has_unfinished():
        step_at_s = time.perf_counter()
        for output in engine.step():
            order.setdefault(output.request_id, len(order))
        steps_s.append(time.perf_counter() - step_at_s)
    elapsed_s = time.perf_counter() - started_at_s
    assert PARAMS.max_tokens is not None
    ahead = [place - int(name) for name, place in order.items()]
    return {
        "tokens/s": num_requests * PARAMS.max_tokens / elapsed_s,
        "steps": len(steps_s),
        "median step ms": 1e3 * statistics.median(steps_s),
        "longest step ms": 1e3 * max(steps_s),
        "loads": pool.num_loads,
        "waits": len(watch.calls_s["wait"]),
        "waiting ms": 1e3 * sum(watch.calls_s["wait"]),
        "load_ahead ms": 1e3 * sum(watch.calls_s["load_ahead"]),
        "longest load_ahead ms": 1e3 * max(watch.calls_s["load_ahead"]),
        "is_ready ms": 1e3 * sum(watch.calls_s["is_ready"]),
        "most overtaken by": max(ahead),
    }


def run(root: Path, options: argparse.Namespace) -> None:
    """Measure and print."""
    save_model(root / "model")
    digests = []
    for seed in range(options.adapters):
        files = read_files(write_adapter(root / f"peft-{seed}", seed, rank=options.rank))
        store_files(files, root / "store")
        digests.append(files.digest)
    loaded: LoadedModel = load_model(str(root / "model"), dtype="float32", device="cpu")
    engine = make_engine(loaded, root, 2**30)
    assert engine._adapters is not None
    num_bytes = engine._adapters.find(digests[0]).num_bytes
    load = ForeignLoad()
    kinds = {"few": options.slots * num_bytes, "all": 2**30}
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, max_bytes in kinds.items():
            engine = make_engine(loaded, root, max_bytes)
            found[kind].append(serve(engine, digests, options.requests))
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"{options}; CPUs used by others {load.mean_cpus()}")
    for name in found["few"][0]:
        cells = [statistics.median(each[name] for each in found[kind]) for kind in kinds]
        print(
            f"{name:24}", *(f"{kind} {cell:10.2f}" for kind, cell in zip(kinds, cells, strict=True))
        )


def make_engine(loaded: LoadedModel, root: Path, max_bytes: int) -> Engine:
    """Return an engine of eight requests at a time."""
    return tiny_engine(loaded, 128, lora_folder=str(root / "store"), lora_bytes=max_bytes)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


if __name__ == "__main__":
    main()
