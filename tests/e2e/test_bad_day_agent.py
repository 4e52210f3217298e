"""The agent's bad day, with real processes: killed, stopped, out of disk, out of files, its server gone or silent."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509

from ca.proto.burgee import workload_pb2 as wl
from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc, types_pb2
from tests.support.pair import TRUST_DOMAIN, Pair, free_port, pair, until
from tests.support.real import require

HEADER = (("workload.spiffe.io", "true"),)
RETURN_SECONDS = 30.0
"""By when an agent is well again after its server's return."""


@contextmanager
def watched(**options: Any) -> Iterator[Pair]:
    """A pair whose agent serves its health."""
    options["agent"] = {"metrics_address": f"127.0.0.1:{free_port()}"} | options.get("agent", {})
    with pair(**options) as nodes:
        yield nodes


def http(nodes: Pair, path: str) -> httpx.Response:
    return httpx.get(f"http://{nodes.agent_options['metrics_address']}{path}", timeout=10)


def metric(nodes: Pair, name: str) -> float:
    text = http(nodes, "/metrics").text
    return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + " "))


def tells(nodes: Pair, state: str, reason: str = "", *, ready: bool = True) -> None:
    """State, metric, readiness and log say the same."""
    status = nodes.status()
    assert (status.state, status.reason) == (state, reason), status.detail
    assert metric(nodes, f'burgee_agent_state{{state="{state}"}}') == 1
    assert http(nodes, "/ready").status_code == (200 if ready else 503)
    assert http(nodes, "/live").status_code == 200
    if state not in ("OK", "STARTING"):
        assert reason in log_of(nodes, "agent")


def fetch(nodes: Pair) -> x509.Certificate:
    """This test's own X.509-SVID; it is valid now."""
    with grpc.insecure_channel(
        f"unix:{nodes.workload_socket}",
        options=[("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)],
    ) as channel:
        call = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID", response_deserializer=wl.X509SVIDResponse.FromString
        )(b"", metadata=HEADER, timeout=10)
        chain = next(call).svids[0].x509_svid
        call.cancel()
    leaf = x509.load_der_x509_certificate(chain[: 4 + int.from_bytes(chain[2:4], "big")])
    assert leaf.not_valid_after_utc.timestamp() > time.time()
    return leaf


def log_of(nodes: Pair, name: str) -> str:
    return (nodes.home / f"{name}.log").read_text(errors="replace")


def attestations(nodes: Pair) -> int:
    """How often the server says that it attested an agent."""
    return len(re.findall(r"agent attested", log_of(nodes, "server")))


def new_token(nodes: Pair, alias: str = "") -> None:
    """A new join token where the agent looks for it."""
    request = server_agent_pb2.CreateJoinTokenRequest(ttl=600)
    if alias:
        request.agent_id.CopyFrom(types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=alias))
    with grpc.insecure_channel(f"unix:{nodes.admin_socket}") as channel:
        token = server_agent_pb2_grpc.AgentStub(channel).CreateJoinToken(request, timeout=5).value
    (nodes.home / "token").write_text(token)


def well(nodes: Pair) -> None:
    until("the agent is OK", lambda: nodes.status().state == "OK", seconds=RETURN_SECONDS)


def saved(directory: Path) -> None:
    """What changes is saved half a second later: what came before this call is on the disk then."""
    due = time.monotonic() + 1.0
    until("it is saved", lambda: time.monotonic() > due and all(file.exists() for file in _sealed(directory)))


def _sealed(directory: Path) -> list[Path]:
    return [directory / "feed.sealed", directory / "svids.sealed"]


def kill(nodes: Pair, name: str = "agent") -> None:
    nodes.stop(name, sign=signal.SIGKILL)


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_any_moment_it_comes_back_as_itself() -> None:
    """kill -9 all through start, sync, issuance, rotation and saving: one attestation, one identity, all served."""
    with watched() as nodes:
        for number in range(20):
            nodes.create_entry(f"/w{number}", f"unix:uid:{os.getuid()}", x509_svid_ttl=10)
        fetch(nodes)
        before = nodes.status().spiffe_id
        for step in range(8):
            kill(nodes)
            nodes.launch("agent")
            time.sleep(0.25 + 0.25 * step)
        well(nodes)
        fetch(nodes)
        assert nodes.status().spiffe_id == before
        until("every identity is there again", lambda: nodes.status().x509_svids == 20)
        assert (nodes.count_agents(), attestations(nodes)) == (1, 1)
        tells(nodes, "OK")
        assert "SEALED_STATE_IGNORED" not in log_of(nodes, "agent")
        assert "Traceback" not in log_of(nodes, "agent")


