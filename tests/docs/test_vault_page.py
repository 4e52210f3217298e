"""The commands of the page about keys in Vault, run as they stand with the real program, let a server in."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from ca.keys import vault_transit
from ca.ports import Connected, KeyType
from ca.runtime.config import from_values
from tests.support.authority_host import authority_host
from tests.support.openbao import OpenBao, need_openbao, openbao
from tests.support.transit import PAGE, documented_policy


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def run(bao: OpenBao, directory: Path, command: str) -> str:
    environment = {
        "BAO_ADDR": bao.address,
        "BAO_TOKEN": bao.root_token,
        "HOME": str(directory),
        "PATH": f"{need_openbao().parent}:/usr/bin:/bin",
    }
    done = subprocess.run(
        ["bash", "-euc", command], cwd=directory, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout.strip()


@pytest.mark.real("OpenBao")
async def test_the_commands_of_the_page_let_a_server_in(tmp_path: Path) -> None:
    (tmp_path / "burgee.hcl").write_text(documented_policy())
    with openbao() as bao:
        said = [run(bao, tmp_path, line.replace("/etc/burgee", str(tmp_path))) for line in block("sh").splitlines()]
        role_id = next(text for text in said if re.fullmatch(r"[0-9a-f-]{36}", text))
        written = yaml.safe_load(block("yaml"))["keys"]
        assert written["plugin"] == vault_transit.plugin.name
        values = written["config"]
        from_values(values, vault_transit.plugin.config)
        values["address"], values["ca_file"] = bao.address, None
        values["auth"]["approle"]["role_id"] = role_id
        values["auth"]["approle"]["secret_id_file"] = str(tmp_path / "vault-secret-id")
        manager = vault_transit.plugin.manager(
            from_values(values, vault_transit.plugin.config), authority_host(tmp_path)
        )
        assert isinstance(manager, Connected)
        await manager.start()
        await manager.generate("k", KeyType.EC_P256)
        assert list(await manager.list()) == ["k"]
        await manager.delete("k")
        await manager.close()
