"""`batchmill webhooks list`, `show` and `redeliver`: webhook events and their deliveries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import missing, open_every_shard
from .errors import CommandError, ExitCode
from .options import BrokerUrlOption, JsonOption
from .webhook_endpoints import print_endpoints

if TYPE_CHECKING:
    from batchmill.producer.protocol.outbox import RedeliverStatus
    from batchmill.producer.protocol.records import DeadLetter
    from batchmill.producer.store.deliveries import EventStatus
    from batchmill.producer.store.every_shard import EveryShard
    from batchmill.producer.store.job_store import JobStore

_EventOrJob = Annotated[
    str, typer.Argument(metavar="ID", help="Id of an event, a job, a batch or a receiver.")
]
_LIST_EPILOG = (
    "Examples:\n\n  batchmill webhooks list\n\n  batchmill webhooks list --waiting --limit 20"
)
_SHOW_EPILOG = (
    "Examples:\n\n  batchmill webhooks show gen_…\n\n"
    "  batchmill webhooks show evt_gen_…_completed --json"
)
_REDELIVER_EPILOG = (
    "Examples:\n\n  batchmill webhooks redeliver gen_…\n\n"
    "  batchmill webhooks redeliver evt_gen_…_completed"
)
#: Outcomes of events whose own name could be taken for a state of the endpoint or the job.
_OUTCOMES = {"disabled": "endpoint disabled", "exhausted": "all attempts failed"}
#: What reads a deliverer's settings.
_DELIVERER = "the deliverer (`batchmill up` or `batchmill deliver`)"
_MAX_REMEDIES = 10


def add_event_commands(group: typer.Typer) -> None:
    """Add `list`, `show` and `redeliver`."""
    group.command("list", epilog=_LIST_EPILOG)(list_events)
    group.command("show", epilog=_SHOW_EPILOG)(show_events)
    group.command("redeliver", epilog=_REDELIVER_EPILOG)(redeliver_event)


def list_events(
    waiting: Annotated[
        bool,
        typer.Option("--waiting", help="Events that wait for delivery, oldest first."),
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of events to look at.")
    ] = 1000,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List deliveries that were given up, newest first, and disabled endpoints."""
    with open_every_shard(broker_url) as shards:
        if waiting:
            _list_waiting(shards, limit, as_json=as_json)
        else:
            _list_given_up(shards, limit, as_json=as_json)


def _list_waiting(shards: EveryShard, limit: int, *, as_json: bool) -> None:
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.deliveries import Deliveries

    parts = shards.each(lambda store: Deliveries(store).waiting(limit=limit))
    joined = sorted(
        (event for events, _ in parts for event in events), key=lambda x: (x.created_at_ms, x.id)
    )
    events = joined[:limit]
    num_left_out = sum(number for _, number in parts) + len(joined) - len(events)
    if as_json:
        rows = [{**_as_json(event), "log": None} for event in events]
        print_json({"waiting": rows, "num_left_out": num_left_out} | missing(shards))
        return
    more = f", {num_left_out} more (--limit)" if num_left_out else ""
    print(f"{pluralize(len(events), 'webhook')} waiting{more}")
    print_table(
        "",
        ("event", "attempts", "next attempt", "last error", "url"),
        ((x.id, x.attempts, _next_attempt(x), x.last_error or "-", x.url) for x in events),
    )
    _print_remedies((event.last_error, event.url) for event in events)


