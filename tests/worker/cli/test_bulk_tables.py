"""`batchmill bulk` with tables as its output: whole, in order, resumable, and never over a file."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer.files.formulas import is_formula

from ...structure.public_interface import ROOT
from ..command_line import CommandResult, call, run
from ..conftest import Mill
from .bulk_files import read_lines, text_of, write_lines

SEED = ("--param", "seed=7", "--max-tokens", "2")


def table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    text = path.read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


def bulk(mill: Mill, *arguments: object, **environment: str) -> CommandResult:
    return call("bulk", *map(str, arguments), "--broker-url", mill.url, **environment)


def test_rows_come_back_in_order_with_their_columns_and_their_errors(
    running_mill: Mill, tmp_path: Path
) -> None:
    source = tmp_path / "in.csv"
    rows = [f"{n};=n{n}" for n in range(20)]
    source.write_bytes("\r\n".join(["id;note", *rows, "20;<<error@0>>", ""]).encode("cp1252"))
    out = tmp_path / "out.csv"
    arguments = (source, "-o", out, "--template", "{id} {note}", *SEED)
    answer = bulk(running_mill, *arguments)
    assert answer.returncode == 6, answer.stderr
    assert "20 cells with =" in answer.stdout
    assert out.read_bytes().startswith(b"\xef\xbb\xbf"), "Excel opens it as UTF-8"
    found = table(out, ";")
    assert [row["id"] for row in found] == [str(n) for n in range(21)]
    assert [row["text"] for row in found[:20]] == [text_of(f"{n} =n{n}", 2) for n in range(20)]
    assert found[3]["note"] == "'=n3"
    assert (found[3]["finish_reason"], found[3]["output_tokens"], found[3]["error"]) == (
        "length",
        "2",
        "",
    )
    assert found[20]["error"].startswith("numerical_error: ")
    again = bulk(running_mill, *arguments, "--keep-formulas")
    assert "1 of the 21 from earlier runs was a failure; --retry-failed" in again.stdout
    assert table(out, ";")[3]["note"] == "=n3"


def test_a_limit_uses_the_first_rows_and_the_same_command_continues(
    running_mill: Mill, tmp_path: Path
) -> None:
    source = tmp_path / "in.csv"
    source.write_text("a\n" + "".join(f"{n}\n" for n in range(9)))
    out = tmp_path / "out.csv"
    summaries = []
    for limit in (("--limit", "3"), ()):
        template = ("--template", "{a}", "--json")
        answer = bulk(running_mill, source, "-o", out, *template, *SEED, *limit)
        assert answer.returncode == 0, answer.stderr
        summaries.append(json.loads(answer.stdout))
    assert [(each["total"], each["resumed"]) for each in summaries] == [(3, 0), (9, 3)]
    assert [row["a"] for row in table(out)] == list("012345678")


@pytest.mark.parametrize("content", ["mine\n", "a,text\n1,2\n"])
def test_a_table_that_the_run_did_not_write_is_left_alone(
    running_mill: Mill, tmp_path: Path, content: str
) -> None:
    source = tmp_path / "in.csv"
    source.write_text("a\n1\n")
    out = tmp_path / "out.csv"
    arguments = (source, "-o", out, "--template", "{a}", *SEED)
    out.write_text(content)
    before = running_mill.store.counts().totals
    assert bulk(running_mill, *arguments).returncode == 2
    assert out.read_text() == content
    assert running_mill.store.counts().totals == before
    out.unlink()
    assert bulk(running_mill, *arguments).returncode == 0
    with out.open("a") as file:
        file.write("a line of the user's")
    changed = out.read_bytes()
    assert bulk(running_mill, *arguments).returncode == 2
    assert out.read_bytes() == changed


def test_a_schema_becomes_columns_and_a_cut_output_leaves_them_empty(
    running_mill: Mill, tmp_path: Path
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "address": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    source = tmp_path / "in.csv"
    source.write_text("name\nMill\n")
    options = ("--template", "{name}", "--schema", tmp_path / "schema.json", *SEED)
    answer = bulk(running_mill, source, "-o", tmp_path / "out.csv", *options)
    assert answer.returncode == 0, answer.stderr
    [row] = table(tmp_path / "out.csv")
    assert list(row)[:4] == ["name", "text", "output.name", "address.city"]
    assert (row["name"], row["output.name"], row["address.city"]) == ("Mill", "", "")


def test_several_prompts_fill_columns_of_their_own(running_mill: Mill, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    source = tmp_path / "in.csv"
    source.write_text("name,price\nMill,5\nWheel,\n")
    chat = tmp_path / "teaser.txt"
    chat.write_text(
        "[system]\n{% if price %}Name {{ price }}.{% endif %}\n[user]\nPraise {{ name }}.\n"
    )
    prompts = ("--prompt", "title=Title of {name}", "--prompt", f"teaser=@{chat}")
    answer = bulk(running_mill, source, "-o", tmp_path / "out.csv", *prompts, *SEED)
    assert answer.returncode == 0, answer.stderr
    mill, wheel = table(tmp_path / "out.csv")
    assert mill["title"] == text_of("Title of Mill", 2)
    assert mill["teaser"] == text_of("<system>Name 5.<user>Praise Mill.", 2)
    assert wheel["teaser"] == text_of("<user>Praise Wheel.", 2)
    assert {"title.error", "teaser.output_tokens"} <= mill.keys()
    ids = [line["custom_id"] for line in read_lines(tmp_path / "out.csv.journal.jsonl")[:4]]
    assert sorted(ids) == ["line-2.teaser", "line-2.title", "line-3.teaser", "line-3.title"]


def test_workbooks_and_parquet_have_types_and_no_formulas(
    running_mill: Mill, tmp_path: Path
) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"a": 1, "b": "=1+1"}, {"a": 2, "c": [True], "\ud800": ["\udfff"]}]
    source = write_lines(tmp_path / "in.jsonl", rows)
    template = ("--template", "{a}", *SEED)
    assert bulk(running_mill, source, "-o", tmp_path / "out.xlsx", *template).returncode == 0
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx").active
    head, first, second = ([cell.value for cell in row] for row in sheet.iter_rows())
    # Lone surrogates, which UTF-8 lacks, are escaped.
    assert head[:5] == ["a", "b", "c", r"\ud800", "text"]
    assert first[:5] == [1, "=1+1", None, None, text_of("1", 2)]
    assert second[:4] == [2, None, "[true]", r'["\\udfff"]']
    assert sheet["B2"].data_type == "s"
    assert bulk(running_mill, source, "-o", tmp_path / "out.parquet", *template).returncode == 0
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["a"], row["b"], row["output_tokens"]) for row in rows] == [
        (1, "=1+1", 2),
        (2, None, 2),
    ]


def test_standard_output_gets_results_and_failures_in_order(
    running_mill: Mill, tmp_path: Path
) -> None:
    prompts = [{"prompt": text} for text in ("a", "<<error@0>>", "b")]
    lines = "".join(json.dumps(line) + "\n" for line in prompts)
    answer = run("bulk", "-", "-o", "-", *SEED, "--broker-url", running_mill.url, stdin=lines)
    assert answer.returncode == 6, answer.stderr
    found = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [line["custom_id"] for line in found] == ["line-1", "line-2", "line-3"]
    assert [line["error"] is None for line in found] == [True, False, True]
    assert "2 completed, 1 failed" in answer.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=1+1", True),
        (" =1", True),
        ("@SUM(A1)", True),
        ("- a list", True),
        ("+49 cmd|x", True),
        ("\t=1", True),
        ("-5", False),
        ("+5,50", False),
        ("-1.5e3", False),
        ("-", False),
        ("a=b", False),
        ("", False),
    ],
)
def test_a_text_that_a_spreadsheet_computes_is_known(text: str, expected: bool) -> None:
    assert is_formula(text) is expected


def recipes() -> list[Any]:
    page = (ROOT / "docs" / "bulk.md").read_text()
    found = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names = [re.findall(r"import (pandas|polars)", code)[0] for code in found]
    return [pytest.param(*each, id=each[0]) for each in zip(names, found, strict=True)]


@pytest.mark.parametrize(("library", "code"), recipes())
def test_the_recipe_of_the_page_runs(
    running_mill: Mill, tmp_path: Path, library: str, code: str
) -> None:
    for name in (library, "pyarrow"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    environment = {
        **os.environ,
        "BATCHMILL_BROKER_URL": running_mill.url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Wheel" in done.stdout
