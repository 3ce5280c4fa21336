"""`batchmill bulk`: a file of prompts in, a file of results out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import print_json

from .broker_connection import resolve_broker
from .command_settings import with_setting_flags
from .errors import ExitCode, usage_error
from .options import BrokerUrlOption, JsonOption, parse_json_option, parse_pairs

if TYPE_CHECKING:
    from batchmill.producer.bulk.options import BulkCounts, BulkOptions
    from batchmill.producer.bulk.run import BulkRun

_EPILOG = (
    "Examples:\n\n"
    "  batchmill bulk requests.jsonl -o results.jsonl --errors errors.jsonl\n\n"
    "  batchmill bulk products.csv -o texts.jsonl --template 'Describe {name} in one line.'\n\n"
    "After Ctrl-C or a crash, the same command resumes where it stopped.\n\n"
    "The exit code is 6 if lines failed."
)
_Input = Annotated[
    Path,
    typer.Argument(
        metavar="IN", help="File with OpenAI batch lines, job lines, or rows (.csv, .jsonl)."
    ),
]
_Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT", help="File for the results.")
]
_Errors = Annotated[
    Path | None,
    typer.Option(
        metavar="ERR",
        help="File for failed lines. Default: OUT with .errors before its extension.",
    ),
]
_Template = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Prompt with {column} for each value of a row.")
]
_TemplateFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File that holds the template.")
]
_Chat = Annotated[bool, typer.Option("--chat", help="Send the filled template as a user message.")]
_System = Annotated[str | None, typer.Option(metavar="TEXT", help="System message, with --chat.")]
_Model = Annotated[
    str | None, typer.Option(help="Model for every line, even if a line names another.")
]
_MaxTokens = Annotated[int | None, typer.Option(help="For lines that do not set it.")]
_Temperature = Annotated[float | None, typer.Option(help="For lines that do not set it.")]
_Priority = Annotated[str | None, typer.Option(help="high, normal or low. \\[low]")]
_Tenant = Annotated[str | None, typer.Option(help="Tenant of lines that do not set one.")]
_Tags = Annotated[
    list[str] | None,
    typer.Option(
        "--tag", help="A label for the job of every line, in addition to its own. May be repeated."
    ),
]
_Param = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=JSON", help="Any other field of a job, for lines that do not set it."
    ),
]
_InFlight = Annotated[
    int, typer.Option(min=1, max=100_000, help="Maximum number of unfinished jobs at a time.")
]
_Deduplicate = Annotated[
    bool,
    typer.Option(
        "--deduplicate",
        help="Generate only once for equal lines that have temperature 0 or a seed.",
    ),
]
_Webhook = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Receives one signed POST when all jobs of the run have ended."
    ),
]
_RunId = Annotated[
    str, typer.Option(help="A new name generates everything again, instead of resuming.")
]


def add_bulk_command(app: typer.Typer) -> None:
    """Add `bulk`."""
    app.command("bulk", epilog=_EPILOG)(with_setting_flags("bulk", bulk))


def bulk(
    input_path: _Input,
    output: _Output,
    errors: _Errors = None,
    template: _Template = None,
    template_file: _TemplateFile = None,
    chat: _Chat = False,
    system: _System = None,
    model: _Model = None,
    max_tokens: _MaxTokens = None,
    temperature: _Temperature = None,
    priority: _Priority = None,
    tenant: _Tenant = None,
    tag: _Tags = None,
    param: _Param = None,
    in_flight: _InFlight = 1000,
    deduplicate: _Deduplicate = False,
    run_id: _RunId = "",
    webhook: _Webhook = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run one job per line of a file, and append the results to another file as they arrive."""
    from batchmill.producer.bulk.options import BulkOptions
    from batchmill.producer.job.batch import parse_batch

    defaults = _line_defaults(max_tokens, temperature, priority, tenant, param)
    text = _template_text(template, template_file)
    _check_chat_options(text, chat=chat, system=system)
    if webhook is not None and deduplicate:
        raise usage_error(
            "--webhook needs one job per line, and --deduplicate shares jobs: leave out one"
        )
    options = BulkOptions(
        input_path=input_path,
        output_path=output,
        errors_path=errors or output.with_suffix(f".errors{output.suffix}"),
        lines=_line_settings(model, defaults, text, chat, system, tag),
        template_text=text or "",
        max_in_flight=in_flight,
        deduplicate=deduplicate,
        run_id=run_id,
        batch=None if webhook is None else parse_batch({"webhook": webhook}),
    )
    return _run_bulk(options, resolve_broker(broker_url), as_json=as_json)


