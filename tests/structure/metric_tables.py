"""Print or write the tables of docs/metrics.md (`--write`)."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from batchmill.worker.metrics.catalogue import CATALOGUE
from batchmill.worker.metrics.series import Series

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
#: A table follows its marker. Without an empty line after it, what follows would be a row of it.
_TABLE = re.compile(r"(<!-- series: (\w+) -->\n)\n(?:\|.*\n)*\n*")


def page(text: str) -> str:
    """Return the page with current tables."""
    return _TABLE.sub(lambda match: f"{match[1]}\n{table(match[2])}\n", text)


def table(service: str) -> str:
    """Return the table of a service's series."""
    rows = "".join(map(_row, CATALOGUE[service]))
    return f"| series | type | labels | meaning |\n|---|---|---|---|\n{rows}"


def marked(text: str) -> list[str]:
    """Return the services whose tables a page has."""
    return [match[2] for match in _TABLE.finditer(text)]


def _row(series: Series) -> str:
    labels = ", ".join(f"`{label}`" for label in series.labels) or "-"
    return f"| `{series.name}` | {series.kind.value} | {labels} | {series.meaning} |\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} instead")
    text = page(PAGE.read_text())
    if parser.parse_args().write:
        PAGE.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
