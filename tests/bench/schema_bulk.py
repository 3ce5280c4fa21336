"""Runs two hundred real prompts under a JSON schema through the queue, with the demo model.

`python tests/bench/schema_bulk.py [prompts]` runs them four times: at temperature 0 and 1.5, with
enough tokens for the longest text that the schema allows, and with far too few. Every text with
finish reason `stop` must be valid for an independent validator (jsonschema). A text with `length`
is counted separately and must be the beginning of a valid one. Otherwise the script exits with 1.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import llguidance

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bulk_mill import bulk_mill, load_average
from real_prompts import entries

from batchmill.engine.contract.grammar import grammar_of

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "kind": {"enum": ["function", "class", "method", "other"]},
        "summary": {"type": "string", "maxLength": 100},
        "keywords": {
            "type": "array",
            "items": {"type": "string", "maxLength": 12},
            "minItems": 1,
            "maxItems": 3,
        },
        "difficulty": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["name", "kind", "summary", "keywords", "difficulty"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "entry", "schema": SCHEMA}}
#: The first exceeds the bytes of the longest text that the schema allows, including escapes and
#: blanks; a token has at least one byte.
ENOUGH_TOKENS, FEW_TOKENS = 1536, 24


def lines(num_prompts: int, temperature: float, max_tokens: int) -> list[dict[str, Any]]:
    """Return the input in the format of OpenAI's batch lines."""
    return [
        {
            "custom_id": entry.name,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "demo",
                "messages": [
                    {"role": "system", "content": "Describe the entry of a manual as JSON."},
                    {"role": "user", "content": f"{entry.name}: {entry.text}"},
                ],
                "temperature": temperature,
                "seed": number,
                "max_tokens": max_tokens,
                "response_format": FORMAT,
            },
        }
        for number, entry in enumerate(itertools.islice(entries(), num_prompts))
    ]


def is_valid(text: str) -> bool:
    """Return whether a text is JSON that follows the schema."""
    try:
        return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text)))
    except ValueError:
        return False


def is_beginning(text: str) -> bool:
    """Return whether a text can be continued to one that follows the schema, byte by byte."""
    tokenizer = llguidance.LLTokenizer("byte")
    grammar = grammar_of(FORMAT, None)
    assert grammar is not None
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    # A character that the limit cut in two is decoded as the replacement character.
    return bool(matcher.consume_tokens(tokenizer.tokenize_str(text.rstrip("\ufffd"))))


def classify(line: dict[str, Any]) -> str:
    """Return the kind of an output line: its finish reason, and whether it is valid."""
    choice = line["response"]["body"]["choices"][0]
    text, reason = choice["message"]["content"], choice["finish_reason"]
    if reason == "length":
        return "length, a beginning" if is_beginning(text) else "length, WRONG"
    return f"{reason}, valid" if is_valid(text) else f"{reason}, WRONG"


def main() -> int:
    """Run every case and print the counts; return the exit code."""
    num_prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    num_wrong = 0
    with bulk_mill(BATCHMILL_MODEL="demo", BATCHMILL_MAX_NUM_SEQS="64") as mill:
        mill.start_worker()
        for max_tokens, temperature in itertools.product((ENOUGH_TOKENS, FEW_TOKENS), (0.0, 1.5)):
            source = mill.write_lines(lines(num_prompts, temperature, max_tokens))
            summary = mill.run_bulk(source)
            counts = Counter(classify(line) for line in mill.output_lines())
            shown = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
            print(
                f"temperature {temperature}, max_tokens {max_tokens}: {shown}, {summary['failed']} "
                f"failed; {summary['output_tokens']} tokens in {summary['elapsed_s']:.0f} s",
                flush=True,
            )
            wrong = sum(number for kind, number in counts.items() if "WRONG" in kind)
            num_wrong += wrong + num_prompts - counts.total()
    print(f"{num_wrong} wrong or missing; {load_average()}")
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
