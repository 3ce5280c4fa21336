"""From an HTTP request to a page function and back: sign-in, forms of other sites, headers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from batchmill.producer.errors import BatchmillError
from batchmill.producer.store.broker_errors import broker_errors
from batchmill.worker.gateway.api_errors import ApiError, api_error
from batchmill.worker.gateway.caller import open_key
from batchmill.worker.gateway.request_body import body_chunks

from .notices import NOTICES
from .sessions import COOKIE, find_viewer, is_form_token
from .site import Site
from .viewer import Viewer
from .visit import ConsoleError, Download, Page, Redirect, Reply, Report, Visit

ROOT = "/console"
_log = structlog.get_logger(__name__)
#: Most bytes of a form's body.
_MAX_FORM_BYTES = 64 << 10
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
#: A report has no script, and cannot act as a page of the console.
_REPORT_HEADERS = _HEADERS | {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'; "
        "sandbox"
    )
}

Endpoint = Callable[[Request], Awaitable[Response]]


def page_endpoint(view: Callable[[Visit], Reply]) -> Endpoint:
    """Return the endpoint of a page function; it runs in a thread, for a viewer who is known."""

    async def serve(request: Request) -> Response:
        site: Site = request.app.state.console
        viewer: Viewer | None = None
        try:
            viewer = await asyncio.to_thread(_viewer, site, request)
            if viewer is None:
                return _to_sign_in(request)
            form = await read_form(request) if request.method == "POST" else {}
            if request.method == "POST":
                _check_form(viewer, form)
            shards = site.stores.look()
            visit = Visit(site, viewer, shards, request.path_params, request.query_params, form)
            reply = await asyncio.to_thread(_viewed, view, visit)
            missing = shards.missing
            return await asyncio.to_thread(response_of, request, reply, viewer, missing)
        except Exception as error:
            return error_page(request, error, viewer)

    serve.__name__ = view.__name__  # by which the metrics count requests
    return serve


def _viewed(view: Callable[[Visit], Reply], visit: Visit) -> Reply:
    with broker_errors(visit.site.url):
        return view(visit)


def _viewer(site: Site, request: Request) -> Viewer | None:
    """Return who sends a request; None if they must sign in.

    Raises:
        ApiError: there are no keys, and the request does not come from this machine.
    """
    with broker_errors(site.url):
        viewer, has_keys = find_viewer(site.stores, request.cookies.get(COOKIE, ""))
    if viewer is not None:
        return viewer
    if has_keys or not site.settings.is_loopback:
        return None
    return Viewer(open_key(request, site.settings, has_keys=has_keys), is_open=True)


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that a page of this console has sent.

    Raises:
        ConsoleError: another site has sent it, or it cannot be read.
        ApiError: it is too long, or the client is too slow.
        ClientDisconnect: the client is gone.
    """
    _check_same_origin(request)
    site: Site = request.app.state.console
    body = bytearray()
    try:
        async for chunk in body_chunks(request, site.settings, _MAX_FORM_BYTES):
            body += chunk
    except ApiError as error:
        if error.status != 413:
            raise
        told = f"the form has more than {_MAX_FORM_BYTES} bytes, which is the limit"
        raise ApiError(413, told, code=error.code, headers=error.headers) from None
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=100))
    except ValueError:
        raise ConsoleError(400, "The form cannot be read.") from None


def _check_same_origin(request: Request) -> None:
    """Refuse a form of another site. All current browsers send one of these headers."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        is_own = site == "same-origin"
    else:
        is_own = origin is not None and urlsplit(origin).netloc == request.headers.get("host")
    if not is_own:
        raise ConsoleError(403, "The form comes from another site.")


def _check_form(viewer: Viewer, form: dict[str, str]) -> None:
    if not viewer.is_open and not is_form_token(viewer, form.get("form_token", "")):
        raise ConsoleError(403, "The form belongs to another session; load the page again.")


def response_of(
    request: Request, reply: Reply, viewer: Viewer | None, missing: Sequence[str] = ()
) -> Response:
    """Return the response of a page function's reply; `missing` names shards that are away."""
    if isinstance(reply, Redirect):
        url = ROOT + reply.path
        if reply.done:
            url += ("&" if "?" in url else "?") + f"done={reply.done}"
        return RedirectResponse(url, 303, headers=_HEADERS)
    if isinstance(reply, Download):
        disposition = f"attachment; filename*=UTF-8''{quote(reply.name)}"
        headers = _HEADERS | {"content-disposition": disposition}
        return StreamingResponse(reply.content, media_type=reply.media_type, headers=headers)
    if isinstance(reply, Report):
        return HTMLResponse(reply.html, headers=_REPORT_HEADERS)
    return page_response(request, reply, viewer, missing)


def page_response(
    request: Request, page: Page, viewer: Viewer | None, missing: Sequence[str] = ()
) -> Response:
    """Render a page; it says which shards are missing in it."""
    site: Site = request.app.state.console
    shared: dict[str, Any] = {
        "viewer": viewer,
        "root": ROOT,
        "path": request.url.path.removeprefix(ROOT) or "/",
        "notice": NOTICES.get(request.query_params.get("done", "")),
        "missing_shards": missing,
    }
    text = site.templates.get_template(page.template).render(shared | dict(page.values))
    return HTMLResponse(text, page.status, headers=_HEADERS)


def error_page(request: Request, error: Exception, viewer: Viewer | None) -> Response:
    """Return the page of an error; an unforeseen one is logged, and its cause is not shown.

    Raises:
        ClientDisconnect: that is the error, so nobody is there to see the page.
    """
    if isinstance(error, ClientDisconnect):
        raise error
    known = error if isinstance(error, ConsoleError) else None
    headers: dict[str, str] = {}
    if known is None and isinstance(error, ApiError | BatchmillError):
        told = api_error(error)
        if told is not None:
            known, headers = ConsoleError(told.status, _sentence(str(told))), told.headers
    if known is None:
        request_id = request.state.request_id
        _log.error("console_failed", request_id=request_id, exc_info=error)
        known = ConsoleError(500, f"The gateway failed; its log has the cause under {request_id}.")
    values = {"status": known.status, "message": str(known)}
    with contextlib.suppress(BatchmillError):
        response = page_response(request, Page("error.html", values, known.status), viewer)
        response.headers.update(headers)
        return response
    raise AssertionError("rendering an error reads nothing")  # pragma: no cover


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _to_sign_in(request: Request) -> Response:
    """Lead to the sign-in, and from there back to the page."""
    path = request.url.path.removeprefix(ROOT)
    query = f"?{request.url.query}" if request.url.query else ""
    back = quote(path + query, safe="") if request.method == "GET" and path else ""
    target = f"{ROOT}/sign-in" + (f"?next={back}" if back else "")
    return RedirectResponse(target, 303, headers=_HEADERS)
