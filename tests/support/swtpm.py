"""Software TPMs on Unix sockets, each with an endorsement certificate and a DevID, provisioned with tpm2-tools."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from tests.support.device_ca import DeviceCa
from tests.support.launching import dying_with_us
from tests.support.real import require

HOW = "apt-get install swtpm swtpm-tools tpm2-tools libtss2-tcti-swtpm0"
EK_RSA, EK_ECC = "0x1c00002", "0x1c0000a"
STORAGE = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
SIGNING = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
DEVIDS = {"rsa": ("rsa2048", "rsa2048:rsassa-sha256"), "ecc": ("ecc256", "ecc256:ecdsa-sha256")}
"""Kind → (storage key, DevID key), as tpm2-tools call them."""


def need_swtpm() -> None:
    """Skips (or fails) where the emulator or the tools are not installed."""
    require("swtpm", all(map(shutil.which, ("swtpm", "swtpm_setup", "tpm2_createek"))), HOW)


class SoftTpm:
    """One TPM, running, in a short directory of its own; if `manufactured`, with what `swtpm_setup` puts into it."""

    def __init__(self, *, manufactured: bool = False) -> None:
        need_swtpm()
        self.home = Path(tempfile.mkdtemp(prefix="bg-tpm-"))
        self.socket = self.home / "t"
        (self.home / "state").mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        if manufactured:
            self._manufacture()
        self.start()

    @property
    def manufacturer(self) -> Path:
        """The CA of `swtpm_setup`, which signed the endorsement certificate of a manufactured TPM."""
        return self.home / "config/var/lib/swtpm-localca/issuercert.pem"

    def _manufacture(self) -> None:
        """As whoever runs virtual machines does: certificates by swtpm's own local CA, which is not ours."""
        config = self.home / "config"
        config.mkdir()
        environment = os.environ | {"XDG_CONFIG_HOME": str(config)}
        made = ["--tpm2", "--tpmstate", str(self.home / "state"), "--create-ek-cert"]
        for arguments in (["--create-config-files", "root"], [*made, "--config", str(config / "swtpm_setup.conf")]):
            command = ["swtpm_setup", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Also after `stop`: what is kept in the TPM is kept."""
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.home}/state", "--flags", "startup-clear"]
        command += ["--server", f"type=unixio,path={self.socket}", "--ctrl", f"type=unixio,path={self.socket}.ctrl"]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(dying_with_us(command), stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not self.socket.exists() or not Path(f"{self.socket}.ctrl").exists():
            assert self._process.poll() is None, (self.home / "log").read_text()
            assert time.monotonic() < deadline, "swtpm does not listen"
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)
            self._process = None
            for left in (self.socket, Path(f"{self.socket}.ctrl")):
                left.unlink(missing_ok=True)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """For tools that shall talk to this TPM."""
        return os.environ | {"TPM2TOOLS_TCTI": f"swtpm:path={self.socket}"}

    def tool(self, name: str, *arguments: str | Path) -> str:
        """Runs one of tpm2-tools and unloads what it left: there is no resource manager here."""
        out = self._run(name, *arguments)
        if name not in ("tpm2_flushcontext", "tpm2_getcap"):
            self._run("tpm2_flushcontext", "-t")
        return out

    def _run(self, name: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [name, *map(str, arguments)],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
        return done.stdout

    def loaded(self) -> str:
        """Handles of keys and sessions in the TPM: empty when whoever used it has cleaned up."""
        return self.tool("tpm2_getcap", "handles-transient") + self.tool("tpm2_getcap", "handles-loaded-session")

    def endorse(self, ca: DeviceCa, kind: str = "rsa", **changes: Any) -> bytes:
        """Certifies the endorsement key and stores the certificate (DER) where it belongs; gives it."""
        self.tool("tpm2_createek", "-G", kind, "-c", "ek.ctx", "-u", "ek.der", "-f", "der", *changes.pop("auth", ()))
        key = load_der_public_key((self.home / "ek.der").read_bytes())
        der = ca.endorsement(key, **changes).public_bytes(Encoding.DER)
        (self.home / "ek.crt").write_bytes(der)
        index, access = EK_RSA if kind == "rsa" else EK_ECC, "authread|authwrite|ownerread|ownerwrite|no_da"
        self.tool("tpm2_nvdefine", index, "-C", "o", "-s", str(len(der)), "-a", access)
        self.tool("tpm2_nvwrite", index, "-C", "o", "-i", "ek.crt")
        return der

    def provision(
        self, ca: DeviceCa, *, kind: str = "rsa", name: str = "devid", attributes: str = SIGNING, password: str = ""
    ) -> None:
        """A DevID: `<name>.pub`, `.priv`, and `.pem` with its certificate by `ca`."""
        parent, key = DEVIDS[kind]
        self.tool("tpm2_createprimary", "-C", "o", "-G", parent, "-a", STORAGE, "-c", "srk.ctx")
        secret = ["-p", password] if password else []
        files = ["-u", f"{name}.pub", "-r", f"{name}.priv"]
        self.tool("tpm2_create", "-C", "srk.ctx", "-G", key, "-a", attributes, *files, *secret)
        self.tool("tpm2_load", "-C", "srk.ctx", *files, "-c", f"{name}.ctx")
        self.tool("tpm2_readpublic", "-c", f"{name}.ctx", "-f", "der", "-o", f"{name}.der")
        public = load_der_public_key((self.home / f"{name}.der").read_bytes())
        certificate = ca.devid(public, common_name=f"{name}-42").public_bytes(Encoding.PEM)
        (self.home / f"{name}.pem").write_bytes(certificate)

    def agent(self, name: str = "devid", **more: Any) -> dict[str, Any]:
        """The plugin's configuration on this machine."""
        files = {"cert": "pem", "priv": "priv", "pub": "pub"}
        paths = {f"devid_{key}_path": str(self.home / f"{name}.{ending}") for key, ending in files.items()}
        return {"tpm_device_path": str(self.socket), **paths, **more}


class Factory:
    """Both authorities, and TPMs that they vouch for."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="bg-tpm-ca-"))
        self.manufacturer, self.owner = DeviceCa("TPM manufacturer"), DeviceCa("DevID CA")
        self.made: list[SoftTpm] = []
        self.server = {
            "devid_ca_path": str(self.owner.write(self.home / "devid-ca.pem")),
            "endorsement_ca_path": str(self.manufacturer.write(self.home / "ek-ca.pem")),
        }
        atexit.register(self.close)

    def tpm(self, *, ek: str = "rsa", devid: str = "rsa") -> SoftTpm:
        made = SoftTpm()
        self.made.append(made)
        made.endorse(self.manufacturer, ek)
        made.provision(self.owner, kind=devid)
        return made

    def close(self) -> None:
        for one in self.made:
            one.remove()
        shutil.rmtree(self.home, ignore_errors=True)


@cache
def factory() -> Factory:
    """One for the whole process. Skips where there is no emulator."""
    need_swtpm()
    return Factory()


@cache
def usual_tpm() -> SoftTpm:
    """A TPM with an RSA endorsement key and an RSA DevID, for whoever only reads it."""
    need_swtpm()
    return factory().tpm()
