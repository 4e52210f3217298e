"""Ratios that cannot work are told before anything runs, those of an upstream too."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca.errors import ConfigError, FailedPrecondition
from ca.identity.bundle_pem import certificate_pem
from ca.runtime.config import from_values
from ca.runtime.server_config import ServerConfig
from ca.serve import main
from ca.service.configured import check, consumer_waits, foresee, has_files
from tests.ca.identity import forge
from tests.ca.identity.forge import NOW

DAY = 86_400


def config(**changes: Any) -> ServerConfig:
    values: dict[str, Any] = {"trust_domain": "example.org", "data_dir": "/nonexistent", **changes}
    return from_values(values, ServerConfig)


def below(directory: Path, life: timedelta) -> dict[str, Any]:
    """A disk upstream whose root lives so long from now on."""
    root = forge.root("root", not_after=NOW + life)
    (directory / "root.pem").write_text(certificate_pem(root.der))
    key = root.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "root.key").write_bytes(key)
    (directory / "root.key").chmod(0o600)
    files = {"certificate_file": str(directory / "root.pem"), "key_file": str(directory / "root.key")}
    return {"plugin": "disk", "config": files}


def test_a_wait_must_fit_before_the_activation() -> None:
    check(config(consumer_waits={"files_seconds": DAY // 3}))
    with pytest.raises(ConfigError) as refused:
        check(config(consumer_waits={"files_seconds": DAY // 3 + 1}))
    assert refused.value.reason == "TTL_IMPOSSIBLE"
    assert refused.value.hint == "set ca_ttl_seconds to 86403 or more, or consumer_waits.files_seconds to 28800 or less"


def test_a_wait_that_nobody_chose_is_no_reason_to_refuse() -> None:
    short = config(ca_ttl_seconds=60, x509_svid_ttl_seconds=10, jwt_svid_ttl_seconds=10, agent_ttl_seconds=10)
    check(short)
    assert consumer_waits(short).downstream == timedelta(seconds=120)


def test_proxies_of_istio_have_the_life_of_their_certificates_unless_somebody_says() -> None:
    istio = {"dns_names": ["ca.test"], "clusters": {"a": {"namespaces": ["*"], "kube_config_file": "/k"}}}
    assert consumer_waits(config()).istio_proxies == timedelta()
    assert consumer_waits(config(istio={**istio, "max_ttl_seconds": 1800})).istio_proxies == timedelta(seconds=1800)
    for seconds in (0, 900):
        said = config(istio=istio, consumer_waits={"istio_proxies_seconds": seconds})
        assert consumer_waits(said).istio_proxies == timedelta(seconds=seconds)
    check(config(consumer_waits={"istio_proxies_seconds": None}))
    with pytest.raises(ConfigError, match="istio_proxies_seconds"):
        check(config(consumer_waits={"istio_proxies_seconds": DAY // 3 + 1}))


def test_readers_of_any_copy_of_the_bundle_are_waited_for(tmp_path: Path) -> None:
    """They cannot say that they have a new authority, wherever the copy is: a ConfigMap is one, too."""
    assert not has_files(config())
    assert has_files(config(bundle_file=str(tmp_path / "bundle.pem")))
    assert has_files(config(bundle_publishers={"pods": {"plugin": "k8s_configmap"}}))


def test_an_upstream_that_ends_too_soon_is_told(tmp_path: Path) -> None:
    foresee(config(upstream=below(tmp_path, timedelta(hours=6))), NOW)
    ending = config(upstream=below(tmp_path, timedelta(hours=6) - timedelta(seconds=1)))
    check(ending)  # no reason not to start: it goes on with what it has
    with pytest.raises(ConfigError) as refused:
        foresee(ending, NOW)
    assert refused.value.reason == "TTL_IMPOSSIBLE"
    assert "in 21599 s: too soon for SVIDs of 3600 s" in refused.value.detail


def test_what_cannot_be_read_here_is_not_judged(tmp_path: Path) -> None:
    upstream = below(tmp_path, timedelta(seconds=1))
    (tmp_path / "root.key").unlink()
    foresee(config(upstream=upstream), NOW)
    foresee(config(), NOW)


def test_files_that_do_not_belong_together_are_told(tmp_path: Path) -> None:
    upstream = below(tmp_path, timedelta(days=1))
    other = forge.root("other")
    (tmp_path / "root.pem").write_text(certificate_pem(other.der))
    with pytest.raises(FailedPrecondition):
        foresee(config(upstream=upstream), NOW)


def test_the_check_of_a_file_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upstream = below(tmp_path, timedelta(hours=1))  # over long ago
    files = "".join(f"    {name}: {path}\n" for name, path in upstream["config"].items())
    file = tmp_path / "server.yaml"
    file.write_text(f"trust_domain: example.org\ndata_dir: {tmp_path}/d\nupstream:\n  plugin: disk\n  config:\n{files}")
    assert main(["--config", str(file), "--check"]) == 2
    assert "too soon for SVIDs of 3600 s (TTL_IMPOSSIBLE)" in capsys.readouterr().err
