"""`batchmill encryption status` and `rewrap`: what each key has sealed, and sealing it again."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from batchmill.worker.terminal import print_json, print_table

from .broker_connection import open_stores
from .errors import CommandError, ExitCode
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.worker.rewrap.counts import SealCounts
    from batchmill.worker.rewrap.files import GatewayFiles

#: Seconds between two lines of progress.
_PROGRESS_S = 2.0


def show_seals(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """Show how many stored values each key has sealed. Nothing is changed.

    A key that has sealed none can be removed.
    """
    from batchmill.producer.encryption.settings import find_key_ring
    from batchmill.worker.rewrap.walk import count_everything

    with open_stores(broker_url) as stores:
        counts = count_everything(stores, _gateway_files(), lambda: None)
    if as_json:
        print_json({"keys": list(find_key_ring().key_ids), **counts.as_json()})
        return
    _print_counts(counts, find_key_ring().key_ids)


def rewrap(
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Most values to seal; run it again for the rest."),
    ] = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Seal everything with the first key that it has not sealed yet, plain values too.

    Workers, gateways and deliverers may run meanwhile; all of them must have the first key by then.
    An interrupted run is continued by another one.
    """
    from batchmill.producer.encryption.settings import find_key_ring
    from batchmill.worker.rewrap.counts import SealCounts
    from batchmill.worker.rewrap.walk import count_everything, rewrap_everything

    ring = find_key_ring()
    if not ring.key_ids:
        raise CommandError(
            "no key is set: put the keys into BATCHMILL_ENCRYPTION_KEYS, the new one first",
            code="invalid_settings",
            exit_code=ExitCode.CONFIG,
        )
    done, files = SealCounts(), _gateway_files()
    with open_stores(broker_url) as stores:
        progress = _Progress(done, is_shown=not as_json)
        is_whole = rewrap_everything(stores, files, done, limit=limit, note_page=progress.show)
        left = count_everything(stores, files, lambda: None)
    num_left = left.num_left(ring.key_ids[0])
    if as_json:
        work: dict[str, object] = {
            "rewrapped": done.num_rewrapped,
            "changed_meanwhile": done.num_changed,
        }
        work |= {"failed": dict(done.failed), "is_whole": is_whole}
        print_json({"keys": list(ring.key_ids), **work, "left": num_left, "values": left.by_key()})
    else:
        print(f"{done.num_rewrapped} values sealed again with {ring.key_ids[0]}, {num_left} left")
        _print_counts(left, ring.key_ids)
        _print_failures(done)
    if num_left:
        raise typer.Exit(ExitCode.FAILED)


class _Progress:
    """Writes a line to stderr every two seconds."""

    def __init__(self, counts: SealCounts, *, is_shown: bool) -> None:
        self._counts = counts
        self._is_shown = is_shown
        self._next_at = time.monotonic() + _PROGRESS_S

    def show(self) -> None:
        if not self._is_shown or time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + _PROGRESS_S
        seen, done = self._counts.num_keys_seen, self._counts.num_rewrapped
        sys.stderr.write(f"{seen} records and indexes seen, {done} values sealed again\n")


def _gateway_files() -> GatewayFiles:
    from batchmill.producer.encryption.settings import find_key_ring
    from batchmill.worker.gateway.settings import GatewaySettings
    from batchmill.worker.rewrap.files import GatewayFiles

    return GatewayFiles(GatewaySettings().gateway_files_url, find_key_ring())


def _print_counts(counts: SealCounts, key_ids: tuple[str, ...]) -> None:
    from batchmill.worker.rewrap.counts import PLAIN, Part

    rows = []
    for key_id in [*key_ids, *(each for each in counts.key_ids() if each not in key_ids)]:
        role = "opens" if key_id in key_ids else "is not set here"
        role = "seals and opens" if key_id in key_ids[:1] else role
        shown = ("(not sealed)", "") if key_id == PLAIN else (key_id, role)
        rows.append((*shown, *(counts.num_of(key_id, part) for part in Part)))
    print_table("Stored values", ("key", "", *(part.value for part in Part)), rows)


def _print_failures(counts: SealCounts) -> None:
    for code, number in sorted(counts.failed.items()):
        print(f"{number} could not be sealed again: {code}")
    if counts.num_changed:
        print(f"{counts.num_changed} were changed by other programs meanwhile: run it again")
