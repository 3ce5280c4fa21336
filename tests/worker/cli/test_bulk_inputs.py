"""`batchmill bulk` and `batch create` with files as people have them, and a real worker."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.producer import Client

from ..command_line import call, error_of, run
from ..conftest import Mill
from .bulk_files import bulk, errors_of, output_of, read_lines, text_of

SEED = ("--param", "seed=7")
TEMPLATE = ("--template", "{Name} at {Price (€)}", "--param", "seed=7", "--max-tokens", "2")
SEMICOLONS = "Name;Price (€)\r\nMühle;5,50\r\nRad;7\r\n"


@pytest.fixture
def files(running_mill: Mill) -> Iterator[Path]:
    """The folder of a run, without the output files of the previous one."""
    yield running_mill.folder
    for name in ("out.jsonl", "err.jsonl"):
        (running_mill.folder / name).unlink(missing_ok=True)


def texts(mill: Mill) -> set[str]:
    return {line["response"]["body"]["choices"][0]["text"] for line in output_of(mill)}


EXPECTED = {text_of("Mühle at 5,50", 2), text_of("Rad at 7", 2)}


def test_a_file_of_excel_in_europe_is_read_and_its_encoding_is_said(
    running_mill: Mill, files: Path
) -> None:
    source = files / "semi.csv"
    source.write_bytes(SEMICOLONS.encode("cp1252"))
    answer = bulk(running_mill, source, *TEMPLATE)
    assert answer.returncode == 0, answer.stderr
    assert "Windows-1252" in answer.stderr
    assert texts(running_mill) == EXPECTED


def test_standard_input_is_read_and_a_repeated_pipe_resumes(
    running_mill: Mill, files: Path
) -> None:
    rows = "".join(
        json.dumps({"Name": name, "Price (€)": price}) + "\n"
        for name, price in (("Mühle", "5,50"), ("Rad", "7"))
    )
    output = ("-o", str(files / "out.jsonl"), "--broker-url", running_mill.url, "--json")
    for resumed in (0, 2):
        answer = run("bulk", "-", *TEMPLATE, *output, stdin=rows, PYTHONUTF8="1")
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout)["resumed"] == resumed
    assert texts(running_mill) == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", SEMICOLONS, ()),
        ("b.csv", 'Name;Price (€)\n"Mühle;5\nRad;7\n', TEMPLATE),
        ("c.csv", "Name;Price (€)\nMühle\nRad;7\n", TEMPLATE),
        ("d.bin", "\0\1\2\3", TEMPLATE),
        ("e.txt", "Mühle\nRad\n", TEMPLATE),
        ("f.csv", SEMICOLONS, (*TEMPLATE, "--delimiter", "::")),
    ],
    ids=["no template", "open quote", "ragged", "binary", "prose", "delimiter"],
)
def test_a_file_that_cannot_be_used_is_one_error_before_anything_is_sent(
    running_mill: Mill, files: Path, name: str, content: str, options: tuple[str, ...]
) -> None:
    source = files / name
    source.write_text(content)
    before = running_mill.store.counts().totals
    answer = bulk(running_mill, source, *options, "--json")
    assert (answer.returncode, error_of(answer)["code"] in ("bulk_file", "usage")) == (2, True)
    assert running_mill.store.counts().totals == before
    assert not (files / "out.jsonl").exists()


def test_a_short_row_goes_to_the_error_file_if_the_user_wants_it(
    running_mill: Mill, files: Path
) -> None:
    source = files / "ragged.csv.gz"
    source.write_bytes(gzip.compress((SEMICOLONS + "short\r\n").encode()))
    assert bulk(running_mill, source, *TEMPLATE, "--skip-bad-rows").returncode == 6
    assert errors_of(running_mill)["line-4"]["code"] == "invalid_line"
    assert texts(running_mill) == EXPECTED


def test_a_table_becomes_a_batch_and_refused_lines_keep_their_names(
    running_mill: Mill, files: Path
) -> None:
    source = files / "batch.csv"
    source.write_text("custom_id;Name\na;Mühle\nb;\n")
    errors = files / "err.jsonl"
    options = ("--prompt", "p={Name}", "--prompt", "q={Name}!", "--max-tokens", "2", *SEED)
    broker = ("--broker-url", running_mill.url)
    answer = call("batch", "create", str(source), *options, *broker, "--errors", str(errors))
    assert answer.returncode == 0, answer.stderr
    with Client(running_mill.url) as client:
        results = list(client.batch_results(answer.stdout.strip(), timeout_s=30))
        assert [(entry.custom_id, entry.job.result().text) for entry in results[:2]] == [
            ("a.p", text_of("Mühle", 2)),
            ("a.q", text_of("Mühle!", 2)),
        ]
    assert [line["custom_id"] for line in read_lines(errors)] == ["b.p"]
