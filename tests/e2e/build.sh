#!/usr/bin/env bash
# Builds what a real node needs beyond the control plane from pinned Go modules into a cache outside git, and prints
# that folder. Progress goes to stderr, the folder to stdout.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kubernetes=$here/../control-plane/kubernetes
programs=(kubelet kube-proxy coredns bridge host-local loopback portmap)

say() { printf '%s\n' "nodes: $*" >&2; }

cache=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator/nodes
# What decides what is built: the pinned modules, the compiler, and this number, which grows when the flags below change.
recipe=1
go_version=$(cd "$kubernetes" && go env GOVERSION)
key=$({ cat "$kubernetes"/go.{mod,sum} "$here"/tools/*/go.{mod,sum} "$here"/tools/*/*.go; echo "$go_version $recipe"; } | sha256sum | cut -c1-16)
bin=$cache/$key
complete() { for program in "${programs[@]}"; do [ -x "$bin/$program" ] || return 1; done; }
if complete; then echo "$bin"; exit 0; fi
mkdir -p "$bin"
exec 9>"$cache/lock"
flock -n 9 || { say "another build is running, waiting for it"; flock 9; }
if complete; then echo "$bin"; exit 0; fi

PROGRESS_BEGAN=$(date +%s)
export PROGRESS_BEGAN
part=0
build() { # module folder, package, program, linker flags
  local title
  part=$((part + 1))
  title="[$part/${#programs[@]}] $3"
  if [ -x "$bin/$3" ]; then say "$title is built already"; return 0; fi
  say "$title, first time only: minutes on a cold cache"
  (cd "$1" && CGO_ENABLED=0 "$here/../progress.sh" "nodes: $title" "${programs[part]:-}" \
    go build -mod=readonly -trimpath -ldflags "-s -w ${4:-}" -o "$bin/.$3.part" "$2")
  mv "$bin/.$3.part" "$bin/$3"
}

version=$(awk '$1 == "k8s.io/kubernetes" {print $2}' "$kubernetes/go.mod")
minor=$(cut -d. -f2 <<<"$version")
version_flags="-X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor"
for program in kubelet kube-proxy; do build "$kubernetes" "k8s.io/kubernetes/cmd/$program" "$program" "$version_flags"; done
build "$here/tools/coredns" . coredns
plugins=github.com/containernetworking/plugins/plugins
for plugin in main/bridge ipam/host-local main/loopback meta/portmap; do
  build "$here/tools/cni" "$plugins/$plugin" "${plugin#*/}"
done
# Older versions are of no use once a newer one is complete.
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$key" -mtime +30 -exec rm -rf {} +
echo "$bin"
