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

# Tools as their makers release them; their versions are no dependencies of ours, so they stand in no go.mod.
# What helm takes for the cluster's version where it asks none is stamped into it.
stamp=helm.sh/helm/v3/pkg/chartutil
for part in grpcurl=github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4 helm=helm.sh/helm/v3/cmd/helm@v3.22.0 \
  kubeconform=github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0; do
  name=${part%%=*} package=${part#*=}
  [ "$(cat "$CACHE/bin/$name.state" 2>/dev/null)" = "${package#*@}" ] && continue
  echo "building $name ${package#*@}"
  if GOBIN="$CACHE/bin" CGO_ENABLED=0 nice -n 15 go install -trimpath \
    -ldflags "-s -w -X $stamp.k8sVersionMajor=1 -X $stamp.k8sVersionMinor=37" "$package"; then
    echo "${package#*@}" > "$CACHE/bin/$name.state"
  else
    echo "$name could not be had; the tests that need it will say so" >&2
  fi
done

# A Kubernetes API server to ask for real: etcd, kube-apiserver, kube-controller-manager, and kubectl, by the go.sum of
# a module of ours without Go source. The first time takes ten minutes of two cores; nobody else is to wait, hence `nice`.
module=tests/support/kubernetes
release=$(sed -n 's|^[[:space:]]*k8s.io/kubernetes v\([0-9.]*\).*|\1|p' "$module/go.mod" | head -1)
state=$(cat "$module/go.mod" "$module/go.sum" | sha256sum | cut -d' ' -f1)
stamp=k8s.io/component-base/version
flags="-s -w -X $stamp.gitVersion=v$release -X $stamp.gitMajor=${release%%.*} -X $stamp.gitMinor=$(cut -d. -f2 <<<"$release")"
for part in go.etcd.io/etcd/server/v3:etcd k8s.io/kubernetes/cmd/kube-apiserver:kube-apiserver \
  k8s.io/kubernetes/cmd/kube-controller-manager:kube-controller-manager k8s.io/kubernetes/cmd/kubectl:kubectl; do
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
