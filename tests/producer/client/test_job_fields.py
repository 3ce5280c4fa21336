"""The types of a job's fields: a type checker finds a wrong name or type before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from pydantic import BaseModel, TypeAdapter

from batchmill.producer import BatchFields, BatchRequest, GenerationJob, JobFields, JobRejected
from batchmill.producer.job.validation import parse_job

ROOT = Path(__file__).resolve().parents[3]
HEAD = """
import datetime
from batchmill.producer import AsyncClient, Client, GenerationJob, JobFields, Message, RetryPolicy
client = Client("redis://127.0.0.1:1/0")
"""
RIGHT = """
client.submit("Hello")
client.submit("Hello", max_tokens=5, stop="x", logit_bias={"5": 1}, priority="high", seed=None)
client.submit(prompt=[1, 2], stop=("a", "b"), stop_token_ids=5, deadline=datetime.datetime.now())
client.submit(messages=[Message(role="user", content="x"), {"role": "user", "content": "y"}])
messages = [{"role": "user", "content": "x"}]
client.submit(messages=messages, retry=RetryPolicy(max_attempts=2), max_completion_tokens=5)
client.submit({"prompt": "x", "max_tokens": 5})
client.submit_many(["x", {"prompt": "y", "n": 2}, GenerationJob(prompt="z")])
jobs: list[JobFields] = [{"prompt": "x"}]
client.submit_many(jobs)
client.iter_submit({"prompt": text} for text in ("a", "b"))
client.create_batch([{"prompt": "x", "custom_id": "1"}], ttl_s=5, metadata={"a": "b"})
async def submit(client: AsyncClient) -> str:
    handles = await client.submit_many(["x"])
    return (await client.submit("x", max_tokens=5)).id + handles[0].id
"""
#: A wrong line, and what mypy must say about it.
WRONG = {
    'client.submit(promt="x")': 'Unexpected keyword argument "promt"',
    'client.submit("x", max_tokens="many")': 'Argument "max_tokens"',
    'client.submit("x", priority="urgent")': 'Argument "priority"',
    'client.submit("x", tags="label")': 'Argument "tags"',
    'client.submit({"promt": "x"})': 'expected "str | JobFields | GenerationJob',
    'client.submit_many([{"prompt": "x", "max_tokens": "many"}])': "List item 0",
    'client.submit_many([{"promt": "x"}])': "List item 0",
    'client.create_batch(["x"], ttl="x")': 'Unexpected keyword argument "ttl"',
    "client.submit(5)": "Argument 1",
}


def test_mypy_accepts_right_calls_and_names_wrong_ones(tmp_path: Path) -> None:
    right = tmp_path / "right.py"
    right.write_text(HEAD + RIGHT)
    wrong = tmp_path / "wrong.py"
    lines = [HEAD, *WRONG]
    wrong.write_text("\n".join(lines))
    options = ["--strict", "--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(right), str(wrong)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert "right.py" not in done.stdout, done.stdout
    first = HEAD.count("\n") + 2
    for number, (line, message) in enumerate(WRONG.items(), first):
        errors = [text for text in done.stdout.splitlines() if f"wrong.py:{number}: " in text]
        assert any(message in text for text in errors), (line, done.stdout)


def names(model: type[BaseModel]) -> set[str]:
    aliases = {
        str(alias)
        for field in model.model_fields.values()
        for alias in getattr(field.validation_alias, "choices", ())
    }
    return set(model.model_fields) | aliases


def test_the_types_have_every_name_of_the_models() -> None:
    other_forms = {"do_sample", "top_logprobs"}
    assert set(get_type_hints(JobFields)) == names(GenerationJob) | other_forms
    assert set(get_type_hints(BatchFields)) == names(BatchRequest)


def test_every_field_is_described() -> None:
    undescribed = [
        f"{model.__name__}.{name}"
        for model in (GenerationJob, BatchRequest)
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert undescribed == []


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x", "max_tokens": 3, "stop": ["a"], "logit_bias": {5: 1.0}, "ttl_s": 5},
        {"prompt": [1, 2], "bad_words": [[1], "a"], "deadline": "2030-01-01T00:00:00Z"},
        {"messages": [{"role": "user", "content": "x"}], "tool_choice": "none", "n": 2},
        {"prompt": "x", "logprobs": True, "top_logprobs": 3, "retry": {"max_attempts": 2}},
    ],
)
def test_what_a_job_accepts_its_types_accept_too(fields: dict[str, object]) -> None:
    parse_job(fields)
    types = get_type_hints(JobFields)
    for name, value in fields.items():
        TypeAdapter(types[name]).validate_python(value)


def test_tuples_are_lists() -> None:
    job = parse_job({"prompt": (1, 2.0), "stop": ("a", "b"), "bad_words": ((1, 2), "x")})
    assert (job.prompt, job.stop, job.bad_words) == ([1, 2], ["a", "b"], [[1, 2], "x"])
    with pytest.raises(JobRejected, match="tags"):
        parse_job({"prompt": "x", "tags": {"a"}})