@pytest.mark.slow
def test_killed_while_it_attests_it_comes_back_as_that_node() -> None:
    """One token makes one node: where the answer died with the agent, the same key gets it once more."""
    with watched() as nodes:
        for step in range(6):
            kill(nodes)
            for file in (nodes.home / "agent" / "state").glob("*.sealed"):
                file.unlink()  # another new node
            new_token(nodes)
            used, begun = attestations(nodes), log_of(nodes, "agent").count("attesting")
            nodes.launch("agent")
            until("it attests", lambda begun=begun: log_of(nodes, "agent").count("attesting") > begun)
            time.sleep(0.05 * step)
            kill(nodes)
            nodes.launch("agent")
            well(nodes)
            assert attestations(nodes) - used in (1, 2)
            assert nodes.count_agents() == step + 2
            tells(nodes, "OK")


# --- the server is away or silent -------------------------------------------------------------------------------------


def test_the_server_is_away_for_longer_than_the_agents_svid_lives() -> None:
    """What is valid is served throughout; a join-token agent says that it needs a new token, and takes it up."""
    with watched(server={"agent_ttl_seconds": 4}) as nodes:
        new_token(nodes, alias="/node")
        kill(nodes)
        for file in (nodes.home / "agent" / "state").glob("*.sealed"):
            file.unlink()
        nodes.launch("agent")
        well(nodes)
        nodes.agent_path = lambda: "/node"  # type: ignore[method-assign]  # entries outlive this agent's identity
        nodes.create_entry("/lasting", x509_svid_ttl=600)
        before = fetch(nodes).serial_number
        kill(nodes, "server")
        until("it has noticed", lambda: nodes.status().reason == "SERVER_UNREACHABLE", seconds=10)
        tells(nodes, "DEGRADED", "SERVER_UNREACHABLE")
        assert metric(nodes, "burgee_agent_connected") == 0
        until("its own SVID has ended", lambda: metric(nodes, "burgee_agent_svid_not_after_seconds") < time.time())
        assert fetch(nodes).serial_number == before
        kill(nodes)
        nodes.launch("agent")  # and restarted meanwhile
        until("it serves", lambda: fetch(nodes).serial_number == before)
        until("it tries", lambda: nodes.status().state == "DEGRADED")
        nodes.start_server()
        until("it says what it needs", lambda: "has already been used" in nodes.status().detail, seconds=RETURN_SECONDS)
        for _ in range(50):  # and goes on saying so: what the stream to the server meets is no news
            assert nodes.status().reason == "AGENT_EXPIRED", nodes.status().detail
            time.sleep(0.1)
        tells(nodes, "DEGRADED", "AGENT_EXPIRED")
        assert "SERVER_REFUSED_TLS" not in log_of(nodes, "agent"), "nobody was shown the SVID that has expired"
        assert fetch(nodes).serial_number == before
        new_token(nodes, alias="/node")
        well(nodes)
        fetch(nodes)
        tells(nodes, "OK")


def test_after_a_ban_it_waits_for_new_proof_and_is_well_again_without_a_restart() -> None:
    """Until then it serves nothing and holds nothing, and its admin socket and /ready say what it is and needs."""
    with watched() as nodes:
        new_token(nodes, alias="/node")
        kill(nodes)
        for file in (nodes.home / "agent" / "state").glob("*.sealed"):
            file.unlink()
        nodes.launch("agent")
        well(nodes)
        process, agent = nodes.pid("agent"), nodes._id(nodes.agent_path())
        nodes.ban_agent()
        nodes.agent_path = lambda: "/node"  # type: ignore[method-assign]  # entries outlive this agent's identity
        nodes.create_entry("/lasting")
        until("it obeys", lambda: "nothing left to prove" in nodes.status().detail)
        tells(nodes, "BANNED", "AGENT_BANNED", ready=False)
        assert "caadmin token create" in http(nodes, "/ready").json()["problems"][0]["hint"]
        with pytest.raises(grpc.RpcError) as refused:
            fetch(nodes)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert not list(nodes.home.glob("agent/**/*.sealed")) + list(nodes.home.glob("cache/**/*.sealed"))
        with grpc.insecure_channel(f"unix:{nodes.admin_socket}") as channel:
            request = server_agent_pb2.DeleteAgentRequest(id=agent)
            server_agent_pb2_grpc.AgentStub(channel).DeleteAgent(request, timeout=5)
        time.sleep(3)
        tells(nodes, "BANNED", "AGENT_BANNED", ready=False)
        new_token(nodes, alias="/node")
        well(nodes)
        until("it serves", lambda: fetch(nodes))
        tells(nodes, "OK")
        assert nodes.pid("agent") == process
        assert nodes.processes["agent"].poll() is None
        assert attestations(nodes) == 3


