"""`batchmill deliver` and `webhook-secret`: the webhook deliverer, and a secret for it."""

from __future__ import annotations

import typer

from batchmill.worker.terminal import print_json

from .broker_connection import resolve_broker
from .command_settings import with_setting_flags
from .options import BrokerUrlOption, JsonOption

_DELIVER_EPILOG = (
    "Example:\n\n  BATCHMILL_WEBHOOK_SECRET=$(cat secret) batchmill deliver "
    "--broker-url redis://queue:6379/0"
)
_SECRET_EPILOG = "Example:\n\n  batchmill webhook-secret > secret"


def add_deliver_commands(app: typer.Typer) -> None:
    """Add `deliver` and `webhook-secret`."""
    app.command("deliver", epilog=_DELIVER_EPILOG)(with_setting_flags("deliver", deliver))
    app.command("webhook-secret", epilog=_SECRET_EPILOG)(webhook_secret)


def deliver(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """Deliver webhooks until SIGTERM, then finish the attempts in flight. Any number may run."""
    from batchmill.worker.logs import configure_logging
    from batchmill.worker.unknown_settings import log_unknown_variables
    from batchmill.worker.webhooks.deliverer_process import run_deliverer
    from batchmill.worker.webhooks.settings import WebhookSettings

    settings = WebhookSettings()
    configure_logging(settings.log_level, "json" if as_json else settings.log_format)
    log_unknown_variables()
    run_deliverer(resolve_broker(broker_url), settings)


def webhook_secret(as_json: JsonOption = False) -> None:
    """Print a new secret for BATCHMILL_WEBHOOK_SECRET. Receivers need the same secret."""
    from batchmill.producer.webhook.signature import new_secret

    secret = new_secret()
    if as_json:
        print_json({"secret": secret})
    else:
        print(secret)
