#!/usr/bin/env bash
# One case of run.sh, as the first process of its namespaces. $1: nobody, sudo or root.
set -euo pipefail
case=$1
log=$MACHINE/log

fail() { printf 'fresh: %s: %s\n' "$case" "$*" >&2; exit 1; }

offer() { # a folder or file of this machine, where it is to be seen; "rw" when it may be written
  if [ -d "$1" ]; then mkdir -p "$MACHINE$2"; else mkdir -p "$(dirname "$MACHINE$2")"; touch "$MACHINE$2"; fi
  mount --bind "$1" "$MACHINE$2"
  [ "${3:-}" = rw ] || mount -o remount,bind,ro "$MACHINE$2"
}

mount -t proc proc "$MACHINE/proc"
mount --rbind /dev "$MACHINE/dev"
cp -L /etc/resolv.conf /etc/hosts "$MACHINE/etc/"
offer "$CONTROL_PLANE_BIN" /opt/control-plane
offer "$HELM" /opt/helm
[ -n "$FRESH_RUST" ] || offer "$RUST" /opt/rust
# Kept from case to case and from run to run: downloads, and what was built at this place.
mkdir -p "$CACHE/archives/partial" "$CACHE/cargo" "$CACHE/target"
offer "$CACHE/archives" /var/cache/apt/archives rw

user=root
home=$(getent passwd root | cut -d: -f6)
if [ "$case" != root ]; then
  user=stranger
  home=/home/stranger
  chroot "$MACHINE" useradd -m -s /bin/bash stranger
fi
offer "$CACHE/cargo" /cargo rw
offer "$CACHE/target" /target rw
chroot "$MACHINE" chown -R "$user:" /operator /target /cargo

environment=(
  HOME="$home" USER="$user" TERM=dumb CARGO_HOME=/cargo CARGO_TARGET_DIR=/target
  CONTROL_PLANE_BIN=/opt/control-plane HELM=/opt/helm
  PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
)
# Certificates of a proxy that this machine knows.
if [ -n "${SSL_CERT_FILE:-}" ]; then
  offer "$SSL_CERT_FILE" /opt/certificates.crt
  environment+=(SSL_CERT_FILE=/opt/certificates.crt CARGO_HTTP_CAINFO=/opt/certificates.crt)
fi
for name in http_proxy https_proxy no_proxy; do
  [ -z "${!name:-}" ] || environment+=("$name=${!name}")
done

as_root() { chroot "$MACHINE" env -i "${environment[@]}" "$@"; }
as_user() { chroot --userspec="$user:$user" "$MACHINE" env -i -C /operator "${environment[@]}" "$@"; }
passes() {
  printf '\nfresh: %s: %s\n' "$case" "$*" >&2
  as_user "$@" 2>&1 | tee "$log" || fail "$* failed"
}

if [ "$case" = sudo ]; then
  as_root sh -c 'apt-get -q update && apt-get -qy install --no-install-recommends sudo' >"$log" 2>&1 ||
    fail "sudo could not be installed: $(tail -n 1 "$log")"
  echo 'stranger ALL=(ALL) NOPASSWD: ALL' >"$MACHINE/etc/sudoers.d/stranger"
fi
if [ "$case" = nobody ]; then
  # Without root one line lists the commands for root; that is enough.
  if as_user make test >"$log" 2>&1; then fail "make test passed without what it needs"; fi
  command=$(sed -n 's/^set-up: .*there is no sudo; run as root: //p' "$log")
  [ -n "$command" ] || fail "make test did not print the commands for root: $(cat "$log")"
  grep -qx "0 passed, 1 failed" "$log" || fail "make test did not end with a count: $(tail -n 3 "$log")"
  # shellcheck disable=SC2086 # a command, split on purpose
  as_root sh -c "apt-get -q update && DEBIAN_FRONTEND=noninteractive ${command/install/install -qy}" >"$log" 2>&1 ||
    fail "$command: $(tail -n 1 "$log")"
fi
passes make run ONCE=1
passes make test TEST_ARGS="--test tidy"
if [ "$case" = root ]; then
  # Debian 12's own Go is too old to fetch a newer one by itself.
  passes env -u CONTROL_PLANE_BIN tests/set-up.sh run
  passes env -u CONTROL_PLANE_BIN tests/set-up.sh run
  [ ! -s "$log" ] || fail "the second set-up was not silent: $(cat "$log")"
  passes make --eval 'go-version: ; @cd tests/control-plane/kubernetes && GOTOOLCHAIN=local go version' go-version
fi
# What packages would start, and what the tests leave.
left=$(cat "$MACHINE"/proc/[0-9]*/comm | sort | uniq -c | grep -E 'prometheus|postgres|chrom|etcd|kube|kwok|operator' || :)
[ -z "$left" ] || fail "still running: $left"
