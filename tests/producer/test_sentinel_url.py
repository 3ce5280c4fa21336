"""URLs of Sentinels: what they name, what is refused, and what nobody may read in them."""

from __future__ import annotations

import ssl

import pytest

from batchmill.producer.broker_url import (
    celery_options,
    celery_tls,
    celery_url,
    redact,
    redis_url,
)
from batchmill.producer.sentinel_url import read_sentinel_url

FULL = (
    "sentinels://worker:p%40ss@s1,s2:5000,[::1]:26380/mill/3"
    "?ssl_ca_certs=/ca.crt&sentinel_username=watch&sentinel_password=hidden&socket_timeout=2"
)


def test_a_url_names_sentinels_service_database_and_login() -> None:
    service = read_sentinel_url(FULL)
    assert service.sentinels == (("s1", 26379), ("s2", 5000), ("::1", 26380))
    assert (service.service, service.database, service.has_tls) == ("mill", 3, True)
    assert service.server_url == (
        "rediss://worker:p%40ss@mill/3?ssl_ca_certs=%2Fca.crt&socket_timeout=2"
    )
    assert dict(service.sentinel_options) == {
        "username": "watch",
        "password": "hidden",
        "ssl": True,
        "ssl_ca_certs": "/ca.crt",
    }


def test_the_short_form_has_defaults() -> None:
    service = read_sentinel_url("sentinel://s1/mill")
    assert service.sentinels == (("s1", 26379),)
    assert service.server_url == "redis://mill/0"
    assert service.sentinel_options == ()


def test_celery_gets_its_own_form() -> None:
    url = "sentinel://:secret@s1,s2:5000/mill/1?sentinel_password=other"
    assert celery_url(url) == "sentinel://:secret@s1:26379;sentinel://:secret@s2:5000/1"
    assert celery_options(url) == {"master_name": "mill", "sentinel_kwargs": {"password": "other"}}
    assert celery_options("redis://host/0") == {}


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://host/0?ssl_ca_certs=/ca.crt", {}),
        ("sentinel://s1/mill?ssl_ca_certs=/ca.crt", {}),
        ("rediss://host/0", {"ssl_cert_reqs": ssl.CERT_REQUIRED}),
        ("rediss://host/0?ssl_cert_reqs=none", {"ssl_cert_reqs": "none"}),
        (
            "sentinels://s1/mill?ssl_ca_certs=/ca.crt&socket_timeout=2",
            {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca.crt"},
        ),
    ],
)
def test_celery_gets_the_options_of_tls(url: str, options: dict[str, object]) -> None:
    assert celery_tls(url) == options


def test_celery_gets_an_ipv6_address_in_brackets() -> None:
    url = celery_url("sentinel://[::1]:26380,s2/mill")
    assert url == "sentinel://[::1]:26380;sentinel://s2:26379/0"


def test_the_database_may_be_an_option() -> None:
    assert read_sentinel_url("sentinel://s1/mill/1?db=4").database == 4


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://s1",
        "sentinel://s1/",
        "sentinel:///mill",
        "sentinel://s1,/mill",
        "sentinel://s1:0/mill",
        "sentinel://s1:99999/mill",
        "sentinel://s1/mill/zero",
        "sentinel://s1/mill/0/more",
        "sentinel://s1/mill?db=zero",
        "sentinel://s1/mill?db=-1",
        "sentinel://s1/a name",
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="sentinel://") as refusal:
        redis_url(url.replace("//", "//user:hidden@", 1))
    assert "hidden" not in str(refusal.value)


def test_no_password_is_shown() -> None:
    shown = redact(FULL) + repr(read_sentinel_url(FULL))
    assert "p%40ss" not in shown
    assert "hidden" not in shown
