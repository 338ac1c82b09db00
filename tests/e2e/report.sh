# Waiting with a deadline, and the report with its times. Sourced.
# shellcheck shell=bash

started_ms=$(date +%s%3N)
now_ms() { date +%s%3N; }
say() { printf '%7.1f s  %s\n' "$((($(now_ms) - started_ms) / 100))e-1" "$*"; }
heading() { printf '\n=== %s\n' "$*"; }
fail() {
  say "FAILED: $*"
  "$KUBECTL" get nodes,pods,services,pvc,leases,dbc,events -A -o wide >"$STATE/log/cluster.log" 2>&1 || :
  exit 1
}
seconds() { printf '%d.%03d s' $(($1 / 1000)) $(($1 % 1000)); }

# Repeats a command until it succeeds; ends the run, with the command's last output, when that takes too long.
wait_for() { # what, seconds, command
  local what=$1 deadline said
  deadline=$(($(now_ms) + $2 * 1000))
  shift 2
  until said=$("$@" 2>&1); do
    [ "$(now_ms)" -lt "$deadline" ] || fail "timed out waiting for $what: ${said:-'$*' printed nothing}"
    sleep 0.1
  done
}

# One line of the report: what was to be shown, and whether it was.
shown() { # text, command
  local what=$1 said
  shift
  if said=$("$@" 2>&1); then say "ok      $what"; else fail "$what: $said"; fi
}

missed=0
# A measurement against its goal; a missed goal makes the run fail, at its end.
goal() { # what, milliseconds, most
  if jq -en "$2 <= $3" >/dev/null; then
    say "met     $1: $(jq -n "$2 | round") ms (goal: at most $3)"
  else
    say "MISSED  $1: $(jq -n "$2 | round") ms (goal: at most $3)"
    missed=$((missed + 1))
  fi
}
