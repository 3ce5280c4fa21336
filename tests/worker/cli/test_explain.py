"""`--explain` of `submit` and `bulk`, and `batchmill explain`: the cost is told beforehand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from ..command_line import call, error_of
from ..conftest import Mill

PARTS = ("--explain", "confidence, attribution,uncertainty,alternatives")


def test_an_explanation_is_asked_for_priced_and_shown(running_mill: Mill, tmp_path: Path) -> None:
    where = ("--broker-url", running_mill.url)
    limit = ("--max-tokens", "4")
    done = call("submit", "hello", "--raw", "--wait", "--json", *limit, *PARTS, *where)
    assert done.returncode == 0, done.stderr
    (told, *_) = [json.loads(line)["note"] for line in done.stderr.splitlines()]
    result = json.loads(done.stdout)
    usage = result["explain"]["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] < told["explain_tokens"]

    page = tmp_path / "report.html"
    shown = call("explain", result["id"], "-o", str(page), "--json", *where)
    assert json.loads(shown.stdout)["explain"] == result["explain"]
    assert "What the output rests on" in page.read_text()
    nowhere = str(tmp_path / "missing" / "report.html")
    unwritable = call("explain", result["id"], "-o", nowhere, "--json", *where)
    assert "report.html cannot be written: No such file" in error_of(unwritable)["message"]
    plain = call("submit", "hello", "--raw", "--wait", "--json", *limit, *where)
    assert "explain_tokens" not in plain.stderr
    missing = call("explain", json.loads(plain.stdout)["id"], "--json", *where)
    assert "submit it with --explain" in error_of(missing)["message"]
    noted = call("submit", "hello", *PARTS, *where)
    assert "note: the explanation takes at most about" in noted.stderr
    wrong = call("submit", "hello", "--explain", "everything", "--json", *where)
    assert "explain" in error_of(wrong)["message"]


def test_a_table_has_the_figures_of_each_part(running_mill: Mill, tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("name\nMill\nPond\n")
    arguments = ("bulk", str(source), "--template", "About {name}", "--max-tokens", "4", *PARTS)
    before = json.loads(call(*arguments, "--dry-run", "--json").stdout)
    assert before["prompt_tokens"] > before["max_explain_tokens"] > 2 * 76 * 4
    done = call(*arguments, "-o", str(out), "--broker-url", running_mill.url)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    names = ("source", "source_text", "source_weight", "agreement", "entropy", "alternative")
    assert list(rows[0])[2:10] == [
        *("explain.confidence", "explain.least_confidence"),
        *(f"explain.{name}" for name in names),
    ]
    assert [row["explain.source_text"] for row in rows] == ["About Mill", "About Pond"]
    assert {float(row["explain.confidence"]) for row in rows} == {0.5}
    assert {row["explain.alternative"] for row in rows} == {f" other{row['text']}" for row in rows}
    (journal,) = tmp_path.glob("*.journal.jsonl")
    first = json.loads(journal.read_text().splitlines()[0])["response"]["body"]
    assert len(first["explain"]["confidence"]) == 4
