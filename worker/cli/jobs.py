"""`batchmill submit`, `result` and `stream`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from batchmill.worker.terminal import print_json

from .broker import resolve_broker
from .errors import BrokerUrlOption, JsonOption, usage
from .flags import with_flags

_SUBMIT_EPILOG = (
    "Examples:\n\n"
    '  batchmill submit "Write a haiku about a water mill." --max-tokens 48 --wait\n\n'
    "  cat article.txt | batchmill submit --webhook https://example.com/hook\n\n"
    '  batchmill submit --messages \'[{"role": "user", "content": "Hello!"}]\' --json\n\n'
    '  batchmill submit "Once" --param top_k=40 --param \'stop=["\\n\\n", "END"]\''
)
_RESULT_EPILOG = "Examples:\n\n  batchmill result gen_…\n\n  batchmill result gen_… --timeout-s 60"
_STREAM_EPILOG = "Examples:\n\n  batchmill stream gen_…\n\n  batchmill stream gen_… --json"


_Prompt = Annotated[str | None, typer.Argument(help="The prompt. Without it (or with -), stdin.")]
_Messages = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="A chat, instead of a prompt: a list of messages."),
]
_Model = Annotated[str | None, typer.Option(help="Served model name.")]
_MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to generate.")]
_Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
_TopP = Annotated[float | None, typer.Option(help="1 keeps all tokens.")]
_TopK = Annotated[int | None, typer.Option(help="0 keeps all tokens.")]
_Seed = Annotated[int | None, typer.Option(help="Fixes the random draws.")]
_Stop = Annotated[
    list[str] | None, typer.Option(help="A string that ends generation. May be repeated.")
]
_Param = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=JSON", help="Any other parameter of a job. May be repeated."),
]
_Priority = Annotated[str | None, typer.Option(help="high, normal or low.")]
_Webhook = Annotated[
    str | None, typer.Option(metavar="URL", help="Gets a signed POST when the job ends.")
]
_IdempotencyKey = Annotated[str | None, typer.Option(help="Submitting it again changes nothing.")]
_Metadata = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=TEXT", help="Given back with the result. May be repeated."),
]
_Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", help="A label to find the job by. May be repeated."),
]
_Tenant = Annotated[str | None, typer.Option(help="Whose job it is; tenants take turns.")]
_Delay = Annotated[float | None, typer.Option(help="Seconds that the job waits before it may run.")]
_Ttl = Annotated[float | None, typer.Option(help="Seconds after which nobody wants the result.")]
_Wait = Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")]
_Timeout = Annotated[
    float | None, typer.Option(min=0, help="Most seconds to wait; 0 does not wait at all.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("submit", epilog=_SUBMIT_EPILOG)(with_flags("submit", submit))
    app.command("result", epilog=_RESULT_EPILOG)(result)
    app.command("stream", epilog=_STREAM_EPILOG)(stream)


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
    metadata: _Metadata = None,
    tag: _Tags = None,
    ttl_s: _Ttl = None,
    delay_s: _Delay = None,
    wait: _Wait = False,
    timeout_s: _Timeout = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit one job and print its id, or with --wait its text."""
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
        "metadata": pairs("--metadata", metadata) or None,
        "tags": tag or None,
        "ttl_s": ttl_s,
        "delay_s": delay_s,
    }
    fields = _input(prompt, messages)
    fields |= {name: value for name, value in options.items() if value is not None}
    fields |= _extra(param, fields)
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
            _print_result(job.result(timeout_s=timeout_s), as_json=as_json)
        elif as_json:
            print_json({"id": job.id})
        else:
            print(job.id)


def result(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    timeout_s: _Timeout = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait for a job and print its text."""
    from batchmill.producer import Client

    with Client(resolve_broker(broker_url)) as client:
        _print_result(client.job(job_id).result(timeout_s=timeout_s), as_json=as_json)


def stream(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    timeout_s: _Timeout = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a job's text as it is generated; with --json a line for each piece."""
    from batchmill.producer import Client

    with Client(resolve_broker(broker_url)) as client:
        for piece in client.stream(job_id, timeout_s=timeout_s):
            if as_json:
                print_json({"text": piece.text, "token_ids": piece.token_ids})
            else:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
    if not as_json:
        print()


def _print_result(result: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(result.model_dump(mode="json") | {"token_ids": result.token_ids})
    else:
        for completion in result.completions:  # one, unless the job asked for several
            if completion.text or not completion.tool_calls:
                print(completion.text)
            for call in completion.tool_calls:
                print_json(call.model_dump())


def _input(prompt: str | None, messages: str | None) -> dict[str, Any]:
    """The prompt or the chat, from wherever it comes."""
    if messages is not None:
        if prompt is not None:
            raise usage("give a prompt or --messages, not both")
        return {"messages": json_value("--messages", messages)}
    if prompt is not None and prompt != "-":
        return {"prompt": prompt}
    if prompt is None and sys.stdin.isatty():
        raise usage("no prompt: give it as an argument, on stdin, or a chat with --messages")
    text = sys.stdin.read()
    # The line end that editors and echo put at the end of a text is hardly part of a prompt.
    return {"prompt": text.removesuffix("\n")}


def _extra(params: list[str] | None, fields: dict[str, Any]) -> dict[str, Any]:
    """The parameters that have no option of their own."""
    extra = {
        name: json_value(f"--param {name}", text) for name, text in pairs("--param", params).items()
    }
    for name in extra.keys() & fields.keys():
        raise usage(f"--param {name}: it is given by an option or argument as well")
    return extra


def pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    """Return the NAME=VALUE texts of an option as a mapping."""
    pairs = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise usage(f"{option} {text!r}: write NAME=VALUE")
        pairs[name] = value
    return pairs


def json_value(option: str, text: str) -> Any:
    """Return the JSON value of an option."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise usage(f"{option} is not JSON: {error}") from None
