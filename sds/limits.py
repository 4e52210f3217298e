"""How much of the agent one workload may use, so that its neighbours keep theirs."""

from __future__ import annotations

from pydantic import Field

from ca.runtime.config import StrictModel
from ca.runtime.gate_places import GateLimits

FILES_PER_CONNECTION = 6
"""Those of the gate, and the pin of a process that has a single connection: its /proc directory and its pidfd."""

RESERVED_FILES = 512
"""The administrator's socket, the server's, what attestors read, what is saved, and processes of `MAX_IDLE`."""

MAX_IDLE = 64
"""Processes that stay pinned for a moment after their last call, when their connections may be gone: two files each."""


class LimitsConfig(StrictModel):
    """What one workload may use. A workload is a container, a system service or a login user, by its cgroup; where
    the cgroup says nothing, a user id. Who is at a limit is told so (`RESOURCE_EXHAUSTED`) or waits; others are not
    affected."""

    max_connections: int = Field(
        default=10_000,
        gt=0,
        description="Connections to the workload socket in all; fewer where the limit of open files is low (six each).",
    )
    max_connections_per_uid: int = Field(default=4_000, gt=0, description="Connections of one user id.")
    max_connections_per_workload: int = Field(
        default=1_500, gt=0, description="Connections of one workload, and never more than half of what there is."
    )
    max_streams_per_workload: int = Field(default=2_000, gt=0, description="Open streams and calls of one workload.")
    max_calls_per_second_per_workload: int = Field(
        default=1_000,
        gt=0,
        description="Calls and streams that one workload begins per second, after twice as many at once; one that is "
        "faster is read more slowly.",
    )
    max_sds_requests_per_second_per_workload: int = Field(
        default=2_000,
        gt=0,
        description="Requests and acknowledgements on the SDS streams of one workload per second, after twice as "
        "many at once; one that is faster is read more slowly. Each KiB, and each 16 names of the stream, count as one "
        "more.",
    )
    max_attestations: int = Field(
        default=32, gt=0, description="Processes that are attested at the same time; others wait their workload's turn."
    )
    max_attestations_per_workload: int = Field(
        default=4,
        gt=0,
        description="The same for one workload. One that hangs, on a file system that does not answer, counts here "
        "until it ends, and no more for all.",
    )
    max_memory_bytes_per_workload: int = Field(
        default=16 << 20,
        ge=1 << 20,
        description="About what is remembered by one workload's own choice: selectors of its processes, names that its "
        "Envoys ask for, requests that wait, answers made for its combinations of names.",
    )
    max_jwt_svids: int = Field(
        default=4_096, gt=0, description="JWT-SVIDs held; the least recently used of whoever has most goes first."
    )
    max_jwt_svids_per_workload: int = Field(
        default=512, gt=0, description="JWT-SVIDs held for one workload; its own least recently used goes first."
    )
    max_jwt_requests: int = Field(
        default=32, gt=0, description="JWT-SVIDs asked for at the server at the same time; others wait their turn."
    )
    max_jwt_requests_per_workload: int = Field(default=4, gt=0, description="The same for one workload.")

    def gate(self) -> GateLimits:
        """Those that the workload socket's gate enforces."""
        return GateLimits(
            max_connections=self.max_connections,
            max_connections_per_uid=self.max_connections_per_uid,
            max_connections_per_share=self.max_connections_per_workload,
            calls_per_second_per_share=self.max_calls_per_second_per_workload,
            files_per_connection=FILES_PER_CONNECTION,
            reserved_files=RESERVED_FILES,
        )
