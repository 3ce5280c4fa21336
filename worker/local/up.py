"""Runs the local stack until Ctrl-C and shows its addresses: the work of `batchmill up`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchmill.producer.broker_url import embedded_socket, redact, redis_url
from batchmill.producer.secrets_from_files import FILE_SUFFIX, find_secret
from batchmill.worker.terminal import ChangingLine, may_lose_terminal, print_json

from .stack import LocalStack, StackOptions
from .state_dir import make_private_directory, stored_webhook_secret
from .stop_signals import StopSignals

_CHECK_INTERVAL_S = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Options of `batchmill up`."""

    state_dir: Path
    broker_port: int | None
    flower_port: int | None
    with_flower: bool
    gateway_port: int | None
    with_gateway: bool
    as_json: bool


def run_up(options: UpOptions) -> None:
    """Start everything, keep it running, and stop it in order on SIGTERM or Ctrl-C.

    A second signal kills the children.

    Raises:
        ServiceError: a child could not start; the message names it and its log.
    """
    say = _say_json if options.as_json else _say_text
    make_private_directory(options.state_dir)
    secret_path = _webhook_secret_file(options.state_dir)
    stack = LocalStack(_stack_options(options, secret_path), say)
    with StopSignals(_SIGNALS, on_second=stack.kill) as signals:
        try:
            stack.start()
            with may_lose_terminal():
                _show(stack, secret_path, as_json=options.as_json)
            _keep_running(stack, signals, say, as_json=options.as_json)
        finally:
            if stack.has_started:
                say("stopping all children; a second Ctrl-C kills them")
            stack.stop()


def _keep_running(
    stack: LocalStack, signals: StopSignals, say: Callable[[str], None], *, as_json: bool
) -> None:
    """Restart children that die, until a signal comes.

    Raises:
        ChildMisconfigured: before the first time that all are ready, a child has ended because of
            its settings or its model.
    """
    with ChangingLine(say, in_place=not as_json) as line:
        phases = stack.start_phases()
        while not signals.wait(_CHECK_INTERVAL_S):
            stack.restart_dead_children(in_first_start=True)
            if stack.is_ready():
                break
            line.show(phases.update(), phases.line)
    if not signals.received:
        say("ready: the worker takes jobs")
    while not signals.wait(_CHECK_INTERVAL_S):
        stack.restart_dead_children()


def _stack_options(options: UpOptions, secret_path: Path | None) -> StackOptions:
    # The file, not its content: the deliverer reads it again after a rotation.
    variable = "BATCHMILL_WEBHOOK_SECRET" + FILE_SUFFIX
    external = find_secret("BATCHMILL_BROKER_URL")
    return StackOptions(
        state_dir=options.state_dir,
        socket_path=embedded_socket(),
        environment={} if secret_path is None else {variable: str(secret_path)},
        broker_url=redis_url(external) if external else None,
        broker_port=options.broker_port,
        flower_port=options.flower_port,
        with_flower=options.with_flower,
        gateway_port=options.gateway_port,
        with_gateway=options.with_gateway,
    )


def _webhook_secret_file(state_dir: Path) -> Path | None:
    """Return the file of the secret in the state folder; None if the environment has a secret."""
    if find_secret("BATCHMILL_WEBHOOK_SECRET"):
        return None
    return stored_webhook_secret(state_dir.resolve())[1]


def _show(stack: LocalStack, secret_path: Path | None, *, as_json: bool) -> None:
    """Show the addresses, the logs, and commands to try."""
    logs = {name: str(path) for name, path in stack.log_paths.items()}
    secret = None if secret_path is None else str(secret_path)
    if as_json:
        facts = {"broker_url": redact(stack.broker_url), "flower_url": stack.flower_url}
        facts["gateway_url"] = stack.gateway_url
        print_json({**facts, "logs": logs, "webhook_secret_file": secret, "pids": stack.pids})
        return
    kind = "embedded" if stack.is_embedded else "external"
    lines = [f"broker  {redact(stack.broker_url)} ({kind})"]
    if stack.gateway_url is not None:
        lines.append(f"gateway {stack.gateway_url}/v1 (OpenAI's and Anthropic's APIs)")
    if stack.flower_url is not None:
        lines.append(f"flower  {stack.flower_url} (read-only, no password, this machine only)")
    lines += [f"log     {path}" for path in logs.values()]
    lines.append(f"secret  {secret or 'BATCHMILL_WEBHOOK_SECRET'} (signs the webhooks)")
    is_default = stack.broker_url == f"unix://{embedded_socket()}"
    flag = "" if is_default else f" --broker-url {redact(stack.broker_url)}"
    lines += [
        "",
        "Try, in another terminal:",
        f'  batchmill submit "Name three uses of a water mill." --max-tokens 48 --stream{flag}',
        f"  batchmill status{flag}",
        "",
        "Ctrl-C stops everything.",
    ]
    print("\n".join(lines), flush=True)


def _say_text(line: str) -> None:
    with may_lose_terminal():
        print(line, flush=True)


def _say_json(line: str) -> None:
    with may_lose_terminal():
        print_json({"event": line})
