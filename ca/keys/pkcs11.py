"""Private keys in an HSM, by PKCS#11: made there, sensitive and not extractable, used there."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import Field, model_validator

from ca.errors import BurgeeError, ConfigError, FailedPrecondition
from ca.keys.key_id import check_key_id, in_use
from ca.keys.pkcs11_signer import Pkcs11Signer
from ca.keys.pkcs11_token import REOPEN_SECONDS, Pkcs11Token
from ca.keys.shared_names import SharedNames
from ca.keys.signer import key_type_of
from ca.ports import AuthorityHost, Clock, KeyManagerPlugin, KeyType, Signer
from ca.runtime.config import StrictModel
from ca.runtime.files import read_private

MAX_PIN_BYTES = 1024

_CURVES: dict[KeyType, ec.EllipticCurve] = {KeyType.EC_P256: ec.SECP256R1(), KeyType.EC_P384: ec.SECP384R1()}
_RSA_BITS = {KeyType.RSA_2048: 2048, KeyType.RSA_3072: 3072, KeyType.RSA_4096: 4096}


class Pkcs11KeysConfig(StrictModel):
    """Options of the pkcs11 key manager. The PIN itself is never in the configuration."""

    module: Path
    """The HSM vendor's PKCS#11 module, a shared library such as /usr/lib/softhsm/libsofthsm2.so."""

    token_label: str = Field(min_length=1, max_length=32)
    """Label of the token that holds the keys."""

    token_serial: str | None = Field(default=None, min_length=1, max_length=16)
    """Its serial number, where several tokens have that label."""

    pin_file: Path | None = None
    """File with the user PIN, readable for the server alone."""

    pin_env: str | None = Field(default=None, min_length=1)
    """Environment variable with the user PIN, instead of a file. One of the two must be named."""

    sessions: Annotated[int, Field(ge=1, le=64)] = 4
    """Sessions at most: so many signatures or batches at the same time."""

    @model_validator(mode="after")
    def _one_pin(self) -> Pkcs11KeysConfig:
        if (self.pin_file is None) == (self.pin_env is None):
            raise ValueError("name one of pin_file and pin_env")
        return self


class Pkcs11KeyManager:
    """Implements ca.ports.KeyManager and ca.ports.Connected.

    A key of ours is one private key and its public one, with a label that names trust domain, server and key id. Keys
    of others in the same token are neither seen nor touched. A key that could leave the token is not signed with.
    """

    remote = True

    def __init__(
        self, token: Pkcs11Token, names: SharedNames, *, clock: Clock, jitter: Callable[[], float] = random.random
    ) -> None:
        """`jitter` gives 0 to 1."""
        self._token = token
        self._names = names
        self._clock = clock
        self._jitter = jitter
        self._making = asyncio.Lock()

    async def generate(self, key_id: str, key_type: KeyType) -> Signer:
        check_key_id(key_id)
        async with self._making:  # a token takes two keys with one label for granted
            return await self._token.threads.run(self._generate, key_id, key_type)

    async def get(self, key_id: str) -> Signer | None:
        check_key_id(key_id)
        return await self._token.threads.run(self._get, key_id)

    async def list(self) -> Sequence[str]:
        return await self._token.threads.run(self._list)

    async def delete(self, key_id: str) -> None:
        check_key_id(key_id)
        await self._token.threads.run(self._delete, key_id)

    async def start(self) -> None:
        await self._token.threads.run(self._token.open)

    async def run(self) -> None:
        """Looks for a token that is away."""
        while True:
            await self._clock.sleep(REOPEN_SECONDS * (1 + self._jitter()))
            if self._token.problem() is None:
                continue
            try:
                await self._token.threads.run(self._token.reopen)
            except BurgeeError:
                continue  # `problem` has it, and the log

    async def close(self) -> None:
        await self._token.threads.run(self._token.close)

    def problem(self) -> BurgeeError | None:
        return self._token.problem()

    # ---- in one of the token's threads

    def _generate(self, key_id: str, key_type: KeyType) -> Signer:
        import pkcs11

        name = self._names.name(key_id)
        with self._token.session() as session:
            if _find(session, name):
                raise in_use(key_id)
            options: dict[str, Any] = {
                "label": name,
                "id": hashlib.sha256(name.encode()).digest()[:20],
                "store": True,
                "capabilities": pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
                "private_template": {
                    pkcs11.Attribute.SENSITIVE: True,
                    pkcs11.Attribute.EXTRACTABLE: False,
                    pkcs11.Attribute.PRIVATE: True,
                },
            }
            curve = _CURVES.get(key_type)
            if curve is None:
                session.generate_keypair(pkcs11.KeyType.RSA, _RSA_BITS[key_type], **options)
            else:
                oid = pkcs11.util.ec.encode_named_curve_parameters(curve.name)
                parameters = {pkcs11.Attribute.EC_PARAMS: oid}
                domain = session.create_domain_parameters(pkcs11.KeyType.EC, parameters, local=True)
                domain.generate_keypair(**options)
            signer = self._signer(session, key_id)
        if signer is None or signer.key_type != key_type:
            raise FailedPrecondition(f"the token did not make the key `{key_id}` as asked", reason="PKCS11_KEY")
        return signer

    def _get(self, key_id: str) -> Signer | None:
        with self._token.session() as session:
            return self._signer(session, key_id)

    def _list(self) -> Sequence[str]:
        import pkcs11

        with self._token.session() as session:
            keys = session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY})
            labels = [key.label for key in keys]
        return sorted(key_id for label in labels if label and (key_id := self._names.key_id(label)) is not None)

    def _delete(self, key_id: str) -> None:
        with self._token.session() as session:
            for each in _find(session, self._names.name(key_id), private=None):
                each.destroy()

    def _signer(self, session: Any, key_id: str) -> Signer | None:
        name = self._names.name(key_id)
        private = _find(session, name)
        if not private:
            return None
        public = _find(session, name, private=False)
        if len(private) != 1 or len(public) != 1:
            raise FailedPrecondition(
                f"the token has {len(private)} private and {len(public)} public keys `{name}`",
                reason="PKCS11_KEY",
                hint="delete what is not ours; without its public key a key cannot be used",
            )
        _require_kept(private[0], name)
        key = _public_key(public[0])
        return Pkcs11Signer(
            key_id,
            name=name,
            key_type=key_type_of(key),
            public_key_der=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            token=self._token,
        )


