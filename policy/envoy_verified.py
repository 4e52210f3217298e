"""By which rules and keys a proxy verified a request's tokens: its chain leaves a name of them, for whoever is asked.

The one who is asked may have a newer revision than the proxy. Claims count for the rules of the revision by which they
were verified, and for no others.
"""

from __future__ import annotations

import hashlib
from typing import Any

from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import JwtAuthentication
from envoy.extensions.filters.http.set_metadata.v3.set_metadata_pb2 import Config as SetMetadata

from policy.envoy_wire import raw_of

VERIFIED, _BY = "burgee.tokens", "by"
"""Dynamic metadata: namespace and key."""


def name_of(tokens: JwtAuthentication) -> str:
    """The same for the same rules and keys, in every agent."""
    return hashlib.sha256(raw_of(tokens)).hexdigest()[:32]


def leaving(name: str) -> SetMetadata:
    """The filter that leaves a name."""
    made = SetMetadata()
    one = made.metadata.add(metadata_namespace=VERIFIED, allow_overwrite=True)
    one.value.update({_BY: name})
    return made


def verified_by(attributes: Any) -> str:
    """The name in a check's attributes; empty where none was left."""
    context = attributes.metadata_context.filter_metadata
    return str(context[VERIFIED].fields[_BY].string_value) if VERIFIED in context else ""
