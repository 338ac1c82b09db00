#!/usr/bin/env bash
# Format and lints of the kube-rs peer, which is no member of the workspace.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$(../../target-folder.sh)}
export CARGO_TARGET_DIR
cargo fmt --check
cargo clippy --locked -- -D warnings
