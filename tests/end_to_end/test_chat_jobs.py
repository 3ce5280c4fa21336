"""Chats as jobs, through queue and engine: tools, template variables, cache salts, scores."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from batchmill.producer import Client, JobFailed, JobResult

from ..conftest import RedisServer
from ..structure.public_interface import ROOT
from ..support.chat_model import save_chat_model
from ..support.chat_templates import HERMES, TOOLS
from ..support.processes import CLI
from ..worker.command_line import call

WORKER = {
    "BATCHMILL_SERVED_MODEL_NAME": "tiny",
    "BATCHMILL_DTYPE": "float32",
    "BATCHMILL_MAX_MODEL_LEN": "1024",
    "BATCHMILL_KV_CACHE_BYTES": str(8 << 20),
    "PYTHONSAFEPATH": "1",
}
QUESTION = {"role": "user", "content": "How is the weather in Bern?"}
#: With the bias the random model ends its calls soon.
CALLING: dict[str, Any] = {
    "tools": TOOLS,
    "tool_choice": "required",
    "logit_bias": {"256": 9},
    "max_tokens": 300,
}


@pytest.fixture(scope="module")
def url(_session_server: RedisServer) -> str:
    """The session's server, which only this module uses while its tests run."""
    return _session_server.url


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a worker that serves a tiny model whose template uses tools."""
    folder = tmp_path_factory.mktemp("chat-model")
    save_chat_model(folder, HERMES)
    environment = {name: value for name, value in os.environ.items() if "BATCHMILL" not in name}
    environment |= WORKER | {
        "BATCHMILL_MODEL": str(folder),
        "BATCHMILL_BROKER_URL": url,
    }
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *CLI, "worker"], env=environment, stdout=output, stderr=output
        )
    try:
        with Client(url) as client:
            yield client
    finally:
        process.kill()
        process.wait()


def run(client: Client, **fields: Any) -> JobResult:
    return client.submit(model="tiny", seed=3, **fields).result(timeout_s=120)


def test_a_chat_continues_with_the_call_and_the_tools_output(client: Client) -> None:
    called = run(client, messages=[QUESTION], **CALLING)
    assert called.finish_reason == "tool_calls"
    assert called.text == ""
    assert {call.function.name for call in called.tool_calls} <= {"get_weather", "clock"}
    again = run(client, messages=[QUESTION], **CALLING)
    assert again.tool_calls == called.tool_calls

    outputs = [
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny."} for call in called.tool_calls
    ]
    reply = run(
        client,
        messages=[QUESTION, called.message, *outputs],
        tools=TOOLS,
        tool_choice="none",
        max_tokens=4,
    )
    assert reply.message == {"role": "assistant", "content": reply.text}
    streamed = client.submit(model="tiny", seed=3, messages=[QUESTION], **CALLING)
    assert "".join(piece.text for piece in streamed.stream(timeout_s=60)) == ""


def test_an_unused_template_variable_fails_the_job_by_name(client: Client) -> None:
    with pytest.raises(JobFailed, match="does not use thoughts") as caught:
        run(client, messages=[QUESTION], chat_template_kwargs={"thoughts": True})
    assert caught.value.code == "unsupported_parameter"


def test_a_tenant_shares_prefixes_only_with_itself(client: Client) -> None:
    prompt = {"prompt": "The same long beginning of two prompts. " * 4, "max_tokens": 1}

    def cached(**fields: Any) -> int:
        return run(client, **prompt, **fields).usage.prompt_tokens_details.cached_tokens

    for fields in ({}, {"tenant": "anna"}, {"tenant": "otto"}, {"cache_salt": "x"}):
        assert cached(**fields) == 0
        assert cached(**fields) > 100
    assert cached(tenant="default") > 100
    assert cached(tenant="anna", cache_salt="x") == 0


def test_a_prompt_is_scored_and_a_job_reports_its_times(client: Client) -> None:
    scored = run(client, prompt="Score this.", max_tokens=0, prompt_logprobs=0)
    assert scored.token_ids == []
    assert len(scored.prompt_logprobs or []) == len("Score this.")
    assert (scored.finish_reason, scored.usage.completion_tokens) == ("length", 0)

    metrics = run(client, prompt="Tell the times.", max_tokens=9, ignore_eos=True).metrics
    assert metrics.engine_queue_time_s is not None
    assert metrics.ttft_s is not None
    assert metrics.inter_token_latency_s is not None
    assert metrics.total_time_s is not None
    assert 0 <= metrics.engine_queue_time_s <= metrics.ttft_s
    # The worker measures when the first token reached it, the engine the time between samples: with
    # a fast model, the first token may reach the worker together with the last.
    assert metrics.ttft_s <= metrics.total_time_s
    assert 8 * metrics.inter_token_latency_s <= metrics.total_time_s


def test_bulk_lines_with_log_probabilities_are_read_by_openais_types(
    client: Client, url: str, tmp_path: Path
) -> None:
    text = "Some words to be \u00e4valuated."
    scored = {"model": "tiny", "prompt": text, "echo": True, "logprobs": 2}
    lines = [
        ("/v1/completions", {**scored, "max_tokens": 0}),
        ("/v1/completions", {**scored, "max_tokens": 3, "n": 2, "ignore_eos": True}),
        (
            "/v1/chat/completions",
            {"model": "tiny", "messages": [QUESTION], "logprobs": True, "top_logprobs": 2}
            | {"max_tokens": 3, "ignore_eos": True},
        ),
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(
            json.dumps({"custom_id": str(number), "method": "POST", "url": to, "body": body}) + "\n"
            for number, (to, body) in enumerate(lines)
        )
    )
    done = call("bulk", str(source), "--output", str(output), "--broker-url", url)
    assert done.returncode == 0, done.stderr
    written = (json.loads(line) for line in output.read_text().splitlines())
    alone, several, chat = (
        line["response"]["body"] for line in sorted(written, key=lambda line: line["custom_id"])
    )
    plain = run(client, prompt=text, max_tokens=0, prompt_logprobs=2)
    expected = [each and next(iter(each.values())) for each in plain.prompt_logprobs or [] if each]
    for body, num_new in ((alone, 0), (several, 3)):
        parsed: Any = Completion.construct(**body)
        for choice in parsed.choices:
            logprobs = choice.logprobs
            assert logprobs.token_logprobs[0] is None
            assert logprobs.token_logprobs[1 : len(text.encode())] == pytest.approx(
                expected, abs=1e-4
            )
            assert len(logprobs.tokens) == len(text.encode()) + num_new
            assert logprobs.text_offset[len(text.encode()) - 1] == len(text) - 1
            assert choice.text.startswith(text)
    content = ChatCompletion.model_validate(chat).choices[0].logprobs
    assert content is not None
    assert [len(each.top_logprobs) for each in content.content or []] == [2, 2, 2]


def test_the_command_line_prints_calls(client: Client, url: str) -> None:
    fields = {"seed": 3, **CALLING}
    parameters = [f"--param={name}={json.dumps(value)}" for name, value in fields.items()]
    question = ["--messages", json.dumps([QUESTION]), "--model", "tiny"]
    done = call("submit", *question, *parameters, "--wait", "--broker-url", url)
    assert done.returncode == 0, done.stderr
    expected = run(client, messages=[QUESTION], **CALLING).tool_calls
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert printed == [each.model_dump() for each in expected]


def test_the_examples_on_the_page_run_unchanged(
    client: Client, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "chat.md").read_text()
    monkeypatch.setenv("BATCHMILL_BROKER_URL", url)
    monkeypatch.setenv("BATCHMILL_MODEL", "tiny")
    # The page's jobs name no seed, and a tiny random model may print nothing but blanks.
    monkeypatch.setattr("secrets.randbits", lambda num_bits: 1)
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        capsys.readouterr()
        exec(compile(example, "docs/chat.md", "exec"), {})
        assert capsys.readouterr().out.strip()
