#!/usr/bin/env bash
# Prints where cargo shall build this working copy: outside it, so that a fresh clone at the same place builds
# quickly, and in a folder of its own, as cargo compares relative paths and times and would take what was built
# from another working copy for its own. Removes the folders of deleted working copies.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
targets=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator/targets
folder=$targets/$(printf '%s' "$here" | sha256sum | cut -c 1-12)
if [ ! -e "$folder/working-copy" ]; then
  for other in "$targets"/*/; do
    [ ! -e "$other/working-copy" ] || [ -d "$(cat "$other/working-copy")" ] || rm -rf "$other"
  done
  # Where that is not possible, tests/set-up.sh reports it.
  { mkdir -p "$folder" && printf '%s\n' "$here" > "$folder/working-copy"; } 2>/dev/null || :
fi
printf '%s\n' "$folder"
