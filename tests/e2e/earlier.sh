#!/usr/bin/env bash
# Builds what an earlier commit would have installed: its image, tagged "earlier", and its install.yaml with that tag.
# $1: the commit; without it, the first one whose database Pods are those of now: from there on no upgrade restarts
# them. Prints the folder where both are; built once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
commit=$(git rev-parse --verify --quiet "${1:-$(git log -1 --format=%H -- tests/golden/statefulset.yaml)}^{commit}") ||
  { echo "e2e: FROM=${1:-} is no commit of this repository" >&2; exit 1; }
cache=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator/e2e/earlier
dir=$cache/$commit
if [ ! -f "$dir/complete" ]; then
  echo "e2e: building the image of $(git log -1 --format='%h (%s)' "$commit"), first time only ..." >&2
  rm -rf "$dir"
  mkdir -p "$dir/source"
  git archive "$commit" | tar -x -C "$dir/source"
  (cd "$dir/source" && OUT=$dir CARGO_TARGET_DIR=$dir/target deploy/image/build.sh >&2)
  sed 's|image: databasecluster-operator:.*|image: databasecluster-operator:earlier|' "$dir/source/deploy/install.yaml" >"$dir/install.yaml"
  mv "$dir"/databasecluster-operator-*.tar "$dir/image.tar"
  rm -rf "$dir/source" "$dir/target"
  touch "$dir/complete"
fi
echo "$dir"
