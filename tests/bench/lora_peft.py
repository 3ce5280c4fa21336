"""A mixed batch of LoRA adapters beside PEFT: `python tests/bench/lora_peft.py [--rounds 3]`.

Eight requests of eight adapters, all of one length: by the engine, and by PEFT's `generate` with
`adapter_names`, in turn. Prints the output tokens per second of wall time and of processor time.
Needs `peft`.
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

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from lora_steps import NUM_ADAPTERS, write_adapters
from peft import PeftModel
from transformers import AutoModelForCausalLM

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.models.decoder import DecoderModel
from batchmill.worker.bench.figures import ForeignLoad, machine


def run(root: Path, options: argparse.Namespace) -> None:
    """Measure and print."""
    (root / "store").mkdir()
    engine = Engine(
        EngineConfig(
            model="demo",
            dtype="float32",
            device="cpu",
            max_model_len=options.context + options.tokens + 8,
            max_num_seqs=NUM_ADAPTERS,
            max_num_batched_tokens=NUM_ADAPTERS * options.context,
            lora_folder=str(root / "store"),
        )
    )
    model = engine._loaded.model
    assert isinstance(model, DecoderModel)
    digests = write_adapters(model.config, root, options.rank)
    rng = random.Random(0)
    prompts = [
        [rng.randrange(100, 8192) for _ in range(options.context)] for _ in range(NUM_ADAPTERS)
    ]
    adapted: Any = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    for number in range(NUM_ADAPTERS):
        if number:
            adapted.load_adapter(str(root / f"peft-{number}"), f"{number}")
        else:
            adapted = PeftModel.from_pretrained(adapted, str(root / "peft-0"), "0")
    adapted.eval()

    def by_engine() -> list[list[int]]:
        params = SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)
        for number, prompt in enumerate(prompts):
            engine.add_request(f"{number}", prompt, params, lora=digests[number])
        found = {}
        while engine.has_unfinished():
            for output in engine.step():
                found[int(output.request_id)] = output.token_ids
        engine.reset_prefix_cache()
        return [found[number] for number in range(NUM_ADAPTERS)]

    def by_peft() -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            whole = adapted.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                adapter_names=[f"{number}" for number in range(NUM_ADAPTERS)],
                do_sample=False,
                min_new_tokens=options.tokens,
                max_new_tokens=options.tokens,
            )
        tokens: list[list[int]] = whole[:, options.context :].tolist()
        return tokens

    compare({"engine": by_engine, "PEFT": by_peft}, options)


def compare(kinds: dict[str, Callable[[], list[list[int]]]], options: argparse.Namespace) -> None:
    """Run all in turn, the first round without measuring; print the medians."""
    load = ForeignLoad()
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(options.rounds + 1):
        tokens = {}
        for kind, function in kinds.items():
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            tokens[kind] = function()
            elapsed = time.process_time() - cpu_s, time.perf_counter() - wall_s
            if number:
                times[kind].append(elapsed)
    engine, peft = tokens.values()
    same = sum(
        a == b
        for mine, other in zip(engine, peft, strict=True)
        for a, b in zip(mine, other, strict=True)
    )
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"{options}; CPUs used by others {load.mean_cpus()}")
    total = NUM_ADAPTERS * options.tokens
    print(f"{same} of {total} tokens are equal")
    for kind, found in times.items():
        cpu_s, wall_s = (statistics.median(each) for each in zip(*found, strict=True))
        print(f"{kind:8} {total / wall_s:7.1f} tokens/s, {total / cpu_s:7.1f} per processor second")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="the demo model in the layout of Hugging Face")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


if __name__ == "__main__":
    main()
