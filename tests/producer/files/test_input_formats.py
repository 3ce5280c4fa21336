"""Input files as people have them: each format, delimiter and encoding gives the same records."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer.errors import BulkFileError
from batchmill.producer.files.record import InputOptions
from batchmill.producer.files.source import RecordFile

ROWS = [{"Name": "Mühle", "Note": "says “hi”, twice"}, {"Name": "Rad", "Note": "two\r\nlines"}]


def compressed(data: bytes) -> bytes:
    """Compress without the time, so that the names of tests are the same in every process."""
    return gzip.compress(data, mtime=0)


def table(delimiter: str) -> str:
    quoted = [[f'"{cell}"' for cell in row.values()] for row in ROWS]
    return "".join(delimiter.join(row) + "\r\n" for row in [list(ROWS[0]), *quoted])


def read(path: Path, **options: Any) -> list[dict[str, Any] | None]:
    return [record.data for record in RecordFile(path, InputOptions(**options)).records()]


def write(tmp_path: Path, name: str, content: bytes | str) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"], ids=["comma", "semicolon", "tab", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_the_delimiter_and_the_encoding_of_a_table_are_found(
    tmp_path: Path, delimiter: str, encoding: str
) -> None:
    path = write(tmp_path, "in.csv", table(delimiter).encode(encoding))
    assert read(path) == ROWS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.tsv", table("\t")),
        ("in.TSV", table("\t")),
        ("in.csv", "sep=;\r\n" + table(";")),
        ("in.csv.gz", compressed(table(",").encode())),
        ("named-otherwise.csv", compressed(table(";").encode())),
        ("in.csv.bz2", bz2.compress(table(",").encode())),
        ("in.csv.xz", lzma.compress(table(",").encode())),
        ("in.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("in", "".join(json.dumps(row) + "\r\n\r\n" for row in ROWS)),
        ("in.jsonl.gz", compressed("\n".join(map(json.dumps, ROWS)).encode())),
        ("in.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode("utf-8-sig")),
        ("in.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode("utf-16")),
        ("in.json", json.dumps(ROWS)),
        ("in.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
        ("in.jsonl", "\ufeff  \n" + json.dumps(ROWS)),
        ("in.json.gz", compressed(json.dumps(ROWS).encode())),
    ],
)
def test_every_text_format_gives_the_same_records(
    tmp_path: Path, name: str, content: bytes | str
) -> None:
    assert read(write(tmp_path, name, content)) == ROWS


def test_a_parquet_file_and_a_workbook_give_the_same_records(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    openpyxl = pytest.importorskip("openpyxl")
    rows = [row | {"Price": price} for row, price in zip(ROWS, (5, 2.5), strict=True)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    assert read(tmp_path / "in.parquet") == rows
    book = openpyxl.Workbook()
    book.active.append(list(rows[0]))
    book.active.append([None, "", None])
    for row in rows:
        book.active.append(list(row.values()))
    book.create_sheet("more").append(["Other"])
    book.save(tmp_path / "in.xlsx")
    assert read(tmp_path / "in.xlsx") == [
        row | {"Note": str(row["Note"]).replace("\r\n", "\n")} for row in rows
    ]
    assert "the first of 2 sheets" in " ".join(RecordFile(tmp_path / "in.xlsx").notes)
    other = RecordFile(tmp_path / "in.xlsx", InputOptions(sheet="more"))
    assert (other.columns, other.num_records) == (["Other"], 0)
    with pytest.raises(BulkFileError, match="no sheet 'none'; it has 'Sheet', 'more'"):
        RecordFile(tmp_path / "in.xlsx", InputOptions(sheet="none"))


def test_a_guess_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "in.csv", table(";").encode("cp1252"))
    notes = " ".join(RecordFile(path).notes)
    assert "read as Windows-1252" in notes
    assert "the delimiter semicolon" in notes
    assert RecordFile(write(tmp_path, "plain.csv", table(","))).notes == ()


def test_options_overrule_what_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, "in.csv", "a;b,c\n1;2,é\n".encode("latin-1"))
    assert read(path, delimiter=";", encoding="latin-1") == [{"a": "1", "b,c": "2,é"}]
    text = write(tmp_path, "in.txt", "a,b\n1,2\n")
    assert read(text, format="csv") == read(text, delimiter=",") == [{"a": "1", "b": "2"}]


def test_empty_cells_at_the_end_of_a_row_are_no_cells(tmp_path: Path) -> None:
    path = write(tmp_path, "in.csv", "a;b;;\n1;2;;\n;;;\n3;4;;\n")
    assert read(path) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", 'a,b\n1,2\n"x,3\n4,5\n', "line 3: .*never closes"),
        ("in.csv", 'a,b\n"x,3\n4,"5"\n', "line 2: .*text follows a closing quote"),
        ("in.csv", "a,b\n1,2\n3\n4,5,6\n", r"line 3: the row has 1 cells.* 1 more such .*--skip-"),
        ("in.csv", "a,a\n1,2\n", "each name once"),
        ("in.csv", b"a\n\xfc\n\x81\n", "neither UTF-8 nor Windows-1252"),
        ("in.csv", "a\nü\nö\nß\n".encode() + b"\xfc\n", "line 5: not UTF-8, although other"),
        ("in.csv", compressed(table(",").encode())[:-9], "compressed and damaged"),
        ("in.jsonl", "one\ntwo\n", "not JSON lines.*--input-format csv"),
        ("in.json", '[{"a": 1}, {"a": ', "not a JSON array, at character 12"),
        ("in.json", '[{"a": 1} {"a": 2}]', "a comma or ] must follow"),
        ("in.json", '[{"a": 1}] more', "text follows the end"),
        ("in.zip", b"PK\x03\x04rest", "a ZIP archive"),
        ("in.xlsx", "a,b\n", "no Excel workbook"),
        ("in.parquet", "a,b\n", "no Parquet file"),
        ("in.xls", b"\xd0\xcf\x11\xe0rest", "an old Excel workbook"),
        ("in.bin", bytes(100) + b"x", "it is binary"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_as_a_whole(
    tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(BulkFileError, match=message):
        RecordFile(path)


def test_bad_rows_can_be_kept_with_their_problem(tmp_path: Path) -> None:
    path = write(tmp_path, "in.csv", "a,b\n1,2\n3\n")
    records = list(RecordFile(path, InputOptions(keep_bad_rows=True)).records())
    assert [record.data for record in records] == [{"a": "1", "b": "2"}, None]
    assert records[1].problem == "the row has 1 cells, the first row names 2 columns"


def test_an_element_longer_than_a_piece_is_read(tmp_path: Path) -> None:
    rows = [{"a": "x" * 700_000}, {"a": 1}, {"a": "y" * 300_000}]
    assert read(write(tmp_path, "in.json", json.dumps(rows))) == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "utf-9"}, "--encoding 'utf-9' is unknown"),
        ({"encoding": "base64"}, "--encoding 'base64' is unknown"),
        ({"format": "xml"}, "--input-format must be one of csv"),
        ({"sheet": "x"}, "--sheet is of no use: .* read as csv"),
        ({"encoding": "ascii"}, "is not ascii"),
    ],
)
def test_an_option_that_cannot_be_followed_is_refused(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    path = write(tmp_path, "in.csv", table(","))
    with pytest.raises(BulkFileError, match=message):
        RecordFile(path, InputOptions(**options))  # type: ignore[arg-type]
