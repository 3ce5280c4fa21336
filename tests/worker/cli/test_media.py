"""Pictures on the command line: one job, a folder of pictures, and a column that names them."""

from __future__ import annotations

import csv
from pathlib import Path

from ...support.pictures import decoded, png, rendered
from ..command_line import call
from ..conftest import Mill
from .bulk_files import bulk, errors_of, output_of, text_of


def test_submit_takes_a_picture(running_mill: Mill, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(png())
    how = ("What?", "--image", str(photo), "--max-tokens", "4", "--seed", "7", "--wait")
    answer = call("submit", *how, BATCHMILL_BROKER_URL=running_mill.url)
    assert answer.stdout.strip() == text_of(rendered(decoded()), 4).strip(), answer.stderr


def test_submit_names_a_file_that_is_not_a_picture(running_mill: Mill, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for path, words in ((text, "PNG, JPEG"), (tmp_path / "none.png", "No such file")):
        answer = call(
            "submit", "What?", "--image", str(path), BATCHMILL_BROKER_URL=running_mill.url
        )
        assert answer.returncode != 0
        assert words in answer.stderr


def test_bulk_runs_over_a_folder_of_pictures(running_mill: Mill, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(png("red"))
    (folder / "more" / "b.png").write_bytes(png("blue"))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("left out")
    how = ("--template", "What?", "--chat", "--max-tokens", "4", "--param", "seed=7")
    answer = bulk(running_mill, folder, *how)
    assert "1 other file" in answer.stderr, answer.stderr
    by_id = {line["custom_id"]: line for line in output_of(running_mill)}
    assert by_id.keys() == {"a.png", "more/b.png"}
    for name, color in (("a.png", "red"), ("more/b.png", "blue")):
        message = by_id[name]["response"]["body"]["choices"][0]["message"]
        assert message["content"] == text_of(rendered(decoded(color)), 4)
    errors = errors_of(running_mill)
    assert errors.keys() == {"broken.png"}
    assert "PNG, JPEG" in str(errors["broken.png"])
    for name in ("out.jsonl", "err.jsonl"):
        (running_mill.folder / name).unlink()


def test_bulk_reads_a_column_of_pictures(running_mill: Mill, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png("green"))
    table = tmp_path / "table.csv"
    with table.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerows([["file", "question"], ["a.png", "What?"], ["", "What?"]])
    how = ("--template", "{question}", "--chat", "--image", "file", "--max-tokens", "4")
    answer = bulk(running_mill, table, *how, "--param", "seed=7")
    assert answer.returncode == 0, answer.stderr
    texts = [
        line["response"]["body"]["choices"][0]["message"]["content"]
        for line in sorted(output_of(running_mill), key=lambda line: str(line["custom_id"]))
    ]
    assert texts == [text_of(rendered(decoded("green")), 4), text_of("<user>What?", 4)]
    for name in ("out.jsonl", "err.jsonl"):
        (running_mill.folder / name).unlink(missing_ok=True)
