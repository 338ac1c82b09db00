#!/usr/bin/env bash
# Builds one program of the operator's crate for this machine and packs it with the licence, and the kubectl plugin with
# its completion; the same bytes from the same program: archive.sh PROGRAM ARCHIVE.tar.gz [BUILT]
# BUILT: the program itself, which is then not built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

program=$1 archive=$2 built=${3:-}
target=$(rustc -vV | sed -n 's/^host: //p')
[ -n "$built" ] || case $target in
*-linux-gnu)
  # Static, for any distribution.
  built=$(PROGRAM=$program deploy/image/program.sh)
  ;;
*)
  cargo build --quiet --locked --release --target "$target" -p databasecluster-operator --bin "$program" >&2
  built=${CARGO_TARGET_DIR:-target}/$target/release/$program
  ;;
esac
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp "$built" "$folder/$program"
cp LICENSE "$folder"
[ "$program" != kubectl-dbc ] || cp deploy/plugin/kubectl_complete-dbc "$folder"
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
# Python's tar is the same on Linux and macOS; GNU's options are not.
python3 - "$folder" "$archive" "$epoch" <<'PY'
import gzip, os, sys, tarfile
folder, archive, epoch = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(archive, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, epoch) as packed:
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as out:
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = os.path.getsize(path), epoch
            entry.mode = 0o644 if name == "LICENSE" else 0o755
            with open(path, "rb") as file:
                out.addfile(entry, file)
PY
echo "$archive"
