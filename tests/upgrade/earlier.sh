#!/usr/bin/env bash
# Builds the operator of the last version without the shard table, once, and prints where it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
commit=$(git rev-parse --verify --quiet "cc6f500^{commit}") ||
  { echo "upgrade: this repository has no commit cc6f500; its history is needed to build that version" >&2; exit 1; }
cache=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator/upgrade/$commit
program=$cache/databasecluster-operator
if [ ! -x "$program" ]; then
  echo "upgrade: building $(git log -1 --format='%h (%s)' "$commit"), first time only ..." >&2
  rm -rf "$cache"
  mkdir -p "$cache/source"
  git archive "$commit" | tar -x -C "$cache/source"
  (cd "$cache/source" && CARGO_TARGET_DIR=$cache/target cargo build --locked --bin databasecluster-operator >&2)
  cp "$cache/target/debug/databasecluster-operator" "$program.part"
  rm -rf "$cache/source" "$cache/target"
  mv "$program.part" "$program"
fi
echo "$program"
