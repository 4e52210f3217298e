"""From a name that Envoy asks for to the secret's bytes, or to why the name means nothing here."""

from __future__ import annotations

import base64
import hashlib
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf import any_pb2

from ca.errors import BurgeeError
from ca.identity.bundle_pem import certificate_pem
from ca.identity.spiffe_id import SpiffeId
from ca.identity.text import quote
from sds import envoy_messages as messages
from sds.envoy_answers import Found, Missing
from sds.memory import Room
from sds.views import BundleForms, Content, WorkloadSvid

TYPE_URL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
PLAIN = "trusted_ca:"
"""Before the name of a bundle: as plain certificates, whatever this proxy's other bundles come as."""
VALIDATOR = "envoy.tls.cert_validator.spiffe"
VALIDATOR_TYPE_URL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"


class Form(StrEnum):
    """How a trust bundle is given: one for each trust domain to the SPIFFE validator, or plain certificates."""

    SPIFFE = "spiffe"
    TRUSTED_CA = "trusted_ca"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretNames:
    """The names that are not IDs."""

    svid: str = "default"
    bundle: str = "ROOTCA"
    all_bundles: str = "ALL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What names stand for to callers with this content. `settled`: no SVID of it is on its way."""

    content: Content
    settled: bool = True
    names: SecretNames = SecretNames()
    form: Form = Form.SPIFFE

    @property
    def type_url(self) -> str:
        return TYPE_URL

    @property
    def version(self) -> str:
        return self.content.version

    @property
    def held_bytes(self) -> int:
        return 0

    def every_name(self) -> Sequence[str]:
        return every_name(self.content)

    def find(self, name: str) -> Found | Missing:
        return resolve(name, self.content, settled=self.settled, names=self.names, form=self.form)

    def once_for(self, room: Room | None, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        return self.content.once_for(room, (*key, self.form), make)


def is_root_name(name: str, names: SecretNames) -> bool:
    """Whether a name asks for a trust bundle, whoever asks."""
    name = name.removeprefix(PLAIN)
    if name in (names.bundle, names.all_bundles):
        return True
    parsed = _spiffe_id(name)
    return parsed is not None and not parsed.path


def every_name(content: Content) -> list[str]:
    """What a request without names stands for: all bundles and SVIDs under their IDs."""
    ids = [forms.id for forms in content.bundles] + [str(svid.spiffe_id) for _, svid in content.svids]
    return list(dict.fromkeys(ids))


def resolve(name: str, content: Content, *, settled: bool, names: SecretNames, form: Form) -> Found | Missing:
    """The secret of one name for callers with this content.

    `settled` false means that SVIDs are on their way; which one is the default is known when they are here.
    Several names may mean the same secret (`ROOTCA` and the trust domain's ID): each is answered under its own name.
    """
    if name.startswith(PLAIN):
        if not is_root_name(name, names):
            return Missing(_unknown(name, names))
        form = Form.TRUSTED_CA
    bare = name.removeprefix(PLAIN)
    if bare == names.all_bundles:
        return _bundles(name, content.bundles, content, form, usual=True)
    if bare == names.bundle:
        return _bundles(name, content.bundles[:1], content, form, usual=True)
    if name == names.svid:
        return _default_svid(name, content, settled=settled)
    spiffe_id = _spiffe_id(bare)
    if spiffe_id is None:
        return Missing(_unknown(name, names))
    if spiffe_id.path:
        return _svid_by_id(name, spiffe_id, content)
    domain = [forms for forms in content.bundles if forms.trust_domain == spiffe_id.trust_domain]
    if domain:
        return _bundles(name, tuple(domain), content, form, usual=bare == domain[0].id)
    return Missing(f"no bundle of {quote(name)}: no entry of this workload federates with it")


def _default_svid(name: str, content: Content, *, settled: bool) -> Found | Missing:
    if not content.entries:
        return Missing("no identity issued: no registration entry matches this workload")
    if not content.svids or not settled:
        return Missing("the X.509-SVID has not been issued yet", pending=True)
    return _svid(name, 0, content, usual=True)


def _svid_by_id(name: str, spiffe_id: SpiffeId, content: Content) -> Found | Missing:
    for position, (_, svid) in enumerate(content.svids):
        if svid.spiffe_id == spiffe_id:
            return _svid(name, position, content, usual=name == str(svid.spiffe_id))
    if any(entry.spiffe_id == spiffe_id for entry in content.entries):
        return Missing("the X.509-SVID has not been issued yet", pending=True)
    return Missing(f"no registration entry gives this workload {quote(name)}")


def _unknown(name: str, names: SecretNames) -> str:
    if name.startswith(("file-root:", "file-cert:")):
        return "names of files are answered by Istio's own agent, not here"
    known = f"`{names.svid}`, `{names.bundle}`, `{names.all_bundles}`"
    return f"not a name of this agent: it knows {known}, SPIFFE IDs, trust domain IDs, and bundles after `{PLAIN}`"


def _spiffe_id(name: str) -> SpiffeId | None:
    try:
        return SpiffeId.parse(name)
    except BurgeeError:
        return None


def _svid(name: str, position: int, content: Content, *, usual: bool) -> Found:
    svid = content.svids[position][1]
    return _found(content, ("svid", name), 1_000_000 + position, lambda: _tls_certificate(name, svid), usual=usual)


def _bundles(
    name: str, bundles: tuple[BundleForms, ...], content: Content, form: Form, *, usual: bool
) -> Found | Missing:
    if form is Form.TRUSTED_CA and len(bundles) > 1:
        # In one list of plain certificates every root would vouch for every trust domain.
        return Missing(f"{quote(name)} holds several trust domains: only Envoy's SPIFFE validator keeps them apart")
    rank = content.bundles.index(bundles[0])
    return _found(content, ("bundle", name, form), rank, lambda: _validation(name, bundles, form), usual=usual)


def _found(
    content: Content, key: tuple[object, ...], rank: int, make: Callable[[], messages.secret_pb2.Secret], *, usual: bool
) -> Found:
    """`usual`: kept with the content. One ID may be spelled in many ways (the trust domain in any case), and its
    secret bears the name as it was asked for: other spellings than our own are made each time."""
    if not usual:
        resource = _any(make())
        return Found(resource, rank, _version(resource).decode("ascii"))
    resource = content.once(key, lambda: _any(make()))
    return Found(resource, rank, content.once(("version", *key), lambda: _version(resource)).decode("ascii"))


def _version(resource: bytes) -> bytes:
    return hashlib.sha256(resource).hexdigest()[:16].encode("ascii")


def _tls_certificate(name: str, svid: WorkloadSvid) -> messages.secret_pb2.Secret:
    chain = "".join(certificate_pem(der) for der in svid.chain).encode("ascii")
    return messages.secret_pb2.Secret(
        name=name,
        tls_certificate=messages.common_pb2.TlsCertificate(
            certificate_chain=messages.base_pb2.DataSource(inline_bytes=chain),
            private_key=messages.base_pb2.DataSource(inline_bytes=_key_pem(svid.key)),
        ),
    )


def _validation(name: str, bundles: tuple[BundleForms, ...], form: Form) -> messages.secret_pb2.Secret:
    if form is Form.TRUSTED_CA:
        context = messages.common_pb2.CertificateValidationContext(trusted_ca=_data(bundles[0].pem))
        return messages.secret_pb2.Secret(name=name, validation_context=context)
    trust_domain = messages.tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig.TrustDomain
    config = messages.tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig(
        trust_domains=[trust_domain(name=forms.trust_domain.name, trust_bundle=_data(forms.pem)) for forms in bundles]
    )
    typed = any_pb2.Any(type_url=VALIDATOR_TYPE_URL, value=config.SerializeToString(deterministic=True))
    context = messages.common_pb2.CertificateValidationContext(
        custom_validator_config=messages.extension_pb2.TypedExtensionConfig(name=VALIDATOR, typed_config=typed)
    )
    return messages.secret_pb2.Secret(name=name, validation_context=context)


def _data(pem: bytes) -> messages.base_pb2.DataSource:
    return messages.base_pb2.DataSource(inline_bytes=pem)


def _any(secret: messages.secret_pb2.Secret) -> bytes:
    return any_pb2.Any(type_url=TYPE_URL, value=secret.SerializeToString(deterministic=True)).SerializeToString()


def _key_pem(pkcs8: bytes) -> bytes:
    body = "\n".join(textwrap.wrap(base64.b64encode(pkcs8).decode("ascii"), 64))
    return f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n".encode("ascii")
