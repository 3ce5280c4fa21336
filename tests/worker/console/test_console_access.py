"""Who sees what in the console, and which forms it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx2
import pytest

from batchmill.producer import Client
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.api_keys import create_api_key, list_api_keys, revoke_api_key
from batchmill.worker.console.routes import VIEWS

from .conftest import CANARY, UNSERVED, Site, submit_unserved

_PARAM = re.compile(r"{(\w+)}")
#: Routes with an id in their path, by what the id is of.
ID_OF = {"job_id": "done", "batch_id": "batch", "letter_id": "letter", "event_id": "event"}
ROUTES = [(path, method) for path, method, _ in VIEWS if _PARAM.search(path)]
LISTS = ("", "/queues", "/jobs", "/batches", "/dead-letters", "/webhooks")


@pytest.fixture
def acme(site: Site) -> Iterator[httpx2.Client]:
    with site.http("acme") as client:
        yield client


@pytest.fixture
def operator(site: Site) -> Iterator[httpx2.Client]:
    with site.http("operator") as client:
        yield client


@pytest.fixture
def stranger(site: Site) -> Iterator[httpx2.Client]:
    with site.http("stranger") as client:
        yield client


def call(site: Site, client: httpx2.Client, method: str, path: str, **form: str) -> httpx2.Response:
    """Send a request as a page of the console would."""
    if method == "GET":
        return client.get(f"/console{path}")
    fields = {"form_token": token_of(site, client), **form}
    return client.post(f"/console{path}", data=fields, headers=site.origin)


def text_of(client: httpx2.Client, path: str) -> str:
    """Return a page that must exist."""
    response = client.get(f"/console{path}")
    assert response.status_code == 200, (path, response.status_code, response.text)
    return str(response.text)


def token_of(site: Site, client: httpx2.Client) -> str:
    """Return the token of the forms of a client's session."""
    place = keys.console_session(sha256(client.cookies["batchmill_console"].encode()).hexdigest())
    token: Any = site.store.client.hget(place, "form")
    return str(token.decode())


def put_ids(site: Site, path: str, change: str = "") -> str:
    if path.endswith("/explanation"):
        return f"/jobs/{site.ids['explained']}{change}/explanation"
    return _PARAM.sub(lambda name: site.ids[ID_OF[name[1]]] + change, path)


def test_ids_of_another_tenant_are_404_on_every_route(site: Site, stranger: httpx2.Client) -> None:
    assert len(ROUTES) >= 8
    for path, method in ROUTES:
        told, nothing = (
            call(site, stranger, method, put_ids(site, path, change), action="retry")
            for change in ("", "x")
        )
        assert (told.status_code, nothing.status_code) == (404, 404), (method, path)
        assert told.text == nothing.text.replace("x&#39;.", "&#39;."), (method, path)
    form = {"action": "disable", "tenant": "acme", "url": "https://example.com/"}
    assert call(site, stranger, "POST", "/webhooks", **form).status_code == 404
    assert site.store.dead_letter(site.ids["letter"]) is not None


def test_pages_of_a_tenant_show_nothing_of_another(site: Site, stranger: httpx2.Client) -> None:
    for path in (*LISTS, "/jobs?tenant=acme", "/jobs?tag=night-run"):
        text = text_of(stranger, path)
        for name, each in site.ids.items():
            assert each not in text, (path, name)
        assert "acme" not in text.replace("/jobs?tenant=acme", ""), path


def test_a_batch_with_lines_of_another_tenant_is_shown_to_operators_only(
    site: Site, acme: httpx2.Client, operator: httpx2.Client
) -> None:
    line = {"prompt": CANARY, "model": UNSERVED, "max_tokens": 4}
    for lines in ([line | {"tenant": "stranger"}], [line, line | {"tenant": "stranger"}]):
        with Client(site.server.url) as client:
            batch_id = client.create_batch(lines, tenant="acme").id
        for path in (f"/batches/{batch_id}", f"/batches/{batch_id}/results"):
            assert acme.get(f"/console{path}").status_code == 404, path
            assert operator.get(f"/console{path}").status_code == 200, path
        assert batch_id not in text_of(acme, "/batches")
        assert batch_id in text_of(operator, "/batches")


