"""A workload of its own process and user: `python workload_process.py SOCKET RPC UID`, prints what it is told.

RPC `x509` prints the SPIFFE IDs of each message on a line and goes on; anything else is one unary call that is
expected to fail and prints the status.
"""

from __future__ import annotations

import os
import sys

import grpc

from ca.proto.burgee import workload_pb2 as wl


def main() -> None:
    path, rpc, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if uid != os.getuid():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        header = (("workload.spiffe.io", "true"),)
        try:
            if rpc == "x509":
                method = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID", None, wl.X509SVIDResponse.FromString)
                for message in method(b"", metadata=header):
                    print(" ".join(svid.spiffe_id for svid in message.svids), flush=True)
            else:
                call = channel.unary_unary(f"/{rpc}")
                print("answered", call(b"", metadata=header, timeout=5))
        except grpc.RpcError as error:
            print(error.code().name, error.details(), flush=True)


main()
