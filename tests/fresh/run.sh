#!/usr/bin/env bash
# Does what a stranger does, on a bare Debian: clones this repository's last commit, and runs `make run ONCE=1` and
# `make test`, as a user without root, as a user with sudo, and as root. CASES="nobody sudo root" runs some of them.
# The machine is a folder created by debootstrap, from the user's cache. What is mounted there is so in namespaces of its own, which end with
# this script, however it ends. Rust and the control plane come from this machine, so that nothing is built twice;
# FRESH_RUST=1 lets rustup fetch Rust instead.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)

say() { printf 'fresh: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

[ "$(id -u)" -eq 0 ] || fail "a bare machine in a folder needs root: run 'sudo -E make fresh'"
"$here/../set-up.sh" fresh
cache=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator/fresh
mkdir -p "$cache"
exec 9>"$cache/lock"
flock -n 9 || fail "another run is going on; wait until it has ended"
[ -z "$(git -C "$repository" status --porcelain)" ] || say "what is not committed is not tested"

CONTROL_PLANE_BIN=$("$here/../control-plane/build.sh")
HELM=$("$here/../chart-tools/build.sh" helm)
RUST=$(cd "$repository" && rustc --print sysroot)
export CONTROL_PLANE_BIN HELM RUST FRESH_RUST=${FRESH_RUST:-}

base=$cache/base
if [ ! -e "$base/complete" ]; then
  rm -rf "$base"
  "$here/../progress.sh" "fresh: bare Debian 12" "the first case" \
    debootstrap --variant=minbase --include=git,make,curl bookworm "$base"
  touch "$base/complete"
fi

export MACHINE=$cache/machine CACHE=$cache
trap 'rm -rf --one-file-system "$MACHINE"' EXIT
passed=0
failed=0
for case in ${CASES:-nobody sudo root}; do
  say "case $case"
  rm -rf --one-file-system "$MACHINE"
  cp -a "$base" "$MACHINE"
  git clone -q --no-hardlinks "$repository" "$MACHINE/operator"
  # Ends with this script, also when that is killed.
  if setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child "$here/case.sh" "$case" </dev/null; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    say "case $case failed"
  fi
done
printf '\n%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
