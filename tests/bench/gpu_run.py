"""All measurements on one GPU, in one command of at most eight minutes.

`python tests/bench/gpu_run.py [--budget 480] [--out FOLDER] [--only NAME ...] [--tune] [--toy]`

Needs torch, triton and transformers, but no installation of this project: no pydantic, Celery or
Redis. Prints one JSON line per figure at once, the most important first. A section that fails
reports the reason and the others still run. docs/gpu.md explains every line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_report import Bench

#: A section that is this many seconds late hangs: its checks of the time are closer together.
HANG_S = 60.0
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def make_importable() -> None:
    """Make this checkout importable as `batchmill.engine` and `batchmill.kernels`.

    A separate folder holds links as an installation would make them, also for child processes.
    """
    links = Path(tempfile.mkdtemp(prefix="batchmill-links-"))
    (links / "batchmill").mkdir()
    for folder in ("engine", "kernels"):
        (links / "batchmill" / folder).symlink_to(ROOT / folder)
    sys.path[:0] = [str(HERE), str(links)]
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(links), *([inherited] if inherited else [])])
    # The root has a folder named kernels, which transformers would take for another project.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != ROOT]


def sections(*, tune: bool) -> list[tuple[str, float, Callable[[Bench], None]]]:
    """Return name, time limit and function of each section, the most important first."""
    from gpu_anchor import anchor
    from gpu_ceilings import ceilings
    from gpu_correctness import correctness
    from gpu_drills import crash_drill, memory_plan
    from gpu_fp8 import matrices
    from gpu_kernels import decode_attention, prefill_attention, sampler
    from gpu_recipes import host_time, latency, recipe, steady
    from gpu_serving import arrivals, controls
    from gpu_steps import steps_of
    from gpu_tune import tune as tune_attention

    if tune:
        return [("ceilings", 30, ceilings), ("tune", 450, tune_attention)]
    by_device = ("max_num_seqs", "max_num_batched_tokens", "block_size")
    settings: dict[str, dict[str, Any]] = {
        "defaults": {},
        "a worker's defaults": dict.fromkeys(by_device),
    }
    without: dict[str, dict[str, Any]] = {
        "no graphs": {"decode_graphs": False},
        "no overlap": {"overlap": False},
        "neither": {"decode_graphs": False, "overlap": False},
        "KV blocks of 16 tokens": {"block_size": 16},
    }
    return [
        ("ceilings", 30, ceilings),
        ("correctness", 240, correctness),
        ("recipe-0.6b", 60, recipe("Qwen3-0.6B", "G1", rounds=2, variants=settings)),
        ("decode-attention", 30, decode_attention),
        ("steps-0.6b", 40, steps_of("Qwen3-0.6B")),
        ("recipe-8b", 60, recipe("Qwen3-8B", "G3")),
        ("prefill-attention", 25, prefill_attention),
        ("steps-llama-8b", 40, steps_of("Llama-3.1-8B", (1, 32, 256))),
        ("sampler", 15, sampler),
        ("latency", 25, latency),
        (
            "recipe-0.6b-fp8",
            40,
            recipe("Qwen3-0.6B", "G2", variants={"fp8": {"kv_cache_dtype": "fp8"}}),
        ),
        (
            "recipe-8b-fp8",
            60,
            recipe(
                "Qwen3-8B",
                None,
                variants={"fp8 weights and cache": {"kv_cache_dtype": "fp8"}, "fp8 weights": {}},
                quantization="fp8",
            ),
        ),
        ("matrices", 25, matrices),
        ("host-time", 20, host_time),
        ("arrivals", 80, arrivals),
        ("controls", 30, controls),
        ("memory-plan", 40, memory_plan),
        ("crash-drill", 60, crash_drill),
        ("transformers", 60, anchor),
        ("steady", 75, steady),
        ("steps-llama-8b-fp8", 30, steps_of("Llama-3.1-8B", (1, 32, 256), fp8=True)),
        ("recipe-0.6b-without", 50, recipe("Qwen3-0.6B", "G1", variants=without)),
        ("recipe-14b", 60, recipe("Qwen3-14B", "G4")),
    ]


def restart(bench: Bench, options: argparse.Namespace, rest: list[str], why: str) -> None:
    """Continue with the remaining sections in a new process: this one's device is unusable."""
    bench.line("restart", why=f"{bench.section} {why}")
    failed = {*bench.failed, bench.section}
    left_s = bench.deadline_s - time.monotonic()
    arguments = ["--budget", f"{left_s:.1f}", "--failed", *sorted(failed)]
    arguments += ["--out", str(options.out)] if options.out else []
    arguments += ["--tune"] if options.tune else []
    arguments += ["--toy"] if options.toy else []
    arguments += ["--only", *(rest or ["ceilings"])]
    sys.stdout.flush()
    close_with_this_process()
    os.execv(sys.executable, [sys.executable, str(HERE / "gpu_run.py"), *arguments])


def close_with_this_process() -> None:
    """Close all but the standard files at `execv`: an open GPU would keep its memory."""
    for number in os.listdir("/proc/self/fd"):
        if int(number) > 2:
            with contextlib.suppress(OSError):  # the listing's own file is closed already
                os.set_inheritable(int(number), False)


def main() -> int:
    """Run the command line; return 1 if a section failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for everything")
    parser.add_argument("--out", type=Path, help="folder for gpu_run.jsonl; default: $OUT, if set")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these sections alone")
    parser.add_argument("--tune", action="store_true", help="try tiles for the attention kernels")
    parser.add_argument("--toy", action="store_true", help="tiny sizes on the CPU, for tests")
    parser.add_argument("--failed", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    deadline_s = time.monotonic() + options.budget
    if options.toy:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported
    make_importable()
    import torch
    from gpu_report import Bench

    if not options.toy and not torch.cuda.is_available():
        parser.error("torch finds no GPU; use --toy to try the script without one")
    out = options.out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else None)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    # With its index, like the tensors on it: torch sets no current device without one.
    device = torch.device("cpu") if options.toy else torch.device("cuda", 0)
    bench = Bench(device, options.toy, out, deadline_s)
    chosen = sections(tune=options.tune)
    unknown = set(options.only or ()) - {name for name, _, _ in chosen}
    if unknown:
        parser.error(
            f"unknown section {', '.join(unknown)}; there are {[name for name, *_ in chosen]}"
        )
    wanted = [each for each in chosen if not options.only or each[0] in options.only]
    if wanted and wanted[0][0] != "ceilings":
        wanted.insert(0, chosen[0])  # floors are computed from it
    bench.failed += options.failed
    for index, (name, budget_s, section) in enumerate(wanted):
        rest = [each for each, *_ in wanted[index + 1 :]]
        watchdog = threading.Timer(budget_s + HANG_S, restart, (bench, options, rest, "hung"))
        watchdog.daemon = True
        watchdog.start()
        bench.run(name, budget_s, section)
        watchdog.cancel()
        if rest and bench.device_is_lost():
            restart(bench, options, rest, "lost the device")
    bench.section = "end"
    bench.line("run", seconds=options.budget - (deadline_s - time.monotonic()), failed=bench.failed)
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
