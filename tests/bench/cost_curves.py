"""Cost of a decode step by batch and context: `python tests/bench/cost_curves.py [--model M]`.

Prints Markdown: milliseconds per step, output tokens per second, memory per sequence. The model
runs alone, without scheduler, sampler or text, over a cache of random numbers. Takes about three
minutes for the demo model on two cores. Cells whose cache would take more than a third of the free
memory are left out and marked.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_floors import kv_bytes_per_token
from gpu_steps import StepMaker

from batchmill.engine.loading.loading import load_model
from batchmill.engine.memory.device_memory import free_memory_bytes
from batchmill.engine.models.decoder import DecoderModel

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (64, 256, 512, 1024, 2048)
BLOCK_SIZE = 16
MIB = 1024**2


def step_ms(model: DecoderModel, batch: int, context: int, seconds: float) -> float:
    """Return the median time of a decode step, of at least three in about `seconds`."""
    maker = StepMaker(model, block_size=BLOCK_SIZE, num_seqs=batch, num_tokens=context)
    inputs = maker.decode_inputs(context=context)
    maker.run(inputs)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        started_at_s = time.perf_counter()
        maker.run(inputs)
        times.append(time.perf_counter() - started_at_s)
    return statistics.median(times) * 1000


def table(title: str, cells: dict[tuple[int, int], float | None], digits: int) -> str:
    """Format one row per batch, one column per context; a dash if nothing was measured."""
    lines = [
        f"| {title} | {' | '.join(f'{context} tokens' for context in CONTEXTS)} |",
        "|---" * (len(CONTEXTS) + 1) + "|",
    ]
    for batch in BATCHES:
        values = (cells.get((batch, context)) for context in CONTEXTS)
        row = " | ".join("-" if value is None else f"{value:,.{digits}f}" for value in values)
        lines.append(f"| batch {batch} | {row} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="as the engine takes it")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each cell, about")
    options = parser.parse_args()
    model = load_model(options.model, dtype=options.dtype, device="cpu").model
    if not isinstance(model, DecoderModel):
        parser.error(f"{options.model} is not computed by the native decoder")
    token_bytes = kv_bytes_per_token(model.config, model.dtype.itemsize)
    most_tokens = free_memory_bytes(model.device) // 3 // token_bytes
    times: dict[tuple[int, int], float | None] = {}
    for context in CONTEXTS:
        for batch in BATCHES:
            if batch * context <= most_tokens:
                times[batch, context] = step_ms(model, batch, context, options.seconds)
                print(
                    f"batch {batch}, {context} tokens: {times[batch, context]:.2f} ms",
                    file=sys.stderr,
                )
    rates = {cell: 1000 * cell[0] / ms for cell, ms in times.items() if ms is not None}
    print(table("ms a step", times, 2), end="\n\n")
    print(table("output tokens/s", dict(rates), 0), end="\n\n")
    sizes = ", ".join(f"{context * token_bytes / MIB:.1f} MiB at {context}" for context in CONTEXTS)
    print(f"KV cache of a sequence: {sizes} tokens. Left out: batches over {most_tokens:,} tokens.")


if __name__ == "__main__":
    main()
