"""What the reasons of failed deliveries mean, in words, and what to do about each."""

from __future__ import annotations

from http import HTTPStatus

from batchmill.producer.webhook.needed_settings import needed_settings

_REASONS = {
    "look_up": "the host name could not be resolved; check the URL, and the DNS of the deliverer's "
    "machine",
    "connect": "no connection: nothing listens at this host and port, or a firewall is in between; "
    "start the receiver, or correct the URL",
    "tls": "the TLS handshake failed; check the receiver's certificate, or name its authority in "
    "SSL_CERT_FILE",
    "timeout": "no response in time; respond first and work afterwards, or raise "
    "BATCHMILL_WEBHOOK_TOTAL_TIMEOUT_S",
    "no_response": "the receiver closed the connection without a response; its log says why",
    "protocol": "the response is not HTTP; check the scheme and the port of the URL",
    "head_too_long": "the head of the response has more than 64 KiB; let the receiver send less",
    "refused_url": "the URL is malformed; no setting allows it",
    "refused_receiver": "the registered receiver was deleted before the event was delivered",
    "unknown_secret": "the deliverer has no secret of this name; add it to "
    "BATCHMILL_WEBHOOK_SECRETS",
    "missing_key": "the event is sealed with an encryption key that the deliverer does not have; "
    "add it to BATCHMILL_ENCRYPTION_KEYS",
    "payload_missing": "the job's result is in an object store, and is not there or the deliverer "
    "has no store; set BATCHMILL_PAYLOAD_URL as for the workers",
    "payload_unreachable": "the object store with the job's result did not respond in time; see "
    "whether the deliverer can reach it",
    "integrity": "the event's body was changed in Redis after it was sealed; find out who writes "
    "to Redis",
    "internal": "the attempt failed in the deliverer; its log has the traceback "
    "(webhook_attempt_broke)",
    "endpoint_disabled": "not attempted, because the endpoint is disabled; enable it with "
    "`batchmill webhooks enable URL`",
    "unusable_event": "the event in Redis has a field that batchmill did not write",
}
_REFUSED = {
    "refused_scheme": "only https is allowed",
    "refused_port": "the port is not allowed",
    "refused_address": "the address is not public, and its network is not allowed",
}
_STATUSES = {
    301: "use the URL that the redirect names",
    302: "use the URL that the redirect names",
    307: "use the URL that the redirect names",
    308: "use the URL that the redirect names",
    401: "check that the receiver has the deliverer's secret and the right time",
    403: "check that the receiver has the deliverer's secret and the right time",
    404: "check the path of the URL",
    405: "the receiver must accept POST at this path",
    410: "the receiver wants no more events; `batchmill webhooks enable URL` enables the endpoint",
    413: "let the receiver accept bodies of 64 KiB",
    429: "the receiver is overloaded",
    503: "the receiver is overloaded or stopped",
}


def explain(reason: str, url: str = "", *, restart: str = "") -> str:
    """Return what a reason means and the remedy; a reason that is not known is returned as it is.

    Args:
        reason: one word of an event's log, such as `http_500` or `refused_port`.
        url: the webhook, of which a refusal names the settings that it needs.
        restart: what has to be started with those settings; empty for the command itself.
    """
    if reason in _REFUSED:
        return f"{_REFUSED[reason]}; {_how_to_allow(url, restart)}"
    if reason.startswith("http_") and reason[5:].isdecimal():
        return _explain_status(int(reason[5:]))
    return _REASONS.get(reason, reason)


def all_reasons() -> dict[str, str]:
    """Return every reason with its meaning and remedy, for the reference of error codes."""
    refused = {
        reason: f"{meaning}; the operator can allow it (`BATCHMILL_WEBHOOK_ALLOW_…`)"
        for reason, meaning in _REFUSED.items()
    }
    statuses = {f"http_{status}": _explain_status(status) for status in _STATUSES}
    return _REASONS | refused | statuses


def _how_to_allow(url: str, restart: str) -> str:
    settings = " ".join(needed_settings(url))
    if not settings:
        return (
            "for a receiver on your own network, set BATCHMILL_WEBHOOK_ALLOW_NETWORKS to its "
            f"network{' and restart ' + restart if restart else ''}"
        )
    return f"restart {restart} with {settings}" if restart else f"set {settings}"


def _explain_status(status: int) -> str:
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    said = f"the receiver responded with {status}{phrase}"
    if 200 <= status < 300:
        return said
    remedy = _STATUSES.get(status)
    if remedy is None:
        remedy = "a redirect is not followed" if status < 400 else "its log says why"
    return f"{said}; {remedy}"
