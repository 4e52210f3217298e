"""A workload that becomes something else with its connection in its hands; a process of its own.

`exec SOCKET PROGRAM` connects, hands a copy of the connection to whoever holds the other end of its standard input,
and begins PROGRAM after a byte from there. `setuid SOCKET UID` asks for X.509-SVIDs again and again on one channel,
prints each answer, and becomes UID after the first.
"""

from __future__ import annotations

import os
import socket
import sys
import time

import grpc

from ca.proto.burgee import workload_pb2 as wl

HEADER = (("workload.spiffe.io", "true"),)


def become_program(path: str, program: str) -> None:
    with socket.socket(fileno=0) as master, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(master, [b"+"], [connection.fileno()])
        master.recv(1)
        os.execv(program, [program, "60"])


def become_user(path: str, uid: int) -> None:
    with grpc.insecure_channel(f"unix:{path}") as channel:
        method = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID", None, wl.X509SVIDResponse.FromString)
        while True:
            try:
                print(next(iter(method(b"", metadata=HEADER, timeout=10))).svids[0].spiffe_id, flush=True)
            except grpc.RpcError as error:
                print(error.code().name, error.details(), flush=True)
            if os.getuid() != uid:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            time.sleep(0.05)


if __name__ == "__main__":
    kind, where, what = sys.argv[1:]
    if kind == "exec":
        become_program(where, what)
    else:
        become_user(where, int(what))
