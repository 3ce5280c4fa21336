"""What is wrong with a TLS connection to the broker, in words that say what to change."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

#: Options of a `rediss://` URL that name files.
_FILE_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
#: OpenSSL's number for a certificate that belongs to another name or address.
_NAME_MISMATCHES = frozenset({62, 64})
#: How redis-py says that a server has closed a connection.
_CLOSED = "Connection closed by server"


def tls_problem(url: str, error: BaseException) -> str | None:
    """Return why TLS failed and the remedy, to follow "the broker …"; None if it is something else.

    Args:
        url: the broker's URL.
        error: an error of redis-py.
    """
    if url.startswith("redis:"):
        if any(_is_end(cause) for cause in _causes(error)):
            return f"closes the connection: {error}; if it expects TLS, use rediss:// in the URL"
        return None
    if not url.startswith("rediss:"):
        return None
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _untrusted(cause)
        if isinstance(cause, FileNotFoundError | PermissionError):
            return _unreadable(url, cause)
        if isinstance(cause, ssl.SSLError) and cause.library in ("PEM", "X509"):
            return _unreadable(url, cause)
        if isinstance(cause, ssl.SSLError) or _is_end(cause):
            return _failed(url, cause)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from. redis-py does not name the cause of each."""
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _is_end(error: BaseException) -> bool:
    """Return whether the server has closed the connection."""
    return isinstance(error, ConnectionResetError) or str(error).startswith(_CLOSED)


def _untrusted(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _NAME_MISMATCHES:
        return (
            f"has a certificate for another name ({error.verify_message}); use a host name in the "
            "URL that the certificate has"
        )
    return (
        f"has a certificate that is not trusted ({error.verify_message}); name the file of its "
        "authority in the URL (ssl_ca_certs=/path/ca.crt) or in SSL_CERT_FILE"
    )


def _unreadable(url: str, error: OSError) -> str:
    options = dict(parse_qsl(urlsplit(url).query))
    named = ", ".join(f"{name}={options[name]}" for name in _FILE_OPTIONS if name in options)
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return f"cannot be reached: a file of the URL cannot be used ({named}): {reason}"


def _failed(url: str, error: BaseException) -> str:
    if "ssl_certfile" in urlsplit(url).query:
        remedy = "check its certificate, and that the server trusts the authority of yours"
    else:
        remedy = "if it asks for a certificate of the client, give ssl_certfile and ssl_keyfile"
    return f"ends the TLS connection ({error}); {remedy}. Without TLS, use redis:// in the URL"
