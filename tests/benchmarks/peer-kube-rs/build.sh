#!/usr/bin/env bash
# Builds the kube-rs peer of `benchmarks bench` from its own lock file, and prints where it is. It shares the target
# folder of the working copy, and so most of what cargo has built there for the operator. PEER_PROFILE=dev builds it
# as it is of no use for figures.
# Progress goes to stderr, the path to stdout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$(../../target-folder.sh)}
export CARGO_TARGET_DIR
profile=${PEER_PROFILE:-release}
../../progress.sh "build: kube-rs peer" "" cargo build --locked --profile "$profile" >&2
case $profile in dev) folder=debug ;; *) folder=$profile ;; esac
echo "$CARGO_TARGET_DIR/$folder/peer-kube-rs"
