"""Print or write docs/features.md: `python tests/structure/feature_table.py [--write]`.

Lists request controls by name, with their aliases, their defaults, their meaning (the comments of
`SamplingParams`) and the tests that are marked with `feature`.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

from batchmill.engine import PoolingParams, SamplingParams
from batchmill.engine.contract.aliases import ALIASES
from batchmill.engine.contract.unsupported import UNSUPPORTED_FIELDS
from batchmill.producer.job.document_schema import job_schema
from batchmill.worker.cli.setting_docs import field_comments

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "features.md"
#: Parameters that are not aliases of a control, but express the same.
OTHER_PARAMETERS = {
    "temperature": ["do_sample: false"],
    "logprobs": ["logprobs: true", "top_logprobs"],
}
JOB_DEFAULTS = {"max_tokens": "16; 256 in a job"}

_HEAD = """# Request controls

Generated from the code and its tests by `python tests/structure/feature_table.py --write`; do not
edit it here.

A job and the engine's `SamplingParams` accept these names, which are vLLM's. An unknown name is
refused as `invalid_request`, and a name that other servers know but this version does not is
refused as `unsupported_parameter`; null stands for the default. `SamplingParams(...)` accepts the
names of the first column; a job and `SamplingParams.from_dict` accept the aliases as well.

For every control:

- A request that does not use it pays nothing for it, and no request changes the output of another
  one in its batch.
- It is a function of the prompt and of the tokens so far. A job that is preempted, or resumed after
  a crash, continues as it would have without the interruption.
- They apply in this order: `guidance_scale`, penalties, `logit_bias`, controls that forbid tokens
  (structure, `allowed_token_ids`, `bad_words`, `no_repeat_ngram_size`, `min_tokens`), the end of a
  thought that `thinking_token_budget` forces, `temperature`, `min_p`, `typical_p`, `top_k`,
  `top_p`.
- `temperature`, `top_p`, `top_k`, `min_p` and `repetition_penalty` that a job leaves out are those
  that the model's `generation_config.json` recommends, as in vLLM; the table has what applies if it
  names none, or with `BATCHMILL_GENERATION_CONFIG=none`. A number that a job gives always counts.
- Log probabilities and entropies are the model's own, before any control and at temperature 1.
- If controls leave no possible next token, the request ends with finish reason `error` and the
  error code `no_token_left`.

"""

_STRUCTURE = """
## Structured output

