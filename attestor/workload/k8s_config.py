"""Configuration of the workload attestor `k8s`, and the kubelet that it means."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from attestor.workload.kubelet import Kubelet, KubeletFiles
from ca.errors import Unavailable
from ca.runtime.config import StrictModel

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.IGNORECASE)


class Config(StrictModel):
    """How to reach this node's kubelet, and how long to wait for it."""

    node_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="This node's name; where it differs from node to node, "
        "leave it out and set the environment variable of `node_name_env`.",
    )
    node_name_env: str = Field(
        default="MY_NODE_NAME",
        min_length=1,
        description="The environment variable that has this node's name (downward API, `spec.nodeName`).",
    )
    kubelet_address: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="Name or IP address to reach the kubelet at; it must be "
        "in the kubelet's certificate. Default: what `kubelet_address_env` says, else the node's name; 127.0.0.1 where "
        "nothing is verified.",
    )
    kubelet_address_env: str = Field(
        default="MY_NODE_IP",
        min_length=1,
        description="The environment variable that has the address (downward API, `status.hostIP`).",
    )
    kubelet_port: int = Field(default=10250, ge=1, le=65535, description="The kubelet's authenticated port.")
    kubelet_ca_file: Path = Field(
        default=_ACCOUNT / "ca.crt", description="Who signs the kubelet's certificate, PEM; read again when it changes."
    )
    skip_kubelet_verification: bool = Field(
        default=False,
        description="Believe whoever answers at the kubelet's port, and show him the agent's token. "
        "Logged as a warning: a process that takes that port while the kubelet is down says who is who.",
    )
    token_file: Path | None = Field(
        default=_ACCOUNT / "token",
        description="The agent's service account token, read again for every request; null sends none.",
    )
    client_cert_file: Path | None = Field(
        default=None,
        description="A client certificate for the kubelet, PEM, instead of a token or besides it; read "
        "again when it changes.",
    )
    client_key_file: Path | None = Field(default=None, description="Its private key, PEM.")
    poll_retry_interval_seconds: float = Field(
        default=0.5,
        ge=0.02,
        le=30,
        description="The kubelet is asked no sooner after the last time; twice as long "
        "after that where one request follows the other.",
    )
    max_wait_seconds: float = Field(
        default=4.0,
        gt=0,
        le=120,
        description="How long a caller is looked for that is not in the kubelet's answer yet, "
        "as while its pod is starting.",
    )
    cache_seconds: float = Field(
        default=2.0,
        ge=0,
        le=60,
        description="How old an answer of the kubelet may be that says who a caller is: so "
        "late may a new label be seen.",
    )
    stale_seconds: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="For so long the kubelet's last answer counts for containers that are "
        "in it, while the kubelet does not answer.",
    )
    timeout_seconds: float = Field(default=2.0, gt=0, le=60, description="How long one request may take.")
    max_answer_bytes: int = Field(
        default=32 << 20, ge=1 << 16, le=256 << 20, description="A larger answer of the kubelet is refused."
    )
    disable_container_selectors: bool = Field(
        default=False,
        description="Find the pod alone: without `container-name` and `container-image`, and without "
        "waiting for the kubelet to know the container. For entries of whole pods.",
    )

    @field_validator("kubelet_address")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is not None and not _is_address(value):
            raise ValueError(f"`{value}` is no name and no IP address")
        return value

    @model_validator(mode="after")
    def _a_pair(self) -> Config:
        if (self.client_cert_file is None) != (self.client_key_file is None):
            raise ValueError("`client_cert_file` and `client_key_file` belong together")
        return self


def kubelet_of(config: Config) -> Kubelet:
    """The configured kubelet. Raises Unavailable (KUBELET_UNKNOWN) where nothing says which one is this node's."""
    address = _address(config)
    host = f"[{address}]" if ":" in address else address
    files = KubeletFiles(
        ca_file=None if config.skip_kubelet_verification else config.kubelet_ca_file,
        token_file=config.token_file,
        client_cert_file=config.client_cert_file,
        client_key_file=config.client_key_file,
    )
    return Kubelet(
        f"https://{host}:{config.kubelet_port}",
        files,
        insecure=config.skip_kubelet_verification,
        timeout_seconds=config.timeout_seconds,
        max_bytes=config.max_answer_bytes,
    )


def _address(config: Config) -> str:
    names = [config.kubelet_address, os.environ.get(config.kubelet_address_env)]
    if config.skip_kubelet_verification:
        names.append("127.0.0.1")
    names += [config.node_name, os.environ.get(config.node_name_env)]
    address = next((name for name in names if name), None)
    if address is None or not _is_address(address):
        raise Unavailable(
            "the kubelet of this node is unknown" if address is None else f"`{address}` is no name of a node",
            reason="KUBELET_UNKNOWN",
            hint=f"set `{config.node_name_env}` from `spec.nodeName` in the agent's pod, or `kubelet_address`",
        )
    return address


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _NAME.fullmatch(text) is not None
    return "%" not in text
