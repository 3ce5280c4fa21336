"""Changes of a model's output by int8 or fp8 weights, and by bf16.

`python tests/bench/quantization_quality.py [--quantization int8|fp8]`, on a CPU. fp8 products use
the plain-torch reference: the numbers of a GPU, with sums in float32. Compares a model in float32,
in bfloat16, and with quantized weights in either:

- perplexity of texts of this repository, in windows of 512 tokens, each read from its start;
- logits and likeliest tokens along 64 chat prompts and the 64 tokens that float32 generates; every
  variant gets float32's tokens;
- greedy outputs of 64 tokens for those prompts, each variant alone: equal tokens position by
  position, and the position of the first difference.

The prompts are eight instructions over eight paragraphs of the same texts.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.config import QUANTIZATIONS
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.loading.model_source import model_folder
from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.model_config import ModelConfig
from batchmill.engine.step.step_inputs import StepInputs

ROOT = Path(__file__).resolve().parents[2]
#: The licence never changes; the decisions are prose that no model has been trained on.
TEXTS = {
    "LICENSE": ["LICENSE"],
    "docs/decisions/0001 to 0009": [f"docs/decisions/000{number}-*.md" for number in range(1, 10)],
}
INSTRUCTIONS = (
    "Summarise the following text in one sentence.",
    "What is the following text about? Answer in a few words.",
    "List the most important points of the following text.",
    "Translate the following text into French.",
    "Explain the following text to a child.",
    "Write a question that the following text answers.",
    "Rewrite the following text in simpler words.",
    "Give the following text a title and say why.",
)
NUM_PARAGRAPHS, NUM_OUTPUT_TOKENS, WINDOW, BLOCK_SIZE = 8, 64, 512, 16


@dataclass(frozen=True)
class Variant:
    """One way to compute the model, and its results."""

    name: str
    dtype: str
    loaded: LoadedModel

    def logits(self, token_ids: list[int]) -> Tensor:
        """Return logits [num_tokens, vocab_size] float32, the whole sequence in one step."""
        count, shape = len(token_ids), self.loaded.config
        num_blocks = -(-count // BLOCK_SIZE)
        cache = KVCache(
            num_layers=shape.num_layers,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=self.loaded.model.dtype,
            device="cpu",
        )
        inputs = StepInputs(
            input_ids=torch.tensor(token_ids),
            positions=torch.arange(count),
            slot_mapping=torch.arange(count),
            block_tables=torch.arange(num_blocks, dtype=torch.int32)[None],
            cu_seqlens_q=torch.tensor([0, count], dtype=torch.int32),
            seq_lens=torch.tensor([count], dtype=torch.int32),
            sample_rows=torch.arange(count),
            max_query_len=count,
            max_seq_len=count,
        )
        logits = torch.empty(count, shape.vocab_size)
        with torch.inference_mode():
            self.loaded.model.forward(inputs, cache, logits)
        return logits

    def greedy_outputs(self, model: str, prompts: list[list[int]]) -> list[list[int]]:
        """Return greedy tokens for each prompt."""
        config = EngineConfig(
            model=model,
            dtype=self.dtype,
            device="cpu",
            max_model_len=2 * WINDOW,
            kv_cache_bytes=2**30,
        )
        greedy = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT_TOKENS, ignore_eos=True)
        engine = Engine(config, loaded=self.loaded)
        return [list(output.token_ids) for output in engine.generate(prompts, greedy)]


def load(model: str, dtype: str, quantization: str | None) -> LoadedModel:
    """Load a model on the CPU, where plain torch multiplies fp8 weights."""
    if quantization != "fp8":
        return load_model(model, dtype=dtype, device="cpu", quantization=quantization)
    loaded = load_model(model, dtype=dtype, device="cpu", model_impl="native")
    assert isinstance(loaded.config, ModelConfig), "the native decoder computes it"
    weights = load_weights(model_folder(model), loaded.config, loaded.model.dtype, "cpu")
    decoder = DecoderModel(loaded.config, weights, backend="reference", quantization=quantization)
    return replace(loaded, model=decoder)


def texts() -> dict[str, str]:
    """Return the texts by name."""
    return {
        name: "\n".join(
            path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern))
        )
        for name, patterns in TEXTS.items()
    }


def chat_prompts(variant: Variant) -> list[list[int]]:
    """Return eight instructions over eight paragraphs, in the model's chat template."""
    paragraphs = [
        paragraph
        for text in texts().values()
        for paragraph in text.split("\n\n")
        if 300 <= len(paragraph) <= 900 and not paragraph.lstrip().startswith("|")
    ]
    chosen = paragraphs[:: max(1, len(paragraphs) // NUM_PARAGRAPHS)][:NUM_PARAGRAPHS]
    return [
        variant.loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{instruction}\n\n{paragraph.strip()}"}]
        )
        for paragraph in chosen
        for instruction in INSTRUCTIONS
    ]


def print_perplexities(variants: list[Variant]) -> None:
    """Print one line per text and variant."""
    print("| text | tokens | computed in | perplexity | against float32 |")
    print("|---|---|---|---|---|")
    for name, text in texts().items():
        token_ids = variants[0].loaded.tokenizer.encode(text)
        windows = [token_ids[i : i + WINDOW] for i in range(0, len(token_ids) - 1, WINDOW)]
        windows = [window for window in windows if len(window) > 1]
        base = None
        for variant in variants:
            losses = [
                F.cross_entropy(
                    variant.logits(window)[:-1], torch.tensor(window[1:]), reduction="sum"
                ).item()
                for window in windows
            ]
            perplexity = math.exp(sum(losses) / sum(len(window) - 1 for window in windows))
            base = base or perplexity
            print(
                f"| {name} | {len(token_ids)} | {variant.name} | {perplexity:.3f} | "
                f"{perplexity / base - 1:+.2%} |",
                flush=True,
            )


def print_logits(variants: list[Variant], sequences: list[list[int]], starts: list[int]) -> None:
    """Print one line per variant: the distance of its logits from float32's."""
    print("| computed in | same likeliest token | mean abs. difference | largest | mean KL, nats |")
    print("|---|---|---|---|---|")
    sums = {variant.name: [0.0, 0.0, 0.0, 0.0] for variant in variants[1:]}
    num_rows = 0
    for token_ids, start in zip(sequences, starts, strict=True):
        want = variants[0].logits(token_ids)[start - 1 : -1]
        num_rows += len(want)
        for variant in variants[1:]:
            got = variant.logits(token_ids)[start - 1 : -1]
            difference, total = (got - want).abs(), sums[variant.name]
            total[0] += (got.argmax(-1) == want.argmax(-1)).sum().item()
            total[1] += difference.mean(-1).sum().item()
            total[2] = max(total[2], difference.max().item())
            total[3] += F.kl_div(
                got.log_softmax(-1), want.log_softmax(-1), log_target=True, reduction="sum"
            ).item()
    for name, (same, mean, largest, divergence) in sums.items():
        print(
            f"| {name} | {same / num_rows:.2%} of {num_rows} | {mean / num_rows:.3f} | "
            f"{largest:.2f} | {divergence / num_rows:.5f} |",
            flush=True,
        )


def print_outputs(outputs: dict[str, list[list[int]]]) -> None:
    """Print one line per variant: how long its greedy outputs equal float32's."""
    print("| computed in | equal tokens, by position | equal outputs | first difference, median |")
    print("|---|---|---|---|")
    wanted = outputs.pop("float32")
    for name, got in outputs.items():
        pairs = [list(zip(a, b, strict=True)) for a, b in zip(wanted, got, strict=True)]
        equal = sum(a == b for pair in pairs for a, b in pair)
        firsts = [
            next((i for i, (a, b) in enumerate(pair) if a != b), NUM_OUTPUT_TOKENS)
            for pair in pairs
        ]
        same = sum(first == NUM_OUTPUT_TOKENS for first in firsts)
        median = statistics.median(firsts)
        print(
            f"| {name} | {equal / len(pairs) / NUM_OUTPUT_TOKENS:.1%} | {same} of {len(pairs)} | "
            f"{'none' if median == NUM_OUTPUT_TOKENS else f'after {median:g} tokens'} |"
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="int8")
    options = parser.parse_args()
    model = options.model
    # The first is what the others are compared with.
    variants = [
        Variant(
            dtype if quantization is None else f"{dtype}, {quantization} weights",
            dtype,
            load(model, dtype, quantization),
        )
        for quantization in (None, options.quantization)
        for dtype in ("float32", "bfloat16")
    ]
    print_perplexities(variants)
    prompts = chat_prompts(variants[0])
    outputs = {variant.name: variant.greedy_outputs(model, prompts) for variant in variants}
    sequences = [
        prompt + output for prompt, output in zip(prompts, outputs["float32"], strict=True)
    ]
    lengths = [len(prompt) for prompt in prompts]
    print(f"\n{len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens\n")
    print_logits(variants, sequences, lengths)
    print()
    print_outputs(outputs)


if __name__ == "__main__":
    main()
