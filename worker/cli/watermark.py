"""`batchmill watermark`: look for marks in texts, and make keys."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import print_json, print_table

from .errors import CommandError, ExitCode, usage_error
from .options import JsonOption

if TYPE_CHECKING:
    from batchmill.engine import WatermarkDetection

_group = typer.Typer(
    help="Marks in generated texts: look for them, make keys.", no_args_is_help=True
)
_TABLES = frozenset({".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx"})
#: Fields of a record that hold an output, in the order in which they are looked for.
_TEXT_FIELDS = ("text", "output", "content")


def add_watermark_commands(app: typer.Typer) -> None:
    """Add `watermark detect` and `new-key`."""
    app.add_typer(_group, name="watermark")


@_group.command(
    "detect",
    epilog="Examples:\n\n  batchmill watermark detect article.txt\n\n"
    "  batchmill watermark detect results.jsonl --key press --json\n\n"
    "The keys are those of BATCHMILL_WATERMARK_KEYS. The probability says how often a text without "
    "the mark would look as marked as this one.",
)
def detect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A text; or JSON lines, JSON, CSV, Parquet or .xlsx with outputs. - is stdin.",
        ),
    ],
    key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Look for this key only. Default: all.")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The field or column with the output. Default: text, output or content, or the "
            "choices of a line of OpenAI's.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model that wrote it, for its tokenizer. Default: BATCHMILL_MODEL."),
    ] = None,
    p_value: Annotated[
        float,
        typer.Option("--p-value", min=0, max=1, help="A text below this probability is marked."),
    ] = 1e-6,
    as_json: JsonOption = False,
) -> None:
    """Tell whether a text, or the outputs in a file together, are marked with one of the keys."""
    found = _detections(model, key, _texts(file, column))
    if as_json:
        print_json({"watermarks": [_described(each, p_value) for each in found]})
        return
    print_table(
        "watermarks",
        ("key", "tokens", "that count", "sum", "probability", "marked"),
        (
            (
                each.key,
                each.num_tokens,
                each.num_scored,
                f"{each.score:.1f}",
                f"{each.p_value:.2g}",
                "yes" if each.p_value < p_value else "no",
            )
            for each in found
        ),
    )


@_group.command("new-key", epilog="Example:\n\n  batchmill watermark new-key")
def new_key() -> None:
    """Print a new secret for an entry of BATCHMILL_WATERMARK_KEYS."""
    print(secrets.token_urlsafe(32))


def _detections(
    model: str | None, key: str | None, texts: Iterator[str]
) -> list[WatermarkDetection]:
    from batchmill.engine import ConfigError, ModelLoadError, RequestError, WatermarkDetector

    model = model or os.environ.get("BATCHMILL_MODEL") or "demo"
    try:
        detector = WatermarkDetector(model, _keys(key))
    except (ConfigError, ModelLoadError) as error:
        raise CommandError(str(error), code="invalid_settings", exit_code=ExitCode.CONFIG) from None
    try:
        return detector.detect(texts)
    except RequestError as error:
        raise usage_error(error.message) from None


def _described(found: WatermarkDetection, p_value: float) -> dict[str, Any]:
    return {
        "key": found.key,
        "tokens": found.num_tokens,
        "scored_tokens": found.num_scored,
        "score": found.score,
        "p_value": found.p_value,
        "marked": found.p_value < p_value,
    }


def _keys(name: str | None) -> dict[str, str]:
    from batchmill.worker.watermark_settings import WatermarkSettings

    keys = WatermarkSettings().watermark_secrets
    if not keys:
        raise CommandError(
            "there is no key to look for: set BATCHMILL_WATERMARK_KEYS as for the worker",
            code="invalid_settings",
            exit_code=ExitCode.CONFIG,
        )
    if name is None:
        return keys
    if name not in keys:
        raise usage_error(f"--key {name}: BATCHMILL_WATERMARK_KEYS has {', '.join(sorted(keys))}")
    return {name: keys[name]}


def _texts(file: Path, column: str | None) -> Iterator[str]:
    """Yield the texts of a file.

    Raises:
        CommandError: it cannot be read, or holds no output.
    """
    if str(file) == "-":
        yield sys.stdin.read()
    elif file.suffix.lower() in _TABLES:
        yield from _recorded_texts(file, column)
    else:
        try:
            yield file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise usage_error(f"{file} cannot be read: {error}") from None


def _recorded_texts(file: Path, column: str | None) -> Iterator[str]:
    from batchmill.producer.files.source import RecordFile

    num_texts = 0
    for record in RecordFile(file).records():
        for text in _texts_of(record.data or {}, column):
            num_texts += 1
            yield text
    if not num_texts:
        wanted = f"the field {column}" if column else f"a field {', '.join(_TEXT_FIELDS)}"
        raise usage_error(f"{file} has no record with {wanted}: name it with --column")


def _texts_of(record: Mapping[str, Any], column: str | None) -> Iterable[str]:
    """Return the outputs in a record: a named field, one of ours, or the choices of OpenAI's."""
    if column is not None:
        return [value] if isinstance(value := record.get(column), str) else []
    response = record.get("response")
    body = response.get("body") if isinstance(response, Mapping) else record
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if isinstance(choices, list):
        messages = [each.get("message", each) for each in choices if isinstance(each, Mapping)]
        texts = [
            each.get("content", each.get("text")) for each in messages if isinstance(each, Mapping)
        ]
        return [text for text in texts if isinstance(text, str)]
    found = (record.get(name) for name in _TEXT_FIELDS)
    return [text for text in found if isinstance(text, str)][:1]
