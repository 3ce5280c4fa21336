"""How surely texts of the demo model are recognised: `python tests/bench/watermark.py`.

Outputs at temperature 1 with and without a mark, and the p-values of their texts.
"""

from __future__ import annotations

import argparse
import math
from statistics import median

from batchmill.engine import Engine, EngineConfig, SamplingParams, WatermarkDetector

_SECRETS = {"press": "a secret that is only in this benchmark"}
_SUBJECTS = ("a mill", "the sea", "bread", "a train", "winter", "a clock", "a letter", "the moon")


def p_values(engine: Engine, prompts: list[str], num_tokens: int, watermark: str | None) -> None:
    """Generate, and print how the p-values of the texts are distributed."""
    outputs = engine.generate(
        prompts,
        [
            SamplingParams(
                temperature=1.0,
                seed=seed,
                max_tokens=num_tokens,
                ignore_eos=True,
                watermark=watermark,
            )
            for seed in range(len(prompts))
        ],
    )
    detector = WatermarkDetector("demo", _SECRETS)
    found = [detector.detect([output.text])[0] for output in outputs]
    values = sorted(each.p_value for each in found)
    print(
        f"{'marked' if watermark else 'plain'}: {len(values)} texts of {num_tokens} tokens, "
        f"{median(each.num_scored for each in found):.0f} scored; p-value: median "
        f"{median(values):.1e}, largest {values[-1]:.1e}, smallest {values[0]:.1e}; below 1e-6: "
        f"{sum(value < 1e-6 for value in values)}; mean -log10 "
        f"{sum(-math.log10(max(value, 1e-300)) for value in values) / len(values):.1f}"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=200)
    given = parser.parse_args()
    config = EngineConfig(
        model="demo", max_model_len=512, kv_cache_bytes=1 << 28, watermark_keys=_SECRETS
    )
    engine = Engine(config)
    prompts = [
        f"Here is a short story about {_SUBJECTS[n % len(_SUBJECTS)]}." for n in range(given.texts)
    ]
    for watermark in ("press", None):
        p_values(engine, prompts, given.tokens, watermark)


if __name__ == "__main__":
    main()
