"""`batchmill bulk --dry-run`: what a run would send."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchmill.worker.terminal import print_json

from .errors import ExitCode

if TYPE_CHECKING:
    from batchmill.producer.bulk.options import BulkOptions
    from batchmill.producer.bulk.preview import Preview
    from batchmill.producer.bulk.usage import Cost
    from batchmill.producer.job.line import BulkLine


def show_preview(options: BulkOptions, tokenizer: Path | None, *, as_json: bool) -> int:
    """Print the first prompts, counts, tokens and cost of a run. Asks no broker.

    Returns:
        6 if lines would be refused.
    """
    from batchmill.producer import ProducerSettings
    from batchmill.producer.bulk.preview import preview
    from batchmill.producer.bulk.settings import PriceSettings
    from batchmill.producer.bulk.usage import cost_of

    settings = ProducerSettings()
    found = preview(options, settings, tokenizer)
    cost = cost_of(found.usage, PriceSettings().prices)
    if as_json:
        print_json(_data(found, cost))
    else:
        for line in _report(found, options, settings.served_name, cost):
            print(line)
    return ExitCode.UNFINISHED if found.num_refused else ExitCode.OK


def _report(found: Preview, options: BulkOptions, model: str, cost: Cost | None) -> list[str]:
    from batchmill.producer.plural import pluralize

    columns = f"; columns: {', '.join(found.columns)}" if found.columns else ""
    lines = [f"note: {note}" for note in found.notes]
    lines.append(f"{options.input_path} is read as {found.format}{columns}")
    for line in found.shown:
        lines += _prompt(line, model)
    lines += [f"{line.custom_id} would be refused: {line.problem}" for line in found.refused]
    if found.num_refused > len(found.refused):
        lines.append(f"{found.num_refused} lines would be refused in all")
    prompt = sum(tokens.prompt for tokens in found.usage.values())
    output = sum(tokens.output for tokens in found.usage.values())
    lines.append(
        f"{pluralize(found.num_records, 'record')}, "
        f"{pluralize(found.num_lines - found.num_refused, 'job')}: about {prompt} prompt tokens "
        f"({found.counted_by}), at most {output} output tokens"
    )
    if found.num_explain_tokens:
        lines.append(
            f"of the prompt tokens, explanations take at most {found.num_explain_tokens}; most of "
            "these are shared"
        )
    if cost is not None:
        lines.append(f"estimated cost: at most {cost}")
    lines.append("nothing was sent")
    return lines


def _prompt(line: BulkLine, model: str) -> list[str]:
    from batchmill.producer.bulk.prompt_texts import prompt_texts

    assert line.job is not None
    kind = line.job.section_name or f"max_tokens {line.job.max_tokens}"
    title = f"--- {line.custom_id} ({line.job.model or model}, {kind})"
    texts = prompt_texts(line.job)
    return [title, *(f"{role}: {text}" if role else text for role, text in texts)]


def _data(found: Preview, cost: Cost | None) -> dict[str, Any]:
    from batchmill.producer.bulk.prompt_texts import prompt_texts

    from .bulk_summary import cost_data

    return {
        "format": found.format,
        "columns": found.columns,
        "notes": list(found.notes),
        "records": found.num_records,
        "lines": found.num_lines,
        "refused": found.num_refused,
        "problems": [
            {"custom_id": line.custom_id, "message": str(line.problem)} for line in found.refused
        ],
        "prompts": [
            {"custom_id": line.custom_id, "messages": prompt_texts(line.job)}
            for line in found.shown
            if line.job is not None
        ],
        "prompt_tokens": sum(tokens.prompt for tokens in found.usage.values()),
        "counted_by": found.counted_by,
        "max_explain_tokens": found.num_explain_tokens,
        "max_output_tokens": sum(tokens.output for tokens in found.usage.values()),
        "cost": None if cost is None else cost_data(cost),
    }
