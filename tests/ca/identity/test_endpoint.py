"""Workload endpoint addresses: the two forms, and every near miss."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.errors import InvalidArgument
from ca.identity.endpoint import TcpEndpoint, UnixEndpoint, endpoint_address, parse_endpoint

GOOD = {
    "unix:///run/burgee/workload.sock": UnixEndpoint("/run/burgee/workload.sock"),
    "unix:/tmp/a": UnixEndpoint("/tmp/a"),
    "UNIX:///tmp/a": UnixEndpoint("/tmp/a"),
    "unix:///tmp/a%20b": UnixEndpoint("/tmp/a b"),
    "unix:////tmp/a": UnixEndpoint("//tmp/a"),
    "tcp://127.0.0.1:8000": TcpEndpoint(ipaddress.IPv4Address("127.0.0.1"), 8000),
    "tcp://[::1]:65535": TcpEndpoint(ipaddress.IPv6Address("::1"), 65535),
}

BAD = {
    "empty": "",
    "path alone": "/tmp/a",
    "http": "http://127.0.0.1:1",
    "unix with authority": "unix://foo",
    "unix with authority and path": "unix://localhost/tmp/a",
    "unix relative": "unix:tmp/sock",
    "unix without path": "unix:",
    "unix with two slashes only": "unix://",
    "unix root": "unix:///",
    "unix query": "unix:///tmp/a?b",
    "unix fragment": "unix:///tmp/a#b",
    "unix NUL": "unix:///tmp/a%00",
    "unix broken escape": "unix:///tmp/a%zz",
    "unix space": "unix:///tmp/a b",
    "unix line feed": "unix:///tmp/a\n",
    "tcp name": "tcp://localhost:1",
    "tcp without port": "tcp://127.0.0.1",
    "tcp empty port": "tcp://127.0.0.1:",
    "tcp port 0": "tcp://127.0.0.1:0",
    "tcp port 65536": "tcp://127.0.0.1:65536",
    "tcp port in words": "tcp://127.0.0.1:http",
    "tcp port in arabic digits": "tcp://127.0.0.1:\u0661",
    "tcp path": "tcp://127.0.0.1:1/",
    "tcp query": "tcp://127.0.0.1:1?a",
    "tcp fragment": "tcp://127.0.0.1:1#a",
    "tcp userinfo": "tcp://u@127.0.0.1:1",
    "tcp bare IPv6": "tcp://::1:80",
    "tcp zone": "tcp://[fe80::1%25eth0]:80",
    "tcp short IPv4": "tcp://127.1:80",
    "tcp octal IPv4": "tcp://127.0.0.01:80",
    "tcp bad IPv6": "tcp://[::1::]:80",
    "tcp without slashes": "tcp:127.0.0.1:80",
}


@pytest.mark.parametrize(("text", "endpoint"), GOOD.items())
def test_good(text: str, endpoint: UnixEndpoint | TcpEndpoint) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_bad(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_endpoint(text)
    assert caught.value.reason == "ENDPOINT_MALFORMED"


def test_text_of_an_address_is_the_address_again() -> None:
    for text in ("unix:///a/b", "tcp://1.2.3.4:5", "tcp://[::1]:5"):
        assert str(parse_endpoint(text)) == text


def test_the_environment_is_asked_when_nothing_is_given() -> None:
    environment = {"SPIFFE_ENDPOINT_SOCKET": "unix:///from/environment"}
    assert endpoint_address(environment) == UnixEndpoint("/from/environment")
    assert endpoint_address(environment, "unix:///given") == UnixEndpoint("/given")
    with pytest.raises(InvalidArgument) as caught:
        endpoint_address({})
    assert caught.value.reason == "ENDPOINT_MISSING"


@given(st.text())
def test_no_text_crashes(text: str) -> None:
    for candidate in (text, "unix:///" + text, "tcp://" + text, "tcp://1.1.1.1:" + text, "tcp://[" + text + "]:1"):
        try:
            endpoint = parse_endpoint(candidate)
        except InvalidArgument:
            continue
        assert isinstance(endpoint, TcpEndpoint) or endpoint.path.startswith("/")
