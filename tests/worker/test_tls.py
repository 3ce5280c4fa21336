"""Every program with a broker whose TLS has an own authority, client certificates and users."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.producer import AsyncClient, BrokerUnavailable, Client, new_secret

from ..conftest import RedisServer
from ..support.every_program import check_every_program
from ..support.processes import (
    CLI,
    STUB,
    free_port,
    process,
    wait_until,
)
from ..support.tls import Authority, TlsEnd, tls_server

PASSWORD = "a-password"
USER = ("--user", "app", "on", f">{PASSWORD}", "~*", "&*", "+@all")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_port(authority: Authority) -> Iterator[int]:
    """The port of a program that ends TLS before the tests' server."""
    server = RedisServer(*USER)
    server.start()
    end = TlsEnd(authority, server.socket)
    yield end.port
    end.close()
    server.close()


@pytest.fixture
def own_tls_port(authority: Authority) -> Iterator[int]:
    """The port of a server that speaks TLS itself, as the tests' own server cannot."""
    program, port = tls_server(), free_port()
    files = {
        "--tls-ca-cert-file": "ca.crt",
        "--tls-cert-file": "server.crt",
        "--tls-key-file": "server.key",
    }
    options = [word for pair in files.items() for word in (pair[0], str(authority.file(pair[1])))]
    server = RedisServer("--tls-port", str(port), "--tls-auth-clients", "yes", *options, *USER)
    server._command[0] = program
    try:
        server.start()
    except RuntimeError as error:
        server.close()
        if "tls" in str(error).lower():
            pytest.skip("this server has no TLS")
        raise
    yield port
    server.close()


def url_of(port: int, options: str, *, host: str = "127.0.0.1", scheme: str = "rediss") -> str:
    return f"{scheme}://app:{PASSWORD}@{host}:{port}/0?{options}"


@pytest.mark.parametrize("server", ["tls_port", "own_tls_port"])
def test_every_program_works_over_tls(
    server: str, authority: Authority, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = url_of(request.getfixturevalue(server), authority.options())
    check_every_program(url, tmp_path)


def problem(url: str) -> str:
    """Return what both clients say about a broker, without its URL."""
    with Client(url, timeout_s=5) as client, pytest.raises(BrokerUnavailable) as found:
        client.status("gen_1")

    async def ask() -> str:
        async with AsyncClient(url, timeout_s=5) as client:
            with pytest.raises(BrokerUnavailable) as found:
                await client.status("gen_1")
            return str(found.value)

    texts = str(found.value), asyncio.run(ask())
    assert PASSWORD not in "".join(texts)
    first, second = (text.partition(f"{url.partition('?')[2]} ")[2] for text in texts)
    # The alert of the server arrives before or after its end of the connection.
    assert first.split(" (")[0] == second.split(" (")[0]
    return first


def test_a_wrong_file_or_name_is_said_with_its_remedy(tls_port: int, authority: Authority) -> None:
    def said(options: str, **where: str) -> str:
        return problem(url_of(tls_port, options, **where))

    untrusted = said(authority.options(ca="other.crt"))
    assert untrusted.startswith("has a certificate that is not trusted (")
    assert "ssl_ca_certs=/path/ca.crt" in untrusted
    name = said(authority.options(), host="localhost")
    assert name.startswith("has a certificate for another name (")
    without = said(authority.options(client=None))
    assert without.startswith("ends the TLS connection (")
    assert "give ssl_certfile and ssl_keyfile" in without
    foreign = said(authority.options(client="other"))
    assert "the server trusts the authority of yours" in foreign
    missing = said(authority.options(ca="none.crt"))
    assert missing.startswith("cannot be reached: a file of the URL cannot be used (")
    assert str(authority.file("none.crt")) in missing
    assert "cannot be used" in said(authority.options(ca="ca.key"))


def test_a_server_with_and_a_url_without_tls_and_the_reverse_are_said(
    tls_port: int, authority: Authority
) -> None:
    with (
        Client(f"redis://127.0.0.1:{tls_port}/0", timeout_s=5) as client,
        pytest.raises(BrokerUnavailable, match="TLS"),
    ):
        client.status("gen_1")
    plain = RedisServer("--port", str(port := free_port()))
    plain.start()
    try:
        assert "if it does not speak TLS, use redis://" in problem(
            url_of(port, authority.options())
        )
    finally:
        plain.close()


def test_a_command_says_it_in_one_line_and_services_in_their_logs(
    tls_port: int, authority: Authority, tmp_path: Path
) -> None:
    environment = {
        **STUB,
        "BATCHMILL_BROKER_URL": url_of(tls_port, authority.options(ca="other.crt")),
        "BATCHMILL_RUNTIME_DIR": str(tmp_path),
        "BATCHMILL_WEBHOOK_SECRET": new_secret(),
    }
    done = subprocess.run(
        [sys.executable, *CLI, "status"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "not trusted" in done.stderr
    for service in ("worker", "deliver"):
        log = tmp_path / f"{service}.log"
        with process(*CLI, service, environment=environment, log=log):

            def has_said_why(log: Path = log) -> bool:
                return "CERTIFICATE_VERIFY_FAILED" in log.read_text()

            wait_until(has_said_why, service)
        assert PASSWORD not in log.read_text()
