#!/usr/bin/env bash
# Runs every check and every test, shows their output, and ends with "N passed, N failed" alone on the last line.
# A check that fails, or a build that breaks, counts as one failure. Status 1 when anything failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
passed=0
failed=0
log=$(mktemp)
# Every control plane leaves its audit log here.
AUDIT_KEEP=$(mktemp -d)
export AUDIT_KEEP
trap 'rm -rf "$log" "$AUDIT_KEEP"' EXIT

# The number of the part, the time so far, and the next part.
parts=("set-up" "control plane" "helm" "format" "licences and sources of dependencies" "lint" "documentation" "documentation as a site" "program"
  "lint, with failpoints" "program with failpoints" "lint of the kube-rs peer" "kube-rs peer" "tests")
# Only all tests together use all rights.
[ -n "${TEST_ARGS:-}" ] || parts+=("rights as used")
part=0
heading() {
  local next=${parts[part + 1]:-}
  part=$((part + 1))
  printf '\n==> [%d/%d] %s (%d min %d s so far%s)\n' "$part" "${#parts[@]}" "$1" $((SECONDS / 60)) $((SECONDS % 60)) "${next:+; next: $next}"
}

check() { # name, command ...
  local name=$1
  shift
  heading "$name"
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    printf 'FAILED: %s\n' "$name"
  fi
}

# Adds up cargo's own summaries; a run that fails without a failed test in them (it did not build, or died) is one more.
tests() { # name, cargo arguments ...
  local name=$1 ok status counted
  shift
  heading "$name"
  "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  read -r ok counted < <(awk '
    /^test result:/ { for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed/) ok += $i; if ($(i + 1) ~ /^failed/) bad += $i } }
    END { print ok + 0, bad + 0 }' "$log")
  passed=$((passed + ok))
  failed=$((failed + counted))
  if [ "$status" -ne 0 ] && [ "$counted" -eq 0 ]; then
    failed=$((failed + 1))
    printf 'FAILED: %s did not build or did not end by itself (status %s)\n' "$name" "$status"
  fi
}

check "set-up" tests/set-up.sh
if [ "$failed" -eq 0 ]; then
  check "control plane" tests/control-plane/build.sh
  check "helm" tests/chart-tools/build.sh helm
  check "format" cargo fmt --all --check
  check "licences and sources of dependencies" cargo run --quiet --locked -p packaging -- deny
  check "lint" cargo clippy --workspace --all-targets --locked -- -D warnings
  check "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --no-deps -p shard-ownership -p sharded-controller -p databasecluster-operator --locked
  check "documentation as a site" tests/book/build.sh
  check "program" cargo build --workspace --bins --examples --locked
  # After the others, beside which it is stored: the same program, with failpoints for tests.
  check "lint, with failpoints" cargo clippy --bins --features failpoints --locked -- -D warnings
  check "program with failpoints" cargo build --bin databasecluster-operator-failpoints --features failpoints --locked
  check "lint of the kube-rs peer" tests/benchmarks/peer-kube-rs/lint.sh
  # Before the tests, so that the smoke run of the benchmarks measures at once.
  check "kube-rs peer" env PEER_PROFILE=dev tests/benchmarks/peer-kube-rs/build.sh
  tests "tests" cargo test --workspace --locked --no-fail-fast ${TEST_ARGS:+$TEST_ARGS}
  [ -n "${TEST_ARGS:-}" ] ||
    check "rights as used" cargo run --quiet --locked -p testbed --bin rights -- "$AUDIT_KEEP"
fi
# A full disk makes the parts above fail with many messages.
[ "$failed" -eq 0 ] || df -Pm . "${CARGO_TARGET_DIR:-.}" "${TMPDIR:-/tmp}" 2>/dev/null | awk '
  NR > 1 && $4 < 100 && !seen[$6]++ { printf "\nthe disk of %s is full: free some of it and run this again\n", $6 }'
printf '\n%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
