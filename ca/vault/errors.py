"""What goes wrong between us and Vault, as our own errors; of Vault's words only those that hold no secret."""

from __future__ import annotations

from collections.abc import Iterable

import hvac.exceptions
import requests
from requests import exceptions as http

from ca.errors import BurgeeError, Denied, NotFound, Unavailable
from ca.runtime import redact

MAX_WORDS_CHARACTERS = 300

_CAPABILITIES = {"read": "read", "list": "list", "write": "update", "delete": "delete"}


def translate(error: Exception, *, address: str, action: str, path: str, secrets: Iterable[str] = ()) -> BurgeeError:
    """The error to raise for what hvac or requests raised while doing `action` (read, write, list, delete) at `path`.

    Its detail has what Vault said, without `secrets`. The given error is not to be chained: it holds Vault's answer.
    """
    if isinstance(error, hvac.exceptions.VaultError):
        return _refusal(error, action, path, words_of(error, secrets))
    if isinstance(error, http.SSLError):
        return Unavailable(
            f"vault at `{address}` has no certificate to believe: {_innermost(error)}",
            reason="VAULT_TLS",
            hint="does `ca_file` hold the authority of its certificate, and `address` a name that is in it?",
        )
    if isinstance(error, http.Timeout):
        return Unavailable(
            f"vault at `{address}` does not answer", reason="VAULT_TIMEOUT", hint="is it overloaded, or stopped?"
        )
    if isinstance(error, OSError):  # requests' own errors are among them
        return Unavailable(
            f"vault at `{address}` cannot be reached: {_innermost(error)}",
            reason="VAULT_UNREACHABLE",
            hint="is it running, is `address` right, is a firewall between?",
        )
    return malformed(path)


def malformed(path: str) -> Unavailable:
    """For an answer that is not what Vault would say."""
    return Unavailable(
        f"what answers for `{path}` is not Vault's way to answer",
        reason="VAULT_ANSWER",
        hint="does `address` name a Vault or OpenBao, without a path of its API?",
    )


def redirected(path: str, location: str) -> Unavailable:
    """For a standby that sends its clients elsewhere; a token is never carried to an address that nobody configured."""
    return Unavailable(
        f"vault sends us to `{location[:200]}` for `{path}`",
        reason="VAULT_REDIRECT",
        hint="set `address` to the active node, or let the standby forward requests",
    )


def words_of(error: hvac.exceptions.VaultError, secrets: Iterable[str] = ()) -> str:
    """What Vault said, in one line, cut, without secrets."""
    said = error.errors if isinstance(error.errors, list) else []
    text = " ".join("; ".join(str(one) for one in said).split())
    for secret in secrets:
        text = text.replace(secret, redact.WITHHELD)
    return redact.text(text)[:MAX_WORDS_CHARACTERS]


def _refusal(error: hvac.exceptions.VaultError, action: str, path: str, words: str) -> BurgeeError:
    if isinstance(error, hvac.exceptions.Forbidden | hvac.exceptions.Unauthorized):
        return Denied(
            f"vault denies {action} on `{path}`: {words}",
            reason="VAULT_DENIED",
            hint=f"the policy of this server's token must allow `{_CAPABILITIES[action]}` there",
        )
    if isinstance(error, hvac.exceptions.InvalidPath):
        return NotFound(f"vault has nothing at `{path}`", reason="VAULT_NOT_FOUND", hint="is the mount path right?")
    if isinstance(error, hvac.exceptions.InvalidRequest):
        return Denied(f"vault refuses {action} on `{path}`: {words}", reason="VAULT_REFUSED")
    if isinstance(error, hvac.exceptions.VaultNotInitialized) or "sealed" in words.lower():
        state = "not initialized" if isinstance(error, hvac.exceptions.VaultNotInitialized) else "sealed"
        return Unavailable(f"vault is {state}", reason="VAULT_SEALED", hint="unseal it")
    if isinstance(error, hvac.exceptions.VaultDown | hvac.exceptions.BadGateway):
        return Unavailable(f"vault does not serve now: {words or type(error).__name__}", reason="VAULT_UNREACHABLE")
    if isinstance(error, hvac.exceptions.RateLimitExceeded):
        return Unavailable("vault answers that it is asked too often", reason="VAULT_BUSY", retry_after_seconds=1.0)
    return Unavailable(f"vault failed at {action} on `{path}`: {words}", reason="VAULT_FAILED", hint="see Vault's log")


def _innermost(error: BaseException) -> str:
    """The system's words for what is below a pile of wrappers; never a URL, never a header."""
    seen: list[BaseException] = []
    here: BaseException | None = error
    while here is not None and here not in seen:
        seen.append(here)
        inside = (getattr(here, "reason", None), *here.args, here.__cause__, here.__context__)
        here = next((one for one in inside if isinstance(one, BaseException)), None)
    for one in reversed(seen):
        if isinstance(one, OSError) and not isinstance(one, requests.RequestException) and one.strerror:
            return one.strerror[:MAX_WORDS_CHARACTERS]
    return type(seen[-1]).__name__
