"""`batchmill webhooks secret`: rotates the signing secret, and shows which secrets sign."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .errors import CommandError, ExitCode, usage_error
from .options import JsonOption

if TYPE_CHECKING:
    from batchmill.producer.webhook.secret_list import DatedSecret

_group = typer.Typer(
    help="The secret that signs webhooks: replace it, show which ones sign.", no_args_is_help=True
)
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DEFAULT_VARIABLE, _NAMED_VARIABLE = "BATCHMILL_WEBHOOK_SECRET", "BATCHMILL_WEBHOOK_SECRETS"
_FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file",
        metavar="PATH",
        help="File with the secret. Default: the one that BATCHMILL_WEBHOOK_SECRET_FILE names, "
        "else that of `batchmill up`.",
        show_default=False,
    ),
]
_NameOption = Annotated[
    str, typer.Option("--name", metavar="NAME", help="An entry of BATCHMILL_WEBHOOK_SECRETS.")
]


def add_secret_commands(group: typer.Typer) -> None:
    """Add `secret rotate`, `retire` and `show`."""
    rotate_epilog = (
        "Examples:\n\n  batchmill webhooks secret rotate --overlap 7d\n\n"
        "  batchmill webhooks secret rotate --file compose/secrets/webhook_secret"
    )
    _group.command("rotate", epilog=rotate_epilog)(rotate)
    _group.command("retire", epilog="Example:\n\n  batchmill webhooks secret retire")(retire)
    _group.command("show", epilog="Example:\n\n  batchmill webhooks secret show")(show)
    group.add_typer(_group, name="secret")


def rotate(
    overlap: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long the old secret signs as well, such as 90m, 24h or 7d; 0 ends it now.",
        ),
    ] = "24h",
    file: _FileOption = None,
    name: _NameOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a new signing secret; for a while, webhooks are signed with the old one as well.

    Deliverers read a changed file within a second. Give the new secret to every receiver before
    the old one ends.
    """
    from batchmill.producer.webhook.secret_list import rotate_secrets
    from batchmill.producer.webhook.signature import new_secret

    overlap_s, new, now_s = _seconds(overlap), new_secret(), time.time()
    place = _find_place(file, name)
    changed = place.change(
        lambda secrets: rotate_secrets(secrets, new, overlap_s=overlap_s, now_s=now_s)
    )
    _report(place, changed, new=new, as_json=as_json)


def retire(file: _FileOption = None, name: _NameOption = "", as_json: JsonOption = False) -> None:
    """End all secrets but the newest now, because every receiver has the new one."""
    place = _find_place(file, name)
    changed = place.change(lambda secrets: list(secrets[:1]))
    _report(place, changed, new=None, as_json=as_json)


def show(file: _FileOption = None, name: _NameOption = "", as_json: JsonOption = False) -> None:
    """Show which secrets sign and until when, by their fingerprints."""
    place = _find_place(file, name)
    now_s = time.time()
    rows = [_as_row(each, now_s) for each in place.read()]
    if as_json:
        print_json({"file": None if place.file is None else str(place.file), "secrets": rows})
        return
    print(f"in {place.where}")
    print_table(
        "",
        ("fingerprint", "signs", "until"),
        (
            (x["fingerprint"], "yes" if x["signs"] else "no", format_time_ms(x["until_ms"]))
            for x in rows
        ),
    )


def _as_row(secret: DatedSecret, now_s: float) -> dict[str, Any]:
    return {
        "fingerprint": hashlib.sha256(secret.secret.encode()).hexdigest()[:12],
        "signs": secret.is_valid(now_s),
        "until_ms": None if secret.until_s is None else round(secret.until_s * 1000),
    }


