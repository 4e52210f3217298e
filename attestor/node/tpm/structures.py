"""TPM structures read from bytes that may be anybody's: total, bounded, nothing left over (TPM 2.0 Part 2).

What cannot be such a structure raises Malformed, and only that.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

MAX_STRUCTURE_BYTES = 4096
"""More than any response of a TPM; checked before anything is read."""

ALG_RSA, ALG_ECC, ALG_NULL = 0x0001, 0x0023, 0x0010
ALG_AES, ALG_CFB = 0x0006, 0x0043
ALG_SHA1, ALG_SHA256, ALG_SHA384, ALG_SHA512 = 0x0004, 0x000B, 0x000C, 0x000D
ALG_RSASSA, ALG_RSAES, ALG_RSAPSS, ALG_OAEP, ALG_ECDSA, ALG_ECDAA = 0x0014, 0x0015, 0x0016, 0x0017, 0x0018, 0x001A
CURVE_P256, CURVE_P384, CURVE_P521 = 0x0003, 0x0004, 0x0005

GENERATED = 0xFF544347  # "\xffTCG": what a TPM made itself and no restricted key signs otherwise
ATTEST_CERTIFY, ATTEST_QUOTE = 0x8017, 0x8018

FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 1 << 1, 1 << 4, 1 << 5
USER_WITH_AUTH, ADMIN_WITH_POLICY, NO_DA = 1 << 6, 1 << 7, 1 << 10
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18

BANKS = {"sha256": ALG_SHA256, "sha384": ALG_SHA384, "sha512": ALG_SHA512}
DIGEST_BYTES = {ALG_SHA256: 32, ALG_SHA384: 48, ALG_SHA512: 64}
MAX_PCR_BANKS = 16

T = TypeVar("T")


class Malformed(ValueError):
    """Not the structure that it should be. Its text says what is wrong and fits into a message."""


class Reader:
    """Takes fields off the front. Raises Malformed where there is not enough."""

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_STRUCTURE_BYTES:
            raise Malformed(f"longer than {MAX_STRUCTURE_BYTES} bytes")
        self._rest = data

    def take(self, count: int) -> bytes:
        if count > len(self._rest):
            raise Malformed("cut short")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def sized(self) -> bytes:
        """A TPM2B: two bytes of length, then as many."""
        return self.take(self.u16())

    def rest(self) -> bytes:
        return self.take(len(self._rest))

    def end(self) -> None:
        if self._rest:
            raise Malformed(f"{len(self._rest)} bytes too many")


def whole(data: bytes, read: Callable[[Reader], T]) -> T:
    """What `read` makes of all of `data`."""
    reader = Reader(data)
    value = read(reader)
    reader.end()
    return value


def sized(data: bytes) -> bytes:
    """A TPM2B with these contents."""
    return struct.pack(">H", len(data)) + data


@dataclass(frozen=True, slots=True)
class Scheme:
    """A signing scheme: algorithm and digest; ALG_NULL leaves the choice to whoever signs."""

    algorithm: int
    digest: int


NO_SCHEME = Scheme(ALG_NULL, ALG_NULL)


@dataclass(frozen=True, slots=True)
class Attest:
    """TPMS_ATTEST of a certified key (`name`) or a quote (`selection`, `pcr_digest`); the other's fields are empty."""

    kind: int
    extra_data: bytes
    name: bytes = b""
    selection: tuple[tuple[int, frozenset[int]], ...] = ()
    pcr_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Signature:
    """TPMT_SIGNATURE. `rsa` are an RSA signature's bytes; `r` and `s` an ECDSA signature's numbers."""

    scheme: Scheme
    rsa: bytes = b""
    r: int = 0
    s: int = 0


def parse_attest(data: bytes) -> Attest:
    """Part 2 §10.12.12. Other kinds of attestation than certify and quote are Malformed here: none is asked for."""
    return whole(data, _attest)


def _attest(reader: Reader) -> Attest:
    if reader.u32() != GENERATED:
        raise Malformed("not made by a TPM (magic)")
    kind = reader.u16()
    reader.sized()  # the signer's qualified name: it says under which parent, which nobody here relies on
    extra_data = reader.sized()
    reader.take(17)  # clock, reset count, restart count, safe
    reader.u64()  # firmware version
    if kind == ATTEST_CERTIFY:
        name = reader.sized()
        reader.sized()  # the object's qualified name
        return Attest(kind, extra_data, name=name)
    if kind == ATTEST_QUOTE:
        return Attest(kind, extra_data, selection=read_selection(reader), pcr_digest=reader.sized())
    raise Malformed(f"attestation of another kind (0x{kind:04x})")


def read_selection(reader: Reader) -> tuple[tuple[int, frozenset[int]], ...]:
    """TPML_PCR_SELECTION, Part 2 §10.9.7: (bank, indexes) in the order given."""
    count = reader.u32()
    if count > MAX_PCR_BANKS:
        raise Malformed("too many banks of PCRs")
    banks = []
    for _ in range(count):
        bank, bits = reader.u16(), int.from_bytes(reader.take(reader.u8()), "little")
        banks.append((bank, frozenset(index for index in range(bits.bit_length()) if bits >> index & 1)))
    return tuple(banks)


def parse_signature(data: bytes) -> Signature:
    """Part 2 §11.3.4."""
    return whole(data, _signature)


def _signature(reader: Reader) -> Signature:
    scheme = Scheme(reader.u16(), reader.u16())
    if scheme.algorithm in (ALG_RSASSA, ALG_RSAPSS):
        return Signature(scheme, rsa=reader.sized())
    if scheme.algorithm == ALG_ECDSA:
        r, s = reader.sized(), reader.sized()
        return Signature(scheme, r=int.from_bytes(r, "big"), s=int.from_bytes(s, "big"))
    raise Malformed(f"signature of an unknown scheme (0x{scheme.algorithm:04x})")