def _list_given_up(shards: EveryShard, limit: int, *, as_json: bool) -> None:
    from batchmill.producer.plural import pluralize
    from batchmill.producer.protocol.records import DeadLetterKind
    from batchmill.producer.store.dead_letters import dead_letters_of_all
    from batchmill.producer.store.endpoints import Endpoints, joined_endpoints

    disabled = joined_endpoints(shards.each(lambda store: Endpoints(store).disabled()))
    endpoints = sorted(disabled, key=lambda x: (x.disabled_at_ms or 0, x.url, x.tenant))
    letters = dead_letters_of_all(shards, offset=0, limit=limit)
    rows = [_given_up(x) for x in letters if x.kind is DeadLetterKind.WEBHOOK]
    if as_json:
        shown = [asdict(x) for x in endpoints]
        print_json({"webhooks": rows, "disabled_endpoints": shown} | missing(shards))
        return
    print(f"{pluralize(len(rows), 'webhook')} given up")
    print_table(
        "",
        ("event", "outcome", "last error", "url", "at"),
        (
            (x["event_id"], x["outcome"], x["last_error"], x["url"], format_time_ms(x["at_ms"]))
            for x in rows
        ),
    )
    _print_remedies((row["last_error"], row["url"]) for row in rows)
    if rows:
        print("Then: batchmill webhooks redeliver ID, or batchmill webhooks replay --failed-only")
    if endpoints:
        print_endpoints(
            f"{pluralize(len(endpoints), 'endpoint')} disabled "
            "(to enable one: batchmill webhooks enable URL --tenant NAME)",
            endpoints,
        )


def _given_up(letter: DeadLetter) -> dict[str, Any]:
    error = letter.payload.decode(errors="replace")
    return {
        "event_id": letter.id,
        "outcome": _outcome(letter.reason, error),
        "last_error": error,
        "explanation": _explain(error, letter.source),
        "url": letter.source,
        "at_ms": letter.at_ms,
    }


def _outcome(outcome: str, error: str) -> str:
    """Return the outcome of an event in words. Older deliverers called a refusal `disabled`."""
    return "refused" if error.startswith("refused_") else _OUTCOMES.get(outcome, outcome)


def _explain(error: str, url: str) -> str:
    from batchmill.worker.webhooks.reasons import explain

    return explain(error, url, restart=_DELIVERER)


def _print_remedies(errors: Iterable[tuple[str, str]]) -> None:
    """Print what each reason means and what to do, once per reason and remedy."""
    lines = dict.fromkeys(f"{error}: {_explain(error, url)}" for error, url in errors if error)
    for line in list(lines)[:_MAX_REMEDIES]:
        print(line)
    if len(lines) > _MAX_REMEDIES:
        print(f"{len(lines) - _MAX_REMEDIES} more reasons: --json")


def _next_attempt(event: EventStatus) -> str:
    if event.is_in_flight:
        return "being sent"
    if event.is_paused:
        return "when the endpoint is resumed"
    return format_time_ms(event.due_at_ms)


