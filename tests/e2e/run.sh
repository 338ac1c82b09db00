#!/usr/bin/env bash
# Shows the operator on real nodes: kubelets with containerd and runc, CNI, kube-proxy and DNS, on this machine alone.
# Everything runs in namespaces of its own (processes, mounts, network), so all of it ends with them, however it ends.
# ONLY="a b": some scenarios; all need a, and c and e need b. ROLLOUTS=2: how many rolling updates are measured.
# FROM=commit: what is upgraded from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

[ "$(id -u)" -eq 0 ] || { echo "e2e: real nodes need root: run 'sudo -E make e2e'" >&2; exit 1; }
tests/set-up.sh nodes
BIN=$(tests/control-plane/build.sh)
NODE_BIN=$(tests/e2e/build.sh)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator/e2e
mkdir -p "$cache"
exec 9>"$cache/lock"
flock -n 9 || { echo "e2e: another run is going on; wait until it has ended" >&2; exit 1; }

STATE=$cache/state
IMAGES=$cache/images
CGROUP=databasecluster-e2e
NODES=3
inside=

clean_up() {
  local group
  [ -z "$inside" ] || kill -KILL "$inside" 2>/dev/null || :
  [ -z "$inside" ] || wait "$inside" 2>/dev/null || :
  for group in /sys/fs/cgroup /sys/fs/cgroup/*; do
    # A process that was killed leaves its group a moment later.
    for _ in $(seq 50); do
      [ -d "$group/$CGROUP" ] || break
      find "$group/$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
    done
    [ ! -d "$group/$CGROUP" ] || echo "e2e: left behind: $group/$CGROUP" >&2
  done
  if [ -d "$STATE" ]; then
    rm -rf "$cache/last"
    mkdir -p "$cache/last"
    cp -r "$STATE/log" "$STATE/audit.log" "$STATE/operator-logs" "$cache/last/" 2>/dev/null || :
    rm -rf "$STATE"
  fi
}
clean_up
trap clean_up EXIT
trap 'exit 130' INT TERM

mkdir -p "$STATE" "$IMAGES"
rm -f "$IMAGES"/*.tar
tests/e2e/images.sh "$IMAGES"
OUT=$IMAGES deploy/image/build.sh >/dev/null
EARLIER=$(tests/e2e/earlier.sh ${FROM:+"$FROM"})

export STATE BIN NODE_BIN IMAGES EARLIER CGROUP NODES
# Killed with this script, even if it is killed itself; and the first process of the namespace ends all others.
setpriv --pdeathsig KILL unshare --mount --net --pid --ipc --uts --fork --kill-child --mount-proc \
  bash tests/e2e/scenarios.sh 9>&- &
inside=$!
status=0
wait "$inside" || status=$?
inside=
[ "$status" -eq 0 ] || echo "e2e: failed; logs of all parts are in $cache/last" >&2
exit "$status"
