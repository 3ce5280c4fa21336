"""The proxy of `batchmill bench chaos` disturbs connections as a network does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from batchmill.worker.chaos.links import Link, Links

TIMEOUT_S = 60.0


@pytest.fixture
def link() -> Iterator[Link]:
    """A link to a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_echo, args=(server,), daemon=True).start()
        links = Links(f"redis://user:secret@127.0.0.1:{server.getsockname()[1]}/3")
        yield links.add()
        links.close()


def _echo(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_send_back, args=(connection,), daemon=True).start()


def _send_back(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65536):
            connection.sendall(data)


@pytest.fixture
def client(link: Link) -> Iterator[socket.socket]:
    with connect(link) as connection:
        assert says_back(connection, b"hello")
        yield connection


def connect(link: Link) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), TIMEOUT_S)


def says_back(connection: socket.socket, data: bytes) -> bool:
    connection.sendall(data)
    return connection.recv(65536) == data


def is_cut(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(0.2)
    try:
        return not connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(TIMEOUT_S)


def test_a_link_has_the_user_password_and_database_of_the_server(link: Link) -> None:
    assert link.url == f"redis://user:secret@127.0.0.1:{link.port}/3"


def test_a_cut_ends_a_connection_and_a_new_one_works(link: Link, client: socket.socket) -> None:
    link.cut()
    assert is_cut(client)
    with connect(link) as again:
        assert says_back(again, b"again")


def test_what_was_held_arrives_after_the_release(link: Link, client: socket.socket) -> None:
    link.hold()
    client.sendall(b"later")
    assert is_silent(client)
    link.release()
    assert client.recv(65536) == b"later"


def test_a_connection_made_while_held_works_after_the_release(link: Link) -> None:
    link.hold()
    with connect(link) as client:
        client.sendall(b"later")
        assert is_silent(client)
        link.release()
        assert client.recv(65536) == b"later"


@pytest.mark.parametrize("lose", [Link.lose_requests, Link.lose_replies])
def test_a_half_open_connection_stays_silent_and_a_new_one_works(
    link: Link,
    client: socket.socket,
    lose: object,
) -> None:
    assert callable(lose)
    lose(link)
    client.sendall(b"lost")
    assert is_silent(client)
    with connect(link) as again:
        assert says_back(again, b"again")


def test_a_lost_reply_takes_its_connection_along(link: Link, client: socket.socket) -> None:
    link.cut_replies(1.0)
    client.sendall(b"lost")
    assert is_cut(client)
    link.cut_replies(0.0)
    with connect(link) as again:
        assert says_back(again, b"again")


def test_a_refused_connection_is_closed_until_it_is_over(link: Link, client: socket.socket) -> None:
    link.refuse(True)
    assert is_cut(client)
    with connect(link) as refused:
        assert is_cut(refused)
    link.refuse(False)
    with connect(link) as again:
        assert says_back(again, b"again")
