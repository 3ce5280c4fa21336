"""The `batchmill` command: puts the commands of the other files together and runs one of them.

Nothing heavy is imported here: `batchmill --help` must not wait for torch or Celery, so commands
import what they need when they run.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from batchmill.worker.terminal import discard_output, escape_unencodable_text
from batchmill.worker.unknown_settings import find_unknown_variables

from .batch import add_batch_commands
from .bench import add_bench_commands
from .bulk import add_bulk_command
from .config import add_config_commands
from .dead_letters import add_dead_letter_commands
from .decide import add_decide_command
from .deliver import add_deliver_commands
from .demo import add_demo_command
from .doctor import add_doctor_command
from .embed import add_embed_commands
from .encryption import add_encryption_commands
from .errors import ExitCode, is_parser_error, report_error
from .explain import add_explain_command
from .flower import add_flower_command
from .gateway import add_gateway_command
from .healthcheck import add_healthcheck_command
from .keys import add_key_commands
from .lora import add_lora_commands
from .manage_jobs import add_manage_job_commands
from .metrics import add_metrics_command
from .panels import arrange_in_panels
from .pauses import add_pause_commands
from .payloads import add_payload_commands
from .progress import add_progress_command
from .result import add_result_commands
from .shards import add_shard_commands
from .status import add_status_command
from .steering import add_steering_commands
from .submit import add_submit_command
from .tenants import add_tenant_commands
from .top import add_top_command
from .unforeseen import enable_debugging
from .up import add_up_command
from .usage import add_usage_command
from .watermark import add_watermark_commands
from .webhooks import add_webhook_commands
from .worker import add_worker_command

app = typer.Typer(
    name="batchmill",
    help="Run LLM jobs from a Redis queue in continuous batches.\n\n"
    "Start with [bold]batchmill demo[/bold], or with [bold]batchmill up[/bold] and then "
    '[bold]batchmill submit "…" --stream[/bold].',
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # its tracebacks print local variables: prompts, secrets
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    add_demo_command,
    add_up_command,
    add_worker_command,
    add_deliver_commands,
    add_gateway_command,
    add_flower_command,
    add_metrics_command,
    add_submit_command,
    add_embed_commands,
    add_decide_command,
    add_explain_command,
    add_result_commands,
    add_progress_command,
    add_manage_job_commands,
    add_bulk_command,
    add_batch_commands,
    add_status_command,
    add_top_command,
    add_tenant_commands,
    add_key_commands,
    add_encryption_commands,
    add_payload_commands,
    add_usage_command,
    add_shard_commands,
    add_watermark_commands,
    add_lora_commands,
    add_steering_commands,
    add_pause_commands,
    add_webhook_commands,
    add_dead_letter_commands,
    add_doctor_command,
    add_healthcheck_command,
    add_config_commands,
    add_bench_commands,
)
for _add_commands in _COMMANDS:
    _add_commands(app)
arrange_in_panels(app)
#: They write unknown variables to their own logs.
_LOGGING_COMMANDS = frozenset({"worker", "deliver", "metrics", "config"})


def _print_version(is_asked: bool) -> None:
    if is_asked:
        import batchmill

        print(f"batchmill {batchmill.__version__}")
        raise typer.Exit


@app.callback()
def _before_every_command(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an unforeseen error."),
    ] = False,
) -> None:
    if debug:
        enable_debugging()
    if context.invoked_subcommand not in _LOGGING_COMMANDS:
        for variable in find_unknown_variables():
            sys.stderr.write(f"Warning: {variable.describe()}\n")


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    as_json = "--json" in sys.argv[1:]
    escape_unencodable_text()
    try:
        result = app(standalone_mode=False)
        sys.stdout.flush()  # otherwise a reader that has gone is noticed too late
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader (such as `head`) has read enough. Python would complain at its exit.
        discard_output()
        sys.exit(ExitCode.FAILED)
    except typer.Abort:
        sys.exit(ExitCode.FAILED)
    except Exception as error:
        if is_parser_error(error) and not as_json:
            error.show()  # type: ignore[attr-defined]
            sys.exit(ExitCode.USAGE)
        sys.exit(report_error(error, as_json=as_json, command=_command_name()))
    sys.exit(result if isinstance(result, int) else ExitCode.OK)


def _command_name() -> str:
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")
