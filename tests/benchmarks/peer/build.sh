#!/usr/bin/env bash
# Builds the Go peer of `benchmarks bench` from pinned modules into a cache outside git, and prints where it is.
# Progress goes to stderr, the path to stdout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

command -v go >/dev/null || { echo "peer: Go is missing: install Go 1.26 or newer (https://go.dev/dl)" >&2; exit 1; }
cache=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator/peer
key=$({ cat go.mod go.sum ./*.go; go env GOVERSION; } | sha256sum | cut -c1-16)
peer=$cache/$key/peer
if [ -x "$peer" ]; then echo "$peer"; exit 0; fi
mkdir -p "$cache/$key"
exec 9>"$cache/lock"
flock -n 9 || { echo "peer: another build is running, waiting for it" >&2; flock 9; }
if [ ! -x "$peer" ]; then
  echo "peer: first time only, a minute or two on a cold cache" >&2
  CGO_ENABLED=0 ../../progress.sh "peer" "" go build -mod=readonly -trimpath -ldflags "-s -w" -o "$peer.part" .
  mv "$peer.part" "$peer"
fi
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$key" -mtime +30 -exec rm -rf {} +
echo "$peer"
