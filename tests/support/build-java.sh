#!/usr/bin/env bash
# Builds our Java program (a workload with java-spiffe) into $CACHE/java, once per source state.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CACHE:=$PWD/.cache}"
source=tests/conformance/java
out="$CACHE/java"

if ! command -v javac >/dev/null || ! command -v mvn >/dev/null; then
  echo "no JDK or no Maven here: tests of the Java client will say so" >&2
  exit 0
fi
state=$(cat "$source/pom.xml" "$source"/src/*.java | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/state" 2>/dev/null)" = "$state" ] && exit 0
echo "building $source"
rm -rf "$out/lib" "$out/classes" "$out/conformance.jar" "$out/state"
mkdir -p "$out/classes"
if ! mvn -q -B -f "$source/pom.xml" -Dmaven.repo.local="$out/m2" dependency:copy-dependencies \
  -DincludeScope=runtime -DoutputDirectory="$out/lib"; then
  echo "java-spiffe could not be had; the tests that need it will say so" >&2
  exit 0
fi
javac --release 17 -cp "$out/lib/*" -d "$out/classes" "$source"/src/*.java
jar --create --file "$out/conformance.jar" -C "$out/classes" .
echo "$state" > "$out/state"
rm -rf "$out/m2" "$out/classes"
