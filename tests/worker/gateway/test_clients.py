"""Clients that stand still or send too much, wrong bodies, and a gateway without keys."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import httpx2
import openai as sdk
import psutil
import pytest
from openai import OpenAI

from batchmill.producer.store.api_keys import list_api_keys, revoke_api_key

from ..conftest import Mill
from .conftest import Start, client_of, make_key


def test_an_open_gateway_says_so_and_takes_no_page_of_another_site(
    mill: Mill, start_gateway: Start
) -> None:
    gateway = start_gateway(mill.url)
    assert "gateway_is_open" in {event["event"] for event in gateway.events()}
    models = gateway.url + "/models"
    assert httpx2.get(models).status_code == 200
    assert httpx2.get(models, headers={"origin": "http://localhost:3000"}).status_code == 200
    assert httpx2.get(models, headers={"origin": "https://evil.example"}).status_code == 403
    assert httpx2.get(models, headers={"host": "evil.example"}).status_code == 403


def test_a_gateway_that_had_keys_is_never_open_again(mill: Mill, start_gateway: Start) -> None:
    url = start_gateway(mill.url).url
    assert client_of(url, "anything").models.list().data == []
    secret = make_key(mill)
    (key,) = list_api_keys(mill.store)
    assert revoke_api_key(mill.store, key.id)
    for wrong in (secret, "anything"):
        with pytest.raises(sdk.AuthenticationError):
            client_of(url, wrong).models.list()


def test_a_gateway_for_other_machines_needs_a_key(mill: Mill, start_gateway: Start) -> None:
    gateway = start_gateway(mill.url, gateway_host="0.0.0.0")
    assert "gateway_needs_a_key" in {event["event"] for event in gateway.events()}
    url = f"http://127.0.0.1:{gateway.port}/v1"
    with pytest.raises(sdk.AuthenticationError):
        client_of(url, "anything").models.list()
    assert client_of(url, make_key(mill)).models.list().data == []


def receive_all(connection: socket.socket) -> bytes:
    connection.settimeout(10)
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_a_client_that_sends_too_slowly_is_cut_off(mill: Mill, start_gateway: Start) -> None:
    gateway = start_gateway(mill.url, gateway_header_timeout_s=0.5, gateway_body_timeout_s=0.5)
    with socket.create_connection(("127.0.0.1", gateway.port)) as silent:
        assert receive_all(silent) == b""
    with socket.create_connection(("127.0.0.1", gateway.port)) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow:")
        assert receive_all(slow) == b""
    with socket.create_connection(("127.0.0.1", gateway.port)) as slow:
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
        )
        began = time.monotonic()
        assert receive_all(slow).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 25  # not the default of 30 s


def test_a_client_that_does_not_read_is_cut_off(
    mill: Mill, start_gateway: Start, tmp_path: Path
) -> None:
    gateway = start_gateway(mill.url, gateway_files_url=tmp_path / "f", gateway_write_timeout_s=0.5)
    file = ("large.jsonl", b"{}\n" * 10_000_000)
    name = client_of(gateway.url, "none").files.create(file=file, purpose="batch").id
    process = psutil.Process(gateway.process.pid)
    with socket.create_connection(("127.0.0.1", gateway.port)) as idle:
        port = idle.getsockname()[1]
        idle.sendall(f"GET /v1/files/{name}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert idle.recv(15) == b"HTTP/1.1 200 OK"
        # The kernel keeps what it took, so the client itself would not see the cut before it reads.
        mill.wait_for(
            lambda: (
                not any(
                    link.raddr and link.raddr.port == port and link.status == "ESTABLISHED"
                    for link in process.net_connections()
                )
            ),
            "the connection to be cut",
        )
        mill.wait_for(
            lambda: not any("/f/" in file.path for file in process.open_files()),
            "the file to be closed",
        )


def test_too_much_is_refused_with_its_limit(mill: Mill, start_gateway: Start) -> None:
    gateway = start_gateway(mill.url, gateway_max_body_bytes=2000, gateway_max_header_bytes=2000)
    with pytest.raises(sdk.APIStatusError, match="more than 2000 bytes") as caught:
        client_of(gateway.url, "none").chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "x" * 3000}]
        )
    assert caught.value.status_code == 413
    response = httpx2.get(gateway.url + "/models", headers={"x-long": "x" * 5000})
    assert (response.status_code, response.json()["error"]["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "not_json"),
        (b"[]", "not_json"),
        (b'{"a": NaN}', "not_json"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b"[" * 100_000, "not_json"),
        (b'{"messages": "\xff"}', "not_json"),
    ],
)
def test_a_body_that_is_not_json_is_the_callers_error(
    http: httpx2.Client, content: bytes, code: str
) -> None:
    response = http.post("/v1/chat/completions", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == code


def test_what_this_version_does_not_have_is_refused_by_name(
    openai: OpenAI, http: httpx2.Client
) -> None:
    with pytest.raises(sdk.NotFoundError, match="/v1/moderations is not supported") as caught:
        openai.moderations.create(input="x")
    assert caught.value.code == "unsupported_endpoint"
    with pytest.raises(sdk.NotFoundError, match="/v1/images/generations is not supported"):
        openai.images.generate(prompt="x")
    assert http.get("/v1/nonsense").json()["error"]["code"] == "unknown_url"
    assert http.delete("/v1/models").status_code == 405


def test_health_needs_no_key(mill: Mill, start_gateway: Start) -> None:
    make_key(mill)
    root = start_gateway(mill.url).url.removesuffix("/v1")
    assert httpx2.get(root + "/healthz").json() == {"status": "ok"}
    assert httpx2.get(root + "/readyz").json() == {"status": "ok", "models": []}


def test_a_gateway_without_its_broker_is_not_ready(
    private_mill: Mill, private_redis_server: Any, start_gateway: Start
) -> None:
    gateway = start_gateway(private_mill.url, broker_timeout_s=0.5)
    root = gateway.url.removesuffix("/v1")
    private_redis_server.kill()
    assert httpx2.get(root + "/healthz").status_code == 200
    assert httpx2.get(root + "/readyz", timeout=60).status_code == 503
    with pytest.raises(sdk.InternalServerError) as caught:
        client_of(gateway.url, "none").models.list()
    assert caught.value.code == "broker_unavailable"
    assert private_mill.url not in caught.value.message
    private_redis_server.start()
    assert httpx2.get(root + "/readyz", timeout=60).status_code == 200
