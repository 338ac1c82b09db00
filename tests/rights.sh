#!/usr/bin/env bash
# Runs the tests in which the operator does everything it can, keeps the API servers' audit logs, and compares them with
# its rights.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
AUDIT_KEEP=$(mktemp -d)
export AUDIT_KEEP
trap 'rm -rf "$AUDIT_KEEP"' EXIT
cargo build --locked --quiet --workspace --bins
cargo test --locked --quiet -p databasecluster-operator --test operator --test fence --test deploy
cargo run --locked --quiet -p testbed --bin rights -- "$AUDIT_KEEP"
