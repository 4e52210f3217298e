"""The floor F: CPU time of one P-256 verification and one signature, by OpenSSL's own benchmark on this machine."""

from __future__ import annotations

import re
import subprocess


def floor_us(seconds: int = 2) -> float:
    """Microseconds of one ECDSA P-256 verify + one sign (`openssl speed ecdsap256`)."""
    done = subprocess.run(
        ["openssl", "speed", "-seconds", str(seconds), "ecdsap256"], check=True, capture_output=True, text=True
    )
    match = re.search(r"256 bits ecdsa \(nistp256\)\s+\S+\s+\S+\s+([\d.]+)\s+([\d.]+)", done.stdout)
    if match is None:
        raise RuntimeError(f"cannot read openssl speed's answer: {done.stdout!r}")
    return 1e6 / float(match[1]) + 1e6 / float(match[2])
