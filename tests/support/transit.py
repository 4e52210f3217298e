"""Transit as an operator would set it up: the policy is the one that the documentation shows."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from tests.support.openbao import OpenBao
from tests.support.openbao_mounts import enable_secrets, make_token

PAGE = Path(__file__).resolve().parents[2] / "docs/plugins/key-manager-vault_transit.md"
TRUST_DOMAIN = "example.org"
_numbers = itertools.count(1)


def documented_policy(mount: str = "transit", trust_domain: str = TRUST_DOMAIN) -> str:
    """For an engine at `mount`, and one trust domain."""
    found = re.search(r"```hcl\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1].replace('path "transit/', f'path "{mount}/').replace(f"-{TRUST_DOMAIN}-", f"-{trust_domain}-")


def new_transit(bao: OpenBao, *trust_domains: str) -> tuple[str, str]:
    """(the mount of a new engine, a policy for it)."""
    mount = enable_secrets(bao, "transit", f"transit-{next(_numbers)}")
    policies = [documented_policy(mount, trust_domain) for trust_domain in trust_domains or (TRUST_DOMAIN,)]
    bao.call("PUT", f"sys/policies/acl/{mount}", {"policy": "\n".join(policies)})
    return mount, mount


def token_file(bao: OpenBao, path: Path, *policies: str, ttl: str = "1h") -> dict[str, str]:
    """The configuration of a log-in with a token in a file, which holds these policies and `default`."""
    path.write_text(make_token(bao, *policies, ttl=ttl))
    return {"token_file": str(path)}
