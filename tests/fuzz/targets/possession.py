"""What nodes send to prove what they have, and the templates that name them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature

from attestor.node.http_challenge import Place, _place
from attestor.node.node_certificate import parse_node_certificate
from attestor.node.path_template import PathTemplate
from attestor.node.possession import answer_members, challenge_members, nonce_of, octets, payload_members
from attestor.node.ssh_certificate import HostCertificate, parse_host_certificate, parse_key, verify_signature
from ca.errors import BurgeeError, Denied, InvalidArgument
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from tests.fuzz.harness import Target, check_refusal, outcome, text_of

FIELDS = frozenset({"PluginName", "Fingerprint", "Subject.CommonName", "SAN.*", "SVIDPathTrimmed"})
NOW = datetime(2026, 11, 26, tzinfo=UTC)


def run_path_template(data: bytes) -> None:
    """A template, and after an empty line the value of every field."""
    text, _, value = text_of(data).partition("\n\n")
    template = None
    with suppress(ValueError):  # as a configuration's model says it
        template = PathTemplate.parse(text, FIELDS, paths=frozenset({"SVIDPathTrimmed"}))
    if template is None:
        return
    values = dict.fromkeys([*FIELDS, "SAN.x"], value) | {"PluginName": "p"}
    path = outcome(template.render, values, refusal=Denied)
    if path is not None:
        assert path.startswith("/spire/agent/")
        assert SpiffeId.of(TrustDomain("t"), path).path == path


def run_node_payload(data: bytes) -> None:
    for members in (payload_members, answer_members, challenge_members):
        found = outcome(members, data, refusal=InvalidArgument)
        for value in (found or {}).values():
            with suppress(ValueError):
                assert octets(value, "x") is not None
                assert len(nonce_of(value, "x")) == 32
    place = outcome(_place, data, refusal=InvalidArgument)
    if place is not None:
        _check_place(place)


def run_node_certificate(data: bytes) -> None:
    """One of X.509, one of OpenSSH, and a line of `authorized_keys`."""
    x509 = _parsed(lambda: parse_node_certificate(data, max_rsa_bits=8192))
    if x509 is not None:
        assert x509.der == data
        assert re.fullmatch(r"(?:[0-9a-f]{2})+", x509.serial_hex)
        assert x509.common_name is not None
    ssh = _parsed(lambda: parse_host_certificate(data))
    if ssh is not None:
        _check_host(ssh, data)
    with suppress(ValueError):
        assert parse_key(text_of(data)) != b""


def _parsed(parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except BurgeeError as error:
        check_refusal(error, InvalidArgument, Denied)
        return None


def _check_host(found: HostCertificate, data: bytes) -> None:
    assert found.blob == data
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", found.fingerprint)
    outcome(found.verify, (found.authority,), now=NOW, refusal=Denied)
    with suppress(ValueError, InvalidSignature):
        verify_signature(found.key, "ssh-ed25519", data[-64:], data)


def _check_place(place: Place) -> None:
    assert place.hostname == place.hostname.lower()
    assert re.fullmatch(r"[a-z0-9_.-]+", place.hostname)
    assert not place.hostname[-1].isdigit() or not place.hostname.rpartition(".")[2].isdigit()
    assert re.fullmatch(r"[a-z0-9._-]{1,64}", place.agentname)
    assert "/" not in place.agentname
    assert place.agentname not in (".", "..")
    assert 0 < place.port < 65536


_PIECES = (
    "{{",
    "}}",
    " | ",
    ".Fingerprint",
    ".SAN.x",
    "/{{ .PluginName }}/",
    "replace",
    "trunc",
    '"a"',
    "`/`",
    "(",
    ")",
)
_NAMES = ('{"Certificate":', '"certificates":[', '"Nonce":', '"Signature":{"Format":', '"hostname":', '"port":80', "==")
_KINDS = ("ssh-ed25519-cert-v01@openssh.com", "ecdsa-sha2-nistp256", "rsa-sha2-512", "\0\0\0\x20", "cert-authority ")
TARGETS = (
    Target(name="path_template", run=run_path_template, words=tuple(one.encode() for one in _PIECES)),
    Target(name="node_payload", run=run_node_payload, words=tuple(one.encode() for one in _NAMES)),
    Target(name="node_certificate", run=run_node_certificate, words=tuple(one.encode() for one in _KINDS)),
)