def test_a_tenant_sees_the_models_that_its_key_may_use(site: Site, acme: httpx2.Client) -> None:
    _, site.keys["picky"] = create_api_key(site.store, "picky", tenant="acme", models=("some",))
    assert "demo" in _models(text_of(acme, ""))
    with site.http("picky") as picky:
        assert _models(text_of(picky, "")) == "0none is served"


def _models(text: str) -> str:
    """Return what the tile of the models shows."""
    (tile,) = re.findall("<dt>Models</dt>(.*)</div>", text)
    return re.sub("<[^>]*>", "", tile)


def test_every_page_is_served_to_its_tenant_and_to_operators(
    site: Site, acme: httpx2.Client, operator: httpx2.Client
) -> None:
    paths = [put_ids(site, path) for path, method, _ in VIEWS if method == "GET"]
    for path in paths:
        response = acme.get(f"/console{path}")
        assert response.status_code == (403 if path == "/workers" else 200), path
        assert operator.get(f"/console{path}").status_code == 200, path
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        if path.endswith("/explanation"):  # styles of its own, and a sandbox
            assert "script-src" not in policy
            assert policy.endswith("sandbox")
        else:
            assert "unsafe" not in policy, path
        assert response.headers["cache-control"] == "no-store", path
    for name in ("letter", "interrupted", "chat", "failed", "hostile"):
        text_of(acme, f"/jobs/{site.ids[name]}")


def test_texts_are_shown_only_with_the_right(site: Site, acme: httpx2.Client) -> None:
    job = f"/jobs/{site.ids['done']}"
    results = f"/batches/{site.ids['batch']}/results"
    assert CANARY in text_of(acme, job)
    downloaded = text_of(acme, results)
    assert len(downloaded.splitlines()) == 30
    output = re.findall(r'"text": ?"([^"]+)"|"content": ?"([^"]+)"', downloaded)
    assert output
    with site.http("reader") as reader:
        shown = "".join(
            text_of(reader, f"/jobs/{site.ids[name]}")
            for name in ("done", "chat", "failed", "letter", "hostile")
        )
        shown += "".join(text_of(reader, path) for path in LISTS)
        assert reader.get(f"/console{results}").status_code == 403
    assert site.ids["done"] in shown
    result = site.mill.record(site.ids["done"]).result
    assert result is not None
    for text in (CANARY, "script&gt;document", "Be brief", *_words_of(result)):
        assert text not in shown


def _words_of(result: bytes) -> list[str]:
    words = re.findall(r"w[0-9]{3,5}", result.decode())
    assert words
    return words


def test_forms_need_the_rights_of_their_action(site: Site) -> None:
    job = f"/jobs/{submit_unserved(site.store, CANARY)}"
    with site.http("reader") as reader, site.http("acme") as acme:
        assert call(site, reader, "POST", job, action="cancel").status_code == 403
        for path, form in (
            (f"/dead-letters/{site.ids['letter']}", {"action": "drop"}),
            (f"/webhooks/events/{site.ids['event']}", {"action": "redeliver"}),
            ("/webhooks", {"action": "disable", "tenant": "acme", "url": "https://example.com/"}),
            ("/queues", {"action": "pause", "kind": "tenant", "name": "acme"}),
        ):
            assert call(site, acme, "POST", path, **form).status_code == 403, path
        assert call(site, acme, "POST", job, action="cancel").status_code == 303
    assert site.mill.state(job.removeprefix("/jobs/")) is JobState.CANCELLED


def test_forms_of_other_sites_and_sessions_are_refused(site: Site, acme: httpx2.Client) -> None:
    job_id = submit_unserved(site.store, CANARY)
    path, token = f"/console/jobs/{job_id}", token_of(site, acme)
    with site.http("acme") as other:
        stolen = token_of(site, other)
    for headers, given in (
        ({}, token),
        ({"origin": "https://example.com"}, token),
        ({"origin": "null"}, token),
        (site.origin | {"sec-fetch-site": "cross-site"}, token),
        (site.origin, ""),
        (site.origin, stolen),
    ):
        form = {"form_token": given, "action": "cancel"}
        response = acme.post(path, data=form, headers=headers)
        assert response.status_code == 403, (headers, given)
    assert site.mill.state(job_id) is JobState.QUEUED
    response = acme.post(
        path,
        data={"form_token": token, "action": "cancel"},
        headers={"sec-fetch-site": "same-origin"},
    )
    assert response.headers["location"] == f"/console/jobs/{job_id}?done=cancelled"
    assert site.mill.state(job_id) is JobState.CANCELLED


