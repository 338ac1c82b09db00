#!/usr/bin/env bash
# Builds the control plane's parts from pinned Go modules into a cache outside git, and prints that folder.
# CONTROL_PLANE_BIN=folder uses ready-made binaries instead. Progress goes to stderr, the folder to stdout.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# In the order in which they are built.
programs=(etcd kwok kwokctl kube-apiserver kube-controller-manager kube-scheduler kubectl)
min_free_mib=10240

say() { printf '%s\n' "control-plane: $*" >&2; }
fail() { say "$*"; exit 1; }

if [ -n "${CONTROL_PLANE_BIN:-}" ]; then
  for program in "${programs[@]}"; do
    [ -x "$CONTROL_PLANE_BIN/$program" ] || fail "CONTROL_PLANE_BIN=$CONTROL_PLANE_BIN has no executable '$program'; put it there or unset CONTROL_PLANE_BIN"
  done
  (cd "$CONTROL_PLANE_BIN" && pwd)
  exit 0
fi

command -v go >/dev/null || fail "Go is missing: install Go 1.26 or newer (https://go.dev/dl), or point CONTROL_PLANE_BIN at ready-made binaries"
# Asked inside a module: a newer toolchain that its go.mod wants is fetched by Go itself.
go_version=$(cd "$here/kubernetes" && go env GOVERSION)
go_minor=$(sed -E 's/^go1\.([0-9]+).*/\1/' <<<"$go_version")
case "$go_minor" in *[!0-9]*) ;; *) [ "$go_minor" -ge 26 ] || fail "Go is too old ($go_version): install Go 1.26 or newer (https://go.dev/dl)" ;; esac

cache=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator/control-plane
# What decides what is built: the pinned modules, the compiler, and this number, which grows when the flags below change.
recipe=1
key=$({ cat "$here"/*/go.mod "$here"/*/go.sum; echo "$go_version $recipe"; } | sha256sum | cut -c1-16)
bin=$cache/$key
complete() { for program in "${programs[@]}"; do [ -x "$bin/$program" ] || return 1; done; }
if complete; then echo "$bin"; exit 0; fi

command -v cc >/dev/null || command -v gcc >/dev/null || fail "a C linker is missing: install gcc (Debian: apt-get install gcc libc6-dev; Fedora: dnf install gcc)"
mkdir -p "$bin"
free_mib=$(df -Pm "$bin" | awk 'NR==2 {print $4}')
[ "$free_mib" -ge "$min_free_mib" ] || fail "not enough disk: $free_mib MiB free under $cache, $min_free_mib MiB needed; free some or set XDG_CACHE_HOME"

exec 9>"$cache/lock"
flock -n 9 || { say "another build is running, waiting for it"; flock 9; }
if complete; then echo "$bin"; exit 0; fi

PROGRESS_BEGAN=$(date +%s)
export PROGRESS_BEGAN
kubernetes_version=$(awk '$1 == "k8s.io/kubernetes" {print $2}' "$here/kubernetes/go.mod")
minor=$(cut -d. -f2 <<<"$kubernetes_version")
version_flags="-X k8s.io/component-base/version.gitVersion=$kubernetes_version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor"

build() { # program
  local module=kubernetes package=k8s.io/kubernetes/cmd/$1 flags=$version_flags part=0 next
  case $1 in
    etcd) module=etcd package=go.etcd.io/etcd/server/v3 flags= ;;
    kwok*) module=kwok package=sigs.k8s.io/kwok/cmd/$1 flags= ;;
  esac
  until [ "${programs[part]}" = "$1" ]; do part=$((part + 1)); done
  next=${programs[part + 1]:-}
  part="[$((part + 1))/${#programs[@]}] $1"
  if [ -x "$bin/$1" ]; then say "$part is built already"; return 0; fi
  say "$part, first time only: minutes on a cold cache"
  (cd "$here/$module" && CGO_ENABLED=0 "$here/../progress.sh" "control-plane: $part" "$next" \
    go build -mod=readonly -trimpath -ldflags "-s -w $flags" -o "$bin/.$1.part" "$package")
  mv "$bin/.$1.part" "$bin/$1"
}
for program in "${programs[@]}"; do build "$program"; done
# Older versions are of no use once a newer one is complete.
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$key" -mtime +30 -exec rm -rf {} +
echo "$bin"
