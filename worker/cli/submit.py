"""`batchmill submit`: one job from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from batchmill.worker.terminal import print_json

from .broker_connection import open_store_of, resolve_broker
from .command_settings import with_setting_flags
from .errors import usage_error
from .explain_option import EXPLAIN_HELP, note_explain_tokens, parse_parts
from .moments import MOMENT_FORMS, parse_moment
from .options import (
    BrokerUrlOption,
    JsonOption,
    MetadataOption,
    TimeoutOption,
    parse_json_option,
    parse_pairs,
)
from .pauses import tell_if_paused
from .prompt_source import PromptOptions
from .result import print_result, print_stream
from .steering import parse_steering
from .waiting import wait_notes

_EPILOG = (
    "Examples:\n\n"
    '  batchmill submit "Name three uses of a water mill." --stream\n\n'
    '  batchmill submit "Hello!" --system "You are a polite shop assistant." --wait\n\n'
    '  cat article.txt | batchmill submit --system "Summarise in one sentence." --max-tokens 60\n\n'
    '  batchmill submit "Hello!" --webhook https://example.com/hook --deadline 10m\n\n'
    '  batchmill submit "Once upon a time" --raw --param top_k=40 --wait\n\n'
    "The text is sent as a user message, through the model's chat template. --raw lets the model "
    "continue it instead; a model without a chat template needs that."
)
_GENERATION, _JOB = "Generation", "The job"
_Prompt = Annotated[
    str | None, typer.Argument(help="The prompt. Without it, or with -, it is read from stdin.")
]
_Messages = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="A chat instead of a prompt: a list of messages."),
]
_Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--raw",
        help="Send the prompt as a user message, or as it is, for the model to continue. "
        "Default: --chat.",
        show_default=False,
    ),
]
_System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="System message, before the prompt.")
]
_Image = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="A picture before the prompt: a file, or an https URL. May be repeated.",
    ),
]
_Audio = Annotated[
    list[str] | None,
    typer.Option("--audio", metavar="FILE", help="A sound before the prompt, in the same way."),
]
_Model = Annotated[str | None, typer.Option(help="Served model name.", rich_help_panel=_GENERATION)]
_MaxTokens = Annotated[
    int | None,
    typer.Option(help="Maximum number of tokens to generate.", rich_help_panel=_GENERATION),
]
_Temperature = Annotated[
    float | None,
    typer.Option(
        help="Sampling temperature; 0 is greedy. Default: the model's, else 1.",
        rich_help_panel=_GENERATION,
    ),
]
_TopP = Annotated[
    float | None,
    typer.Option(
        help="Sample from the likeliest tokens that add up to this; 1 keeps all.",
        rich_help_panel=_GENERATION,
    ),
]
_TopK = Annotated[
    int | None,
    typer.Option(
        help="Sample from this many of the likeliest tokens; 0 keeps all.",
        rich_help_panel=_GENERATION,
    ),
]
_Seed = Annotated[
    int | None, typer.Option(help="Makes the sampling repeatable.", rich_help_panel=_GENERATION)
]
_Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="A string that ends the generation. May be repeated.", rich_help_panel=_GENERATION
    ),
]
_Watermark = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The operator's key that marks the output as generated.",
        rich_help_panel=_GENERATION,
    ),
]
_ReasoningEffort = Annotated[
    str | None,
    typer.Option(
        metavar="EFFORT",
        help="How much the model thinks: none, minimal, low, medium or high.",
        rich_help_panel=_GENERATION,
    ),
]
_ThinkingTokenBudget = Annotated[
    int | None,
    typer.Option(help="Most tokens of the model's thoughts.", rich_help_panel=_GENERATION),
]
_Lora = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="LoRA adapter of the model; `batchmill lora list` shows them.",
        rich_help_panel=_GENERATION,
    ),
]
_DraftCorpus = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Name of the template: finished jobs of the same name make this one faster, and the "
        "other way round; off forbids both.",
        rich_help_panel=_GENERATION,
    ),
]
_Steering = Annotated[
    str | None,
    typer.Option(
        metavar="NAME or JSON",
        help='Steering vector of the model: its name, or {"name": "formal", "strength": 1.5, '
        '"layers": [8, 16]}.',
        rich_help_panel=_GENERATION,
    ),
]
_GuidanceScale = Annotated[
    float | None,
    typer.Option(
        help="How far the output moves away from the negative prompt; 1 is off.",
        rich_help_panel=_GENERATION,
    ),
]
_NegativePrompt = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="What the output should be unlike.", rich_help_panel=_GENERATION
    ),
]
_Select = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help='Which of n samples is selected: {"by": "likelihood"}, {"by": "vote", "field": '
        '"answer"}, or {"by": "decision", "question": "Is it correct?"}.',
        rich_help_panel=_GENERATION,
    ),
]
_Explain = Annotated[
    str | None,
    typer.Option(metavar="PARTS", help=EXPLAIN_HELP, rich_help_panel=_GENERATION),
]
_ExplainSimilarity = Annotated[
    float | None,
    typer.Option(
        help="With --explain uncertainty, the cosine from which two texts count as the same.",
        rich_help_panel=_GENERATION,
    ),
]
_BeamSearch = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help='Search for the likeliest outputs: {"beam_width": 4}.',
        rich_help_panel=_GENERATION,
    ),
]
_Param = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=JSON",
        help="Any other field of a job. May be repeated.",
        rich_help_panel=_GENERATION,
    ),
]
_Priority = Annotated[str | None, typer.Option(help="high, normal or low.", rich_help_panel=_JOB)]
_Webhook = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Receives a signed POST when the job ends.", rich_help_panel=_JOB
    ),
]
_IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        help="Submitting again with the same key returns the same job.", rich_help_panel=_JOB
    ),
]
_Tags = Annotated[
    list[str] | None,
    typer.Option(
        "--tag", help="A label to find the job by. May be repeated.", rich_help_panel=_JOB
    ),
]
_Tenant = Annotated[
    str | None,
    typer.Option(help="Tenant that the job belongs to, for its fair share.", rich_help_panel=_JOB),
]
_Delay = Annotated[
    float | None,
    typer.Option(help="Seconds that the job waits before it may run.", rich_help_panel=_JOB),
]
_Ttl = Annotated[
    float | None,
    typer.Option(
        help="Seconds after which the job expires if it has not ended.", rich_help_panel=_JOB
    ),
]
_Deadline = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="When the job expires if it has not ended: a distance such as 10m or 2h, or "
        f"{MOMENT_FORMS}.",
        rich_help_panel=_JOB,
    ),
]
_Retry = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help='How failed attempts are retried, such as {"max_attempts": 5, "backoff_s": 10}.',
        rich_help_panel=_JOB,
    ),
]
_Wait = Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")]
_Stream = Annotated[
    bool, typer.Option("--stream", help="Print the text while it is generated, until its end.")
]


def add_submit_command(app: typer.Typer) -> None:
    """Add `submit`."""
    app.command("submit", epilog=_EPILOG)(with_setting_flags("submit", submit))


def submit(
    prompt: _Prompt = None,
    system: _System = None,
    messages: _Messages = None,
    chat: _Chat = None,
    image: _Image = None,
    audio: _Audio = None,
    model: _Model = None,
    max_tokens: _MaxTokens = None,
    temperature: _Temperature = None,
    top_p: _TopP = None,
    top_k: _TopK = None,
    seed: _Seed = None,
    stop: _Stop = None,
    watermark: _Watermark = None,
    reasoning_effort: _ReasoningEffort = None,
    thinking_token_budget: _ThinkingTokenBudget = None,
    lora: _Lora = None,
    steering: _Steering = None,
    draft_corpus: _DraftCorpus = None,
    guidance_scale: _GuidanceScale = None,
    negative_prompt: _NegativePrompt = None,
    select: _Select = None,
    beam_search: _BeamSearch = None,
    explain: _Explain = None,
    explain_similarity: _ExplainSimilarity = None,
    param: _Param = None,
    priority: _Priority = None,
    tenant: _Tenant = None,
    webhook: _Webhook = None,
    idempotency_key: _IdempotencyKey = None,
    metadata: MetadataOption = None,
    tag: _Tags = None,
    ttl_s: _Ttl = None,
    deadline: _Deadline = None,
    delay_s: _Delay = None,
    retry: _Retry = None,
    wait: _Wait = False,
    stream: _Stream = False,
    timeout_s: TimeoutOption = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit one job and print its id, or its text with --wait or --stream."""
    expires = None if deadline is None else parse_moment("--deadline", deadline, ahead=True)
    options: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or None,
        "watermark": watermark,
        "reasoning_effort": reasoning_effort,
        "thinking_token_budget": thinking_token_budget,
        "lora": lora,
        "steering": parse_steering(steering),
        "draft_corpus": draft_corpus,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "select": None if select is None else parse_json_option("--select", select),
        "explain": parse_parts(explain),
        "explain_similarity": explain_similarity,
        "beam_search": None
        if beam_search is None
        else parse_json_option("--beam-search", beam_search),
        "priority": priority,
        "tenant": tenant,
        "webhook": webhook,
        "idempotency_key": idempotency_key,
        "metadata": parse_pairs("--metadata", metadata) or None,
        "tags": tag or None,
        "ttl_s": ttl_s,
        "deadline": None if expires is None else expires.isoformat(),
        "delay_s": delay_s,
        "retry": None if retry is None else parse_json_option("--retry", retry),
    }
    media = (*(("image", each) for each in image or ()), *(("audio", each) for each in audio or ()))
    text = PromptOptions(prompt, messages, system, chat, media)
    fields = _job_fields(options, text, param)
    how = _Following(wait=wait, stream=stream, timeout_s=timeout_s)
    _submit(fields, broker_url, how, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Following:
    """How the command follows the job that it has submitted."""

    wait: bool
    stream: bool
    timeout_s: float | None


def _submit(
    fields: dict[str, Any], broker_url: str | None, how: _Following, *, as_json: bool
) -> None:
    from batchmill.producer import Client
    from batchmill.producer.tracing.sending import environment_traceparent

    traced = {"traceparent": environment_traceparent()} | fields
    note_explain_tokens(fields, as_json=as_json)
    with Client(resolve_broker(broker_url)) as client:
        job = client.submit(**traced)
        if how.wait or how.stream:
            with wait_notes(job.id, as_json=as_json, is_new=True) as notes:
                _tell_if_paused(broker_url, job.id)
                if how.stream:
                    pieces = job.stream(timeout_s=how.timeout_s, on_wait=notes.on_wait)
                    print_stream(pieces, as_json=as_json)
                else:
                    result = job.result(how.timeout_s, on_wait=notes.on_wait)
                    print_result(result, as_json=as_json)
        elif as_json:
            print_json({"id": job.id})
        else:
            print(job.id)


def _tell_if_paused(broker_url: str | None, job_id: str) -> None:
    with open_store_of(broker_url, job_id) as store:
        tell_if_paused(store, job_id)


def _job_fields(
    options: dict[str, Any], prompt: PromptOptions, params: list[str] | None
) -> dict[str, Any]:
    """Return the fields that are given in any way; options that are None are not given."""
    fields = prompt.fields()
    fields |= {name: value for name, value in options.items() if value is not None}
    others = {
        name: parse_json_option(f"--param {name}", text)
        for name, text in parse_pairs("--param", params).items()
    }
    for name in others.keys() & fields.keys():
        raise usage_error(f"--param {name}: {name} is already given by an option or argument")
    return fields | others
