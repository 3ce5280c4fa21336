"""`batchmill decide`, and `batchmill bulk --decide` with a column per question."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer import Client
from batchmill.worker.engine_host.stub_output import stub_decision

from ..command_line import call, error_of
from ..conftest import Mill

QUESTIONS: dict[str, Any] = {
    "refund": {"type": "noul", "instructions": "Is a refund requested?"},
    "topic": {"type": "choice", "options": ["billing", "praise"]},
    "anger": {"type": "score", "levels": ["calm", "angry"]},
}


def expected(state: str) -> dict[str, Any]:
    """Return the answers of the stub."""
    questions = {
        "refund": {"type": "yes_no", "criteria": None},
        "topic": {"type": "choice", "criteria": {"billing": None, "praise": None}},
        "anger": {"type": "score", "criteria": ["calm", "angry"]},
    }
    answers: dict[str, Any] = stub_decision({"state": state, "questions": questions})["answers"]
    return answers


def test_the_command_and_the_client_answer_alike(running_mill: Mill, tmp_path: Path) -> None:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(QUESTIONS))
    where = ("--broker-url", running_mill.url)
    shown = call("decide", "a text", "--questions", str(file), *where)
    assert shown.returncode == 0, shown.stderr
    answers = expected("a text")
    for name, answer in answers.items():
        assert f"{name}: {answer['answer']}  confidence {answer['confidence']:.3f}" in shown.stdout
    as_json = call("decide", "a text", "--questions", str(file), "--json", *where)
    found = json.loads(as_json.stdout)
    assert found["decision"]["answers"]["topic"]["answer"] == answers["topic"]["answer"]
    short = call(
        *("decide", "a text", "--yes-no", "Is it so?", "--choice", "topic=billing, praise"),
        *("--score", "anger=calm,angry", "--json", *where),
    )
    decided = json.loads(short.stdout)["decision"]["answers"]
    assert list(decided) == ["question_1", "topic", "anger"]
    assert decided["anger"]["score"] == pytest.approx(answers["anger"]["score"])
    with Client(running_mill.url) as client:
        result = client.decide("a text", QUESTIONS, timeout_s=60, tags=["one"], rotations=2)
        assert {name: each.answer for name, each in result.answers.items()} == {
            name: each["answer"] for name, each in answers.items()
        }
        (status,) = client.list(tag="one").jobs
        assert status.state.value == "completed"


def test_a_table_gets_columns_for_each_question(running_mill: Mill, tmp_path: Path) -> None:
    source, out, questions = tmp_path / "in.csv", tmp_path / "out.csv", tmp_path / "q.json"
    source.write_text("id,topic\n" + "".join(f"{n},text {n}\n" for n in range(5)))
    questions.write_text(json.dumps({"questions": QUESTIONS, "rotations": 2}))
    bulk = ("bulk", str(source), "--template", "{topic}", "--decide", str(questions))
    before = call(*bulk, "--dry-run")
    assert "state: text 0" in before.stdout
    told = json.loads(call(*bulk, "--dry-run", "--json").stdout)
    assert told["prompt_tokens"] > 5 * 3 * 2 * 5  # rows, questions and rotations, and words of each
    assert told["max_output_tokens"] == 5 * 3 * 2
    done = call(*bulk, "-o", str(out), "--probabilities", "--broker-url", running_mill.url)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert list(rows[0]) == [
        *("id", "topic", "refund", "refund.confidence", "refund.p.yes", "refund.p.no"),
        *("output.topic", "topic.confidence", "topic.p.billing", "topic.p.praise"),
        *("anger", "anger.confidence", "anger.score", "anger.p.0", "anger.p.1"),
        *("prompt_tokens", "error"),
    ]
    for n, row in enumerate(rows):
        answers = expected(f"text {n}")
        assert row["refund"] == answers["refund"]["answer"]
        assert row["output.topic"] == answers["topic"]["answer"]
        assert float(row["anger.score"]) == pytest.approx(answers["anger"]["score"])
        assert float(row["topic.p.praise"]) == pytest.approx(
            answers["topic"]["probabilities"]["praise"]
        )
    with Client(running_mill.url) as client:
        jobs = client.list(limit=5).jobs
        assert {job.state.value for job in jobs} == {"completed"}


def test_lines_of_requests_may_be_decisions(running_mill: Mill, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    own = {"decision": {"state": "s", "questions": QUESTIONS}}
    batch = {"url": "/v1/decisions", "body": {"state": "s", "questions": QUESTIONS}}
    source.write_text(json.dumps(own) + "\n" + json.dumps(batch) + "\n")
    done = call("bulk", str(source), "-o", str(out), "--broker-url", running_mill.url)
    assert done.returncode == 0, done.stderr
    bodies = [json.loads(line)["response"]["body"] for line in out.read_text().splitlines()]
    assert [body["object"] for body in bodies] == ["decision", "decision"]
    assert bodies[0]["answers"] == bodies[1]["answers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("decide", "x"), "decision.questions"),
        (("decide", "x", "--questions", "/nowhere.json"), "cannot be read"),
        (("decide", "x", "--questions", "{}"), "there must be questions"),
        (("decide", "x", "--choice", "topic"), "NAME=VALUE"),
        (("decide", "x", "--yes-no", "so?", "--rotations", "99"), "decision.rotations"),
        (("bulk", "in.csv", "-o", "out.csv", "--decide", "{}"), "needs one --template"),
        (
            ("bulk", "in.csv", "-o", "out.csv", "--template", "{a}", "--probabilities"),
            "needs --decide",
        ),
    ],
)
def test_mistakes_are_named(
    running_mill: Mill, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = call(*arguments, "--json", "--broker-url", running_mill.url)
    assert done.returncode != 0
    assert message in error_of(done)["message"]
