"""One token of an HSM: found, logged in to, a few sessions on it, and found again after it was away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ca.errors import BurgeeError, ConfigError, Unavailable
from ca.keys.own_threads import OwnThreads
from ca.keys.pkcs11_module import Pkcs11Module, pkcs11_module
from ca.runtime import log

BUSY_SECONDS = 10.0
"""How long a caller waits for a session of its own, and a token for the end of what is under way."""

REOPEN_SECONDS = 1.0
"""A token that is away is looked for no more often."""

MOST_THREADS = 80
"""More than there can be sessions: who waits for one in vain is told so."""

_KEEPS_THE_TOKEN = frozenset(
    {
        "AttributeSensitive",
        "AttributeTypeInvalid",
        "AttributeValueInvalid",
        "DataInvalid",
        "DataLenRange",
        "KeySizeRange",
        "MechanismInvalid",
        "MechanismParamInvalid",
        "NoSuchKey",
        "TemplateInconsistent",
        "TokenWriteProtected",
    }
)
"""Errors of python-pkcs11 that say something of the question. All others may mean that the token is not there."""

_WRONG_PIN = frozenset(
    {"PinIncorrect", "PinInvalid", "PinLenRange", "PinLocked", "PinExpired", "UserPinNotInitialized"}
)

logger = log.get("pkcs11")


class Pkcs11Token:
    """`session` lends one of at most `sessions` to a thread. Blocks: for `threads`, in which all of its methods run but
    `problem`, and not for the event loop.

    A wrong PIN is never tried again: a token locks itself after a few.
    """

    def __init__(
        self, *, module: str, label: str, serial: str | None, pin: Callable[[], str], sessions: int = 4
    ) -> None:
        """`pin` reads the PIN when it is needed, raising ConfigError."""
        self._path = module
        self._label = label
        self._serial = serial
        self._pin = pin
        self._most = sessions
        self._module: Pkcs11Module | None = None
        self._token: Any = None
        self._first: Any = None
        self._idle: list[Any] = []
        self._lent = 0
        self._generation = 0
        self._problem: BurgeeError | None = None
        self._missing = ""
        self._looked_at = 0.0
        self._state = threading.Condition()
        self.threads = OwnThreads(MOST_THREADS, "pkcs11")

    def problem(self) -> BurgeeError | None:
        """Why it cannot be used, if anything is known; looks at memory only."""
        return self._problem

    def open(self) -> None:
        """Find it and log in. Raises ConfigError (PKCS11_MODULE, PKCS11_PIN, PKCS11_TOKEN), Unavailable."""
        with self._state:
            if self._problem is not None and self._problem.reason == "PKCS11_PIN":
                raise self._problem
            if self._token is None:
                self._open()

    def reopen(self) -> None:
        """Look for a token that was away, if it is time to. Raises as `open`."""
        with self._state:
            if self._problem is None or self._problem.reason == "PKCS11_PIN":
                return
            self._reopen()

    @contextmanager
    def session(self) -> Iterator[Any]:
        """A session that is the caller's while the block runs.

        Errors of the library come out as Unavailable (PKCS11_TOKEN_GONE, PKCS11_REFUSED, PKCS11_BUSY).
        """
        session, generation = self._borrow()
        broken = False
        try:
            yield session
        except BurgeeError:
            raise
        except Exception as error:
            broken = not self._told_apart(error, generation)
            raise self._error(error) from error
        finally:
            self._give_back(session, generation, broken=broken)

    def private_key(self, session: Any, name: str) -> Any:
        """The key of that label. One that is gone is a problem of the token until it is there again."""
        found = _private_keys(session, name)
        if len(found) != 1:
            with self._state:
                self._missing = name
                self._note(_key_missing(name, len(found)))
            raise _key_missing(name, len(found))
        return found[0]

    def close(self) -> None:
        """End all sessions, and with the last of them the log-in."""
        with self._state:
            sessions = [*self._idle, *([self._first] if self._first is not None else [])]
            self._idle, self._first, self._token = [], None, None
            self._generation += 1
            for session in sessions:
                _close(session)

    # ---- with the lock held

    def _open(self) -> None:
        self._looked_at = time.monotonic()
        try:
            if self._module is None:
                self._module = pkcs11_module(self._path)
            token = self._find(self._module)
            self._first = self._log_in(token)
            if self._missing and len(found := _private_keys(self._first, self._missing)) != 1:
                raise _key_missing(self._missing, len(found))
        except BurgeeError as error:
            self._note(error)
            raise
        except Exception as error:
            told = self._error(error)
            self._note(told)
            raise told from error
        self._token, self._missing = token, ""
        if self._problem is not None:
            logger.info("the token is back", token=self._label)
        self._problem = None

    def _find(self, module: Pkcs11Module) -> Any:
        """A token that was initialized or put in after the module began is seen when it begins anew."""
        wanted: dict[str, Any] = {"token_label": self._label}
        if self._serial is not None:
            wanted["token_serial"] = self._serial.encode()
        try:
            return module.api.get_token(**wanted)
        except Exception as error:
            if type(error).__name__ == "MultipleTokensReturned":
                raise ConfigError(
                    f"there are several tokens `{self._label}`", reason="PKCS11_TOKEN", hint="set `token_serial`, too"
                ) from error
            if self._lent:
                raise
            module.again()
            return module.api.get_token(**wanted)

    def _log_in(self, token: Any) -> Any:
        """The session that stands for the log-in, which is the whole process's (PKCS#11 v2.40 §5.6)."""
        try:
            return token.open(rw=True, user_pin=self._pin())
        except Exception as error:
            if type(error).__name__ == "UserAlreadyLoggedIn":
                return token.open(rw=True)
            raise

    def _reopen(self) -> None:
        if time.monotonic() - self._looked_at < REOPEN_SECONDS:
            raise self._problem or Unavailable("the token is away", reason="PKCS11_TOKEN_GONE")
        self._idle, self._first, self._token = [], None, None
        self._generation += 1
        if not self._state.wait_for(lambda: self._lent == 0, timeout=BUSY_SECONDS):
            raise Unavailable("the token hangs", reason="PKCS11_BUSY")
        if self._problem is None:
            return  # somebody else waited, too, and was first: beginning anew once more would end the new sessions
        if self._module is not None:
            try:
                self._module.again()
            except RuntimeError as error:
                raise self._error(error) from error
        self._open()

    # ---- sessions

    def _borrow(self) -> tuple[Any, int]:
        with self._state:
            if self._problem is not None:
                if self._problem.reason == "PKCS11_PIN":
                    raise self._problem
                self._reopen()
            elif self._token is None:
                self._open()
            if not self._state.wait_for(lambda: self._lent < self._most, timeout=BUSY_SECONDS):
                raise Unavailable(
                    f"all {self._most} sessions are in use", reason="PKCS11_BUSY", hint="raise `sessions`"
                )
            if self._token is None:
                raise self._problem or Unavailable("the token was closed", reason="PKCS11_TOKEN_GONE")
            self._lent += 1
            generation = self._generation
            if self._idle:
                return self._idle.pop(), generation
            token = self._token
        try:
            return token.open(rw=True), generation
        except Exception as error:
            self._told_apart(error, generation)
            self._give_back(None, generation, broken=True)
            raise self._error(error) from error

    def _give_back(self, session: Any, generation: int, *, broken: bool) -> None:
        with self._state:
            self._lent -= 1
            if not broken and generation == self._generation:
                self._idle.append(session)
            self._state.notify_all()

    def _told_apart(self, error: Exception, generation: int) -> bool:
        """True for an error that leaves the token usable; otherwise it counts as gone."""
        if type(error).__name__ in _KEEPS_THE_TOKEN:
            return True
        with self._state:
            if generation == self._generation:
                self._note(self._error(error))
        return False

    def _note(self, error: BurgeeError) -> None:
        if self._problem is None or self._problem.reason != error.reason:
            logger.error("the token cannot be used", reason=error.reason, detail=error.detail, token=self._label)
        self._problem = error

    def _error(self, error: Exception) -> BurgeeError:
        name = type(error).__name__
        if name in _WRONG_PIN:
            return ConfigError(
                f"token `{self._label}` does not take the PIN ({name})",
                reason="PKCS11_PIN",
                hint="correct the PIN and restart the server; it is not tried again, for tokens lock themselves",
            )
        if name in _KEEPS_THE_TOKEN:
            return Unavailable(f"token `{self._label}` refused: {name}", reason="PKCS11_REFUSED")
        return Unavailable(
            f"token `{self._label}` is away ({name})",
            reason="PKCS11_TOKEN_GONE",
            hint="is it plugged in, and does the module reach it? it is looked for again every second",
        )


def _private_keys(session: Any, name: str) -> list[Any]:
    import pkcs11

    wanted = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.Attribute.LABEL: name}
    return list(session.get_objects(wanted))


def _key_missing(name: str, count: int) -> Unavailable:
    return Unavailable(
        f"the token has {count} keys `{name}` instead of one",
        reason="PKCS11_KEY_MISSING",
        hint="is this the token that the key was made in?",
    )


def _close(session: Any) -> None:
    try:
        session.close()
    except Exception as error:
        logger.debug("a session was closed before us", error=type(error).__name__)
