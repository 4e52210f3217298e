"""Names of what is pushed to proxies: `burgee.{http,tcp}.policy[+ask][+jwt][/<spiffe-id>]`.

What is written behind the plus signs is what a proxy's configuration has room for: one that has no ext_authz filter
must not be sent a policy that counts on one, and one that takes no chain is sent no filter that verifies tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from policy.envoy import NOTHING, Proxy

PREFIX = "burgee."
_POLICY, _ASK, _JWT = "policy", "ask", "jwt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What a proxy asks for. `spiffe_id` is empty where the caller must hold just one."""

    protocol: Literal["http", "tcp"]
    proxy: Proxy = NOTHING
    spiffe_id: str = ""

    def __str__(self) -> str:
        """The name, by which `parsed` makes the same again."""
        beside = [word for word, has in ((_ASK, self.proxy.ext_authz), (_JWT, self.proxy.jwt)) if has]
        name = PREFIX + ".".join((self.protocol, "+".join((_POLICY, *beside))))
        return f"{name}/{self.spiffe_id}" if self.spiffe_id else name


def parsed(name: str) -> Resource | None:
    """What a name means; None for one that is not ours. Only what `str` writes is read."""
    kind, _, spiffe_id = name.removeprefix(PREFIX).partition("/")
    protocol, _, rest = kind.partition(".")
    what, *beside = rest.split("+")
    proxy = Proxy(ext_authz=_ASK in beside, jwt=_JWT in beside)
    for known in ("http", "tcp"):
        if (protocol, what) == (known, _POLICY):
            found = Resource(protocol=known, proxy=proxy, spiffe_id=spiffe_id)
            sensible = known == "http" or not proxy.jwt  # a connection has no tokens
            return found if sensible and str(found) == name else None
    return None