@pytest.mark.slow
def test_right_after_a_restart_it_does_not_claim_what_it_does_not_know() -> None:
    """From the sealed cache workloads are served and ready is true; the state is not OK before a server was heard."""
    with watched() as nodes:
        nodes.create_entry("/w")
        before = fetch(nodes).serial_number
        saved(nodes.home / "cache")
        os.kill(nodes.pid("server"), signal.SIGSTOP)
        try:
            kill(nodes)
            nodes.launch("agent")
            until("it answers", lambda: nodes.status().spiffe_id)
            tells(nodes, "STARTING", "AGENT_STARTING")
            assert metric(nodes, "burgee_agent_connected") == 0
            assert fetch(nodes).serial_number == before
            until("it has given up waiting", lambda: nodes.status().reason == "SERVER_UNREACHABLE")
            assert "no answer in time" in nodes.status().detail
            tells(nodes, "DEGRADED", "SERVER_UNREACHABLE")
        finally:
            os.kill(nodes.pid("server"), signal.SIGCONT)
        well(nodes)


@pytest.mark.slow
def test_stopped_for_eight_seconds_it_goes_on_where_it_was() -> None:
    """SIGSTOP: an SVID that fell due meanwhile is renewed at once, and nothing is attested again."""
    with watched() as nodes:
        nodes.create_entry("/w", x509_svid_ttl=10)
        fetch(nodes)
        os.kill(nodes.pid("agent"), signal.SIGSTOP)
        time.sleep(8)
        os.kill(nodes.pid("agent"), signal.SIGCONT)
        went_on = time.time()
        # Its notBefore lies 10 s back.
        until("a new SVID", lambda: fetch(nodes).not_valid_before_utc.timestamp() + 10 >= int(went_on), seconds=5)
        well(nodes)  # a ping that was out meanwhile may have cost it a connection
        tells(nodes, "OK")
        assert attestations(nodes) == 1


@pytest.mark.slow
def test_server_and_agent_stopped_for_a_minute_go_on_where_they_were() -> None:
    """One pair's server, another pair's agent: all is well afterwards by itself, with the same identities."""
    with watched() as one, watched() as other:
        for nodes in (one, other):
            nodes.create_entry("/lasting", x509_svid_ttl=600)
            nodes.create_entry("/short", x509_svid_ttl=20)
            until("both are held", lambda nodes=nodes: nodes.status().x509_svids == 2)
        stopped = (one.pid("server"), other.pid("agent"))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            until("the agent has noticed", lambda: one.status().state == "DEGRADED", seconds=30)
            until("a minute has passed", _once(60), seconds=70, every=0.5)
            assert one.status().reason in ("SERVER_CONNECTION_LOST", "SERVER_UNREACHABLE")
            assert metric(one, "burgee_agent_connected") == 0
            assert http(one, "/live").status_code == 200
            assert paths(one) == {"/lasting"}, "what is valid is served, what has ended is not"
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        for nodes in (one, other):
            well(nodes)
            until("the short one is renewed", lambda nodes=nodes: paths(nodes) == {"/lasting", "/short"})
            tells(nodes, "OK")
            assert (nodes.count_agents(), attestations(nodes)) == (1, 1)
            for name in ("server", "agent"):
                assert "Traceback" not in log_of(nodes, name)


def _once(seconds: float) -> Callable[[], bool]:
    due = time.monotonic() + seconds
    return lambda: time.monotonic() > due


