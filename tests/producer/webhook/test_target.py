"""Webhook targets: forbidden address ranges, refused URLs, and what the operator may allow."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from AntiSSRF.ipaddress_ranges import IPAddressRanges
from pydantic import ValidationError

from batchmill.producer import JobRejected
from batchmill.producer.job.validation import parse_job
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import prepare
from batchmill.producer.webhook.address_ranges import SPECIAL_RANGES, Network, is_forbidden
from batchmill.producer.webhook.target import ForbiddenTarget, TargetPolicy, read_target

STRICT = TargetPolicy()


def test_range_list_equals_its_source() -> None:
    assert sorted(map(str, SPECIAL_RANGES)) == sorted(IPAddressRanges.recommended_v1)
    assert len(SPECIAL_RANGES) == 35


@pytest.mark.parametrize("network", SPECIAL_RANGES, ids=str)
def test_first_and_last_address_of_every_range_are_forbidden(network: Network) -> None:
    assert is_forbidden(network[0])
    assert is_forbidden(network[-1])


@pytest.mark.parametrize(
    "text",
    [
        "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255",
        "128.0.0.0", "168.63.129.15", "168.63.129.17", "172.15.255.255", "172.32.0.0",
        "192.167.255.255", "192.169.0.0", "223.255.255.255", "2001:200::", "2003::1",
        "2606:4700:4700::1111", "::ffff:1.1.1.1",
    ],
)  # fmt: skip
def test_public_addresses_beside_the_ranges_are_allowed(text: str) -> None:
    assert not is_forbidden(ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "::127.0.0.1", "fec0::1", "3fff::1",
        "5f00::1", "192.88.99.3", "224.0.0.1", "ff02::1", "168.63.129.16", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "2001::7f00:1", "::",
    ],
)  # fmt: skip
def test_addresses_that_the_standard_library_calls_global_are_forbidden(text: str) -> None:
    assert is_forbidden(ip_address(text))


def test_the_operator_allows_a_network_and_its_mapped_addresses_only() -> None:
    allowed = [ip_network("10.1.0.0/16")]
    assert not is_forbidden(ip_address("10.1.2.3"), allowed)
    assert not is_forbidden(ip_address("::ffff:10.1.2.3"), allowed)
    assert is_forbidden(ip_address("10.2.0.0"), allowed)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://127.0.0.1/", "refused_address"),
        ("https://127.1/", "refused_address"),
        ("https://2130706433/", "refused_address"),
        ("https://0x7f000001/", "refused_address"),
        ("https://0x7f.0.0.1/", "refused_address"),
        ("https://0177.0.0.1/", "refused_address"),
        ("https://017700000001/", "refused_address"),
        ("https://0/", "refused_address"),
        ("https://127.0.0.1./", "refused_address"),
        ("https://169.254.169.254/latest/meta-data/", "refused_address"),
        ("https://[::1]/", "refused_address"),
        ("https://[::]/", "refused_address"),
        ("https://[::ffff:127.0.0.1]/", "refused_address"),
        ("https://[0:0:0:0:0:ffff:7f00:1]/", "refused_address"),
        ("https://[::127.0.0.1]/", "refused_address"),
        ("https://[64:ff9b::127.0.0.1]/", "refused_address"),
        ("https://[2002:7f00:1::]/", "refused_address"),
        ("https://[2001:0:7f00:1::]/", "refused_address"),
        ("https://[fec0::1]/", "refused_address"),
        ("https://[fd00:ec2::254]/", "refused_address"),
        ("https://[fe80::1%25eth0]/", "refused_url"),
        ("https://[fe80::1%eth0]/", "refused_url"),
        ("https://[v1.fe]/", "refused_url"),
        ("https://[127.0.0.1]/", "refused_url"),
        ("https://1.2.3.4.5/", "refused_url"),
        ("https://256.256.256.256/", "refused_url"),
        ("https://4294967296/", "refused_url"),
        ("https://0x/", "refused_url"),
        ("https://user@example.com/", "refused_url"),
        ("https://@example.com/", "refused_url"),
        ("https://example.com@127.0.0.1/", "refused_url"),
        ("https://example.com\\@127.0.0.1/", "refused_url"),
        ("https://127.0.0.1#@example.com/", "refused_url"),
        ("https://example.com/#", "refused_url"),
        ("https://ex%61mple.com/", "refused_url"),
        ("https://127%2e0%2e0%2e1/", "refused_url"),
        ("https://\u2460\u2461\u2466.0.0.1/", "refused_url"),
        ("https://example\u3002com/", "refused_url"),
        ("https://example.com/\r\nHost: inner", "refused_url"),
        ("https://example.com\t/", "refused_url"),
        (" https://example.com/", "refused_url"),
        ("https://example..com/", "refused_url"),
        ("https://-example.com/", "refused_url"),
        ("https://" + "a." * 130 + "com/", "refused_url"),
        ("https://example.com:22/", "refused_port"),
        ("https://example.com:6379/", "refused_port"),
        ("https://example.com:0/", "refused_port"),
        ("https://example.com:65536/", "refused_url"),
        ("https://example.com:+443/", "refused_url"),
        ("http://example.com/", "refused_scheme"),
        ("file:///etc/passwd", "refused_scheme"),
        ("gopher://example.com/", "refused_scheme"),
        ("example.com", "refused_scheme"),
        ("//example.com/", "refused_scheme"),
        ("https:///path", "refused_url"),
        ("https:example.com", "refused_url"),
        ("", "refused_scheme"),
    ],
)
def test_a_forbidden_url_is_refused_at_submit_under_its_field(url: str, reason: str) -> None:
    with pytest.raises(ForbiddenTarget) as caught:
        read_target(url, STRICT)
    assert caught.value.reason == reason
    with pytest.raises(JobRejected) as rejected:
        prepare(parse_job({"prompt": "hi", "webhook": url}), ProducerSettings())
    assert rejected.value.param == "webhook"


@pytest.mark.parametrize(
    ("url", "host", "port", "header", "path"),
    [
        ("https://Example.COM", "example.com", 443, "example.com", "/"),
        ("https://example.com./a?b=c&d", "example.com", 443, "example.com", "/a?b=c&d"),
        ("https://xn--exmple-cua.com:443/", "xn--exmple-cua.com", 443, "xn--exmple-cua.com", "/"),
        ("https://a_b.example:80/x//y", "a_b.example", 80, "a_b.example:80", "/x//y"),
        ("https://1.1.1.1/", "1.1.1.1", 443, "1.1.1.1", "/"),
        ("https://0x1010101/", "1.1.1.1", 443, "1.1.1.1", "/"),
        ("https://[2606:4700::1111]:80/", "2606:4700::1111", 80, "[2606:4700::1111]:80", "/"),
    ],
)
def test_a_public_url_is_split_into_its_parts(
    url: str, host: str, port: int, header: str, path: str
) -> None:
    target = read_target(url, STRICT)
    assert (target.host, target.port, target.host_header, target.path) == (host, port, header, path)


def test_settings_open_ports_networks_and_plain_http() -> None:
    settings = ProducerSettings.model_validate(
        {
            "webhook_allow_http": True,
            "webhook_allow_ports": "8443, 9000-9100",
            "webhook_allow_networks": "10.1.0.0/16,::1/128",
        }
    )
    policy = settings.target_policy
    for url in ("http://10.1.2.3:9100/", "https://[::1]:8443/", "http://example.com/"):
        assert read_target(url, policy)
    for url in ("http://10.1.2.3:9101/", "http://10.2.0.1/", "https://[::2]/"):
        with pytest.raises(ForbiddenTarget):
            read_target(url, policy)


@pytest.mark.parametrize(
    "field", [{"ports": "0"}, {"ports": "90-80"}, {"ports": "70000"}, {"ports": "http"},
              {"networks": "10.1.2.3/16"}, {"networks": "here"}],
)  # fmt: skip
def test_malformed_settings_are_refused(field: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="webhook_allow"):
        ProducerSettings.model_validate({f"webhook_allow_{k}": v for k, v in field.items()})