`response_format` (OpenAI's) or `structured_outputs` (vLLM's) make every token follow a JSON
schema, a regular expression, a choice or a Lark grammar, by means of
[llguidance](https://github.com/guidance-ai/llguidance). A structure that cannot be enforced is
refused when the job is submitted.

- A text with finish reason `stop` follows its structure, at any temperature. A text with `length`
  was cut by `max_tokens` or the model's length, and is the beginning of one that does.
- Only the structure decides where the output ends: `stop`, `stop_token_ids`, `min_tokens` and
  `ignore_eos` are refused beside it.
- The parts of a JSON document are separated by nothing, a space, or a new line and its indentation
  (at most 24 spaces), so that no model writes blanks without end; with `disable_any_whitespace`
  they are separated by nothing.
- `\\d`, `\\w` and `\\s` in a regular expression match ASCII only. The expression describes the
  whole text; look-around is refused.
- Refused in a JSON schema, among others: `patternProperties`, `uniqueItems`, `not`, `if`,
  `contains`, `oneOf` with alternatives that overlap, `minProperties` above the number of `required`
  properties. Keywords and values of `format` that JSON Schema does not enforce (`title`, `x-…`,
  `password` …) are annotations, and allowed. Enforced formats are `date`, `date-time`, `time`,
  `duration`, `email`, `hostname`, `ipv4`, `ipv6`, `uri` and `uuid`.
- Properties are generated in the order of the schema. Required ones that it does not describe come
  next, and any others last.

"""

_SAMPLES = """
## Several samples

The `n` samples of a prompt share its KV blocks. Each has its own seed: the first has the request's,
the others a hash of that seed and their number. `completions` contains all samples; `text`,
`token_ids` and the other fields are those of the first. Only the first sample of a job is
checkpointed; after a crash the others are sampled again, with the same tokens.
"""


_POOLED = """
## Embeddings and scores

The fields of `embedding` and `scoring`, as `PoolingParams` has them; [embeddings](embeddings.md)
says how they are used.

| field | default | what it does | tests |
|---|---|---|---|
"""
#: The test that proves each field of `PoolingParams`.
POOLED_TESTS = {
    "task": "test_scores_of_a_classification_head_equal_transformers",
    "pooling": "test_a_vector_does_not_depend_on_its_batch_and_chunks",
    "dimensions": "test_dimensions_are_cut_before_the_vector_is_scaled",
    "normalize": "test_dimensions_are_cut_before_the_vector_is_scaled",
    "activation": "test_scores_of_a_classification_head_equal_transformers",
    "truncate": "test_a_prompt_may_fill_the_model_and_a_longer_one_is_cut_or_refused",
}
_POOLED_FILE = "tests/engine/pooling/test_pooled_requests.py"


def _pooled() -> str:
    """Return the table of the fields of `PoolingParams`."""
    meanings = field_comments(PoolingParams)
    rows = [
        f"| `{each.name}` | {each.default or '-'} | {_cell(meanings[each.name])} | "
        f"`{_POOLED_FILE}::{POOLED_TESTS[each.name]}` |"
        for each in fields(PoolingParams)
    ]
    return _POOLED + "\n".join(rows) + "\n"


_ASKED = """
## What a job can ask for besides text

| field of a job | what it does | page | test |
|---|---|---|---|
"""
_BESIDE = """

The messages of a chat may hold [pictures and sounds](media.md).
"""
#: The page and the test of each field.
ASKED = {
    "decision": (
        "deciding.md",
        "tests/engine/plans/test_decision.py::test_answers_equal_those_of_transformers",
    ),
    "embedding": (
        "embeddings.md",
        f"{_POOLED_FILE}::test_a_vector_does_not_depend_on_its_batch_and_chunks",
    ),
    "scoring": (
        "embeddings.md",
        f"{_POOLED_FILE}::test_scores_of_a_classification_head_equal_transformers",
    ),
    "explain": (
        "explaining.md",
        "tests/engine/plans/test_planted_documents.py::test_attribution_names_the_planted_document",
    ),
    "explain_similarity": (
        "explaining.md",
        "tests/engine/plans/test_explain.py"
        "::test_samples_are_grouped_by_the_distance_of_their_embeddings",
    ),
    "select": (
        "jobs.md",
        "tests/worker/jobs/test_selection.py"
        "::test_the_first_sample_with_the_most_frequent_answer_is_selected",
    ),
    "beam_search": (
        "jobs.md",
        "tests/engine/plans/test_beam_search.py::test_outputs_equal_those_of_transformers",
    ),
    "steering": (
        "steering.md",
        "tests/engine/steering/test_steered_requests.py"
        "::test_mixed_batch_equals_transformers_with_hooks",
    ),
    "reasoning_effort": (
        "chat.md",
        "tests/engine/test_thinking_budget.py"
        "::test_an_effort_is_a_switch_of_the_template_and_a_budget",
    ),
    "draft_corpus": (
        "drafts.md",
        "tests/worker/corpora/test_corpus_jobs.py"
        "::test_rows_of_a_template_draft_from_finished_ones_and_get_the_same_tokens",
    ),
    "lora": (
        "adapters.md",
        "tests/engine/adapters/test_adapters_equal_peft.py::test_mixed_batch_equals_peft",
    ),
}


def _asked() -> str:
    """Return the table of what a job can ask for besides text."""
    known = job_schema()["properties"]
    rows = [
        f"| `{name}` | {_cell(' '.join(known[name]['description'].split()))} | [{page}]({page}) | "
        f"`{test}` |"
        for name, (page, test) in ASKED.items()
    ]
    return _ASKED + "\n".join(rows) + _BESIDE


def marked_tests() -> dict[str, list[str]]:
    """Return the tests that are marked with each control, as `path::name`."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for feature in _marked_features(node):
                    found.setdefault(feature, []).append(f"{name}::{node.name}")
    return found


def _marked_features(function: ast.FunctionDef) -> Iterator[str]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.feature":
            for argument in decorator.args:
                value = argument.value if isinstance(argument, ast.Starred) else argument
                given = ast.literal_eval(value)
                yield from [given] if isinstance(given, str) else given


def page() -> str:
    """Return the page's text."""
    meanings, tested = field_comments(SamplingParams), marked_tests()
    controls = [field.name for field in fields(SamplingParams)]
    rows = ["| control | also | default | what it does |", "|---|---|---|---|"]
    rows += [f"| `{n}` | {_also(n)} | {_default(n)} | {_cell(meanings[n])} |" for n in controls]
    checks = ["", "## Tests", "", "| control | tests |", "|---|---|"]
    checks += [
        f"| `{name}` | {'<br>'.join(f'`{test}`' for test in tested[name])} |" for name in controls
    ]
    refused = ["", "## Refused by name", "", "| parameter | instead |", "|---|---|"]
    refused += [
        f"| `{name}` | {parameter.remedy or '-'} |"
        for name, parameter in sorted(UNSUPPORTED_FIELDS.items())
    ]
    return (
        _HEAD
        + "\n".join(rows)
        + "\n"
        + _STRUCTURE.rstrip()
        + "\n"
        + _SAMPLES
        + _pooled()
        + _asked()
        + "\n".join([*checks, *refused, ""])
    )


def _cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return text.replace("|", r"\|")


def _also(name: str) -> str:
    others = [alias for alias, meant in ALIASES.items() if meant == name]
    return ", ".join(f"`{each}`" for each in [*others, *OTHER_PARAMETERS.get(name, ())]) or "-"


def _default(name: str) -> str:
    (field,) = (each for each in fields(SamplingParams) if each.name == name)
    assert field.default is not MISSING
    if name in JOB_DEFAULTS:
        return JOB_DEFAULTS[name]
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return "-" if field.default in (None, ()) else f"{field.default:g}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} instead")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
