"""Measures the gain of submitting lines that share a prefix together, with the real engine.

`python tests/bench/prefix_bulk.py [rounds]` submits five prompts about each of sixty documents in
random order, with a KV cache that holds a third of the documents: once in the order of the file,
and once reordered, as `batchmill bulk` does. It prints the prompt tokens that came from the prefix
cache, and the seconds.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bulk_mill import BulkMill, bulk_mill, load_average
from real_prompts import entries

from batchmill.producer import ProducerSettings
from batchmill.producer.bulk.lines import LineSettings
from batchmill.producer.bulk.options import BulkOptions
from batchmill.producer.bulk.prefix_order import with_prefixes_adjacent
from batchmill.producer.bulk.run import BulkRun
from batchmill.producer.store.shards import Shards

NUM_DOCUMENTS, NUM_PROMPTS = 60, 5
SETTINGS = {
    "BATCHMILL_MODEL": "demo",
    "BATCHMILL_MAX_NUM_SEQS": "16",
    "BATCHMILL_MAX_MODEL_LEN": "1024",
    # 45 kB per token: about 5,800 tokens, of which the 16 running requests hold up to 4,000.
    "BATCHMILL_KV_CACHE_BYTES": str(256 << 20),
}


def lines() -> list[dict[str, Any]]:
    """Return prompts that begin with documents of about 250 tokens, shuffled."""
    texts = [entry.text for entry in entries()]
    documents = [" ".join(texts[4 * i : 4 * i + 4])[:1200] for i in range(NUM_DOCUMENTS)]
    questions = itertools.islice((entry.name for entry in entries()), 500, 500 + NUM_PROMPTS)
    prompts = [
        f"{document}\n\nQuestion: what has this to do with {question}?\nAnswer:"
        for question in questions
        for document in documents
    ]
    random.Random(0).shuffle(prompts)
    return [
        {"prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        for prompt in prompts
    ]


def run(mill: BulkMill, name: str, *, is_grouped: bool) -> None:
    """Run the lines and print the figures; a salt avoids cache hits from earlier runs."""
    salt = f"{name} {random.random()} "
    source = mill.write_lines(line | {"prompt": salt + line["prompt"]} for line in lines())
    options = BulkOptions(source, mill.output, mill.errors, LineSettings())
    command = BulkRun(Shards.from_url(mill.url), ProducerSettings(), options)
    order = with_prefixes_adjacent if is_grouped else iter
    started_at = time.monotonic()
    with mock.patch("batchmill.producer.bulk.run.with_prefixes_adjacent", order):
        counts = command.run(lambda counts: None, lambda note: None)
    elapsed_s = time.monotonic() - started_at
    share = counts.cached_tokens / counts.prompt_tokens
    print(
        f"{name}: {counts.cached_tokens} of {counts.prompt_tokens} prompt tokens from the cache "
        f"({100 * share:.0f} %), {elapsed_s:.1f} s, {counts.completed} completed",
        flush=True,
    )


def main() -> None:
    """Run both orders in turn."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with bulk_mill(**SETTINGS) as mill:
        mill.start_worker()
        for _ in range(rounds):
            run(mill, "in the order of the file", is_grouped=False)
            run(mill, "prefixes together", is_grouped=True)
    print(load_average())


if __name__ == "__main__":
    main()