def show_events(
    event_or_job: _EventOrJob, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """Show the delivery of an event, or of all events of a job or batch, with the last attempts.

    With the id of a registered receiver: its latest hundred events.
    """
    from batchmill.producer.store.deliveries import Deliveries

    with open_every_shard(broker_url) as shards:
        found_event = shards.find(lambda store: Deliveries(store).event(event_or_job))
        event = None if found_event is None else found_event[1]
        events = [event] if event is not None else _events_of(shards, event_or_job)
    if as_json:
        found = [_as_json(each) for each in events]
        print_json(found[0] if event is not None else {"id": event_or_job, "events": found})
        return
    for number, each in enumerate(events):
        if number:
            print()
        _print_event(each)


def _as_json(event: EventStatus) -> dict[str, Any]:
    explanation = _explain(event.last_error, event.url) if event.last_error else ""
    return {**asdict(event), "explanation": explanation}


def _print_event(event: EventStatus) -> None:
    from batchmill.producer.plural import pluralize

    state = "waiting" if event.state == "pending" else _outcome(event.state, event.last_error)
    attempts = pluralize(event.attempts, "attempt")
    facts = [("event", event.id), ("type", event.type), ("endpoint", event.url)]
    if event.tenant != "default":
        facts.append(("tenant", event.tenant))
    facts.append(("delivery", f"{state}, {attempts}"))
    if event.state == "pending":
        facts.append(("next attempt", _next_attempt(event)))
    if event.last_error:
        explained = f"{event.last_error}: {_explain(event.last_error, event.url)}"
        facts.append(("last error", explained))
    for name, value in facts:
        print(f"{name:<13} {value}")
    if event.log:
        print_table(
            "",
            ("at", "status", "reason", "seconds"),
            (
                (format_time_ms(x.at_ms), x.http_status or "-", x.reason, x.duration_ms / 1000)
                for x in event.log
            ),
        )


def redeliver_event(
    event_or_job: _EventOrJob, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """Send an event again, with the same id and body, on a new retry schedule.

    With the id of a job or batch: the events of its end, of its latest run. With the id of a
    registered receiver: its latest event.
    """
    from batchmill.producer.store.deliveries import Deliveries

    with open_every_shard(broker_url) as shards:
        found = shards.find(lambda store: Deliveries(store).event(event_or_job))
        events = [found[1]] if found is not None else _end_events(shards, event_or_job)
        outcomes = [(each, _redelivered(shards, each.id)) for each in events]
    for each, status in outcomes:
        _raise_unless_sent(each, status)
    if as_json:
        rows = [{"event_id": x.id, "outcome": status.value.lower()} for x, status in outcomes]
        print_json(rows[0] if len(rows) == 1 else {"id": event_or_job, "events": rows})
        return
    for each, status in outcomes:
        waits = status.value == "PENDING"
        print(f"{each.id} {'is already waiting for delivery' if waits else 'will be sent again'}")


def _redelivered(shards: EveryShard, event_id: str) -> RedeliverStatus:
    from batchmill.producer.protocol.outbox import RedeliverStatus

    def redeliver(store: JobStore) -> RedeliverStatus | None:
        status = store.outbox_redeliver(event_id)
        return None if status is RedeliverStatus.UNKNOWN else status

    found = shards.find(redeliver)
    return RedeliverStatus.UNKNOWN if found is None else found[1]


def _raise_unless_sent(event: EventStatus, status: RedeliverStatus) -> None:
    """Raise the reason why an event is not sent again, if there is one.

    Raises:
        CommandError: it is gone, or its endpoint is disabled.
    """
    if status.value == "UNKNOWN":
        raise _no_event(event.id)
    if status.value == "DISABLED":
        tenant = "" if event.tenant == "default" else f" --tenant {event.tenant}"
        raise CommandError(
            f"the endpoint of {event.id} is disabled; enable it with "
            f"`batchmill webhooks enable '{event.url}'{tenant}`, then redeliver",
            code="endpoint_disabled",
            exit_code=ExitCode.FAILED,
        )


def _events_of(shards: EveryShard, given: str) -> Sequence[EventStatus]:
    """Return the events of a job or batch, or the latest ones for a receiver.

    Raises:
        CommandError: there are none.
    """
    from batchmill.producer.store.deliveries import Deliveries

    if not given.startswith("we_"):
        found = shards.find(lambda store: Deliveries(store).of_job(given) or None)
        events = [] if found is None else found[1]
    else:  # each shard has the events of its jobs
        parts = shards.each(lambda store: Deliveries(store).of_receiver(given))
        joined = (event for part in parts for event in part)
        events = sorted(joined, key=lambda event: (event.created_at_ms, event.id))
    if not events:
        raise _no_event(given)
    return events


def _end_events(shards: EveryShard, given: str) -> Sequence[EventStatus]:
    """Return the events of the latest end of a job or batch, or the latest one for a receiver.

    Raises:
        CommandError: there are none.
    """
    from batchmill.producer.store.deliveries import END_EVENTS

    events = _events_of(shards, given)
    if given.startswith("we_"):
        return events[-1:]
    job_id = given
    # OpenAI's name of an end that its length has cut.
    names = (*END_EVENTS, "incomplete")
    ends = [event for event in events if event.type.rpartition(".")[2] in names]
    if not ends:
        raise CommandError(
            f"{job_id} has no event of its end; it has {', '.join(event.id for event in events)}",
            code="unknown_event",
            exit_code=ExitCode.NOT_FOUND,
        )
    # The events of one end are written at the same time, for the job's webhook and receivers.
    return [event for event in ends if event.created_at_ms == ends[-1].created_at_ms]


def _no_event(given: str) -> CommandError:
    return CommandError(
        f"no event {given!r}, and no job, batch or receiver of this id has events: the id is "
        "wrong, it has no webhook, or its delivery ended more than eight days ago",
        code="unknown_event",
        exit_code=ExitCode.NOT_FOUND,
    )
