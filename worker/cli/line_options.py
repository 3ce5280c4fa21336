"""Options for the job of every line of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import usage_error
from .explain_option import parse_parts
from .options import parse_json_option, parse_pairs
from .steering import parse_steering

if TYPE_CHECKING:
    from batchmill.producer.bulk.lines import LineSettings

    from .input_options import PromptOptions

_LINES = "Job of each line"


@dataclass(frozen=True, slots=True)
class LineOptions:
    """Fields of the job of every line; all but the model and the tags give way to the line's."""

    model: Annotated[
        str | None,
        typer.Option(
            help="Model for every line, even if a line names another.", rich_help_panel=_LINES
        ),
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option(help="For lines that do not set it.", rich_help_panel=_LINES)
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            help="For lines that do not set it; 0 is greedy. Default: the model's, else 1.",
            rich_help_panel=_LINES,
        ),
    ] = None
    watermark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The operator's key that marks outputs as generated, for lines that name none.",
            rich_help_panel=_LINES,
        ),
    ] = None
    reasoning_effort: Annotated[
        str | None,
        typer.Option(
            metavar="EFFORT",
            help="How much the model thinks, as in submit, for lines that do not say it.",
            rich_help_panel=_LINES,
        ),
    ] = None
    thinking_token_budget: Annotated[
        int | None,
        typer.Option(
            help="How many tokens the thoughts may have, for lines that do not set it.",
            rich_help_panel=_LINES,
        ),
    ] = None
    lora: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="LoRA adapter of the model, for lines that name none.",
            rich_help_panel=_LINES,
        ),
    ] = None
    steering: Annotated[
        str | None,
        typer.Option(
            metavar="NAME or JSON",
            help="Steering vector of the model, as in submit, for lines that name none.",
            rich_help_panel=_LINES,
        ),
    ] = None
    draft_corpus: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the template, as in submit, for lines that name none.",
            rich_help_panel=_LINES,
        ),
    ] = None
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            help="How far outputs move away from the negative prompt, for lines that do not say "
            "it; 1 is off.",
            rich_help_panel=_LINES,
        ),
    ] = None
    negative_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What outputs should be unlike, for lines that do not say it.",
            rich_help_panel=_LINES,
        ),
    ] = None
    select: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Which of n samples is selected, as in submit, for lines that do not say it.",
            rich_help_panel=_LINES,
        ),
    ] = None
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="PARTS",
            help="What to explain about outputs, as in submit, for lines that do not say it.",
            rich_help_panel=_LINES,
        ),
    ] = None
    explain_similarity: Annotated[
        float | None,
        typer.Option(
            help="With --explain uncertainty, the cosine from which two texts count as the same.",
            rich_help_panel=_LINES,
        ),
    ] = None
    beam_search: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Search for the likeliest outputs, as in submit, for lines that do not say it.",
            rich_help_panel=_LINES,
        ),
    ] = None
    priority: Annotated[
        str | None, typer.Option(help="high, normal or low. \\[low]", rich_help_panel=_LINES)
    ] = None
    tenant: Annotated[
        str | None,
        typer.Option(help="Tenant of lines that do not set one.", rich_help_panel=_LINES),
    ] = None
    tag: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            help="A label for the job of every line, in addition to its own. May be repeated.",
            rich_help_panel=_LINES,
        ),
    ] = None
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=JSON",
            help="Any other field of a job, for lines that do not set it.",
            rich_help_panel=_LINES,
        ),
    ] = None

    schema: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON schema of every output; a table gets a column per property.",
            rich_help_panel=_LINES,
        ),
    ] = None
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Fields of requests to leave out, such as user,store. May be repeated.",
            rich_help_panel=_LINES,
        ),
    ] = None

    def ignored(self) -> frozenset[str]:
        """Return the fields to leave out.

        Raises:
            CommandError: a request cannot do without one of them.
        """
        names = {name.strip() for text in self.ignore or () for name in text.split(",")} - {""}
        for name in names & {"prompt", "messages", "model", "custom_id"}:
            raise usage_error(f"--ignore {name}: a request cannot do without it")
        return frozenset(names)

    def defaults(self, priority: str | None) -> dict[str, Any]:
        """Return the fields for lines that do not set them.

        Args:
            priority: if the option is missing.

        Raises:
            CommandError: a parameter is no JSON, or has an option of its own.
        """
        options = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "watermark": self.watermark,
            "reasoning_effort": self.reasoning_effort,
            "thinking_token_budget": self.thinking_token_budget,
            "lora": self.lora,
            "steering": parse_steering(self.steering),
            "draft_corpus": self.draft_corpus,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt,
            "select": self.select and parse_json_option("--select", self.select),
            "explain": parse_parts(self.explain),
            "explain_similarity": self.explain_similarity,
            "beam_search": self.beam_search
            and parse_json_option("--beam-search", self.beam_search),
            "priority": self.priority or priority,
            "tenant": self.tenant,
        }
        fields: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None
        }
        given = parse_pairs("--param", self.param)
        if self.schema is not None:
            if "response_format" in given:
                raise usage_error("give --schema or --param response_format, not both")
            fields["response_format"] = self._response_format(self.schema)
        for name in given.keys() & {*options, "model"}:
            raise usage_error(f"--param {name}: use --{name.replace('_', '-')} instead")
        return (
            _trace_of_command()
            | fields
            | {name: parse_json_option(f"--param {name}", text) for name, text in given.items()}
        )

    @staticmethod
    def _response_format(path: Path) -> dict[str, Any]:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise usage_error(f"--schema {path} cannot be read: {error}") from None
        schema = parse_json_option(f"--schema {path}", text)
        return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}

    def labels(self) -> tuple[str, ...]:
        """Return the tags, each once.

        Raises:
            CommandError: one of them cannot be a tag.
        """
        from batchmill.producer.job.field_types import check_tag

        labels = tuple(dict.fromkeys(self.tag or ()))
        for label in labels:
            try:
                check_tag(label)
            except ValueError as error:
                raise usage_error(f"--tag: {error}") from None
        return labels


def _trace_of_command() -> dict[str, Any]:
    """Return the trace that the command was started in, for lines without their own."""
    from batchmill.producer.tracing.sending import environment_traceparent

    found = environment_traceparent()
    return {} if found is None else {"traceparent": found}


def line_settings(
    prompt: PromptOptions,
    line: LineOptions,
    *,
    priority: str | None = "low",
    has_table: bool = False,
) -> LineSettings:
    """Return what the options say about lines.

    Args:
        prompt: how a row becomes a prompt.
        line: fields of every job.
        has_table: whether the results become columns of a table.
        priority: if neither the line nor an option says one; None leaves it to the job.

    Raises:
        CommandError: an option is wrong.
        BulkFileError: the template is wrong.
    """
    from batchmill.producer.bulk.lines import LineSettings

    prompts, ignored = prompt.prompts(), line.ignored()
    if prompts and ignored:
        raise usage_error("--ignore is for requests; the fields of rows are columns")
    defaults = line.defaults(priority)
    samples = defaults.get("n", 1)
    return LineSettings(
        line.model,
        defaults,
        prompts,
        tags=line.labels(),
        ignored=ignored,
        with_probabilities=prompt.probabilities,
        max_samples=samples if has_table and isinstance(samples, int) else None,
    )