def _find(session: Any, name: str, *, private: bool | None = True) -> list[Any]:
    """Objects of that label; `private=None` finds both halves."""
    import pkcs11

    wanted: dict[Any, Any] = {pkcs11.Attribute.LABEL: name}
    if private is not None:
        kind = pkcs11.ObjectClass.PRIVATE_KEY if private else pkcs11.ObjectClass.PUBLIC_KEY
        wanted[pkcs11.Attribute.CLASS] = kind
    return list(session.get_objects(wanted))


def _require_kept(private: Any, name: str) -> None:
    """PKCS#11 v2.40 §4.9: it cannot leave the token now, and never could."""
    import pkcs11

    kept = pkcs11.Attribute
    if private[kept.EXTRACTABLE] or not (private[kept.ALWAYS_SENSITIVE] and private[kept.NEVER_EXTRACTABLE]):
        raise FailedPrecondition(
            f"key `{name}` could have left its token",
            reason="PKCS11_KEY_EXPOSED",
            hint="it was not made by this server, or changed; rotate the authority to a fresh key",
        )


def _public_key(public: Any) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    import pkcs11

    if public.key_type == pkcs11.KeyType.RSA:
        modulus = int.from_bytes(public[pkcs11.Attribute.MODULUS], "big")
        exponent = int.from_bytes(public[pkcs11.Attribute.PUBLIC_EXPONENT], "big")
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    parameters = public[pkcs11.Attribute.EC_PARAMS]
    for curve in _CURVES.values():
        if parameters == pkcs11.util.ec.encode_named_curve_parameters(curve.name):
            return ec.EllipticCurvePublicKey.from_encoded_point(curve, _point(public[pkcs11.Attribute.EC_POINT]))
    raise FailedPrecondition("the key is on a curve that is not signed with", reason="PKCS11_KEY")


def _point(value: bytes) -> bytes:
    """CKA_EC_POINT is an OCTET STRING of the point (PKCS#11 v2.40 §2.3.3); some modules leave the wrapping out."""
    if value[:1] == b"\x04" and len(value) > 2 and value[1] == len(value) - 2:
        return value[2:]
    return value


def _pin(config: Pkcs11KeysConfig) -> str:
    """Raises ConfigError (PKCS11_PIN); what it says holds nothing of the PIN."""
    if config.pin_env is not None:
        pin = os.environ.get(config.pin_env, "")
        where = f"environment variable `{config.pin_env}`"
    else:
        file = config.pin_file or Path()
        where = f"`{file}`"
        try:
            pin = read_private(file, MAX_PIN_BYTES).decode().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the PIN cannot be read from {where}", reason="PKCS11_PIN") from error
    if not pin:
        raise ConfigError(f"there is no PIN in {where}", reason="PKCS11_PIN")
    return pin


def _manager(config: Pkcs11KeysConfig, host: AuthorityHost) -> Pkcs11KeyManager:
    token = Pkcs11Token(
        module=str(config.module),
        label=config.token_label,
        serial=config.token_serial,
        pin=lambda: _pin(config),
        sessions=config.sessions,
    )
    return Pkcs11KeyManager(token, SharedNames.of(host), clock=host.clock)


plugin = KeyManagerPlugin(name="pkcs11", config=Pkcs11KeysConfig, manager=_manager)
