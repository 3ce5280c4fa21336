"""`preview`: what a run would send, without a broker: filled prompts, counts, tokens and cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from batchmill.producer.errors import BulkFileError
from batchmill.producer.files.source import RecordFile
from batchmill.producer.job.line import BulkLine
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import (
    explanation_tokens,
    judging_tokens,
    most_output_tokens,
)

from .lines import check_template, read_lines, with_media
from .options import BulkOptions
from .prompt_texts import Content, contents
from .usage import Tokens

_NUM_SHOWN = 3
#: Of English text in common vocabularies; other languages have fewer.
_BYTES_PER_TOKEN = 4


@dataclass(slots=True)
class Preview:
    """What a run would send."""

    format: str
    columns: list[str] | None
    notes: tuple[str, ...]
    #: How prompt tokens were counted.
    counted_by: str
    num_records: int = 0
    num_lines: int = 0
    num_refused: int = 0
    #: The first lines that would be sent, and the first that would be refused.
    shown: list[BulkLine] = field(default_factory=list)
    refused: list[BulkLine] = field(default_factory=list)
    #: Estimated prompt tokens and the most output tokens, per model.
    usage: dict[str, Tokens] = field(default_factory=dict)
    #: Those of `usage` that explanations take at most.
    num_explain_tokens: int = 0


class TokenCounter:
    """Counts the tokens of a text: with a tokenizer, or estimated from its bytes."""

    def __init__(self, tokenizer: Path | None, model: str) -> None:
        """Load a tokenizer if there is one. Torch is never needed.

        Args:
            tokenizer: a `tokenizer.json`, or the folder of a model; None looks for the model's.
            model: its name; a folder has its tokenizer in it.

        Raises:
            BulkFileError: the given tokenizer cannot be loaded.
        """
        self._tokenizer: Any = None
        path = _tokenizer_file(tokenizer or Path(model))
        if tokenizer is None and not path.is_file():
            self.description = "bytes / 4; --tokenizer takes a tokenizer.json"
            return
        try:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(path))
        except ModuleNotFoundError:
            if tokenizer is not None:
                raise BulkFileError(
                    "--tokenizer needs the package tokenizers: pip install tokenizers"
                ) from None
            self.description = "bytes / 4; with the package tokenizers, they are counted"
        except Exception as error:  # the library raises plain exceptions
            raise BulkFileError(f"{path} is not a tokenizer: {error}") from None
        else:
            self.description = f"with {path}, without the chat template"

    def count(self, text: Content) -> int:
        """Return the number of tokens of a text."""
        if not isinstance(text, str):
            return len(text)
        if self._tokenizer is None:
            return len(text.encode()) // _BYTES_PER_TOKEN + 1
        return len(self._tokenizer.encode(text).ids)


def preview(options: BulkOptions, settings: ProducerSettings, tokenizer: Path | None) -> Preview:
    """Read the whole input and return what a run would send.

    Raises:
        BulkFileError: the input or the template cannot be used.
    """
    source = RecordFile(options.input_path, options.reading)
    options = replace(options, lines=with_media(source, options.lines))
    check_template(source, options.lines)
    counter = TokenCounter(tokenizer, options.lines.model or settings.model)
    found = Preview(source.format, source.columns, source.notes, counter.description)
    for record in islice(source.records(), options.max_records):
        found.num_records += 1
        for line in read_lines(record, options.lines):
            found.num_lines += 1
            _add(found, line, counter, settings)
    return found


def _add(found: Preview, line: BulkLine, counter: TokenCounter, settings: ProducerSettings) -> None:
    if line.job is None:
        found.num_refused += 1
        if len(found.refused) < _NUM_SHOWN:
            found.refused.append(line)
        return
    if len(found.shown) < _NUM_SHOWN:
        found.shown.append(line)
    tokens = found.usage.setdefault(line.job.model or settings.served_name, Tokens())
    num_prompt_tokens = sum(times * counter.count(each) for times, each in contents(line.job))
    tokens.prompt += num_prompt_tokens + judging_tokens(line.job, num_prompt_tokens)
    tokens.output += most_output_tokens(line.job)
    num_explain_tokens = explanation_tokens(line.job)
    found.num_explain_tokens += num_explain_tokens
    tokens.prompt += num_explain_tokens


def _tokenizer_file(path: Path) -> Path:
    return path / "tokenizer.json" if path.is_dir() else path
