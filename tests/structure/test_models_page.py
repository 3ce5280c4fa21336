"""docs/models.md has a row for every model that is tested, and every row reports equal tokens."""

from __future__ import annotations

from pathlib import Path

from batchmill.engine.loading.quantized.formats import FORMATS
from batchmill.engine.media.families import MEDIA_FAMILIES
from batchmill.engine.models.families import FAMILIES

from ..engine.greedy_checks import WAYS
from ..support.tiny_models import NATIVE, OTHERS

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
REMEDY = "run `python tests/structure/model_table.py --write`"


def rows() -> dict[tuple[str, str], list[str]]:
    """Return the cells of the table of models, by model and implementation."""
    return {(row[0], row[2]): row for row in _table("## Compared with transformers")}


def _table(heading: str) -> list[list[str]]:
    """Return the cells of the rows of the table below a heading, without its head."""
    section = PAGE.read_text().partition(f"{heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_every_tested_model_has_its_rows() -> None:
    expected = {(name, "native") for name in NATIVE}
    expected |= {(name, "transformers") for name in (*NATIVE, *OTHERS)}
    assert set(rows()) == expected, REMEDY


def test_every_family_of_the_native_decoder_has_a_row() -> None:
    architectures = {f"{row[1]}ForCausalLM" for key, row in rows().items() if key[1] == "native"}
    assert architectures == set(FAMILIES), REMEDY


def test_every_family_that_takes_pictures_or_sounds_has_a_row() -> None:
    named = {row[0] for row in _table("## Pictures and sounds")}
    assert named == {f"`{name}`" for name in MEDIA_FAMILIES}


def test_every_format_of_quantized_weights_has_a_row() -> None:
    rows_of_formats = _table("## Quantized checkpoints")
    methods = {method for row in rows_of_formats for method in row[1].split(", ")}
    assert methods == {f"`{name}`" for name in FORMATS}, REMEDY
    for row in rows_of_formats:
        assert float(row[3]) <= 1e-4, row


def test_every_row_reports_equal_tokens() -> None:
    for key, row in rows().items():
        assert float(row[3]) <= 1e-4, key
        assert row[4:] == ["equal"] * len(WAYS), key
