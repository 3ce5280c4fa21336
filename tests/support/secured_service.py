"""Servers and Sentinels with TLS, client certificates, and a user for each program."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from batchmill.worker.failover.watched import WatchedService

from .tls import Authority

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "PASSWORD"  # as the rules write it
#: The rules of the page for the Sentinels, and a user for the tests.
_RULES = r"^```acl\n(user default off\nuser client .*?)^```"
_TEST_USER = f"user test on >{PASSWORD} ~* &* +@all\n"


class SecuredService(WatchedService):
    """Owns a primary, a replica and three Sentinels that speak TLS only and know no default user.

    The rules are those of `compose/users.acl` and, for the Sentinels, of docs/failover.md.
    """

    def __init__(self, folder: Path, authority: Authority, program: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._authority = authority
        users = (ROOT / "compose" / "users.acl").read_text()
        (folder / "users.acl").write_text(users + _TEST_USER)
        page = (ROOT / "docs" / "failover.md").read_text()
        (rules,) = re.findall(_RULES, page, re.DOTALL | re.MULTILINE)
        (folder / "sentinel-users.acl").write_text(rules + _TEST_USER)
        super().__init__(folder, program=program)

    def url_of(self, user: str) -> str:
        """Return the URL of a user of Redis, with the login that all have at the Sentinels."""
        _, _, place = self.url.partition("://")
        options = f"{self._authority.options()}&sentinel_username=client"
        return f"sentinels://{user}:{PASSWORD}@{place}?{options}&sentinel_password={PASSWORD}"

    def _tls(self, port: int) -> dict[str, str]:
        return {
            "port": "0",
            "tls-port": str(port),
            "tls-cert-file": str(self._authority.file("server.crt")),
            "tls-key-file": str(self._authority.file("server.key")),
            "tls-ca-cert-file": str(self._authority.file("ca.crt")),
            "tls-auth-clients": "yes",
            "tls-replication": "yes",
        }

    def _start_server(self, port: int, *options: str) -> None:
        users = ("--aclfile", str(self._folder / "users.acl"))
        login = ("--masteruser", "replica", "--masterauth", PASSWORD)
        tls = [word for name, value in self._tls(port).items() for word in (f"--{name}", value)]
        super()._start_server(port, *users, *login, *tls, *options)

    def _sentinel_lines(self, port: int, primary: int) -> list[str]:
        lines = super()._sentinel_lines(port, primary)
        own = [line for line in lines if not line.startswith("port ")]
        return [
            *(f"{name} {value}" for name, value in self._tls(port).items()),
            f"aclfile {self._folder / 'sentinel-users.acl'}",
            "sentinel sentinel-user peer",
            f"sentinel sentinel-pass {PASSWORD}",
            *own,
            "sentinel auth-user mill sentinel",
            f"sentinel auth-pass mill {PASSWORD}",
        ]

    def sentinel_client(self) -> contextlib.AbstractContextManager[Any]:
        """Connect to a Sentinel as the programs do."""
        return self._connect_as("client", self._sentinel_ports[0])

    @contextlib.contextmanager
    def _connect(self, port: int, password: str = "") -> Iterator[Any]:
        with self._connect_as("test", port) as client:
            yield client

    @contextlib.contextmanager
    def _connect_as(self, user: str, port: int) -> Iterator[Any]:
        client: Any = redis.Redis(
            host="127.0.0.1",
            port=port,
            username=user,
            password=PASSWORD,
            socket_timeout=2,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            ssl=True,
            ssl_ca_certs=str(self._authority.file("ca.crt")),
            ssl_certfile=str(self._authority.file("client.crt")),
            ssl_keyfile=str(self._authority.file("client.key")),
        )
        try:
            yield client
        finally:
            client.close()
