#!/usr/bin/env bash
# Builds the control plane's parts from pinned Go modules into a cache outside git, and prints that folder.
# CONTROL_PLANE_BIN=folder uses ready-made binaries instead. Progress goes to stderr, the folder to stdout.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs=(etcd kube-apiserver kube-controller-manager kube-scheduler kubectl kwok kwokctl)
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
flock 9
if complete; then echo "$bin"; exit 0; fi

version_of() { (cd "$here/$1" && go list -m -f '{{.Version}}' "$2"); }
build() { # module folder, package, program name, linker flags
  local module=$1 package=$2 program=$3 flags=${4:-} started
  if [ -x "$bin/$program" ]; then return 0; fi
  started=$(date +%s)
  done_count=$((done_count + 1))
  say "[$done_count/${#programs[@]}] building $program (first time only; minutes on a cold cache) ..."
  (cd "$here/$module" && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w $flags" -o "$bin/.$program.part" "$package") >&2
  mv "$bin/.$program.part" "$bin/$program"
  say "[$done_count/${#programs[@]}] $program built in $(($(date +%s) - started)) s"
}

done_count=0
kubernetes_version=$(version_of kubernetes k8s.io/kubernetes)
minor=$(cut -d. -f2 <<<"$kubernetes_version")
stamp="-X k8s.io/component-base/version.gitVersion=$kubernetes_version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor"
build etcd go.etcd.io/etcd/server/v3 etcd
build kwok sigs.k8s.io/kwok/cmd/kwok kwok
build kwok sigs.k8s.io/kwok/cmd/kwokctl kwokctl
for program in kube-apiserver kube-controller-manager kube-scheduler kubectl; do
  build kubernetes "k8s.io/kubernetes/cmd/$program" "$program" "$stamp"
done
# Older versions are of no use once a newer one is complete.
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$key" -mtime +30 -exec rm -rf {} +
echo "$bin"