@dataclass(frozen=True)
class _Place:
    """Where a secret is: in a file, or in the environment, which a command cannot change."""

    variable: str
    #: Entry of a JSON object; empty if the value is the secrets themselves.
    name: str
    #: None if the value is in the environment.
    file: Path | None

    @property
    def where(self) -> str:
        """The place, for people."""
        return self.variable if self.file is None else str(self.file)

    def read(self) -> list[DatedSecret]:
        """Return the secrets, newest first."""
        text = os.environ[self.variable] if self.file is None else self._read_file()
        return self._parse(text)

    def change(
        self, action: Callable[[Sequence[DatedSecret]], list[DatedSecret]]
    ) -> list[DatedSecret]:
        """Change the secrets of a file, and return the new ones; the environment stays."""
        if self.file is None:
            return action(self.read())
        try:
            with _locked(self.file) as descriptor:
                text = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
                secrets = action(self._parse(text))
                _overwrite(descriptor, self._format(text, secrets))
        except OSError as error:
            raise _config_error(
                f"{self.file} cannot be changed: {error.strerror}; run this where the file can be "
                "written (a mounted secret is changed at its source)"
            ) from None
        return secrets

    def _read_file(self) -> str:
        assert self.file is not None
        try:
            return self.file.read_text()
        except OSError as error:
            raise _config_error(f"{self.file} cannot be read: {error.strerror}") from None

    def _parse(self, text: str) -> list[DatedSecret]:
        from batchmill.producer.webhook.secret_list import read_secrets
        from batchmill.producer.webhook.signature import sign

        try:
            secrets = read_secrets(_entry(text, self.name) if self.name else text)
            for each in secrets:
                sign(each.secret, "evt", 0, b"")
        except ValueError as error:
            raise _config_error(f"{self.where}: {error}") from None
        if not secrets:
            raise _config_error(f"{self.where} has no secret; batchmill webhook-secret makes one")
        return secrets

    def _format(self, text: str, secrets: Sequence[DatedSecret]) -> str:
        from batchmill.producer.webhook.secret_list import format_secrets

        value = format_secrets(secrets)
        return json.dumps({**json.loads(text), self.name: value}) if self.name else value


def _entry(text: str, name: str) -> str:
    """Return an entry of the named secrets.

    Raises:
        ValueError: there is none, or the text is not JSON.
    """
    try:
        entries = json.loads(text)
    except ValueError:
        entries = None
    if not isinstance(entries, dict) or not all(isinstance(x, str) for x in entries.values()):
        raise ValueError('named secrets must be JSON such as {"billing": "whsec_…"}')
    if name not in entries:
        raise ValueError(f"no secret {name!r}; there are: {', '.join(sorted(entries)) or 'none'}")
    return str(entries[name])


def _find_place(file: Path | None, name: str) -> _Place:
    """Return where a secret is.

    Raises:
        CommandError: it is nowhere.
    """
    from batchmill.producer.secrets_from_files import FILE_SUFFIX
    from batchmill.worker.local.state_dir import stored_secret_file

    variable = _NAMED_VARIABLE if name else _DEFAULT_VARIABLE
    if file is None and (given := os.environ.get(variable + FILE_SUFFIX)):
        file = Path(given)
    if file is None and not os.environ.get(variable) and not name:
        file = stored_secret_file()
    if file is None and not os.environ.get(variable):
        raise _config_error(
            f"no secret here: set {variable}{FILE_SUFFIX} as for the deliverer, or give --file"
        )
    return _Place(variable, name, file)


def _report(
    place: _Place, secrets: Sequence[DatedSecret], *, new: str | None, as_json: bool
) -> None:
    """Say what has changed, and what is left to do."""
    from batchmill.producer.webhook.secret_list import format_secrets, format_until

    untils = [format_until(each.until_s) for each in secrets[1:] if each.until_s is not None]
    until = max(untils, default=None)
    value = format_secrets(secrets) if place.file is None else None
    if as_json:
        facts = {
            "secret": new,
            "old_until": until,
            "file": None if place.file is None else str(place.file),
        }
        print_json({**facts, "num_secrets": len(secrets), "value": value})
        return
    if new is not None:
        print(f"new secret, for every receiver: {new}")
    both = f"both secrets until {until}, then only the newest" if until else "only the newest one"
    if place.file is not None:
        print(f"deliverers that read {place.file} sign with {both}; nothing needs a restart")
        return
    print(
        f"{place.variable} is set in the environment, which this command cannot change. Give every "
        "deliverer this value, and restart it (`batchmill deliver`, `batchmill up`):"
    )
    print(value if not place.name else f"{place.name}: {value}")
    print(f"They then sign with {both}.")


def _seconds(text: str) -> int:
    """Return a duration in seconds.

    Raises:
        CommandError: it is none.
    """
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if match is None or (not match[2] and match[1] != "0"):
        raise usage_error(f"--overlap is {text!r}; it must be 0, or such as 90m, 24h or 7d")
    return int(match[1]) * _UNITS_S[match[2]]


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a file that no other such command changes meanwhile."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _overwrite(descriptor: int, text: str) -> None:
    """Write a file in place: a container that mounts it alone would not see another file.

    A reader may find a part of the old text after the new one, which is not a secret; it reads
    again.
    """
    data = text.encode() + b"\n"
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))
    os.fsync(descriptor)


def _config_error(message: str) -> CommandError:
    return CommandError(message, code="webhook_secret", exit_code=ExitCode.CONFIG)
