"""Write the tables of the HTTP APIs' pages: `python tests/structure/api_tables.py`.

A table stands between `<!-- fields: TITLE -->` and `<!-- end of fields -->`, and is made of the
`Body` of that title in `worker/gateway/spec`, which the gateway itself reads requests by. A table
of parameters stands between `<!-- parameters: GET /path -->` and the same end.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchmill.worker.gateway.spec.body import Body, Row
from batchmill.worker.gateway.spec.operations import OPERATIONS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS / name for name in ("openai-api.md", "anthropic-api.md", "webhook-endpoints.md")]
PAGES.append(DOCS / "keys-and-usage.md")
_TABLE = re.compile(r"<!-- (fields|parameters): (.+?) -->\n.*?<!-- end of fields -->", re.DOTALL)


def bodies() -> dict[str, Body]:
    """Return every body by its title."""
    found = [operation.body for operation in OPERATIONS.values() if operation.body is not None]
    return {body.title: body for body in found}


def with_tables(text: str) -> str:
    """Return the text of a page with its tables as they should be."""
    return _TABLE.sub(_marked, text)


def _marked(match: re.Match[str]) -> str:
    kind, name = match.groups()
    table = _fields(bodies()[name]) if kind == "fields" else _parameters(name)
    return f"<!-- {kind}: {name} -->\n\n{table}\n\n<!-- end of fields -->"


def _fields(body: Body) -> str:
    lines = ["| field | is | means |", "|---|---|---|"]
    lines += [f"| `{row.name}` | {row.use.value} | {_meaning(row, body)} |" for row in body.rows()]
    if body.takes_job:
        lines.append("| others | taken | every other [field of a job](features.md) |")
    lines.append("| unknown | refused | by name, with the code `invalid_request` |")
    return "\n".join(lines)


def _meaning(row: Row, body: Body) -> str:
    parts = ["needed"] if row.name in body.required else []
    parts += [_begun_small(row.meaning)] if row.meaning else []
    neutral = [_shown(value) for value in row.neutral if value is not None]
    parts += [f"only {' or '.join(neutral)}"] if neutral else []
    return "; ".join(parts).removesuffix(".").replace("|", r"\|") or "only null"


def _begun_small(text: str) -> str:
    """Return a phrase without a capital at its start, unless a name begins it."""
    first = text.partition(" ")[0]
    return text if first[1:] != first[1:].lower() else text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def _parameters(name: str) -> str:
    method, path = name.split(" ")
    lines = ["| parameter | means |", "|---|---|"]
    lines += [f"| `{each.name}` | {each.meaning} |" for each in OPERATIONS[method, path].query]
    return "\n".join(lines)


def stale_pages(pages: Sequence[Path] = PAGES) -> list[Path]:
    """Return the pages whose tables are not as they should be."""
    return [page for page in pages if page.read_text() != with_tables(page.read_text())]


def main() -> None:
    """Run the command line."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))


if __name__ == "__main__":
    main()
