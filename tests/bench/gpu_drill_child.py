"""A process of `gpu_drills.py` that ends while its engine decodes: `HOW [--toy]`.

Prints a JSON line when it decodes, and another one if the engine raises.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

#: It ends after this time even if nothing has ended it.
MOST_S = 60.0
sys.path.insert(0, str(Path(__file__).resolve().parent))


def say(**values: Any) -> None:
    """Print a line."""
    print(json.dumps(values), flush=True)


def break_device(device: Any) -> None:
    """Fail an assertion in a kernel; the next call that waits for the device raises.

    On a CPU the same call raises at once.
    """
    import torch

    torch.zeros(8, device=device)[torch.full((8,), 1 << 40, device=device)] = 1.0


def main() -> None:
    """Decode, and end as told."""
    how, toy = sys.argv[1], "--toy" in sys.argv
    if toy:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported
    import torch
    from gpu_floors import Work
    from gpu_models import make_engine, named_shape, random_model
    from gpu_recipes import params_of, prompts_of

    device = torch.device("cpu") if toy else torch.device("cuda", 0)
    config = named_shape("Qwen3-0.6B", toy=toy)
    dtype = torch.float32 if toy else torch.bfloat16
    engine = make_engine(random_model(config, device, dtype=dtype), toy=toy)
    work = Work([16] * 4, [100] * 4)
    for number, (prompt, params) in enumerate(
        zip(prompts_of(work, config.vocab_size), params_of(work), strict=True)
    ):
        engine.add_request(f"r{number}", prompt, params)
    for _ in range(8):
        engine.step()
    say(decodes=True)
    until_s = time.monotonic() + MOST_S
    try:
        while engine.has_unfinished() and time.monotonic() < until_s:
            if how == "broken":
                break_device(device)
            engine.step()
            if how == "killed" and not engine.has_unfinished():  # goes on until it is killed
                engine.add_request("again", [1, 2, 3], params_of(Work([3], [100]))[0])
    except Exception as error:
        say(raised=type(error).__name__, error=str(error)[:300])
        sys.stdout.flush()
        # As a worker's engine process does: destructors of CUDA may hang after such an error.
        os._exit(70)
    say(finished=True)


if __name__ == "__main__":
    main()
