"""`batchmill bulk` with a real worker: input lines, and the results and errors they become."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from batchmill.producer import Client

from ..command_line import error_of
from ..conftest import Mill
from .bulk_files import bulk, errors_of, output_of, read_lines, text_of, write_lines


def test_openai_lines_become_openai_batch_output(running_mill: Mill) -> None:
    chat = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}], "seed": 7}
    lines = [
        {
            "custom_id": "chat",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {**chat, "max_completion_tokens": 3},
        },
        {
            "custom_id": "text",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "gpt", "prompt": "Hi", "seed": 7},
        },
    ]
    source = write_lines(running_mill.folder / "openai.jsonl", lines)
    answer = bulk(running_mill, source, "--model", "demo", "--max-tokens", "4", "--run-id", "shape")
    assert (answer.returncode, answer.stderr.count("Error")) == (0, 0), answer.stderr
    by_id = {line["custom_id"]: line for line in output_of(running_mill)}
    body = by_id["chat"]["response"]["body"]
    assert by_id["chat"]["response"]["status_code"] == 200
    assert by_id["chat"]["error"] is None
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": text_of("<user>Hi", 3),
    }
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3
    text = by_id["text"]["response"]["body"]
    assert (text["object"], text["choices"][0]["text"]) == ("text_completion", text_of("Hi", 4))
    for name in ("out.jsonl", "err.jsonl"):
        (running_mill.folder / name).unlink()


@pytest.fixture
def files(running_mill: Mill) -> Iterable[Path]:
    """The folder of a run, without the output files of the previous one."""
    yield running_mill.folder
    for name in ("out.jsonl", "err.jsonl"):
        (running_mill.folder / name).unlink(missing_ok=True)


def test_each_invalid_line_goes_to_the_error_file_and_the_others_are_generated(
    running_mill: Mill, files: Path
) -> None:
    body = {"prompt": "x"}
    lines: list[object] = [
        {"prompt": "good", "seed": 7, "custom_id": "good", "max_tokens": 2},
        {"prompt": "", "custom_id": "empty"},
        {"prompt": "x", "best_of": 3, "custom_id": "n"},
        {"custom_id": "url", "method": "POST", "url": "/v1/moderations", "body": body},
        ["not an object"],
        {"prompt": "<<refuse>>", "custom_id": "refused"},
        {"prompt": "<<error@1>>", "custom_id": "broken"},
        {"prompt": "x", "idempotency_key": "mine", "custom_id": "key"},
    ]
    source = write_lines(files / "wrong.jsonl", lines)
    with source.open("ab") as file:
        file.write(b'\n{"torn\n\xff\n')
    answer = bulk(running_mill, source)
    assert answer.returncode == 6
    assert [line["custom_id"] for line in output_of(running_mill)] == ["good"]
    assert {name: error["code"] for name, error in errors_of(running_mill).items()} == {
        "empty": "invalid_request",
        "n": "unsupported_parameter",
        "url": "invalid_request",
        "line-5": "invalid_line",
        "refused": "unsupported_parameter",
        "broken": "numerical_error",
        "key": "invalid_request",
        "line-10": "invalid_line",
        "line-11": "invalid_line",
    }
    again = bulk(running_mill, source)
    assert again.returncode == 6, "failures of the run that it resumes count"
    assert len(read_lines(files / "err.jsonl")) == 9


def test_a_tag_of_the_command_joins_those_of_each_line(running_mill: Mill, files: Path) -> None:
    lines = [
        {"prompt": "a", "max_tokens": 2, "tags": ["own", "night"]},
        {"prompt": "b", "max_tokens": 2},
        {"prompt": "c", "max_tokens": 2, "tags": "no list", "custom_id": "wrong"},
    ]
    source = write_lines(files / "tags.jsonl", lines)
    answer = bulk(running_mill, source, "--tag", "night", "--tag", "run-4711")
    assert answer.returncode == 6
    assert set(errors_of(running_mill)) == {"wrong"}
    tags = {
        tuple(running_mill.record(line["response"]["request_id"]).tags)
        for line in output_of(running_mill)
    }
    assert tags == {("run-4711", "own", "night"), ("night", "run-4711")}
    assert bulk(running_mill, source, "--tag", "a,b").returncode == 2


def test_csv_rows_fill_a_template(running_mill: Mill, files: Path) -> None:
    source = files / "products.csv"
    source.write_text(
        '\ufeffname,custom_id,note\r\n"Mill, old",a,"two\r\nlines"\r\nWheel,b,{name}\r\nshort,c\r\n'
    )
    template = "About {name} ({note}): {{one}} line"
    options = ("--param", "seed=7", "--skip-bad-rows", "--json")
    answer = bulk(running_mill, source, "--template", template, *options)
    assert answer.returncode == 6
    texts = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["text"]
        for line in output_of(running_mill)
    }
    assert texts == {
        "a": text_of("About Mill, old (two\r\nlines): {one} line", 256),
        "b": text_of("About Wheel ({name}): {one} line", 256),
    }
    assert "3 columns" in errors_of(running_mill)["line-4"]["message"]
    summary = json.loads(answer.stdout)
    assert (summary["total"], summary["completed"], summary["failed"]) == (3, 2, 1)
    assert summary["output_tokens"] == 512
    assert answer.stderr == ""


def test_a_template_becomes_a_chat_after_a_system_message(running_mill: Mill, files: Path) -> None:
    source = write_lines(files / "rows.jsonl", [{"topic": "mills", "count": 3}])
    options = ("--template", "{count} {topic}", "--chat", "--system", "Be brief.")
    assert bulk(running_mill, source, *options, "--param", "seed=7").returncode == 0
    message = output_of(running_mill)[0]["response"]["body"]["choices"][0]["message"]
    assert message["content"] == text_of("<system>Be brief.<user>3 mills", 256)


def test_equal_deterministic_lines_share_one_job(running_mill: Mill, files: Path) -> None:
    lines: list[object] = [{"prompt": "same", "temperature": 0, "max_tokens": 3}] * 50
    lines += [{"prompt": "same", "temperature": 1, "max_tokens": 3}] * 2
    source = write_lines(files / "same.jsonl", lines)
    assert bulk(running_mill, source, "--deduplicate").returncode == 0
    answers = output_of(running_mill)
    assert sorted(line["custom_id"] for line in answers) == sorted(
        f"line-{i + 1}" for i in range(52)
    )
    jobs = [line["response"]["request_id"] for line in answers]
    assert len(set(jobs)) == 3


def test_a_torn_last_line_is_removed_and_generated_again(running_mill: Mill, files: Path) -> None:
    source = write_lines(files / "in.jsonl", [{"prompt": f"p{i}", "seed": 7} for i in range(5)])
    assert bulk(running_mill, source, "--max-tokens", "2").returncode == 0
    whole = (files / "out.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (files / "out.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])
    answer = bulk(running_mill, source, "--max-tokens", "2", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["resumed"] == 3
    assert sorted(line["custom_id"] for line in output_of(running_mill)) == [
        f"line-{i + 1}" for i in range(5)
    ]


def test_the_output_of_another_input_is_left_alone(running_mill: Mill, files: Path) -> None:
    first = write_lines(files / "a.jsonl", [{"prompt": "a"}])
    second = write_lines(files / "b.jsonl", [{"prompt": "b"}])
    assert bulk(running_mill, first, "--max-tokens", "2").returncode == 0
    before = (files / "out.jsonl").read_bytes()
    for arguments in ([second, "--max-tokens", "2"], [first, "--max-tokens", "3"]):
        answer = bulk(running_mill, *arguments, "--json")
        assert (answer.returncode, error_of(answer)["code"]) == (2, "bulk_file")
    (files / "out.jsonl").write_text("my diary\nsecond page\n")
    assert bulk(running_mill, first, "--max-tokens", "2").returncode == 2
    assert (files / "out.jsonl").read_text() == "my diary\nsecond page\n"
    (files / "out.jsonl").write_bytes(before)
    assert bulk(running_mill, first, "--max-tokens", "2").returncode == 0


def test_a_run_with_a_webhook_is_a_batch_that_counts_refused_lines(
    running_mill: Mill, files: Path
) -> None:
    lines = [{"prompt": f"p{i}", "seed": 7} for i in range(4)]
    source = write_lines(files / "in.jsonl", [*lines, {"prompt": ""}])
    arguments = (source, "--max-tokens", "2", "--json")
    hook = ("--webhook", "https://example.com/hook")
    batch_ids = set()
    for _ in range(2):  # the second finds everything done
        answer = bulk(running_mill, *arguments, *hook)
        assert answer.returncode == 6, answer.stderr
        batch_ids.add(json.loads(answer.stdout)["batch"])
    with Client(running_mill.url) as client:
        batch = client.batch(batch_ids.pop())
        assert not batch_ids
        results = list(client.batch_results(batch.id))
    assert (batch.status, batch.request_counts.total) == ("completed", 5)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (4, 1)
    assert [entry.custom_id for entry in results] == [f"line-{i + 1}" for i in range(4)]
    assert bulk(running_mill, *arguments).returncode == 6, "its batch has ended: nothing waits"
    other = bulk(running_mill, *arguments, *hook, "--run-id", "again")
    assert (other.returncode, error_of(other)["code"]) == (2, "bulk_file")
