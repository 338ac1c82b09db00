#!/usr/bin/env bash
# Builds the image and its bill of materials without Docker: an OCI archive, the same bytes from the same commit.
# OUT=folder: where to. TWICE=1: builds the program once more in another folder and compares.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target_dir=${CARGO_TARGET_DIR:-$PWD/target}
out=${OUT:-$target_dir/image}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version *= *"\(.*\)"/\1/p' Cargo.toml)
if revision=$(git rev-parse HEAD 2>/dev/null); then
  export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
  [ -z "$(git status --porcelain --untracked-files=no)" ] || revision=$revision-dirty
else
  revision=
  export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
fi
mkdir -p "$out"

program=$(deploy/image/program.sh)
if [ -n "${TWICE:-}" ]; then
  elsewhere=$(mktemp -d)
  trap 'rm -rf "$elsewhere"' EXIT
  git archive HEAD | tar -x -C "$elsewhere"
  again=$(cd "$elsewhere" && CARGO_TARGET_DIR=$elsewhere/target deploy/image/program.sh)
  cmp "$program" "$again"
  echo "built twice, in two folders: the same bytes"
fi

machine=$(rustc -vV | sed -n 's/^host: \([^-]*\).*/\1/p')
case $machine in x86_64) machine=amd64 ;; aarch64) machine=arm64 ;; esac
cargo build --quiet --locked -p packaging
packaging=$target_dir/debug/packaging
"$packaging" image --program "$program" --revision "$revision" --out "$out/databasecluster-operator-$version-$machine.tar"
"$packaging" sbom --target "$(rustc -vV | sed -n 's/^host: //p')" --out "$out/databasecluster-operator-$version.cdx.json"
