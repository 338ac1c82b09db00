#!/usr/bin/env bash
# Builds the documentation as a site into a folder (default: the build folder's book), and checks its links. The program
# for it is built into a cache outside git: a minute, the first time only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

out=${1:-${CARGO_TARGET_DIR:-$(../target-folder.sh)}/book}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator/book
key=$({ cat Cargo.toml Cargo.lock src/main.rs; rustc -V; } | sha256sum | cut -c1-16)
program=$cache/$key
if [ ! -x "$program" ]; then
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock 9
  if [ ! -x "$program" ]; then
    CARGO_TARGET_DIR=$cache/target ../progress.sh "book: mdBook" "" cargo build --quiet --locked
    find "$cache" -maxdepth 1 -type f ! -name lock -delete
    cp "$cache/target/debug/book" "$program.part"
    mv "$program.part" "$program"
  fi
  exec 9>&-
fi
rm -rf "$out"
exec "$program" ../../docs "$out"
