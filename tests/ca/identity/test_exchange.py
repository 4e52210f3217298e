"""Who exchanges tokens: parents, names in records, and entries that are for everybody at a forge."""

from __future__ import annotations

import pytest

from ca.errors import InvalidArgument
from ca.identity.entry import RegistrationEntry, validate_entry
from ca.identity.exchange import is_parent_path, is_requester, issuer_wide, parent_id, requester
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain

TD = TrustDomain("example.org")


def test_the_parent_is_the_issuers() -> None:
    parent = parent_id(TD, "oidc", "forge")
    assert str(parent) == "spiffe://example.org/burgee/oidc/forge"
    assert is_parent_path(parent.path)
    assert not is_parent_path("/burgee/oidcx/a")
    assert not is_parent_path("/a/burgee/oidc/b")


def test_entries_hang_below_it_and_none_is_it() -> None:
    parent, name = parent_id(TD, "oidc", "forge"), SpiffeId(TD, "/ci")
    selectors = frozenset({Selector("oidc", "sub:a")})
    validate_entry(RegistrationEntry(id="", spiffe_id=name, parent_id=parent, selectors=selectors), trust_domain=TD)
    with pytest.raises(InvalidArgument) as caught:
        validate_entry(RegistrationEntry(id="", spiffe_id=parent, parent_id=name, selectors=selectors), trust_domain=TD)
    assert caught.value.reason == "SPIFFE_ID_RESERVED"


def test_a_requester_is_one_line_and_no_agent() -> None:
    name = requester("oidc", "forge", "repo:a\nspiffe://example.org/spire/agent/x" + "y" * 1000)
    assert name.startswith("oidc:forge:repo:a\\nspiffe:")
    assert name.isprintable()
    assert len(name) == 600
    assert is_requester(name)
    assert not is_requester("spiffe://example.org/spire/agent/x")
    assert not is_requester("")


@pytest.mark.parametrize(
    ("texts", "wide"),
    [
        (["issuer:forge"], True),
        (["issuer:forge", "claim:ref:refs/heads/main"], True),
        (["claim:runner_environment:self-hosted", "claim:aud:x"], True),
        (["claim:sha:" + "a1" * 20, "claim:project_visibility:public"], True),
        (["claim:user_access_level:maintainer", "claim:environment_action:start"], True),
        (["claim:job_workflow_ref:acme/shop/.github/workflows/deploy.yml@refs/heads/main"], True),
        (["claim:workflow_ref:acme/shop/.github/workflows/deploy.yml@refs/heads/main"], False),
        (["issuer:forge", "sub:repo:acme/shop"], False),
        (["claim:ref:main", "claim:repository:acme/shop"], False),
        (["subject:x"], True),
        ([], False),
    ],
)
def test_entries_for_everybody_at_a_forge(texts: list[str], wide: bool) -> None:
    selectors = [Selector("oidc", text) for text in texts]
    assert issuer_wide(selectors) is wide
    assert issuer_wide([*selectors, Selector("unix", "uid:1000")]) is wide
