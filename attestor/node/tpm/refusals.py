"""A TPM's no, in words: response codes (TPM 2.0 Part 2 §6.6) and what to do about those that are met in practice."""

from __future__ import annotations

from ca.errors import FailedPrecondition

_FORMAT_ONE = 0x80

AUTH_FAIL, BAD_AUTH, LOCKOUT = 0x8E, 0xA2, 0x921
INTEGRITY, HANDLE, REFERENCE = 0x9F, 0x8B, 0x910
OBJECT_MEMORY, SESSION_MEMORY = 0x902, 0x903
INITIALIZE = 0x100

_MEANINGS: dict[int, tuple[str, str]] = {
    AUTH_FAIL: ("wrong password", "see the password files of the configuration"),
    BAD_AUTH: ("wrong password", "see the password files of the configuration"),
    LOCKOUT: ("locked after too many wrong passwords", "wait, or: tpm2_dictionarylockout --clear-lockout"),
    INTEGRITY: (
        "that was not made by this TPM, or not below this parent",
        "was the DevID made on this machine, below the standard storage key, and was the TPM cleared since?",
    ),
    OBJECT_MEMORY: ("no room for another key", "use /dev/tpmrm0 rather than /dev/tpm0, or: tpm2_flushcontext -t"),
    SESSION_MEMORY: ("no room for another session", "use /dev/tpmrm0 rather than /dev/tpm0, or: tpm2_flushcontext -l"),
    INITIALIZE: ("not started up", "the firmware or the emulator should have sent TPM2_Startup"),
    REFERENCE: ("that was made before the TPM's last reset", "try again"),
}


class Refusal(FailedPrecondition):
    """The TPM would not do it. `result` is its response code."""

    reason = "TPM_REFUSED"

    def __init__(self, command: str, result: int) -> None:
        meaning, hint = _MEANINGS.get(base_code(result), ("", ""))
        because = f": {meaning}" if meaning else ""
        super().__init__(f"the TPM refused {command} (0x{result:03x}){because}", hint=hint)
        self.result = result

    def means(self, *codes: int) -> bool:
        return base_code(self.result) in codes


def base_code(result: int) -> int:
    """The code without the number of the handle, session or parameter that it speaks of."""
    return result & 0xBF if result & _FORMAT_ONE else result & 0x97F