def test_sign_in_gives_a_cookie_that_scripts_and_other_sites_do_not_get(site: Site) -> None:
    with site.http() as client:
        asked = client.get(f"/console/jobs/{site.ids['done']}?a=b")
        assert asked.status_code == 303
        assert asked.headers["location"] == (
            f"/console/sign-in?next=%2Fjobs%2F{site.ids['done']}%3Fa%3Db"
        )
        for secret in ("sk-bm-nothing", site.keys["sender"], ""):
            response = client.post("/console/sign-in", data={"secret": secret}, headers=site.origin)
            assert response.status_code == 401, secret
            assert "set-cookie" not in response.headers
        form = {"secret": site.keys["acme"], "next": "/jobs?state=failed"}
        assert client.post("/console/sign-in", data=form).status_code == 403
        response = client.post("/console/sign-in", data=form, headers=site.origin)
        assert response.headers["location"] == "/console/jobs?state=failed"
        cookie = response.headers["set-cookie"]
        for part in ("HttpOnly", "SameSite=lax", "Path=/console", "Max-Age=43200"):
            assert part in cookie, cookie
        assert "Secure" not in cookie
        for target in ("//example.com", "https://example.com", "/\\example.com", "/a\nb"):
            response = client.post(
                "/console/sign-in",
                data=form | {"next": target},
                headers=site.origin | {"x-forwarded-proto": "https"},
            )
            assert response.headers["location"] == "/console", target
            assert "Secure" in response.headers["set-cookie"]


def test_a_session_ends_with_its_sign_out_and_with_its_key(site: Site) -> None:
    with site.http("reader") as client:
        cookie = client.cookies["batchmill_console"]
        assert client.post("/console/sign-out", headers=site.origin).status_code == 303
        again = client.get("/console", headers={"cookie": f"batchmill_console={cookie}"})
        assert again.headers["location"].startswith("/console/sign-in")
    key, secret = create_api_key(site.store, "short", tenant="acme")
    site.keys["short"] = secret
    with site.http("short") as client:
        assert client.get("/console").status_code == 200
        revoke_api_key(site.store, key.id)
        assert client.get("/console").status_code == 303
    assert any(each.revoked_at_ms for each in list_api_keys(site.store))


def test_wrong_values_are_refused_in_words(site: Site, operator: httpx2.Client) -> None:
    for path, status in (
        ("/nothing", 404),
        ("/static/nothing.js", 404),
        ("/jobs/not!an!id", 404),
        ("/jobs?id=not!an!id", 400),
        ("/batches/batch_nothing", 404),
        ("/webhooks/events/evt_nothing", 404),
    ):
        response = operator.get(f"/console{path}")
        assert response.status_code == status, path
        assert response.headers["content-type"].startswith("text/html"), path
    for path in ("/jobs?state=odd", "/jobs?cursor=odd", "/jobs?tag=a,b"):
        assert 'role="alert"' in text_of(operator, path), path
    for path in ("/batches?after=odd", "/dead-letters?offset=-1", "/?period=odd", "/?done=odd"):
        text_of(operator, path)
    path = f"/jobs/{site.ids['done']}"
    assert call(site, operator, "POST", path, action="odd").status_code == 400
    assert call(site, operator, "POST", path, action="retry").status_code == 400  # it completed
    assert call(site, operator, "POST", "/queues", kind="odd", name="a").status_code == 400
    pause = {"kind": "tenant", "name": "odd", "action": "pause"}
    for change in ({"action": "odd"}, {"action": ""}, {"name": "no tenant"}, {"reason": "a" * 201}):
        assert call(site, operator, "POST", "/queues", **pause | change).status_code == 400, change
    assert "odd" not in text_of(operator, "/queues")
    response = call(site, operator, "POST", "/queues", reason="a" * 70_000)
    assert response.status_code == 413
    assert "more than 65536 bytes" in response.text
