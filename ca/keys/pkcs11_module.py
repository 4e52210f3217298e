"""A PKCS#11 module (PKCS#11 v2.40 or v3) in this process: loaded once, allowed to lock, asked by one token's owner."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from ca.errors import ConfigError

_CKF_OS_LOCKING_OK = 0x02
_CKR_OK = 0x00
_CKR_CRYPTOKI_NOT_INITIALIZED = 0x190
_CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191


class _InitializeArgs(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS (PKCS#11 v2.40 §5.4): no locks of ours, so the module may use the system's."""

    _fields_ = (
        ("create_mutex", ctypes.c_void_p),
        ("destroy_mutex", ctypes.c_void_p),
        ("lock_mutex", ctypes.c_void_p),
        ("unlock_mutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class Pkcs11Module:
    """`api` is python-pkcs11's view of the module.

    That library calls C_Initialize without arguments, by which a program promises to have one thread only. We have
    more, so it is called once more, properly. `again` is for a token that was pulled out and put back: modules look
    for tokens when they are initialized; every session ends by it.
    """

    def __init__(self, path: str) -> None:
        """Raises ConfigError (PKCS11_MODULE) for a file that is no such module, or without the library for it."""
        try:
            import pkcs11
        except ImportError as error:
            raise ConfigError(
                "the pkcs11 key manager needs the package `python-pkcs11`",
                reason="PKCS11_LIBRARY",
                hint="pip install 'burgee[pkcs11]'",
            ) from error
        try:
            self._native = ctypes.CDLL(path)
            self.api: Any = pkcs11.lib(path)
            self.again()
        except (OSError, RuntimeError, AttributeError) as error:
            raise ConfigError(
                f"`{path}` cannot be used as a PKCS#11 module: {error or type(error).__name__}",
                reason="PKCS11_MODULE",
                hint="`module` names the HSM vendor's shared library",
            ) from error

    def again(self) -> None:
        """Initialize anew; nobody may be inside of the module. Raises RuntimeError when the module refuses."""
        if self.api.initialized:
            self.api.finalize()
        else:
            self._check("C_Finalize", self._native.C_Finalize(None), _CKR_CRYPTOKI_NOT_INITIALIZED)
        arguments = _InitializeArgs(flags=_CKF_OS_LOCKING_OK)
        code = self._native.C_Initialize(ctypes.byref(arguments))
        self._check("C_Initialize", code, _CKR_CRYPTOKI_ALREADY_INITIALIZED)

    @staticmethod
    def _check(call: str, code: int, harmless: int) -> None:
        if code not in (_CKR_OK, harmless):
            raise RuntimeError(f"{call} answers 0x{code:x}")


_loaded: dict[str, Pkcs11Module] = {}
_loading = threading.Lock()


def pkcs11_module(path: str) -> Pkcs11Module:
    """The module of that file; a process has one of each. Raises ConfigError."""
    with _loading:
        if path not in _loaded:
            _loaded[path] = Pkcs11Module(path)
        return _loaded[path]
