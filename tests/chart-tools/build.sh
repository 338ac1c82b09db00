#!/usr/bin/env bash
# Builds helm from its pinned Go module into a cache outside git, and prints where it is. HELM=path uses a ready-made one.
# With "schemas" it prints the folder of the Prometheus operator's CustomResourceDefinitions instead (PROMETHEUS_CRDS),
# with "olm-schemas" that of the Operator Lifecycle Manager's (OLM_CRDS), with "snapshot-schemas" that of VolumeSnapshots
# (SNAPSHOT_CRDS).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '%s\n' "chart-tools: $*" >&2; }
fail() { say "$*"; exit 1; }

# Prints a folder of a Go module that is needed for its files only.
files_of() { # module, folder
  local folder
  folder=$(cd schemas && go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  [ -d "$folder/$2" ] || fail "Go module $1 is not available; see the lines above"
  echo "$folder/$2"
}
case ${1:-} in
schemas) echo "${PROMETHEUS_CRDS:-$(files_of github.com/prometheus-operator/prometheus-operator example/prometheus-operator-crd)}"; exit 0 ;;
snapshot-schemas) echo "${SNAPSHOT_CRDS:-$(files_of github.com/kubernetes-csi/external-snapshotter/client/v8 config/crd)}"; exit 0 ;;
olm-schemas) echo "${OLM_CRDS:-$(files_of github.com/operator-framework/api crds)}"; exit 0 ;;
esac
if [ -n "${HELM:-}" ]; then
  [ -x "$HELM" ] || fail "HELM=$HELM is no executable; put it there or unset HELM"
  echo "$HELM"
  exit 0
fi
command -v go >/dev/null || fail "Go is missing: install Go 1.26 or newer (https://go.dev/dl), or point HELM at a ready-made helm"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator/chart-tools
key=$({ cat go.mod go.sum; go env GOVERSION; } | sha256sum | cut -c1-16)
helm=$cache/$key/helm
if [ -x "$helm" ]; then echo "$helm"; exit 0; fi
mkdir -p "$cache/$key"
exec 9>"$cache/lock"
flock -n 9 || { say "another build is running, waiting for it"; flock 9; }
if [ ! -x "$helm" ]; then
  say "helm, first time only: a minute or two on a cold cache"
  CGO_ENABLED=0 ../progress.sh "chart-tools: helm" "" \
    go build -mod=readonly -trimpath -ldflags "-s -w" -o "$helm.part" helm.sh/helm/v4/cmd/helm
  mv "$helm.part" "$helm"
fi
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$key" -mtime +30 -exec rm -rf {} +
echo "$helm"
