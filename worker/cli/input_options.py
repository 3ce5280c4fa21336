"""Options of bulk and batches: how a file is read, and how its rows become jobs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .decision_options import read_decision_option
from .errors import usage_error
from .options import parse_pairs

if TYPE_CHECKING:
    from batchmill.producer.bulk.prompts import Prompt
    from batchmill.producer.files.record import InputOptions

_CHUNK_BYTES = 1 << 20
_READING = "Input"
_PROMPT = "Prompt"

InputArgument = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="CSV, TSV, JSON lines, a JSON array, Parquet or .xlsx, perhaps compressed (.gz); "
        "- is standard input.",
    ),
]


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """How the input file is read."""

    input_format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="csv, tsv, jsonl, json, parquet or xlsx. Default: as the file shows.",
            rich_help_panel=_READING,
        ),
    ] = None
    delimiter: Annotated[
        str | None,
        typer.Option(
            metavar="CHAR",
            help="Between the cells of a CSV file, or tab. Default: found.",
            rich_help_panel=_READING,
        ),
    ] = None
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of a text file, such as windows-1252 or utf-16. Default: found.",
            rich_help_panel=_READING,
        ),
    ] = None
    sheet: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Sheet of an Excel workbook. \\[first]", rich_help_panel=_READING
        ),
    ] = None
    skip_bad_rows: Annotated[
        bool,
        typer.Option(
            "--skip-bad-rows",
            help="Send rows with a wrong number of cells to the error file.",
            rich_help_panel=_READING,
        ),
    ] = False

    def checked(self) -> InputOptions:
        """Return the options for the reader.

        Raises:
            CommandError: the delimiter is not one character.
        """
        from batchmill.producer.files.record import InputOptions

        delimiter = {"tab": "\t", "\\t": "\t"}.get(self.delimiter or "", self.delimiter)
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise usage_error(
                f"--delimiter {delimiter!r} must be one character, but no quote, or the word tab"
            )
        return InputOptions(
            format=self.input_format,
            delimiter=delimiter,
            encoding=self.encoding,
            sheet=self.sheet,
            keep_bad_rows=self.skip_bad_rows,
        )


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How a row becomes a prompt."""

    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Prompt with {column} for each value of a row, or in Jinja ({% if … %}).",
            rich_help_panel=_PROMPT,
        ),
    ] = None
    template_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File that holds the template; lines [system] and [user] begin messages.",
            rich_help_panel=_PROMPT,
        ),
    ] = None
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", help="Send the filled template as a user message.", rich_help_panel=_PROMPT
        ),
    ] = False
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="System message, with --chat.", rich_help_panel=_PROMPT),
    ] = None

    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="COLUMN",
            help="A column with a file or an https URL of a picture, which stands before the text. "
            "May be repeated. A folder of pictures needs none.",
            rich_help_panel=_PROMPT,
        ),
    ] = None
    audio: Annotated[
        list[str] | None,
        typer.Option(
            "--audio",
            metavar="COLUMN",
            help="The same for a sound.",
            rich_help_panel=_PROMPT,
        ),
    ] = None
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            metavar="NAME=TEXT",
            help="One of several templates, whose results get columns of this name; NAME=@FILE "
            "reads a file. May be repeated.",
            rich_help_panel=_PROMPT,
        ),
    ] = None
    embed: Annotated[
        bool,
        typer.Option(
            "--embed",
            help="Embed the filled template; --param embedding='{\"dimensions\": 256}' says how.",
            rich_help_panel=_PROMPT,
        ),
    ] = False
    decide: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Questions about each row, in JSON: the filled template is the state, and the "
            "results get columns per question.",
            rich_help_panel=_PROMPT,
        ),
    ] = None
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="With --decide, a column per option for its probability.",
            rich_help_panel=_PROMPT,
        ),
    ] = False
    jinja: Annotated[
        bool,
        typer.Option(
            "--jinja",
            help="Read templates as Jinja's; those with {% are read so anyway.",
            rich_help_panel=_PROMPT,
        ),
    ] = False

    def text(self) -> str | None:
        """Return the template's text; None if there is no template.

        Raises:
            CommandError: the options do not fit together, or the file cannot be read.
        """
        if self.template is not None and self.template_file is not None:
            raise usage_error("give --template or --template-file, not both")
        if self.template_file is None:
            return self.template
        return _file_text("--template-file", self.template_file)

    def prompts(self) -> tuple[Prompt, ...]:
        """Return what each row becomes; empty if there is no template.

        Raises:
            CommandError: the options do not fit together, or a file cannot be read.
            BulkFileError: a template is wrong.
        """
        from batchmill.producer.bulk.prompts import read_prompt

        text = self.text()
        named = parse_pairs("--prompt", self.prompt)
        if len(named) < len(self.prompt or ()):
            raise usage_error("--prompt: each needs a name of its own")
        if text is not None and named:
            raise usage_error("give --template or --prompt, not both")
        texts = {"": text} if text is not None else {}
        for name, given in named.items():
            file = given.removeprefix("@")
            is_file = given.startswith("@")
            texts[name] = _file_text(f"--prompt {name}", Path(file)) if is_file else given
        if not texts and (self.chat or self.system is not None or self.jinja or self.embed):
            raise usage_error(
                "--chat, --system, --embed and --jinja need --template: request lines hold their "
                "own messages"
            )
        media = {
            **dict.fromkeys(self.image or (), "image"),
            **dict.fromkeys(self.audio or (), "audio"),
        }
        if media and not texts:
            raise usage_error("--image and --audio need --template: request lines hold their own")
        if media and (self.embed or self.decide is not None):
            raise usage_error("--embed and --decide take text only: leave out --image and --audio")
        if self.system is not None and not self.chat:
            raise usage_error("--system needs --chat")
        decision = self._decision(has_several=len(texts) > 1)
        return tuple(
            replace(
                read_prompt(
                    text,
                    name=name,
                    as_chat=self.chat,
                    system=self.system,
                    is_jinja=self.jinja,
                    embeds=self.embed,
                ),
                decision=decision,
                media=media,
            )
            for name, text in texts.items()
        )

    def _decision(self, *, has_several: bool) -> dict[str, Any] | None:
        """Return the questions about each row; None without any."""
        if self.decide is None:
            if self.probabilities:
                raise usage_error("--probabilities needs --decide")
            return None
        if self.embed:
            raise usage_error("give --decide or --embed, not both")
        if self.text() is None or has_several:
            raise usage_error(
                "--decide needs one --template, which makes the state of each row, such as "
                "--template '{text}'"
            )
        return read_decision_option("--decide", self.decide)


@contextmanager
def input_file(path: Path) -> Iterator[Path]:
    """Yield the file to read; standard input (`-`) is saved to a temporary file first."""
    if str(path) != "-":
        yield path
        return
    if sys.stdin.isatty():
        raise usage_error("- reads standard input, which is a terminal here; pipe a file into it")
    with tempfile.TemporaryDirectory(prefix="batchmill-") as folder:
        saved = Path(folder) / "stdin"
        with saved.open("wb") as file:
            while chunk := sys.stdin.buffer.read(_CHUNK_BYTES):
                file.write(chunk)
        yield saved


def _file_text(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise usage_error(f"{option} {path} cannot be read: {error}") from None
