"""Who exchanges a token of a foreign issuer for an SVID: no agent, but a name in entries and in records."""

from __future__ import annotations

from collections.abc import Iterable

from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.text import printable

PARENT_PREFIX = "/burgee/oidc/"
"""Reserved: entries below it are for exchanges, and nobody bears an ID of it."""

ISSUER_WIDE_REASON = "SELECTORS_ISSUER_WIDE"
"""The reason code for selectors of which `issuer_wide` holds."""

MAX_REQUESTER_CHARACTERS = 600

_EVERYBODYS_CLAIMS = frozenset(
    {
        *("actor_id_type", "aud", "azp", "base_ref", "deployment_action", "deployment_tier", "environment"),
        *("environment_action", "environment_protected", "event_name", "exp", "head_ref", "iat", "iss", "job_source"),
        *("job_workflow_ref", "job_workflow_sha", "nbf", "pipeline_source", "project_visibility", "ref", "ref_path"),
        *("ref_protected", "ref_type", "repository_visibility", "run_attempt", "run_number", "runner_environment"),
        *("ci_config_sha", "sha", "user_access_level", "workflow", "workflow_sha"),
    }
)
"""Claims of forges whose values anybody's repository there can have: a fork has the same commits, and a workflow that
is public (`job_workflow_ref`) can be called from everywhere."""


def parent_id(trust_domain: TrustDomain, kind: str, issuer: str) -> SpiffeId:
    """The parent of entries for tokens of one issuer, by its name in the configuration of the plugin `kind`."""
    return SpiffeId.of(trust_domain, f"/burgee/{kind}/{issuer}")


def is_parent_path(path: str) -> bool:
    """Whether the path is that of such a parent, or below one."""
    return path.startswith(PARENT_PREFIX)


def requester(kind: str, issuer: str, subject: str) -> str:
    """In records, in place of an agent: `oidc:<issuer>:<subject>`, one line of bounded length."""
    return printable(f"{kind}:{issuer}:{subject}")[:MAX_REQUESTER_CHARACTERS]


def is_requester(text: str) -> bool:
    """Whether a record's agent is none, but who had a token."""
    return ":" in text and not text.startswith("spiffe://")


def issuer_wide(selectors: Iterable[Selector]) -> bool:
    """Whether they tell which issuer made a token, and nothing of whose it is: everybody with a token of that forge,
    made for our audience, has what they earn. Claims that anybody can have there count for nothing."""
    own = [selector.value for selector in selectors if selector.type == "oidc"]
    return bool(own) and not any(_somebodys(value) for value in own)


def _somebodys(value: str) -> bool:
    kind, _, rest = value.partition(":")
    return kind == "sub" or (kind == "claim" and rest.partition(":")[0] not in _EVERYBODYS_CLAIMS)
