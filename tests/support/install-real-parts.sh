#!/usr/bin/env bash
# Real servers for the tests that Debian has and that come in seconds. Not root, or no apt: say so, and let the tests skip.
set -euo pipefail

wanted=()
[ -x /usr/lib/postgresql/15/bin/postgres ] || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || wanted+=(postgresql)
command -v openssl >/dev/null || wanted+=(openssl)
command -v ssh-keygen >/dev/null || wanted+=(openssh-client)
command -v softhsm2-util >/dev/null || wanted+=(softhsm2)
{ command -v swtpm_setup && command -v tpm2_createek; } >/dev/null || wanted+=(swtpm swtpm-tools tpm2-tools libtss2-tcti-swtpm0)
command -v dbus-daemon >/dev/null || wanted+=(dbus-daemon)
command -v chromium >/dev/null || wanted+=(chromium)
[ ${#wanted[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "real parts not installed (needs root and apt): apt-get install ${wanted[*]}" >&2
  exit 0
fi
echo "installing ${wanted[*]}"
export DEBIAN_FRONTEND=noninteractive
# No cluster of Debian's own making: the tests start theirs.
mkdir -p /etc/postgresql-common/createcluster.d
[ -e /etc/postgresql-common/createcluster.d/no-main.conf ] || echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/no-main.conf
log=$(mktemp)
{ apt-get update -q && apt-get install -qy --no-install-recommends "${wanted[@]}"; } >"$log" 2>&1 || {
  tail -20 "$log" >&2
  echo "could not install ${wanted[*]}; the tests that need them will say so" >&2
}
rm -f "$log"
