#!/usr/bin/env bash
# Builds our Go programs (they speak to us through other people's generated code) into $CACHE/bin, once per source state.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CACHE:=$PWD/.cache}"
mkdir -p "$CACHE/bin"

if ! command -v go >/dev/null; then
  echo "Go is not here: tests and benchmarks of the Go clients will say so" >&2
  exit 0
fi
for module in tests/bench/wire; do
  name=$(basename "$module")
  state=$(cat "$module"/*.go "$module"/go.mod "$module"/go.sum | sha256sum | cut -d' ' -f1)
  [ "$(cat "$CACHE/bin/$name.state" 2>/dev/null)" = "$state" ] && continue
  echo "building $module"
  (cd "$module" && CGO_ENABLED=0 go build -trimpath -o "$CACHE/bin/$name" .)
  echo "$state" > "$CACHE/bin/$name.state"
done
