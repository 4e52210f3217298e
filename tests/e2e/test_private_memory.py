"""Server and agent keep their memory from other processes of their user, and nothing of theirs stops working by it.

As root these tests give up every capability first: root's are what may look all the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from tests.sds.lab import Authority
from tests.support.real import require

ROOT = Path(__file__).parents[2]

PAIR = """
import json, os, subprocess, sys
from tests.support.pair import pair

def look(pid, name):
    try:
        os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
    except PermissionError:
        return "denied"
    return "open"

with pair() as nodes:
    told = {name: {what: look(nodes.pid(name), what) for what in ("mem", "environ")} for name in nodes.processes}
    told["ourselves"] = {what: look(os.getpid(), what) for what in ("mem", "environ")}
    nodes.create_entry("/w")
    env = os.environ | {
        "BURGEE_ADMIN_SOCKET": str(nodes.admin_socket),
        "BURGEE_AGENT_SOCKET": str(nodes.agent_admin_socket),
        "SPIFFE_ENDPOINT_SOCKET": f"unix://{nodes.workload_socket}",
    }
    for words in (["svid", "fetch"], ["debug", "bundle", "--file", f"{nodes.home}/bundle.tgz"]):
        done = subprocess.run([sys.executable, "-m", "ca.cli.caadmin", *words], env=env, capture_output=True, text=True)
        told[words[0]] = {"code": done.returncode, "out": done.stdout, "err": done.stderr}
    print(json.dumps(told))
"""

ALONE = """
import os, ssl, sys
from pathlib import Path
from ca.runtime.memory import keep_private
from ca.runtime.tls import load_chain

if os.geteuid() == 0:
    os.setgroups([]); os.setgid(54399); os.setuid(54399)
assert keep_private()
assert os.stat("/proc/self/environ").st_uid == 0, "what is private is root's"
load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), *(text.encode() for text in sys.argv[1:]))
for name in ("mountinfo", "uid_map", "cgroup", "status"):
    assert Path("/proc/self", name).read_text()
assert os.listdir("/proc/self/fd")
assert os.waitstatus_to_exitcode(os.system("test -r /proc/self/environ")) == 0, "a child program is as any other"
print("fine")
"""


def python(script: str, *arguments: str, wrapper: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def told() -> Any:
    """What a process of the same user found at a running server and agent."""
    wrapper: tuple[str, ...] = ()
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        require("setpriv", setpriv is not None, "apt-get install util-linux")
        wrapper = (str(setpriv), "--bounding-set=-all", "--inh-caps=-all")
    return json.loads(python(PAIR, wrapper=wrapper).splitlines()[-1])


@pytest.mark.parametrize("program", ["server", "agent"])
def test_a_process_of_the_same_user_cannot_read_their_memory(told: Any, program: str) -> None:
    assert told["ourselves"] == {"mem": "open", "environ": "open"}, "so it is that which is asked for below"
    assert told[program] == {"mem": "denied", "environ": "denied"}


def test_they_attest_issue_and_report_all_the_same(told: Any) -> None:
    """Through the TLS relay, whose key and certificate are in a memfd behind /proc/self."""
    assert told["svid"]["code"] == 0, told["svid"]
    assert "spiffe://pair.test/w" in told["svid"]["out"]
    assert told["debug"]["code"] == 0, told["debug"]
    assert {"server/status.json", "agent/status.json"} <= set(told["debug"]["out"].split())


def test_another_user_than_root_still_has_what_it_needs_of_proc_self() -> None:
    """There its own entries belong to root then (proc(5))."""
    authority = Authority()
    chain = authority.certificate.public_bytes(serialization.Encoding.PEM)
    key = authority.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert python(ALONE, chain.decode(), key.decode()) == "fine\n"
