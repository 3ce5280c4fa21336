"""Signing in and out, and the static files: all that is served to anyone."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from batchmill.producer.store.broker_errors import broker_errors

from .serving import ROOT, error_page, page_response, read_form
from .sessions import COOKIE, sign_in, sign_out
from .site import STATIC_TYPES, Site
from .visit import ConsoleError, Page

#: Seconds for which a browser keeps a static file: its URL changes with its content.
_STATIC_S = 30 * 24 * 3600
_REFUSED = (
    "No valid API key has this secret, or its rights do not include the console (read or operator)."
)


async def show_sign_in(request: Request) -> Response:
    """Serve the form."""
    values = {"next": _own_path(request.query_params.get("next", "")), "problem": ""}
    return page_response(request, Page("sign_in.html", values), None)


async def take_sign_in(request: Request) -> Response:
    """Take the form: start a session, or say that the key is not valid."""
    site: Site = request.app.state.console
    try:
        form = await read_form(request)
        target = _own_path(form.get("next", ""))
        cookie = await asyncio.to_thread(_sign_in, site, form.get("secret", "").strip())
    except Exception as error:
        return error_page(request, error, None)
    if cookie is None:
        values = {"next": target, "problem": _REFUSED}
        return page_response(request, Page("sign_in.html", values, 401), None)
    response = RedirectResponse(ROOT + target, 303)
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=site.settings.gateway_console_session_s,
        path=ROOT,
        secure=_is_https(request),
        httponly=True,
        samesite="lax",
    )
    return response


async def take_sign_out(request: Request) -> Response:
    """End the session. It needs no token: nothing is lost if another site could do it."""
    site: Site = request.app.state.console
    try:
        await read_form(request)
        await asyncio.to_thread(_sign_out, site, request.cookies.get(COOKIE, ""))
    except Exception as error:
        return error_page(request, error, None)
    response = RedirectResponse(f"{ROOT}/sign-in?done=signed-out", 303)
    response.delete_cookie(COOKIE, path=ROOT)
    return response


async def get_static(request: Request) -> Response:
    """Serve a style sheet, a script or an icon."""
    name = request.path_params["name"]
    if name not in STATIC_TYPES:
        return error_page(request, ConsoleError(404, "There is no such file."), None)
    headers = {"cache-control": f"public, max-age={_STATIC_S}, immutable"}
    site: Site = request.app.state.console
    return Response(site.static[name], media_type=STATIC_TYPES[name], headers=headers)


async def get_unknown(request: Request) -> Response:
    """Serve a path that has no page."""
    return error_page(request, ConsoleError(404, "There is no such page."), None)


def _sign_in(site: Site, secret: str) -> str | None:
    with broker_errors(site.url):
        return sign_in(site.stores, secret, ttl_s=site.settings.gateway_console_session_s)


def _sign_out(site: Site, cookie: str) -> None:
    with broker_errors(site.url):
        sign_out(site.stores, cookie)


def _own_path(path: str) -> str:
    """Return a path below the console; empty for anything else, such as `//example.com`."""
    is_own = path.startswith("/") and not path.startswith("//") and path.isprintable()
    return path if is_own and "\\" not in path and not path.startswith("/sign-") else ""


def _is_https(request: Request) -> bool:
    # A proxy that ends TLS says so. A client that lies gets a cookie that it cannot use.
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
