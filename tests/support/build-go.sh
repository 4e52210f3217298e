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

# A Kubernetes API server to ask for real: etcd, kube-apiserver, kube-controller-manager, by the go.sum of a module of
# ours that has no Go source. The first time takes ten minutes of two cores; nobody else is to wait for it, hence `nice`.
module=tests/support/kubernetes
release=$(sed -n 's|^[[:space:]]*k8s.io/kubernetes v\([0-9.]*\).*|\1|p' "$module/go.mod" | head -1)
state=$(cat "$module/go.mod" "$module/go.sum" | sha256sum | cut -d' ' -f1)
stamp=k8s.io/component-base/version
flags="-s -w -X $stamp.gitVersion=v$release -X $stamp.gitMajor=${release%%.*} -X $stamp.gitMinor=$(cut -d. -f2 <<<"$release")"
for part in go.etcd.io/etcd/server/v3:etcd k8s.io/kubernetes/cmd/kube-apiserver:kube-apiserver \
  k8s.io/kubernetes/cmd/kube-controller-manager:kube-controller-manager; do
  package=${part%:*} name=${part#*:}
  [ "$(cat "$CACHE/bin/$name.state" 2>/dev/null)" = "$state" ] && continue
  echo "building $name"
  if (cd "$module" && CGO_ENABLED=0 nice -n 15 go build -trimpath -ldflags "$flags" -o "$CACHE/bin/$name.new" "$package"); then
    mv "$CACHE/bin/$name.new" "$CACHE/bin/$name"
    echo "$state" > "$CACHE/bin/$name.state"
  else
    echo "$name could not be built; the tests that need it will say so" >&2
  fi
done
