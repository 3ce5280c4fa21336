"""Two hundred real prompts under a JSON schema, through the queue, on the demo model.

`python tests/bench/schema_bulk.py [prompts]` runs them four times: at temperature 0 and 1.5, with
room enough for the longest text that the schema allows, and with far too little. Every text that
ends by itself (finish reason `stop`) has to be valid by an independent validator (jsonschema);
one that was cut says `length`, is counted by itself, and has to be the beginning of a valid one.
It ends with 1 where that is not so.
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
#: More bytes than the longest text that the schema allows (escapes and blanks included) has, and a
#: token has one at least.
ENOUGH_TOKENS, FEW_TOKENS = 1536, 24


def lines(num_prompts: int, temperature: float, max_tokens: int) -> list[dict[str, Any]]:
    """The input: OpenAI's batch lines."""
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
    """Whether a text is JSON that follows the schema."""
    try:
        return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text)))
    except ValueError:
        return False


def is_beginning(text: str) -> bool:
    """Whether a text can be gone on with to one that follows the schema, byte by byte."""
    tokenizer = llguidance.LLTokenizer("byte")
    grammar = grammar_of(FORMAT, None)
    assert grammar is not None
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    # A character that the limit cut in two is decoded as the replacement character.
    return bool(matcher.consume_tokens(tokenizer.tokenize_str(text.rstrip("\ufffd"))))


def judge(answer: dict[str, Any]) -> str:
    """Return how an answer counts."""
    choice = answer["response"]["body"]["choices"][0]
    text, reason = choice["message"]["content"], choice["finish_reason"]
    if reason == "length":
        return "length, a beginning" if is_beginning(text) else "length, WRONG"
    return f"{reason}, valid" if is_valid(text) else f"{reason}, WRONG"


def main() -> int:
    """Run and tell."""
    num_prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    num_wrong = 0
    with bulk_mill(BATCHMILL_MODEL="demo", BATCHMILL_MAX_NUM_SEQS="64") as mill:
        mill.start_worker()
        for max_tokens, temperature in itertools.product((ENOUGH_TOKENS, FEW_TOKENS), (0.0, 1.5)):
            source = mill.write_lines(lines(num_prompts, temperature, max_tokens))
            summary = mill.run_bulk(source)
            counts = Counter(judge(answer) for answer in mill.answers())
            told = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()))
            print(
                f"temperature {temperature}, max_tokens {max_tokens}: {told}, {summary['failed']} "
                f"failed; {summary['output_tokens']} tokens in {summary['elapsed_s']:.0f} s",
                flush=True,
            )
            wrong = sum(number for verdict, number in counts.items() if "WRONG" in verdict)
            num_wrong += wrong + num_prompts - counts.total()
    print(f"{num_wrong} wrong or missing; {load_average()}")
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
