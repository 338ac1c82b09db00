#!/usr/bin/env bash
# Runs a command that may take minutes. Silent while it is quick; then one line from time to time: how far it is, how
# long it has taken, and the next step. A failure shows the command's last lines, and ends with one line that explains
# why. Everything goes to stderr, and nothing to a file: the disk may be full.
#   tests/progress.sh TITLE NEXT command [argument ...]
# PROGRESS_BEGAN: when the whole of which this is a part began, in seconds since 1970. PROGRESS_CONTEXT: what a step
# before this one printed, which may explain why this one fails. PROGRESS_SECONDS: between two lines, for tests.
set -uo pipefail
title=$1
next=$2
shift 2
began=$EPOCHSECONDS
quiet_seconds=${PROGRESS_SECONDS:-5}
pause_seconds=${PROGRESS_SECONDS:-15}
kept_lines=200
fetching="fetching modules"
# Cargo's own counter, which it shows only on a terminal by itself.
export CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=100

say() { printf '%s: %s\n' "$title" "$*" >&2; }
duration() { [ "$1" -lt 100 ] && echo "$1 s" || echo "$(($1 / 60)) min $(($1 % 60)) s"; }

so_far() { # how far, or nothing
  local took whole
  took=$(duration $((EPOCHSECONDS - began)))
  whole=${PROGRESS_BEGAN:-$began}
  [ "$whole" -ge "$began" ] || took="$took, $(duration $((EPOCHSECONDS - whole))) in all"
  say "${1:+$1, }$took so far${next:+; next: $next}"
}

reason() { # what the command printed
  case ${1,,} in
    *"no space left"* | *"enough free space"* | *"disk quota exceeded"*)
      echo "a disk is full: free some of it, or set XDG_CACHE_HOME and TMPDIR to folders on another one" ;;
    *"no such host"* | *"could not resolve"* | *"failure resolving"* | *"network is unreachable"* | *"connection refused"* | \
    *"i/o timeout"* | *"connection timed out"* | *"unable to connect"*)
      echo "a server could not be reached: check the network" ;;
    *"could not get lock"* | *"is held by process"*)
      echo "another package manager is at work: wait until it has ended" ;;
    *) echo "it ended with status $2, see the lines above" ;;
  esac
}

# Reads the command's output; its status is the last line, "status 0".
watch() {
  local line result rest='' far='' status='' shown=$began kept=()
  while :; do
    line=
    IFS= read -r -t 1 line
    result=$?
    line=$rest$line
    rest=
    if [[ $line =~ .*\[[^]]*\]\ ([0-9]+)/([0-9]+) ]]; then far="${BASH_REMATCH[1]} of ${BASH_REMATCH[2]}"; fi
    if [ "$result" -gt 128 ]; then
      rest=$line
    else
      line=${line##*$'\r'}
      line=${line#$'\e[K'}
      case $line in
        "status "[0-9]*) status=${line#status } ;;
        *"waiting for file lock"*) say "another build is running here, waiting for it" ;;
        "go: downloading "*) far=$fetching ;;
        *"Compiling "* | *"Downloaded "* | *"Building ["* | "") ;;
        *)
          kept+=("$line")
          [ "${#kept[@]}" -le "$kept_lines" ] || kept=("${kept[@]:1}") ;;
      esac
      [ "$result" -eq 0 ] || break
    fi
    if [ $((EPOCHSECONDS - began)) -ge "$quiet_seconds" ] && [ $((EPOCHSECONDS - shown)) -ge "$pause_seconds" ]; then
      so_far "$far"
      shown=$EPOCHSECONDS
      [ "$far" != "$fetching" ] || far=
    fi
  done
  if [ "$status" = 0 ]; then
    [ $((EPOCHSECONDS - began)) -lt "$quiet_seconds" ] || say "done in $(duration $((EPOCHSECONDS - began)))"
    return 0
  fi
  # A command that was ended from outside has no status, or that of a signal.
  case ${status:-130} in
    130 | 143)
      say "interrupted; the next run resumes from here"
      return 130 ;;
  esac
  [ "${#kept[@]}" -eq 0 ] || printf '%s\n' "${kept[@]}" >&2
  say "failed: $(reason "${PROGRESS_CONTEXT:-} ${kept[*]:-}" "$status"). What is done already is kept, the next run resumes from here"
  return "$status"
}

# Ctrl-C ends the command; the words about it come from here.
trap '' INT
{ trap - INT; "$@" 2>&1; printf '\nstatus %s\n' $?; } | watch
