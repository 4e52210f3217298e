"""Regenerates every generated file, or with --check says which of them are not what their source makes.

Generated: the protobuf messages, the CLI reference, the configuration tables, those in the pages of plugins too,
JSON Schemas, and the values of the Helm chart.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.plugin_pages import write_pages  # noqa: E402 (run as a script, it has its own folder on the path)

PROTOS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "ca/proto").glob("*/*.proto"))

# What is printed by a module of ours: file → module and arguments.
PRINTED = {
    "docs/reference/cli.md": ["ca.cli.reference"],
    "docs/policy/rest.md": ["ca.api.policy.reference"],
    "docs/reference/server-config.md": ["ca.runtime.server_config", "table"],
    "docs/reference/server-config.schema.json": ["ca.runtime.server_config", "schema"],
    "docs/reference/vault-config.md": ["ca.vault.config", "table"],
    "docs/reference/agent-config.md": ["sds.config", "table"],
    "docs/reference/agent-config.schema.json": ["sds.config", "schema"],
    "docs/reference/controller-config.md": ["ca.controller.config", "table"],
    "docs/reference/controller-config.schema.json": ["ca.controller.config", "schema"],
    "helm/burgee/files/alerts.yaml": ["tests.support.helm_alerts"],
    "helm/burgee/values.schema.json": ["tests.support.helm_values", "schema"],
    "helm/burgee/values.yaml": ["tests.support.helm_values", "values"],
    "docs/reference/helm-values.md": ["tests.support.helm_values", "table"],
}


def messages(target: Path) -> None:
    """Compile every .proto into `target`, in the tree of its import path."""
    binaries = Path(sys.executable).parent
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--plugin=protoc-gen-mypy={binaries}/protoc-gen-mypy",
            f"--plugin=protoc-gen-mypy_grpc={binaries}/protoc-gen-mypy_grpc",
            "-I.",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *PROTOS,
        ],
        cwd=ROOT,
        check=True,
    )


def printed(target: Path) -> None:
    """Write what our modules print about themselves."""
    for name, (module, *arguments) in PRINTED.items():
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
        )
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(done.stdout)
    write_pages(ROOT, target)


def main() -> int:
    if "--check" not in sys.argv[1:]:
        messages(ROOT)
        printed(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch)
        messages(target)
        printed(target)
        made = {p.relative_to(target): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    stale = [str(p) for p, data in made.items() if not (ROOT / p).exists() or (ROOT / p).read_bytes() != data]
    committed = {p.relative_to(ROOT) for p in (ROOT / "ca/proto").rglob("*_pb2*") if "__pycache__" not in p.parts}
    stale += [f"{p} (no source)" for p in committed - set(made)]
    for name in sorted(stale):
        print(f"stale: {name}; run `make proto`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
