"""`batchmill bulk`: previews, prices, other models, ignored fields and repeated failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..command_line import CommandResult, call, error_of
from ..conftest import Mill
from .bulk_files import read_lines, text_of, write_lines

SEED = ("--param", "seed=7", "--max-tokens", "2")
PRICES = json.dumps({"demo": {"input": 2, "cached": 1, "output": 5, "currency": "EUR"}})


def bulk(mill: Mill, *arguments: object, **environment: str) -> CommandResult:
    return call("bulk", *map(str, arguments), "--broker-url", mill.url, **environment)


def test_a_dry_run_shows_prompts_counts_and_cost_and_needs_no_broker(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("name\n" + "".join(f"Mill {n}\n" for n in range(5)) + "\n")
    options = ("--template", "About {name}", "--chat", "--system", "Be brief.", "--max-tokens", 10)
    arguments = ("bulk", str(source), "--dry-run", *map(str, options))
    answer = call(*arguments, BATCHMILL_PRICES=PRICES)
    assert answer.returncode == 0, answer.stderr
    for text in ("system: Be brief.", "user: About Mill 2", "5 records, 5 jobs", "bytes / 4"):
        assert text in answer.stdout
    assert "Mill 3" not in answer.stdout, "three prompts are shown"
    assert "estimated cost: at most" in answer.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]
    shown = json.loads(call(*arguments, "--json", "--limit", "2").stdout)
    assert (shown["lines"], shown["max_output_tokens"], shown["cost"]) == (2, 20, None)


def test_a_dry_run_counts_with_a_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    search = {"prompt": "a", "max_tokens": 10, "n": 2, "beam_search": {"beam_width": 4}}
    lines = [{"prompt": "a a a a a", "max_tokens": 1}, search]
    source = write_lines(tmp_path / "in.jsonl", lines)
    options = ("--dry-run", "--json", "--tokenizer", str(tmp_path / "tokenizer.json"))
    answer = call("bulk", str(source), *options)
    shown = json.loads(answer.stdout)
    assert (shown["prompt_tokens"], shown["max_output_tokens"]) == (6, 1 + 4 * 10)


def test_the_summary_has_the_cost_of_all_results(running_mill: Mill, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a b c"}, {"prompt": "d"}])
    arguments = (source, "-o", tmp_path / "out.jsonl", *SEED, "--json")
    for _ in range(2):  # the second reads the tokens from the results
        answer = bulk(running_mill, *arguments, BATCHMILL_PRICES=PRICES)
        assert answer.returncode == 0, answer.stderr
        usage = [line["response"]["body"]["usage"] for line in read_lines(tmp_path / "out.jsonl")]
        prompt = sum(each["prompt_tokens"] for each in usage)
        cached = sum(each["prompt_tokens_details"]["cached_tokens"] for each in usage)
        expected = ((prompt - cached) * 2 + cached + 4 * 5) / 1e6
        amounts = json.loads(answer.stdout)["cost"]["amounts"]
        assert amounts == {"EUR": pytest.approx(expected)}
    wrong = bulk(running_mill, *arguments, BATCHMILL_PRICES='{"demo": {"input": -1}}')
    assert wrong.returncode == 8


def test_another_model_replaces_jobs_that_wait_for_one_nobody_serves(
    running_mill: Mill, tmp_path: Path
) -> None:
    lines = [{"prompt": "served"}, {"prompt": "x", "model": "gpt-nobody"}]
    source = write_lines(tmp_path / "in.jsonl", lines)
    running_mill.submit("of another run", model="gpt-other", priority="low")
    arguments = (source, "-o", tmp_path / "out.jsonl", *SEED)
    stopped = bulk(running_mill, *arguments, "--timeout-s", "6")
    assert stopped.returncode == 7
    assert "no worker serves gpt-nobody" in stopped.stderr
    assert "waits for a worker of gpt-nobody" in stopped.stderr
    assert "gpt-other" not in stopped.stderr, "it is not of this run"
    answer = bulk(running_mill, *arguments, "--model", "demo")
    assert answer.returncode == 0, answer.stderr
    assert "1 job of an earlier --model was cancelled" in answer.stdout
    texts = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["text"]
        for line in read_lines(tmp_path / "out.jsonl")
    }
    assert texts == {"line-1": text_of("served", 2), "line-2": text_of("x", 2)}
    depths = {depth.queue: depth.queued for depth in running_mill.store.queue_depths()}
    assert depths.get("batchmill.gpt-nobody.low", 0) == 0, "its job was cancelled"
    mixed = bulk(running_mill, *arguments, "--model", "other", "--json")
    assert mixed.returncode == 2
    assert "--model is other" in error_of(mixed)["message"]


def test_fields_of_requests_can_be_ignored(running_mill: Mill, tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "user": "u", "store": True}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    source = write_lines(tmp_path / "in.jsonl", [line])
    arguments = (source, "-o", tmp_path / "out.jsonl", *SEED)
    answer = bulk(running_mill, *arguments, "--ignore", "user,store")
    assert answer.returncode == 0, answer.stderr
    assert bulk(running_mill, *arguments, "--ignore", "prompt").returncode == 2


def test_failed_lines_are_sent_again_on_request(running_mill: Mill, tmp_path: Path) -> None:
    lines = [{"prompt": "fine"}, {"prompt": "<<oom@0x3>>", "max_tokens": 3}, {"prompt": ""}]
    source = write_lines(tmp_path / "in.jsonl", lines)
    arguments = (source, "-o", tmp_path / "out.jsonl", "--json", *SEED)
    first = bulk(running_mill, *arguments)
    assert first.returncode == 6, first.stderr
    failed = json.loads(first.stdout)["failed"]
    again = json.loads(bulk(running_mill, *arguments).stdout)
    assert (again["resumed"], again["resumed_failed"], again["failed"]) == (3, failed, 0)
    answer = bulk(running_mill, *arguments, "--retry-failed")
    summary = json.loads(answer.stdout)
    assert (summary["resumed"], summary["completed"] + summary["failed"]) == (3 - failed, failed)
    assert (
        len(read_lines(tmp_path / "out.jsonl")) + len(read_lines(tmp_path / "out.errors.jsonl"))
        == 3
    )
