"""`batchmill decide`: questions about one state, answered with probabilities."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import print_json

from .broker_connection import resolve_broker
from .command_settings import with_setting_flags
from .decision_options import read_decision_option
from .errors import usage_error
from .options import BrokerUrlOption, JsonOption, TimeoutOption, parse_json_option, parse_pairs
from .prompt_source import media_parts
from .waiting import wait_notes

if TYPE_CHECKING:
    from batchmill.producer.result_sections import DecisionResult

_EPILOG = (
    "Examples:\n\n"
    '  batchmill decide "I was charged twice." --yes-no "Is a refund requested?"\n\n'
    '  batchmill decide "I was charged twice." --choice topic=billing,praise,shipping\n\n'
    '  batchmill decide --image photo.jpg --yes-no "Is it night?"\n\n'
    "  batchmill decide --questions questions.json < message.txt --json\n\n"
    "For a file of states see `batchmill bulk --decide`."
)
_State = Annotated[
    str | None, typer.Argument(help="The state. Without it, or with -, it is read from stdin.")
]
_Image = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="A picture before the state: a file or URL. May be repeated.",
    ),
]
_Audio = Annotated[
    list[str] | None,
    typer.Option("--audio", metavar="FILE", help="A sound before the state, in the same way."),
]
_Questions = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="JSON file of the questions, or of a whole decision."),
]
_YesNo = Annotated[
    list[str] | None,
    typer.Option(metavar="[ID=]TEXT", help="A question to answer yes or no. May be repeated."),
]
_Choice = Annotated[
    list[str] | None,
    typer.Option(metavar="ID=OPTIONS", help="Options with commas. May be repeated."),
]
_Score = Annotated[
    list[str] | None,
    typer.Option(metavar="ID=LEVELS", help="Levels with commas, lowest first. May be repeated."),
]
_Rotations = Annotated[int | None, typer.Option(help="Orders of the options to average over. [1]")]
_Prior = Annotated[
    bool,
    typer.Option("--prior-correction", help="Divide by the probabilities without a state."),
]
_MinConfidence = Annotated[
    float | None, typer.Option(help="Confidence below which --on-low-confidence counts.")
]
_OnLow = Annotated[str | None, typer.Option(metavar="WHAT", help="flag, fail or generate. [flag]")]
_Model = Annotated[str | None, typer.Option(help="Served model name.")]
_Param = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=JSON", help="Any other field of the job. May be repeated."),
]


def add_decide_command(app: typer.Typer) -> None:
    """Add `decide`."""
    app.command("decide", epilog=_EPILOG)(with_setting_flags("decide", decide))


def decide(
    state: _State = None,
    image: _Image = None,
    audio: _Audio = None,
    questions: _Questions = None,
    yes_no: _YesNo = None,
    choice: _Choice = None,
    score: _Score = None,
    rotations: _Rotations = None,
    prior_correction: _Prior = False,
    min_confidence: _MinConfidence = None,
    on_low_confidence: _OnLow = None,
    model: _Model = None,
    param: _Param = None,
    timeout_s: TimeoutOption = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a model questions about a text or a picture, and print each answer's probability."""
    from batchmill.producer import Client
    from batchmill.producer.job.validation import parse_job

    decision = {} if questions is None else read_decision_option("--questions", questions)
    asked = dict(decision.get("questions") or {}) | _questions(yes_no, choice, score)
    options = {
        "rotations": rotations,
        "prior_correction": prior_correction or None,
        "min_confidence": min_confidence,
        "on_low_confidence": on_low_confidence,
    }
    decision |= {name: value for name, value in options.items() if value is not None}
    media = (*(("image", each) for each in image or ()), *(("audio", each) for each in audio or ()))
    decision |= {"state": _state(state, media_parts(media)), "questions": asked}
    fields: dict[str, Any] = {
        name: parse_json_option(f"--param {name}", text)
        for name, text in parse_pairs("--param", param).items()
    }
    if model is not None:
        fields["model"] = model
    with Client(resolve_broker(broker_url)) as client:
        job = client.submit(parse_job(fields | {"decision": decision}))
        with wait_notes(job.id, as_json=as_json, is_new=True) as notes:
            result = job.result(timeout_s, on_wait=notes.on_wait)
    if as_json:
        print_json(result.model_dump(mode="json"))
    elif result.decision is not None:
        print_answers(result.decision)


def print_answers(decision: DecisionResult) -> None:
    """Print one line per question: its answer, its confidence, and all probabilities."""
    for name, answer in decision.answers.items():
        probabilities = ", ".join(
            f"{option} {each:.3f}" for option, each in answer.probabilities.items()
        )
        unsure = "  (low)" if answer.low_confidence else ""
        print(f"{name}: {answer.answer}  confidence {answer.confidence:.3f}{unsure}")
        print(f"    {probabilities}")
        if answer.text is not None:
            print(f"    {answer.text.strip()}")


def _state(given: str | None, media: list[Any]) -> str | list[Any]:
    """Return the text of the state, or its parts; beside media there may be no text."""
    if media:
        text = sys.stdin.read() if given == "-" else given
        return [*media, {"type": "text", "text": text}] if text else media
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise usage_error("give a state, or pipe one into the command")
    return sys.stdin.read()


def _questions(
    yes_no: list[str] | None, choice: list[str] | None, score: list[str] | None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place, text in enumerate(yes_no or (), start=1):
        name, separator, question = text.partition("=")
        if not separator or not name.isidentifier():
            name, question = f"question_{place}", text
        found[name] = {"type": "yes_no", "instructions": question}
    for kind, option, given in (("choice", "--choice", choice), ("score", "--score", score)):
        for name, text in parse_pairs(option, given).items():
            found[name] = {"type": kind, "criteria": [each.strip() for each in text.split(",")]}
    return found
