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
# folder:program
for part in tests/bench/wire:wire tests/conformance/spire:conformance-spire tests/conformance/gospiffe:conformance-gospiffe; do
  module=${part%:*} name=${part#*:}
  state=$(cat "$module"/*.go "$module"/go.mod "$module"/go.sum | sha256sum | cut -d' ' -f1)
  [ "$(cat "$CACHE/bin/$name.state" 2>/dev/null)" = "$state" ] && continue
  echo "building $module"
  (cd "$module" && CGO_ENABLED=0 go build -trimpath -o "$CACHE/bin/$name" .)
  echo "$state" > "$CACHE/bin/$name.state"
done

# grpcurl as its makers release it; its version is no dependency of ours, so it stands in no go.mod.
grpcurl=v1.9.4
if [ "$(cat "$CACHE/bin/grpcurl.state" 2>/dev/null)" != "$grpcurl" ]; then
  echo "building grpcurl $grpcurl"
  if GOBIN="$CACHE/bin" CGO_ENABLED=0 go install -trimpath "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl"; then
    echo "$grpcurl" > "$CACHE/bin/grpcurl.state"
  else
    echo "grpcurl could not be had; the tests that need it will say so" >&2
  fi
fi