def paths(nodes: Pair) -> set[str]:
    """Of the X.509-SVIDs that this test is given."""
    with grpc.insecure_channel(
        f"unix:{nodes.workload_socket}",
        options=[("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)],
    ) as channel:
        call = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID", response_deserializer=wl.X509SVIDResponse.FromString
        )(b"", metadata=HEADER, timeout=10)
        svids = next(call).svids
        call.cancel()
    return {svid.spiffe_id.removeprefix(f"spiffe://{TRUST_DOMAIN}") for svid in svids}


class Proxy:
    """A TCP proxy before the server that can swallow everything, as a broken network does."""

    def __init__(self, port: int) -> None:
        self.silent = threading.Event()
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                front, _ = self._listener.accept()
            except OSError:
                return
            back = socket.create_connection(("127.0.0.1", self._to))
            for one, other in ((front, back), (back, front)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with one, other:
            try:
                while data := one.recv(65536):
                    if not self.silent.is_set():
                        other.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()


@pytest.mark.slow
def test_a_half_open_connection_is_noticed_within_the_stated_time() -> None:
    """The network swallows everything: after 12 s of silence the agent asks, and 8 s later it goes elsewhere."""
    port = free_port()
    proxy = Proxy(port)
    try:
        with watched(server={"bind_port": port}, agent={"servers": [f"127.0.0.1:{proxy.port}"]}) as nodes:
            nodes.create_entry("/w")
            serial = fetch(nodes).serial_number
            proxy.silent.set()
            began = time.monotonic()
            until("it has noticed", lambda: nodes.status().state == "DEGRADED", seconds=40)
            seconds = time.monotonic() - began
            print(f"noticed after {seconds:.1f} s: {nodes.status().reason}: {nodes.status().detail}")
            assert seconds < 20 + 7  # the stated 20 s, and a dial of 5 s that nobody answers
            assert nodes.status().reason in ("SERVER_CONNECTION_LOST", "SERVER_UNREACHABLE")
            until("it is shown", lambda: metric(nodes, "burgee_agent_connected") == 0)
            assert fetch(nodes).serial_number == serial
            assert http(nodes, "/ready").status_code == 200
            proxy.silent.clear()
            well(nodes)
    finally:
        proxy.close()


def test_a_name_that_does_not_resolve_is_named_and_does_no_harm() -> None:
    """Another server in the list is used; alone, the agent says which name and goes on serving."""
    port = free_port()
    servers = ["no-such-host.invalid:8081", f"127.0.0.1:{port}"]
    with watched(server={"bind_port": port}, agent={"servers": servers}) as nodes:
        nodes.create_entry("/w")
        serial = fetch(nodes).serial_number
        tells(nodes, "OK")
        saved(nodes.home / "cache")
        kill(nodes)
        nodes.agent_options["servers"] = servers[:1]
        nodes.launch("agent")
        until("it says so", lambda: nodes.status().reason == "SERVER_UNREACHABLE")
        assert "no-such-host.invalid:8081" in nodes.status().detail
        tells(nodes, "DEGRADED", "SERVER_UNREACHABLE")
        assert fetch(nodes).serial_number == serial


# --- disk and files ---------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A file system of 1 MiB at `path`."""
    require("mount", os.geteuid() == 0, "run the tests as root: they mount a tmpfs")
    path.mkdir(mode=0o700)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "burgee", path], capture_output=True)
    require("mount", made.returncode == 0, "run the tests where a tmpfs can be mounted")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextmanager
