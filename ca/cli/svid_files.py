"""X.509-SVIDs in files, under the same names whoever writes them, and kept there for programs that cannot ask."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ca.cli.files import write_files
from ca.errors import FailedPrecondition, InvalidArgument, NotFound

if TYPE_CHECKING:
    from ca.proto.burgee import workload_pb2

KEY_FILE = "svid.key"
CHAIN_FILE = "svid.pem"
BUNDLE_FILE = "bundle.pem"
"""What a directory with an SVID holds; `--svid-dir` reads the same three."""

RELOAD_SECONDS = 60.0
LEFT_SECONDS = 60.0
"""Nobody takes so long to write a file."""
_STDERR = 2


def command_line(text: str) -> list[str]:
    """A command as an argument list, split as a shell would but run without one. Raises InvalidArgument."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise InvalidArgument(f"the reload command is malformed: {error}", reason="USAGE") from error
    if not arguments:
        raise InvalidArgument("the reload command is empty", reason="USAGE")
    return arguments


@dataclass
class SvidFiles:
    """`svid.key`, `svid.pem`, `bundle.pem` and `federated_bundle.NAME.pem` in `directory`, each replaced atomically.

    The key is written first. Between two of the renames a reader can meet a new key with the old certificate; one
    that is told by `reload` cannot, and others should try again when the two do not fit.
    """

    directory: Path
    reload: Sequence[str] = ()
    spiffe_id: str | None = None
    _written: dict[str, bytes] = field(default_factory=dict)
    _told: bool = False

    def take(self, response: workload_pb2.X509SVIDResponse) -> list[str]:
        """Write what changed and then run the reload command; returns the files' paths, none when all was the same and
        the command has run since. Tries both again the next time if one fails.

        Raises NotFound (SVID_NOT_GIVEN), InvalidArgument (FILE), FailedPrecondition (RELOAD_COMMAND).
        """
        contents = _svid(self._chosen(response)) | _federated(response)
        if contents == self._written and self._told:
            return []
        self._told = False
        names = _write(self.directory, contents)
        self._written = contents
        if self.reload:
            _run(self.reload)
        self._told = True
        return names

    def _chosen(self, response: workload_pb2.X509SVIDResponse) -> workload_pb2.X509SVID:
        """The first, which is the default identity (Workload API §4.2), or the one that was asked for."""
        for svid in response.svids:
            if self.spiffe_id in (None, svid.spiffe_id):
                return svid
        wanted = f"SVID `{self.spiffe_id}`" if self.spiffe_id else "SVID"
        names = ", ".join(svid.spiffe_id for svid in response.svids)
        raise NotFound(
            f"the Workload API gives this process no {wanted}",
            reason="SVID_NOT_GIVEN",
            hint=f"it gives {names}" if names else "",
        )


def write_all(directory: Path, response: workload_pb2.X509SVIDResponse) -> list[str]:
    """Write every SVID: the first, which is the default identity, under the plain names, the next as `svid.1.key`,
    `svid.1.pem`, `bundle.1.pem` and so on. Returns the files' paths. Raises InvalidArgument (FILE)."""
    contents = _federated(response)
    for number, svid in reversed(list(enumerate(response.svids))):
        contents = _svid(svid, f".{number}" if number else "") | contents
    return _write(directory, contents)


def _write(directory: Path, contents: dict[str, bytes]) -> list[str]:
    """Bundles of trust domains that are no longer federated with, also those of an earlier run, are removed; so is what
    a run that was killed had begun to write, which may be a key."""
    names = write_files(directory, contents)
    for name in contents:
        for left in directory.glob(f".{name}.*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                    left.unlink()
    for path in directory.glob("federated_bundle.*.pem"):
        if path.name not in contents:
            path.unlink(missing_ok=True)
    return names


def _svid(svid: workload_pb2.X509SVID, number: str = "") -> dict[str, bytes]:
    from cryptography.hazmat.primitives import serialization

    from ca.cli.mint import pem
    from ca.cli.workload_values import split_der

    key = serialization.load_der_private_key(svid.x509_svid_key, None)
    contents = {
        KEY_FILE: key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        CHAIN_FILE: pem(split_der(svid.x509_svid)),
        BUNDLE_FILE: pem(split_der(svid.bundle)),
    }
    return {name.replace(".", f"{number}.", 1): data for name, data in contents.items()}


def _federated(response: workload_pb2.X509SVIDResponse) -> dict[str, bytes]:
    from ca.cli.mint import pem
    from ca.cli.workload_values import split_der
    from ca.identity.spiffe_id import TrustDomain

    # A parsed trust domain name has no slash: it cannot lead out of the directory.
    return {
        f"federated_bundle.{TrustDomain.parse(name).name}.pem": pem(split_der(blob))
        for name, blob in sorted(response.federated_bundles.items())
    }


def _run(arguments: Sequence[str]) -> None:
    """Its output goes to standard error, where it is not mistaken for ours."""
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": _STDERR, "timeout": RELOAD_SECONDS}
    try:
        code = subprocess.run(list(arguments), check=False, **options).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        why = (
            f"no end within {RELOAD_SECONDS:g} s"
            if isinstance(error, subprocess.TimeoutExpired)
            else error.strerror or error
        )
        raise FailedPrecondition(f"the reload command failed: {why}", reason="RELOAD_COMMAND") from error
    if code != 0:
        raise FailedPrecondition(f"the reload command failed: it ended with {code}", reason="RELOAD_COMMAND")
