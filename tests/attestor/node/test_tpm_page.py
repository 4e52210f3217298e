"""The page of tpm_devid: its tables are the models', its configurations are valid, its commands provision a node."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestor.node.tpm_devid import AgentConfig, ServerConfig, TpmDevIdProver
from ca.identity.selector import Selector
from ca.runtime.config import from_values
from ca.runtime.config_reference import markdown_table
from ca.runtime.yaml_source import parse_yaml
from tests.attestor.node.tpm_lab import verifier
from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.support.real import require
from tests.support.swtpm import SoftTpm, factory, need_swtpm

PAGE = ROOT / "docs/plugins/node-attestor-tpm_devid.md"


def test_the_page_has_the_tables_of_the_models() -> None:
    page = PAGE.read_text()
    for model in (ServerConfig, AgentConfig):
        assert markdown_table(model) in page


def test_the_configurations_on_the_page_are_valid() -> None:
    server, agent = (parse_yaml(text, "page").values for text in blocks(PAGE, "yaml"))
    config = from_values(server["node_attestors"]["tpm_devid"], ServerConfig)
    assert config.pcr_policy is not None
    assert list(config.pcr_policy.policy().allowed) == [7]
    assert from_values(agent["node_attestor"]["tpm_devid"], AgentConfig)


@pytest.fixture
def bare() -> Iterator[SoftTpm]:
    """A TPM as its manufacturer delivers it."""
    need_swtpm()
    made = SoftTpm()
    try:
        made.endorse(factory().manufacturer)
        yield made
    finally:
        made.remove()


@pytest.mark.real("swtpm")
@pytest.mark.xdist_group("swtpm")
async def test_the_commands_on_the_page_provision_a_node(bare: SoftTpm) -> None:
    require("OpenSSL", shutil.which("openssl") is not None, "apt-get install openssl")
    owner = factory().owner
    owner.write(bare.home / "devid-ca.pem")
    key = owner.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (bare.home / "devid-ca.key").write_bytes(key)
    said = [_shell(bare, line) for block in blocks(PAGE, "sh") for line in block.splitlines()]
    assert any("TPM manufacturer" in text for text in said), "who signed the endorsement certificate"
    values = yaml.safe_load(said[-1])["sha256"]
    assert set(values) == {0, 2, 4, 7}
    node = TpmDevIdProver(from_values(bare.agent(), AgentConfig))
    policy = {"pcr_policy": {"pcrs": {str(index): [f"{value:064x}"] for index, value in values.items()}}}
    attested = await verifier(policy).verify(await node.payload(), node.answer)
    assert Selector("tpm_devid", "subject:cn:device-42") in attested.selectors


def _shell(machine: SoftTpm, line: str) -> str:
    """One line as it stands; here is no resource manager that would unload what it left."""
    done = subprocess.run(
        ["sh", "-c", f"{line} && tpm2_flushcontext -t"],
        cwd=Path(machine.home),
        env=machine.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout
