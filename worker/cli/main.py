"""The `batchmill` command. Commands live in `cli_*.py`; this file puts them together.

Nothing heavy is imported here: `batchmill --help` must not wait for torch or Celery, so commands
import what they need when they run.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from . import batch as cli_batch
from . import bench as cli_bench
from . import bulk as cli_bulk
from . import config as cli_config
from . import dead_letters as cli_dead_letters
from . import doctor as cli_doctor
from . import healthcheck as cli_healthcheck
from . import jobs as cli_jobs
from . import progress as cli_progress
from . import services as cli_services
from . import status as cli_status
from . import stored_jobs as cli_stored_jobs
from . import tenants as cli_tenants
from . import webhooks as cli_webhooks
from .errors import ExitCode, is_usage_error, report_error

app = typer.Typer(
    name="batchmill",
    help="LLM generation jobs through Redis and Celery, ground together in continuous batches.\n\n"
    "Start with [bold]batchmill demo[/bold], or [bold]batchmill up[/bold] and then "
    '[bold]batchmill submit "…" --wait[/bold].',
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # its tracebacks print local variables: prompts, secrets
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PARTS = (
    cli_services,
    cli_jobs,
    cli_progress,
    cli_stored_jobs,
    cli_bulk,
    cli_batch,
    cli_status,
    cli_tenants,
    cli_webhooks,
    cli_dead_letters,
    cli_doctor,
    cli_healthcheck,
    cli_config,
    cli_bench,
)
for _part in _PARTS:
    _part.register(app)


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    as_json = "--json" in sys.argv[1:]
    try:
        result = app(standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader (such as `head`) has what it wanted. Python would complain at its exit.
        sys.stderr.close()
        sys.exit(ExitCode.FAILED)
    except typer.Abort:
        sys.exit(ExitCode.FAILED)
    except Exception as error:
        if is_usage_error(error) and not as_json:
            error.show()  # type: ignore[attr-defined]
            sys.exit(ExitCode.USAGE)
        sys.exit(report_error(error, as_json=as_json))
    sys.exit(result if isinstance(result, int) else ExitCode.OK)


if __name__ == "__main__":
    main()
