"""Envoy's messages, which take a megabyte: an agent whose workloads have no proxies never loads them.

`await loaded()` before the first is used, on the event loop; whoever uses one otherwise loads it there and then.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envoy.config.core.v3 import base_pb2 as base_pb2
    from envoy.config.core.v3 import extension_pb2 as extension_pb2
    from envoy.extensions.transport_sockets.tls.v3 import common_pb2 as common_pb2
    from envoy.extensions.transport_sockets.tls.v3 import secret_pb2 as secret_pb2
    from envoy.extensions.transport_sockets.tls.v3 import (
        tls_spiffe_validator_config_pb2 as tls_spiffe_validator_config_pb2,
    )
    from envoy.service.discovery.v3 import discovery_pb2 as discovery_pb2
else:
    _TLS = "envoy.extensions.transport_sockets.tls.v3"
    _MODULES = {
        "base_pb2": "envoy.config.core.v3.base_pb2",
        "extension_pb2": "envoy.config.core.v3.extension_pb2",
        "common_pb2": f"{_TLS}.common_pb2",
        "secret_pb2": f"{_TLS}.secret_pb2",
        "tls_spiffe_validator_config_pb2": f"{_TLS}.tls_spiffe_validator_config_pb2",
        "discovery_pb2": "envoy.service.discovery.v3.discovery_pb2",
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(name)
        module = globals()[name] = import_module(_MODULES[name])
        return module


async def loaded() -> None:
    """All of them are, in a thread: the event loop goes on meanwhile."""
    if not TYPE_CHECKING and not _MODULES.keys() <= globals().keys():
        await asyncio.to_thread(lambda: [__getattr__(name) for name in _MODULES])
