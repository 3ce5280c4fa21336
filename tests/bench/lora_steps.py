"""Cost of LoRA adapters in a step on a CPU: `python tests/bench/lora_steps.py [--rounds 5]`.

Eight requests without an adapter, eight of one adapter, and eight of eight adapters, in turn: first
one step that computes all prompts, then steps that decode. The adapters have random weights and
change every linear layer. Prints the medians over the rounds of the processor time and the wall
time of a step, and the medians of each round's ratio to the step without adapters.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.adapters.folder import read_files, store_files
from batchmill.engine.models.adapted_layers import lora_sites
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.model_config import ModelConfig
from batchmill.worker.bench.figures import ForeignLoad, machine

NUM_ADAPTERS = 8
KINDS = {"no adapter": 0, "one adapter": 1, "eight adapters": NUM_ADAPTERS}
#: Processor seconds and wall seconds of a step.
Times = tuple[float, float]


def write_adapters(config: ModelConfig, root: Path, rank: int) -> list[str]:
    """Write adapters with random weights for every linear layer; return their digests."""
    digests = []
    for number in range(NUM_ADAPTERS):
        tensors = {}
        for layer, sites in enumerate(lora_sites(config)):
            for site in sites:
                for module, width in zip(site.modules, site.widths, strict=True):
                    name = f"base_model.model.model.layers.{layer}.{module}"
                    tensors[f"{name}.lora_A.weight"] = torch.randn(rank, site.in_features) * 0.01
                    tensors[f"{name}.lora_B.weight"] = torch.randn(width, rank) * 0.01
        folder = root / f"peft-{number}"
        folder.mkdir()
        targets = sorted({name.split(".")[-3] for name in tensors})
        peft = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank,
            "bias": "none",
            "target_modules": targets,
        }
        (folder / "adapter_config.json").write_text(json.dumps(peft))
        save_file(tensors, folder / "adapter_model.safetensors")
        files = read_files(folder)
        store_files(files, root / "store")
        digests.append(files.digest)
    return digests


def measure(engine: Engine, digests: Sequence[str | None], options: argparse.Namespace) -> Times:
    """Return the median times of a step that decodes."""
    rng = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=options.steps + 40, ignore_eos=True)
    for number in range(options.batch):
        prompt = [rng.randrange(100, 8192) for _ in range(options.context)]
        engine.add_request(f"{number}", prompt, params, lora=digests[number % len(digests)])
    while len(engine.step()) < options.batch:
        pass
    times = [time_step(engine) for _ in range(options.steps)]
    for number in range(options.batch):
        engine.abort(f"{number}")
    while engine.has_unfinished():
        engine.step()
    engine.reset_prefix_cache()
    cpu_s, wall_s = (statistics.median(each) for each in zip(*times, strict=True))
    return cpu_s, wall_s


def measure_prompts(
    engine: Engine, digests: Sequence[str | None], options: argparse.Namespace
) -> Times:
    """Return the times of the step that computes all prompts."""
    rng = random.Random(1)
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    for number in range(options.batch):
        prompt = [rng.randrange(100, 8192) for _ in range(options.context)]
        engine.add_request(f"{number}", prompt, params, lora=digests[number % len(digests)])
    times = time_step(engine)
    while engine.has_unfinished():
        engine.step()
    engine.reset_prefix_cache()
    return times


def time_step(engine: Engine) -> Times:
    """Run a step."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    engine.step()
    return time.process_time() - cpu_s, time.perf_counter() - wall_s


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="that decode, in each round (20)")
    parser.add_argument("--batch", type=int, default=8, help="requests (8)")
    parser.add_argument("--context", type=int, default=64, help="tokens of each prompt (64)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--model", default="demo", help="as the engine takes it (demo)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantization", choices=("int8",))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


def run(root: Path, options: argparse.Namespace) -> None:
    """Measure and print."""
    (root / "store").mkdir()
    engine = Engine(
        EngineConfig(
            model=options.model,
            dtype=options.dtype,
            device="cpu",
            quantization=options.quantization,
            max_model_len=options.context + options.steps + 64,
            max_num_seqs=options.batch,
            max_num_batched_tokens=options.batch * options.context,
            lora_folder=str(root / "store"),
        )
    )
    model = engine._loaded.model
    assert isinstance(model, DecoderModel)
    digests = write_adapters(model.config, root, options.rank)
    load = ForeignLoad()
    found: dict[tuple[str, str], list[Times]] = defaultdict(list)
    for number in range(options.rounds + 1):
        for kind, count in KINDS.items():
            named: list[str | None] = [*digests[:count]] or [None]
            for what, function in (("decode", measure), ("prompts", measure_prompts)):
                times = function(engine, named, options)
                if number:  # the first round loads the adapters
                    found[what, kind].append(times)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"{options}, {torch.get_num_threads()} threads; CPUs used by others {load.mean_cpus()}")
    for what, kind in found:
        own = found[what, kind]
        base = found[what, "no adapter"]
        cells = []
        for index, name in enumerate(("cpu", "wall")):
            mine = [each[index] for each in own]
            ratios = [a / b[index] for a, b in zip(mine, base, strict=True)]
            cells.append(
                f"{name} {1e3 * statistics.median(mine):6.1f} ms, ratio "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )
        print(f"{what:8} {kind:15} {'; '.join(cells)}")


if __name__ == "__main__":
    main()