def _check_chat_options(template_text: str | None, *, chat: bool, system: str | None) -> None:
    if template_text is None and (chat or system is not None):
        raise usage_error(
            "--chat and --system need --template: request lines hold their own messages"
        )
    if system is not None and not chat:
        raise usage_error("--system needs --chat")


def _line_defaults(
    max_tokens: int | None,
    temperature: float | None,
    priority: str | None,
    tenant: str | None,
    param: list[str] | None,
) -> dict[str, Any]:
    """Return the fields of a job for lines that do not set them."""
    options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "priority": priority or "low",
        "tenant": tenant,
    }
    defaults: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    given = parse_pairs("--param", param)
    for name in given.keys() & {"max_tokens", "temperature", "priority", "tenant", "model"}:
        raise usage_error(f"--param {name}: use --{name.replace('_', '-')} instead")
    return defaults | {
        name: parse_json_option(f"--param {name}", text) for name, text in given.items()
    }


def _line_settings(
    model: str | None,
    defaults: dict[str, Any],
    text: str | None,
    chat: bool,
    system: str | None,
    tags: list[str] | None,
) -> Any:
    from batchmill.producer.bulk.lines import LineSettings
    from batchmill.producer.bulk.template import PromptTemplate
    from batchmill.producer.job.document import check_tag

    labels = tuple(dict.fromkeys(tags or ()))
    for tag in labels:
        try:
            check_tag(tag)
        except ValueError as error:
            raise usage_error(f"--tag: {error}") from None

    template = None if text is None else PromptTemplate(text)
    return LineSettings(model, defaults, template, as_chat=chat, system=system, tags=labels)


def _run_bulk(options: BulkOptions, url: str, *, as_json: bool) -> int:
    from batchmill.producer import ProducerSettings
    from batchmill.producer.bulk.run import BulkRun
    from batchmill.producer.store.job_store import JobStore
    from batchmill.producer.store.reply_errors import broker_errors

    from .bulk_view import BulkView, StallWatch

    store = JobStore.from_url(url)
    run = BulkRun(store, ProducerSettings(), options)
    view = BulkView(quiet=as_json)
    stall = StallWatch(store, view.note)

    def show(counts: BulkCounts) -> None:
        view.show(counts)
        stall.observe(counts)

    try:
        with broker_errors(url), view:
            run.run(show)
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\nstopped at {run.counts.done}/{run.counts.total}; jobs in flight continue, and the "
            "same command collects their results\n"
        )
        raise
    finally:
        store.close()
    _print_summary(run, options, view.elapsed_s, as_json=as_json)
    return ExitCode.UNFINISHED if run.counts.failed or _has_failures(options) else ExitCode.OK


def _has_failures(options: BulkOptions) -> bool:
    """Return whether lines failed, in this command or in one that it resumed."""
    return options.errors_path.stat().st_size > 0


def _print_summary(run: BulkRun, options: BulkOptions, elapsed_s: float, *, as_json: bool) -> None:
    from batchmill.producer.plural import pluralize

    from .bulk_view import tokens_per_s

    counts = run.counts
    rate = tokens_per_s(counts, elapsed_s)
    if as_json:
        print_json(
            {
                "total": counts.total,
                "resumed": counts.resumed,
                "completed": counts.completed,
                "failed": counts.failed,
                "prompt_tokens": counts.prompt_tokens,
                "cached_tokens": counts.cached_tokens,
                "output_tokens": counts.output_tokens,
                "elapsed_s": round(elapsed_s, 3),
                "output_tokens_per_s": round(rate, 1),
                "batch": run.batch_id,
                "output": str(options.output_path),
                "errors": str(options.errors_path),
            }
        )
        return
    print(
        f"{counts.completed} completed, {counts.failed} failed, "
        f"{counts.resumed} from earlier runs; "
        f"{pluralize(counts.output_tokens, 'token')} in {elapsed_s:.1f} s ({rate:.0f} tok/s), "
        f"{counts.cached_tokens} of {counts.prompt_tokens} prompt tokens from the cache"
    )
    if run.batch_id is not None:
        print(f"batch: {run.batch_id}")
    print(f"results: {options.output_path}")
    if _has_failures(options):
        print(f"failures: {options.errors_path}")


def _template_text(template: str | None, template_file: Path | None) -> str | None:
    if template is not None and template_file is not None:
        raise usage_error("give --template or --template-file, not both")
    if template_file is None:
        return template
    try:
        return template_file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise usage_error(f"--template-file {template_file} cannot be read: {error}") from None
