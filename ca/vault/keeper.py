"""Keeps one log-in alive: renewed before it ends, replaced before renewing ends. Everything here blocks."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import timedelta

from ca.errors import BurgeeError, ConfigError, Denied, NotFound, Unavailable
from ca.ports import Clock
from ca.runtime import log, metrics
from ca.vault.config import VaultConfig
from ca.vault.errors import malformed
from ca.vault.link import Link
from ca.vault.login import SELF, log_in, method_of, read_secret, secret_file
from ca.vault.token import Token, ttl_of

logger = log.get("vault")

RENEW = "auth/token/renew-self"

AGAIN_SECONDS = 30.0
"""A valid token that may not do something is exchanged after so long, in case its role has other policies by now."""

GOOD_SECONDS = 2.0
"""For so long a token that Vault knew is believed to be known."""

REFUSED_SECONDS = 5.0
REFUSED_APPROLE_SECONDS = 240.0
"""Between two log-ins with a credential that was refused. Vault locks a whole AppRole after five in a quarter of an
hour; a changed file is tried at once."""

_not_after = metrics.gauge(
    "vault_token_not_after_seconds", "When the token for Vault ends unless renewed, Unix time.", ["purpose"]
)
_logins = metrics.counter("vault_logins", "Log-ins to Vault, by result: ok or a reason code.", ["purpose", "result"])


class Keeper:
    """The link that is logged in. Fit for several threads; of several that need a new log-in, one does it."""

    def __init__(
        self, config: VaultConfig, *, clock: Clock, purpose: str, jitter: Callable[[], float] = random.random
    ) -> None:
        """`jitter` gives 0 to 1."""
        self._config = config
        self._clock = clock
        self._purpose = purpose
        self._jitter = jitter
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._token: Token | None = None
        self._logged_in_at = 0.0
        self._good_at = 0.0
        self._due_at: float | None = None
        self._failure: BurgeeError | None = None
        self._refused_at: float | None = None
        self._seen: tuple[int, ...] = ()

    @property
    def link(self) -> Link:
        """Raises Unavailable while there is no log-in (VAULT_LOGIN_FAILED, VAULT_FILE, VAULT_NOT_LOGGED_IN)."""
        link = self._link
        if link is None:
            raise self.problem or Unavailable("there is no log-in to vault yet", reason="VAULT_NOT_LOGGED_IN")
        return link

    @property
    def problem(self) -> BurgeeError | None:
        """Why there is no log-in, if one was tried."""
        failure = self._failure
        if failure is None or self._link is not None:
            return None
        return Unavailable(failure.detail, reason=failure.reason, hint=failure.hint)

    @property
    def due_at(self) -> float | None:
        """When `tend` has something to do, by the monotonic clock; None: nothing is known to come."""
        return self._clock.monotonic() if self._link is None else self._due_at

    def log_in(self) -> None:
        """Raises ConfigError (VAULT_FILE), Denied (VAULT_LOGIN_FAILED), Unavailable."""
        with self._lock:
            self._log_in()

    def replace(self, used: Link) -> Link | None:
        """Another link in place of one that Vault denied something to; None if another would be no better.

        Raises Unavailable when Vault has gone away, or when the token is worth nothing and no new one is to be had.
        """
        with self._lock:
            if self._link is not used:
                return self.link  # somebody did it, or failed at it a moment ago: then this raises
            if self._is_good(used) and self._clock.monotonic() - self._logged_in_at < AGAIN_SECONDS:
                return None
            try:
                if self._may_try:
                    self._log_in()
            except (Denied, ConfigError):
                pass  # it is remembered; the token at hand may still be good for other things
            if self._link is not used:
                return self.link
            if self._is_good(used):
                return None
            self._drop()
            return self.link

    def tend(self) -> None:
        """Does what is due: log-in, renewal, a changed token file. Raises like `log_in`."""
        with self._lock:
            if self._link is None or self._token is None:
                if self._may_try:
                    self._log_in()
            elif self._config.auth.token_file is not None and self._changed():
                self._log_in()
            elif self._due_at is not None and self._clock.monotonic() >= self._due_at:
                self._prolong(self._link, self._token)

    def probe(self) -> None:
        """A request that any token may make; a token that Vault no longer knows is replaced. Raises like `log_in`."""
        with self._lock:
            link = self._link
            self._good_at = 0.0
            if link is not None and self._is_good(link):
                return
            self._drop()
            if self._may_try:
                self._log_in()

    def close(self) -> None:
        """A token that we logged in for is revoked: nobody else has a use for it."""
        with self._lock:
            self._retire(self._link, self._token)
            self._drop()

    def _log_in(self) -> None:
        self._seen = self._fingerprint()
        try:
            link, token = log_in(self._config, at=self._clock.monotonic())
        except BurgeeError as error:
            _logins.labels(self._purpose, error.reason).inc()
            self._failure, self._refused_at = error, None
            if not isinstance(error, Unavailable):
                self._refused_at = self._clock.monotonic()
                logger.warning(
                    "log-in to vault refused", purpose=self._purpose, reason=error.reason, detail=error.detail
                )
            raise
        _logins.labels(self._purpose, "ok").inc()
        method = method_of(self._config.auth)
        logger.info("logged in to vault", purpose=self._purpose, method=method, ttl_seconds=token.ttl_seconds)
        old = (self._link, self._token)
        self._link, self._failure, self._refused_at = link, None, None
        self._logged_in_at, self._good_at = token.since, 0.0
        self._hold(token)
        self._retire(*old)

    def _prolong(self, link: Link, token: Token) -> None:
        """Renews the token, or logs in anew where renewing brings little; if both fail it lives until its end."""
        now = self._clock.monotonic()
        try:
            if token.ends_at is not None and now >= token.ends_at:
                self._drop()
                self._log_in()
            elif not token.renewable:
                self._exchange(token)
            else:
                self._renew(link, token)
        except BurgeeError:
            self._due_at = now + (0.5 + 0.5 * self._jitter()) * REFUSED_SECONDS
            raise

    def _renew(self, link: Link, token: Token) -> None:
        at = self._clock.monotonic()
        try:
            auth = link.request("write", RENEW).get("auth")
            ttl = ttl_of(auth.get("lease_duration")) if isinstance(auth, dict) else 0
        except Denied:
            self._exchange(token)
            return
        except ValueError:
            raise malformed(RENEW) from None
        renewed = token.renewed(ttl_seconds=ttl, at=at)
        logger.debug("vault token renewed", purpose=self._purpose, ttl_seconds=ttl)
        self._hold(renewed)
        if renewed.capped:
            self._exchange(renewed)

    def _exchange(self, token: Token) -> None:
        """A new log-in, where that brings a new token; a token file is watched anyway."""
        if token.ours:
            self._log_in()
            return
        left = timedelta(seconds=max((token.ends_at or 0) - self._clock.monotonic(), 0))
        self._due_at = token.ends_at
        logger.warning(
            "the token for vault ends and cannot be renewed",
            purpose=self._purpose,
            reason="VAULT_TOKEN_ENDS",
            not_after=(self._clock.now() + left).isoformat(timespec="seconds"),
        )

    def _hold(self, token: Token) -> None:
        self._token, self._due_at = token, token.due_at(0.5 + 0.2 * self._jitter())
        ends = float("inf") if token.ends_at is None else self._clock.now().timestamp() + token.ttl_seconds
        _not_after.labels(self._purpose).set(ends)

    def _retire(self, link: Link | None, token: Token | None) -> None:
        """In vain is fine: it ends by itself."""
        if link is None or token is None:
            return
        if token.ours:
            try:
                link.request("write", "auth/token/revoke-self")
            except BurgeeError as error:
                logger.debug("vault token not revoked", purpose=self._purpose, reason=error.reason)
        link.close()

    def _is_good(self, link: Link) -> bool:
        """Whether Vault knows the link's token. Raises Unavailable."""
        now = self._clock.monotonic()
        if now - self._good_at < GOOD_SECONDS:
            return True
        try:
            link.request("read", SELF)
        except (Denied, NotFound):
            return False
        self._good_at = now
        return True

    def _drop(self) -> None:
        self._link, self._token, self._due_at = None, None, None

    @property
    def _may_try(self) -> bool:
        """Whether a log-in can bring anything that the last refusal does not already say."""
        if self._refused_at is None or self._fingerprint() != self._seen:
            return True
        patience = REFUSED_SECONDS if self._config.auth.approle is None else REFUSED_APPROLE_SECONDS
        return self._clock.monotonic() - self._refused_at >= patience

    def _changed(self) -> bool:
        """Whether the token file holds another token."""
        path, token = self._config.auth.token_file, self._token
        if path is None or token is None or self._fingerprint() == self._seen:
            return False
        self._seen = self._fingerprint()
        return read_secret(path) != token.value

    def _fingerprint(self) -> tuple[int, ...]:
        path = secret_file(self._config.auth)
        try:
            found = None if path is None else path.stat()
        except OSError:
            found = None
        return () if found is None else (found.st_mtime_ns, found.st_ino, found.st_size)
