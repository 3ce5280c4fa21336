"""`batchmill webhooks`: the group of commands, and testing a receiver.

`webhook_events.py` has the commands about events, `webhook_endpoints.py` those about endpoints.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from batchmill.worker.terminal import print_json

from .errors import ExitCode
from .options import JsonOption
from .webhook_endpoints import add_endpoint_commands
from .webhook_events import add_event_commands
from .webhook_receivers import add_receiver_commands
from .webhook_replay import add_replay_command
from .webhook_secret import add_secret_commands

if TYPE_CHECKING:
    from batchmill.worker.webhooks.settings import WebhookSettings

_group = typer.Typer(
    help="Webhooks: show deliveries, send them again, test a receiver.",
    no_args_is_help=True,
)


def add_webhook_commands(app: typer.Typer) -> None:
    """Add all commands of the group."""
    add_event_commands(_group)
    add_replay_command(_group)
    add_endpoint_commands(_group)
    add_receiver_commands(_group)
    add_secret_commands(_group)
    app.add_typer(_group, name="webhooks")


@_group.command("test", epilog="Example:\n\n  batchmill webhooks test https://example.com/hook")
def send_test_event(
    url: Annotated[str, typer.Argument(help="URL of the receiver.")],
    secret: Annotated[
        str, typer.Option(metavar="NAME", help="Sign with this entry of BATCHMILL_WEBHOOK_SECRETS.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Send one signed `webhook.test` event by the deliverer's rules, and show the outcome.

    It is signed with BATCHMILL_WEBHOOK_SECRET, or else with the secret of `batchmill up` on this
    machine.
    """
    from batchmill.worker.webhooks.probe import send_probe

    found = send_probe(url, _settings_of_test(), secret_name=secret)
    if as_json:
        print_json(asdict(found))
    else:
        outcome = "delivered" if found.delivered else "not delivered"
        print(f"{found.event_id} {outcome} after {found.duration_ms} ms: {found.explanation}")
    if not found.delivered:
        raise typer.Exit(ExitCode.FAILED)


def _settings_of_test() -> WebhookSettings:
    """Return the settings of the environment, else with the secret of `batchmill up`."""
    from batchmill.worker.local.state_dir import find_stored_secret
    from batchmill.worker.webhooks.settings import WebhookSettings

    settings = WebhookSettings()
    stored = None if settings.secrets else find_stored_secret()
    return settings if stored is None else WebhookSettings(webhook_secret=stored)
