"""Documents: trust bundles as JSON and as PEM, configuration as YAML."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

from pydantic import BaseModel

from ca.errors import ConfigError, InvalidArgument
from ca.identity import bundle_json, bundle_pem
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import TrustDomain
from ca.runtime.config import from_values, load_yaml
from ca.runtime.server_config import ServerConfig
from sds.config import AgentConfig
from tests.fuzz.harness import Target, outcome, text_of

TD = TrustDomain("example.org")


def run_bundle(data: bytes) -> None:
    bundle = outcome(bundle_json.parse_spiffe_bundle, data, TD, refusal=InvalidArgument)
    workload = outcome(bundle_json.parse_workload_jwks, data, TD, refusal=InvalidArgument)
    if bundle is not None:
        assert workload is not None, "the same keys are read twice and refused once"
        written = outcome(bundle_json.format_spiffe_bundle, bundle, refusal=InvalidArgument)
        if written is not None:
            assert bundle_json.parse_spiffe_bundle(written, TD) == bundle
    if workload is not None:
        jwks = bundle_json.format_jwks(workload)
        assert bundle_json.parse_workload_jwks(jwks, TD) == workload
        as_bundle = bundle_json.parse_spiffe_bundle(jwks, TD)
        assert replace(as_bundle, refresh_hint_seconds=0, sequence_number=0) == workload
        assert len(json.loads(bundle_json.format_oidc_jwks(workload))["keys"]) == len(workload.jwt_authorities)
        assert not workload.x509_authorities


def run_pem(data: bytes) -> None:
    bundle = outcome(bundle_pem.parse_pem, data, TD, refusal=InvalidArgument)
    text = text_of(data)
    assert (outcome(bundle_pem.parse_pem, text, TD, refusal=InvalidArgument) is None) == (bundle is None)
    if bundle is not None:
        assert bundle.x509_authorities
        assert bundle_pem.parse_pem(bundle_pem.format_pem(bundle), TD) == bundle
        _through_json(bundle)


def _through_json(bundle: TrustBundle) -> None:
    written = outcome(bundle_json.format_spiffe_bundle, bundle, refusal=InvalidArgument)
    assert written is None or bundle_json.parse_spiffe_bundle(written, TD) == bundle


def run_config(data: bytes) -> None:
    text = data.decode("utf-8", "replace")  # a file that is not UTF-8 is refused before
    for model in (ServerConfig, AgentConfig):
        outcome(partial(_load, text, model), refusal=ConfigError)


def _load(text: str, model: type[BaseModel]) -> None:
    config = load_yaml(text, model)
    again = from_values(config.model_dump(mode="json"), model)
    assert again == config


_JSON = (
    *(b'"keys"', b'"use"', b'"x509-svid"', b'"jwt-svid"', b'"x5c"', b'"kid"', b'"kty"', b'"EC"', b'"RSA"', b'"OKP"'),
    *(b'"crv"', b'"P-521"', b'"spiffe_sequence"', b'"spiffe_refresh_hint"', b"\\ud800", b"NaN", b"1e999"),
)
_PEM = (b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n", b"-----BEGIN ", b"\r\n", b"==")
_YAML = (
    *(b"!!int ", b"!!float ", b"!!binary ", b"!!timestamp ", b"!!set ", b"!!python/none ", b"&a ", b"*a", b"<<: "),
    *(b"? ", b"- ", b"|\n", b">-\n", b"---\n", b"%YAML 1.1\n", b"trust_domain: ", b"data_dir: ", b"servers: "),
    *(b"~", b"'", b'"\\x00"', b'"\\U00110000"', b"0x1F", b"1e5", b".inf", b"9" * 30),
)

TARGETS = (
    Target(name="bundle_json", run=run_bundle, words=_JSON),
    Target(name="bundle_pem", run=run_pem, words=_PEM),
    Target(name="config", run=run_config, words=_YAML),
)
