"""Certificates of an own authority, and a program that ends TLS before a server, like stunnel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def tls_server() -> str:
    """Return a server program that may speak TLS, as the embedded one cannot.

    It is that of `TEST_REDIS_SERVER`, else an installed one; the test is skipped without any.
    """
    found = os.environ.get("TEST_REDIS_SERVER") or shutil.which("redis-server")
    if (program := found or shutil.which("valkey-server")) is None:
        pytest.skip("no server with TLS is installed")
    return program


class Authority:
    """Two authorities, and a server's and a client's certificate of the first, as files.

    The server's certificate is for 127.0.0.1 only.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed, so no certificate can be made")
        self.folder = folder
        for name in ("ca", "other"):
            self._run(
                "req", "-x509", *_EC, *self._files(name), "-days", "2", "-subj", f"/CN={name}"
            )
        for name in ("server", "client"):
            self._sign(name)

    def file(self, name: str) -> Path:
        """Return the path of a file, such as `ca.crt` or `client.key`."""
        return self.folder / name

    def options(self, *, ca: str = "ca.crt", client: str | None = "client") -> str:
        """Return the options of a `rediss://` URL."""
        named = {"ssl_ca_certs": ca}
        if client is not None:
            named |= {"ssl_certfile": f"{client}.crt", "ssl_keyfile": f"{client}.key"}
        return "&".join(f"{option}={self.folder / name}" for option, name in named.items())

    def _sign(self, name: str) -> None:
        request, extensions = self.file(f"{name}.csr"), self.file(f"{name}.ext")
        extensions.write_text("subjectAltName=IP:127.0.0.1")
        key, certificate = self.file(f"{name}.key"), self.file(f"{name}.crt")
        self._run(*("req", *_EC, "-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}"))
        self._run(
            *("x509", "-req", "-in", str(request), "-out", str(certificate), "-days", "2"),
            *("-CA", str(self.file("ca.crt")), "-CAkey", str(self.file("ca.key"))),
            *("-CAcreateserial", "-extfile", str(extensions)),
        )

    def _files(self, name: str) -> tuple[str, ...]:
        return "-keyout", str(self.file(f"{name}.key")), "-out", str(self.file(f"{name}.crt"))

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class TlsEnd:
    """Takes TLS connections of clients with a certificate and passes their bytes to a socket."""

    def __init__(self, authority: Authority, target: Path) -> None:
        self._target = target
        self._context = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file("ca.crt"))
        )
        self._context.load_cert_chain(authority.file("server.crt"), authority.file("server.key"))
        self._context.verify_mode = ssl.CERT_REQUIRED
        self.port = 0
        self._has_started = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._has_started.wait(10)

    def close(self) -> None:
        """Close the port and all connections."""
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        # A failed handshake is what some tests want, and no reason for a traceback.
        self._loop.set_exception_handler(lambda loop, context: None)
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._has_started.set()
        async with server:
            await asyncio.Event().wait()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_unix_connection(str(self._target))
        tasks = [
            asyncio.create_task(_copy(reader, forth)),
            asyncio.create_task(_copy(back, writer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for each in (forth, writer):
                each.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