def read_only(*paths: Path) -> Iterator[None]:
    """These directories of a running process take no writes any more."""
    with ExitStack() as stack:
        for path in paths:
            subprocess.run(["mount", "--bind", path, path], check=True)
            stack.callback(subprocess.run, ["umount", "-l", path], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        yield


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Not a byte fits any more."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(itertools.repeat(bytes(4096)))
    yield
    ballast.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_takes_nothing_is_said_and_made_up_for(trouble: str) -> None:
    """Renewed and rotated all the same; the agent says that a restart would lose it, and saves once it can."""
    # Half of its life is left after a renewal: enough for a restart on a busy machine.
    with watched(server={"agent_ttl_seconds": 12}) as nodes, small_disk(nodes.home / "disk"):
        disk = nodes.home / "disk"
        kill(nodes)
        nodes.agent_options |= {"data_dir": str(disk / "a"), "cache": {"directory": str(disk / "c")}}
        new_token(nodes)
        nodes.launch("agent")
        well(nodes)
        nodes.create_entry("/w", x509_svid_ttl=10)
        first = fetch(nodes).serial_number
        saved(disk / "c")
        with filled(disk) if trouble == "full" else read_only(disk / "a" / "state", disk / "c"):
            until("it is said", lambda: nodes.status().reason == "STATE_NOT_WRITABLE")
            tells(nodes, "DEGRADED", "STATE_NOT_WRITABLE")
            assert ("No space left" if trouble == "full" else "Read-only") in nodes.status().detail
            until("rotation goes on", lambda: fetch(nodes).serial_number != first)
        well(nodes)
        tells(nodes, "OK")
        identity = metric(nodes, "burgee_agent_svid_not_after_seconds")
        kill(nodes)
        nodes.launch("agent")  # what it had not been able to save is there now
        well(nodes)
        assert metric(nodes, "burgee_agent_svid_not_after_seconds") >= identity
        assert attestations(nodes) == 2
        assert "Traceback" not in log_of(nodes, "agent")
        kill(nodes)


def test_an_agent_that_cannot_write_at_all_does_not_start_and_says_why() -> None:
    with watched() as nodes, small_disk(nodes.home / "disk"), read_only(nodes.home / "disk"):
        nodes.agent_options |= {"data_dir": str(nodes.home / "disk" / "a")}
        kill(nodes)
        nodes.launch("agent")
        assert nodes.processes.pop("agent").wait(15) == 1
        said = log_of(nodes, "agent")
        assert "Read-only file system" in said
        assert "hint:" in said
        assert "Traceback" not in said


def test_damaged_files_cost_what_they_held_and_no_more() -> None:
    """A truncated cache is fetched anew; without its own SVID the agent needs a new token, and says so."""
    with watched() as nodes:
        nodes.create_entry("/w")
        fetch(nodes)
        saved(nodes.home / "cache")
        nodes.stop("agent")
        for file in (nodes.home / "cache").glob("*.sealed"):
            file.write_bytes(file.read_bytes()[:-7])
        nodes.launch("agent")
        well(nodes)
        fetch(nodes)
        assert "SEALED_STATE_IGNORED" in log_of(nodes, "agent")
        assert attestations(nodes) == 1
        nodes.stop("agent")
        own = nodes.home / "agent" / "state" / "agent.sealed"
        own.write_bytes(own.read_bytes()[:-1] + b"x")
        nodes.launch("agent")
        until("it says so", lambda: nodes.status().reason == "ATTESTATION_REFUSED")
        assert http(nodes, "/live").status_code == 200
        assert attestations(nodes) == 1
        new_token(nodes)
        well(nodes)


def refusals(nodes: Pair) -> float:
    """Connections to the workload socket that were turned away, for whatever reason."""
    start = 'burgee_gate_refused_total{listener="workload"'
    lines = http(nodes, "/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


def test_out_of_files_it_turns_strangers_away_and_serves_its_own() -> None:
    """With 256 open files in all: connections beyond the share are refused, the administrator gets in, nothing dies."""
    with watched() as nodes:
        nodes.create_entry("/w", x509_svid_ttl=10)
        fetch(nodes)
        kill(nodes)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        nodes.launch("agent")
        resource.prlimit(nodes.pid("agent"), resource.RLIMIT_NOFILE, (256, 256))
        assert hard == resource.getrlimit(resource.RLIMIT_NOFILE)
        well(nodes)
        held = []
        try:
            for _ in range(400):
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(5)
                sock.connect(str(nodes.workload_socket))
                sock.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                held.append(sock)
            until("it answers its administrator", lambda: nodes.status().spiffe_id)
            assert http(nodes, "/live").status_code == 200
            assert refusals(nodes) > 0
            assert re.search(r"OUT_OF_FILES|CONNECTION_LIMIT", log_of(nodes, "agent"))
        finally:
            for sock in held:
                sock.close()
        until("it serves again", lambda: fetch(nodes))
        well(nodes)
        tells(nodes, "OK")
        assert "Traceback" not in log_of(nodes, "agent")


def test_health_names_what_is_wrong() -> None:
    """A new node that cannot attest is alive, not ready, and /ready says why in its body."""
    with watched() as nodes:
        kill(nodes)
        (nodes.home / "agent" / "state" / "agent.sealed").unlink()
        for file in (nodes.home / "cache").glob("*.sealed"):
            file.unlink()
        nodes.launch("agent")
        until("it has been refused", lambda: nodes.status().reason == "ATTESTATION_REFUSED")
        answer = http(nodes, "/ready")
        assert answer.status_code == 503
        problem = json.loads(answer.text)["problems"][0]
        assert problem["reason"] == "ATTESTATION_REFUSED"
        assert "join token" in problem["detail"]
        assert problem["hint"]
