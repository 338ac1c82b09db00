#!/usr/bin/env bash
# Builds the operator as a program that needs no other file (static glibc), the same bytes in any folder, and prints
# where it is. The Dockerfile and `make image` both build with this. PROGRAM=name: another program of the crate.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

program=${PROGRAM:-databasecluster-operator}
target=${TARGET:-$(rustc -vV | sed -n 's/^host: //p')}
case $target in
*-linux-gnu | *-linux-musl) ;;
*) echo "image: programs for containers are built on Linux, this is $target" >&2; exit 1 ;;
esac
target_dir=${CARGO_TARGET_DIR:-target}
cargo_home=${CARGO_HOME:-$HOME/.cargo}

# Paths of this machine stay out of the program. --target keeps the flags away from build scripts and macros.
export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$PWD=/src --remap-path-prefix=$cargo_home=/cargo"
export CFLAGS="${CFLAGS:-} -ffile-prefix-map=$PWD=/src -ffile-prefix-map=$cargo_home=/cargo"
cargo build --quiet --locked --release --target "$target" -p databasecluster-operator --bin "$program" >&2
echo "$target_dir/$target/release/$program"
