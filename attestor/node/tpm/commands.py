"""The few commands of a TPM that attestation needs, marshalled by hand (TPM 2.0 Part 3). They block.

Keys are authorized by password: who listens on the wire between processor and TPM is not guarded against here.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from attestor.node.tpm.device import HEADER_BYTES, Device
from attestor.node.tpm.refusals import Refusal, base_code
from attestor.node.tpm.structures import ALG_NULL, ALG_SHA256, Malformed, Reader, Scheme, read_selection, sized
from ca.errors import BurgeeError

OWNER, ENDORSEMENT, NULL = 0x40000001, 0x4000000B, 0x40000007
_PASSWORD = 0x40000009
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_POLICY_SESSION = 1
_LATER = (0x908, 0x90A, 0x922)  # TPM_RC_YIELDED, TPM_RC_TESTING, TPM_RC_RETRY: the same command may work in a moment
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.25
_NV_CHUNK = 512
_MAX_NV_BYTES = 4096
_DIGESTS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Auth:
    """Authorization by password, or by the policy session whose handle it is."""

    password: bytes = b""
    session: int = _PASSWORD

    def encode(self) -> bytes:
        return struct.pack(">I", self.session) + sized(b"") + b"\x00" + sized(self.password)


@dataclass(frozen=True, slots=True)
class Made:
    """A new key that is not loaded: its private part, which only this TPM can read, and its public area."""

    private: bytes
    public: bytes


class Tpm:
    """Commands. Each raises Refusal for the TPM's no, Unavailable for no response, Malformed for a strange one."""

    def __init__(self, device: Device) -> None:
        self._device = device

    # Keys

    def create_primary(self, hierarchy: int, auth: Auth, template: bytes) -> tuple[int, bytes]:
        """(handle, public area); the same key each time, for the same template."""
        parameters = sized(sized(b"") + sized(b"")) + sized(template) + sized(b"") + struct.pack(">I", 0)
        handle, reader = self._loading("CreatePrimary", 0x131, [hierarchy], [auth], parameters)
        return handle, reader.sized()

    def create(self, parent: int, password: bytes, template: bytes) -> Made:
        parameters = sized(sized(password) + sized(b"")) + sized(template) + sized(b"") + struct.pack(">I", 0)
        reader = self._run("Create", 0x153, [parent], [Auth()], parameters)
        return Made(reader.sized(), reader.sized())

    def load(self, parent: int, key: Made) -> int:
        return self._loading("Load", 0x157, [parent], [Auth()], sized(key.private) + sized(key.public))[0]

    def context_save(self, handle: int) -> bytes:
        """The key for `context_load`, as only this TPM can read it and until it is reset; it stays loaded."""
        return self._run("ContextSave", 0x162, [handle], [], b"").rest()

    def context_load(self, context: bytes) -> int:
        return self._loading("ContextLoad", 0x161, [], [], context)[0]

    def flush(self, handle: int) -> None:
        self._run("FlushContext", 0x165, [], [], struct.pack(">I", handle))

    @contextmanager
    def holding(self, handle: int) -> Iterator[int]:
        """Unloads it at the end, come what may; a TPM that does not answer any more is not what is told then."""
        try:
            yield handle
        finally:
            with suppress(BurgeeError):
                self.flush(handle)

    # What keys do

    def certify(self, subject: int, subject_auth: Auth, signer: int, signer_auth: Auth) -> tuple[bytes, bytes]:
        """(TPMS_ATTEST, TPMT_SIGNATURE)"""
        parameters = sized(b"") + struct.pack(">H", ALG_NULL)
        reader = self._run("Certify", 0x148, [subject, signer], [subject_auth, signer_auth], parameters)
        return reader.sized(), reader.rest()

    def quote(self, signer: int, auth: Auth, nonce: bytes, selection: bytes) -> tuple[bytes, bytes]:
        """(TPMS_ATTEST, TPMT_SIGNATURE); `selection` is a TPML_PCR_SELECTION."""
        parameters = sized(nonce) + struct.pack(">H", ALG_NULL) + selection
        reader = self._run("Quote", 0x158, [signer], [auth], parameters)
        return reader.sized(), reader.rest()

    def sign(self, key: int, auth: Auth, data: bytes, scheme: Scheme) -> bytes:
        """TPMT_SIGNATURE over SHA-256 of `data`, hashed by the TPM itself: a restricted key signs nothing else.

        `scheme` is NO_SCHEME for a key that has its own.
        """
        parameters = sized(data) + struct.pack(">HI", ALG_SHA256, OWNER)
        reader = self._run("Hash", 0x17D, [], [], parameters)
        digest, ticket = reader.sized(), reader.rest()
        wanted = struct.pack(">H", scheme.algorithm)
        if scheme.algorithm != ALG_NULL:
            wanted += struct.pack(">H", scheme.digest)
        return self._run("Sign", 0x15D, [key], [auth], sized(digest) + wanted + ticket).rest()

    def activate(self, key: int, auth: Auth, ek: int, ek_auth: Auth, credential: bytes, secret: bytes) -> bytes:
        parameters = sized(credential) + sized(secret)
        return self._run("ActivateCredential", 0x147, [key, ek], [auth, ek_auth], parameters).sized()

    @contextmanager
    def endorsement_session(self, auth: Auth) -> Iterator[Auth]:
        """A policy session that satisfies the endorsement key's own policy, PolicySecret of its hierarchy, once."""
        parameters = sized(bytes(16)) + sized(b"") + struct.pack(">BHH", _POLICY_SESSION, ALG_NULL, ALG_SHA256)
        session, _ = self._loading("StartAuthSession", 0x176, [NULL, NULL], [], parameters)
        with self.holding(session):  # which a command that used it has ended already
            empty = sized(b"") * 3 + struct.pack(">i", 0)
            self._run("PolicySecret", 0x151, [ENDORSEMENT, session], [auth], empty)
            yield Auth(session=session)

    # What is stored

    def nv_read(self, index: int) -> bytes:
        """All of an NV index that anybody may read."""
        public = Reader(self._run("NV_ReadPublic", 0x169, [index], [], b"").sized())
        public.take(10)  # index, digest of the name, attributes
        public.sized()  # policy
        size = public.u16()
        if size > _MAX_NV_BYTES:
            raise Malformed(f"NV index 0x{index:08x} is longer than {_MAX_NV_BYTES} bytes")
        data = b""
        while len(data) < size:
            part = struct.pack(">HH", min(_NV_CHUNK, size - len(data)), len(data))
            read = self._run("NV_Read", 0x14E, [index, index], [Auth()], part).sized()
            if not read:
                break
            data += read
        return data

    def pcr_read(self, bank: int, indexes: list[int]) -> list[bytes]:
        """The values, in the order of the (ascending) indexes. Raises Refusal where the TPM has no such bank."""
        values: list[bytes] = []
        for start in range(0, len(indexes), _DIGESTS_AT_ONCE):
            wanted = indexes[start : start + _DIGESTS_AT_ONCE]
            reader = self._run("PCR_Read", 0x17E, [], [], pcr_selection(bank, wanted))
            reader.u32()  # update counter
            read_selection(reader)
            values += [reader.sized() for _ in range(min(reader.u32(), _DIGESTS_AT_ONCE))]
        return values

    # The wire

    def _loading(
        self, name: str, code: int, handles: list[int], auths: list[Auth], parameters: bytes
    ) -> tuple[int, Reader]:
        reader = self._exchange(name, code, handles, auths, parameters)
        handle = reader.u32()
        if auths:
            reader.u32()  # how long the parameters are
        return handle, reader

    def _run(self, name: str, code: int, handles: list[int], auths: list[Auth], parameters: bytes) -> Reader:
        reader = self._exchange(name, code, handles, auths, parameters)
        return Reader(reader.take(reader.u32())) if auths else reader

    def _exchange(self, name: str, code: int, handles: list[int], auths: list[Auth], parameters: bytes) -> Reader:
        body = struct.pack(f">{len(handles)}I", *handles)
        if auths:
            area = b"".join(auth.encode() for auth in auths)
            body += struct.pack(">I", len(area)) + area
        body += parameters
        command = struct.pack(">HII", _SESSIONS if auths else _NO_SESSIONS, HEADER_BYTES + len(body), code) + body
        return self._until_done(name, command)

    def _until_done(self, name: str, command: bytes) -> Reader:
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_SECONDS)
            reader = Reader(self._device.exchange(command))
            reader.u16()
            reader.u32()
            result = reader.u32()
            if result == 0:
                return reader
            if base_code(result) not in _LATER:
                break
        raise Refusal(name, result)


def pcr_selection(bank: int, indexes: list[int]) -> bytes:
    """TPML_PCR_SELECTION of one bank; three bytes of bits, as every PC's TPM has at least."""
    bits = sum(1 << index for index in indexes)
    return struct.pack(">IHB", 1, bank, 3) + bits.to_bytes(3, "little")
