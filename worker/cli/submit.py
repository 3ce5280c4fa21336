"""`batchmill submit`: one job from the command line."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from batchmill.worker.terminal import print_json

from .broker_connection import resolve_broker
from .command_settings import with_setting_flags
from .errors import usage_error
from .options import (
    BrokerUrlOption,
    JsonOption,
    MetadataOption,
    TimeoutOption,
    parse_json_option,
    parse_pairs,
)
from .result import print_result

_EPILOG = (
    "Examples:\n\n"
    '  batchmill submit "Write a haiku about a water mill." --max-tokens 48 --wait\n\n'
    "  cat article.txt | batchmill submit --webhook https://example.com/hook\n\n"
    '  batchmill submit --messages \'[{"role": "user", "content": "Hello!"}]\' --json\n\n'
    '  batchmill submit "Once" --param top_k=40 --param \'stop=["\\n\\n", "END"]\''
)
_Prompt = Annotated[
    str | None, typer.Argument(help="The prompt. Without it, or with -, it is read from stdin.")
]
_Messages = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="A chat instead of a prompt: a list of messages."),
]
_Model = Annotated[str | None, typer.Option(help="Served model name.")]
_MaxTokens = Annotated[int | None, typer.Option(help="Maximum number of tokens to generate.")]
_Temperature = Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy.")]
_TopP = Annotated[
    float | None,
    typer.Option(help="Sample from the likeliest tokens that add up to this; 1 keeps all."),
]
_TopK = Annotated[
    int | None, typer.Option(help="Sample from this many of the likeliest tokens; 0 keeps all.")
]
_Seed = Annotated[int | None, typer.Option(help="Makes the sampling repeatable.")]
_Stop = Annotated[
    list[str] | None, typer.Option(help="A string that ends the generation. May be repeated.")
]
_Param = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=JSON", help="Any other field of a job. May be repeated."),
]
_Priority = Annotated[str | None, typer.Option(help="high, normal or low.")]
_Webhook = Annotated[
    str | None, typer.Option(metavar="URL", help="Receives a signed POST when the job ends.")
]
_IdempotencyKey = Annotated[
    str | None, typer.Option(help="Submitting again with the same key returns the same job.")
]
_Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", help="A label to find the job by. May be repeated."),
]
_Tenant = Annotated[
    str | None, typer.Option(help="Tenant that the job belongs to, for its fair share.")
]
_Delay = Annotated[float | None, typer.Option(help="Seconds that the job waits before it may run.")]
_Ttl = Annotated[
    float | None, typer.Option(help="Seconds after which the job expires if it has not ended.")
]
_Wait = Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")]


def add_submit_command(app: typer.Typer) -> None:
    """Add `submit`."""
    app.command("submit", epilog=_EPILOG)(with_setting_flags("submit", submit))


def submit(
    prompt: _Prompt = None,
    messages: _Messages = None,
    model: _Model = None,
    max_tokens: _MaxTokens = None,
    temperature: _Temperature = None,
    top_p: _TopP = None,
    top_k: _TopK = None,
    seed: _Seed = None,
    stop: _Stop = None,
    param: _Param = None,
    priority: _Priority = None,
    tenant: _Tenant = None,
    webhook: _Webhook = None,
    idempotency_key: _IdempotencyKey = None,
    metadata: MetadataOption = None,
    tag: _Tags = None,
    ttl_s: _Ttl = None,
    delay_s: _Delay = None,
    wait: _Wait = False,
    timeout_s: TimeoutOption = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit one job and print its id, or its text with --wait."""
    options: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or None,
        "priority": priority,
        "tenant": tenant,
        "webhook": webhook,
        "idempotency_key": idempotency_key,
        "metadata": parse_pairs("--metadata", metadata) or None,
        "tags": tag or None,
        "ttl_s": ttl_s,
        "delay_s": delay_s,
    }
    fields = _job_fields(options, prompt, messages, param)
    _submit(fields, broker_url, wait=wait, timeout_s=timeout_s, as_json=as_json)


def _submit(
    fields: dict[str, Any],
    broker_url: str | None,
    *,
    wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    from batchmill.producer import Client

    with Client(resolve_broker(broker_url)) as client:
        job = client.submit(**fields)
        if wait:
            print_result(job.result(timeout_s=timeout_s), as_json=as_json)
        elif as_json:
            print_json({"id": job.id})
        else:
            print(job.id)


def _job_fields(
    options: dict[str, Any], prompt: str | None, messages: str | None, params: list[str] | None
) -> dict[str, Any]:
    """Return the fields that are given in any way; options that are None are not given."""
    fields = _prompt_or_messages(prompt, messages)
    fields |= {name: value for name, value in options.items() if value is not None}
    others = {
        name: parse_json_option(f"--param {name}", text)
        for name, text in parse_pairs("--param", params).items()
    }
    for name in others.keys() & fields.keys():
        raise usage_error(f"--param {name}: {name} is already given by an option or argument")
    return fields | others


def _prompt_or_messages(prompt: str | None, messages: str | None) -> dict[str, Any]:
    """Return the prompt or the chat, from an argument, an option or stdin."""
    if messages is not None:
        if prompt is not None:
            raise usage_error("give either a prompt or --messages, not both")
        return {"messages": parse_json_option("--messages", messages)}
    if prompt is not None and prompt != "-":
        return {"prompt": prompt}
    if prompt is None and sys.stdin.isatty():
        raise usage_error(
            "the prompt is missing: give it as an argument or on stdin, or a chat with --messages"
        )
    text = sys.stdin.read()
    # Editors and echo end a text with a newline, which is not meant as part of the prompt.
    return {"prompt": text.removesuffix("\n")}
