"""`batchmill gateway`: the HTTP APIs of OpenAI and Anthropic before the queue."""

from __future__ import annotations

import typer

from .broker_connection import resolve_chosen_broker
from .command_settings import with_setting_flags
from .options import BrokerUrlOption, JsonOption

_EPILOG = (
    "Examples:\n\n  batchmill gateway\n\n"
    "  batchmill gateway --gateway-host 0.0.0.0 --gateway-port 8080\n\n"
    "Then, with a stock client: OPENAI_BASE_URL=http://127.0.0.1:8000/v1"
)


def add_gateway_command(app: typer.Typer) -> None:
    """Add `gateway`."""
    app.command("gateway", epilog=_EPILOG)(with_setting_flags("gateway", gateway))


def gateway(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """Serve the HTTP APIs and the console until SIGTERM. Any number may run beside each other.

    Without an API key (`batchmill keys create`) it serves this machine only, and everybody on it.
    """
    from batchmill.worker.console import console_parts
    from batchmill.worker.gateway.server import run_gateway
    from batchmill.worker.gateway.settings import GatewaySettings
    from batchmill.worker.logs import configure_logging
    from batchmill.worker.unknown_settings import log_unknown_variables

    settings = GatewaySettings(broker_url=resolve_chosen_broker(broker_url))
    configure_logging(settings.log_level, "json" if as_json else settings.log_format)
    log_unknown_variables()
    run_gateway(settings, console_parts(settings))
