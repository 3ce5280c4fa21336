"""The `batchmill` command: puts the commands of the other files together and runs one of them.

Nothing heavy is imported here: `batchmill --help` must not wait for torch or Celery, so commands
import what they need when they run.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from .batch import add_batch_commands
from .bench import add_bench_commands
from .bulk import add_bulk_command
from .config import add_config_commands
from .dead_letters import add_dead_letter_commands
from .deliver import add_deliver_commands
from .demo import add_demo_command
from .doctor import add_doctor_command
from .errors import ExitCode, is_parser_error, report_error
from .healthcheck import add_healthcheck_command
from .manage_jobs import add_manage_job_commands
from .progress import add_progress_command
from .result import add_result_commands
from .status import add_status_command
from .submit import add_submit_command
from .tenants import add_tenant_commands
from .up import add_up_command
from .webhooks import add_webhook_commands
from .worker import add_worker_command

app = typer.Typer(
    name="batchmill",
    help="Run LLM jobs from a Redis queue in continuous batches.\n\n"
    "Start with [bold]batchmill demo[/bold], or with [bold]batchmill up[/bold] and then "
    '[bold]batchmill submit "…" --wait[/bold].',
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # its tracebacks print local variables: prompts, secrets
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: In the order of `batchmill --help`.
_COMMANDS = (
    add_demo_command,
    add_up_command,
    add_worker_command,
    add_deliver_commands,
    add_submit_command,
    add_result_commands,
    add_progress_command,
    add_manage_job_commands,
    add_bulk_command,
    add_batch_commands,
    add_status_command,
    add_tenant_commands,
    add_webhook_commands,
    add_dead_letter_commands,
    add_doctor_command,
    add_healthcheck_command,
    add_config_commands,
    add_bench_commands,
)
for _add_commands in _COMMANDS:
    _add_commands(app)


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    as_json = "--json" in sys.argv[1:]
    try:
        result = app(standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader (such as `head`) has read enough. Python would complain at its exit.
        sys.stderr.close()
        sys.exit(ExitCode.FAILED)
    except typer.Abort:
        sys.exit(ExitCode.FAILED)
    except Exception as error:
        if is_parser_error(error) and not as_json:
            error.show()  # type: ignore[attr-defined]
            sys.exit(ExitCode.USAGE)
        sys.exit(report_error(error, as_json=as_json))
    sys.exit(result if isinstance(result, int) else ExitCode.OK)
