#!/usr/bin/env bash
# Installs what this machine lacks for building and testing, after one line that lists it; silent when nothing is missing.
# Debian and Ubuntu: by apt-get, as root or by sudo. Elsewhere it prints one line for each missing part.
#   tests/set-up.sh [operator|run|test|nodes|fresh]
# operator: the Rust toolchain; run: also the local control plane; test: also what tests need; nodes: real nodes;
# fresh: a bare machine in a folder.
# SETUP=check installs nothing and lists what is missing; SETUP=no does nothing.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
level=${1:-test}
# For tests of this script: where the system's own files are read and written.
root=${SETUP_ROOT:-}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator
cargo_home=${CARGO_HOME:-$HOME/.cargo}
# As in the Makefile: what this script installs takes precedence.
PATH=$cache/go/bin:$cargo_home/bin:$PATH
export GOTOOLCHAIN=${GOTOOLCHAIN:-auto}

# The one list: what needs it | a program, a file or a header that shows that it is installed | Debian's package, or several of
# which the first that exists is taken | what for.
parts() {
  cat <<'END'
operator run test nodes | cc                                  | gcc                      | links Rust programs
operator run test nodes | <stdlib.h>                          | libc6-dev                | headers for crates that contain C
operator run test nodes | /etc/ssl/certs/ca-certificates.crt  | ca-certificates          | downloads of crates and modules
operator run test nodes | cargo                               | rustup                   | builds the operator; from https://rustup.rs where there is no such package
run test nodes          | go                                  | golang-go                | builds the control plane, or fetches the Go that does
run test nodes          | flock                               | util-linux               | one build at a time
test nodes              | setpriv                             | util-linux               | runs PostgreSQL as a user of its own
test                    | /usr/lib/postgresql/*/bin/postgres  | postgresql-15 postgresql | tests the scripts of the Pods
test                    | chromedriver                        | chromium-driver chromium-chromedriver | tests the fleet page in a browser
test                    | prometheus                          | prometheus               | tests dashboards and alerts
test                    | promtool                            | prometheus               | tests alert rules and metrics
nodes                   | /usr/lib/postgresql/15/bin/postgres | postgresql-15            | goes into PostgreSQL's image
nodes                   | containerd                          | containerd               | runs Pods
nodes                   | runc                                | runc                     | runs containers
nodes                   | iptables                            | iptables                 | Services and port mappings
nodes                   | ip                                  | iproute2                 | the nodes' networks
nodes                   | openssl                             | openssl                  | the nodes' certificates
nodes                   | jq                                  | jq                       | reads audit logs
nodes                   | curl                                | curl                     | asks the operator
fresh                   | debootstrap                         | debootstrap              | puts a bare machine into a folder
END
}

say() { printf 'set-up: %s\n' "$*" >&2; }
missing=0
lack() { say "$*"; missing=$((missing + 1)); }

in_progress=
trap '[ -n "$in_progress" ] || say "interrupted; the next run resumes from here"; exit 130' INT TERM
progress() { # title, command ...
  local title=$1 status
  shift
  in_progress=yes
  "$here/progress.sh" "set-up: $title" "" "$@"
  status=$?
  in_progress=
  [ "$status" -ne 130 ] || exit 130
  return "$status"
}

attempt() { progress "$@" || missing=$((missing + 1)); }

is_there() { # a program, a file or a header
  case $1 in
    '<'*) cc -E -x c - <<<"#include $1" >/dev/null 2>&1 ;;
    /*) compgen -G "$root$1" >/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

# Fills lacking with "packages|part|what for".
find_lacking() {
  lacking=()
  local levels part packages purpose
  while IFS='|' read -r levels part packages purpose; do
    read -r part <<<"$part"
    read -r packages <<<"$packages"
    case " $levels " in *" $level "*) ;; *) continue ;; esac
    [ "$part" != go ] || [ -z "${CONTROL_PLANE_BIN:-}" ] || continue
    is_there "$part" || lacking+=("$packages|$part|${purpose# }")
  done < <(parts)
}

known() { apt-cache show "$1" >/dev/null 2>&1; }

# Of what is lacking: the packages, and "gcc (links Rust programs), jq (reads audit logs)".
describe() {
  packages=()
  described=
  local entry names name
  for entry in "${lacking[@]}"; do
    names=${entry%%|*}
    name=${names%% *}
    if ! known "$name"; then
      for alternative in $names; do
        known "$alternative" && name=$alternative && break
      done
    fi
    case " ${packages[*]} " in *" $name "*) continue ;; esac
    packages+=("$name")
    described+="${described:+, }$name (${entry##*|})"
  done
  by_hand="run as root: apt-get install --no-install-recommends ${packages[*]}"
}

# Servers that packages would start: neither a default cluster of PostgreSQL nor these units. A unit that is there
# already stays as it is; 'systemctl unmask' brings back one that is kept off here.
keep_servers_off() {
  local cluster=$root/etc/postgresql-common/createcluster.conf name unit
  case " ${packages[*]} " in *" postgresql"*)
    if [ ! -e "$cluster" ]; then
      "${as_root[@]}" mkdir -p "${cluster%/*}"
      echo 'create_main_cluster = false' | "${as_root[@]}" tee "$cluster" >/dev/null
    fi ;;
  esac
  for name in prometheus containerd; do
    unit=$root/etc/systemd/system/$name.service
    case " ${packages[*]} " in *" $name "*)
      if [ ! -e "$unit" ] && [ ! -L "$unit" ]; then
        "${as_root[@]}" mkdir -p "${unit%/*}"
        "${as_root[@]}" ln -s /dev/null "$unit"
      fi ;;
    esac
  done
}

# Chooses how to become root; explains in one line why that is not possible.
become_root() {
  as_root=(env)
  [ "$(id -u)" -ne 0 ] || return 0
  as_root=(sudo)
  if ! command -v sudo >/dev/null; then
    lack "not installed, as there is no sudo; $by_hand"
  elif sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; then
    return 0
  elif [ -t 0 ]; then
    lack "not installed, as sudo refused; $by_hand"
  else
    lack "not installed, as sudo asks for a password and there is no terminal; $by_hand"
  fi
  return 1
}

# One set-up at a time, from its first installation to its end.
turn=
take_turn() {
  [ -z "$turn" ] || return 0
  exec 8>"$cache/set-up.lock"
  flock -n 8 || { say "another set-up is running, waiting for it"; flock 8; }
  turn=mine
}

install_packages() {
  local quietly=(env DEBIAN_FRONTEND=noninteractive) apt lists entry rest=()
  apt=("${quietly[@]}" apt-get -q -o DPkg::Lock::Timeout=300)
  say "installs by apt-get: $described"
  become_root || return 1
  take_turn
  find_lacking
  [ "${#lacking[@]}" -gt 0 ] || return 0
  # Another source of this machine may be out of reach: what counts is whether the packages can be installed.
  lists=$("${as_root[@]}" "${apt[@]}" update 2>&1 </dev/null)
  if [ -n "$(dpkg --audit 2>/dev/null)" ]; then
    progress "packages left half installed" "${as_root[@]}" "${quietly[@]}" dpkg --configure -a || return 1
  fi
  for entry in "${lacking[@]}"; do
    # Rust has another way.
    case $entry in rustup\|*) known rustup || continue ;; esac
    rest+=("$entry")
  done
  lacking=("${rest[@]}")
  describe
  [ "${#packages[@]}" -gt 0 ] || return 0
  keep_servers_off
  PROGRESS_CONTEXT=$lists progress "packages" "${as_root[@]}" "${apt[@]}" install -y --no-install-recommends "${packages[@]}" </dev/null
}

# Names or installs the packages that are lacking.
set_up_packages() {
  local entry part
  find_lacking
  [ "${#lacking[@]}" -gt 0 ] || return 0
  describe
  if ! command -v apt-get >/dev/null; then
    for entry in "${lacking[@]}"; do
      part=${entry#*|}
      case $entry in
        # These two print more, below.
        rustup\|* | golang-go\|*) ;;
        *) lack "${part%%|*} is missing: install it (Debian: apt-get install ${entry%%[ |]*}); ${entry##*|}" ;;
      esac
    done
  elif [ "${SETUP:-}" = check ]; then
    lack "missing: $described; $by_hand"
  elif ! install_packages; then
    exit 1
  else
    find_lacking
    for entry in "${lacking[@]}"; do
      part=${entry#*|}
      case $entry in rustup\|*) ;; *) lack "${part%%|*} is still missing; $by_hand" ;; esac
    done
  fi
}

may_install() { [ "${SETUP:-}" != check ] && command -v apt-get >/dev/null; }

rust_version() { cd "$here" && command -v cargo >/dev/null && rustc --version 2>/dev/null | cut -d' ' -f2; }

set_up_rust() {
  local needed have options=(--profile minimal -c clippy -c rustfmt)
  needed=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$here/../rust-toolchain.toml")
  have=$(rust_version)
  [ "$have" != "$needed" ] || return 0
  if ! may_install; then
    lack "Rust $needed is missing, found ${have:-none}: install rustup (https://rustup.rs), then run 'rustup toolchain install $needed ${options[*]}'"
    return
  fi
  take_turn
  # Another set-up may have brought it meanwhile.
  [ "$(rust_version)" != "$needed" ] || return 0
  if command -v rustup >/dev/null; then
    say "installs Rust $needed by rustup"
    attempt "Rust $needed" rustup toolchain install "$needed" "${options[@]}"
  else
    say "installs Rust $needed by https://rustup.rs into $cargo_home"
    RUSTUP_INIT_SKIP_PATH_CHECK=yes attempt "Rust $needed from https://rustup.rs" bash -c '
      curl --proto "=https" --tlsv1.2 -sSf -o "$1" https://sh.rustup.rs && exec sh "$@"
    ' - "$cache/rustup-init.sh" -y --no-modify-path --default-toolchain "$needed" "${options[@]}"
  fi
}

# As Go does by itself since 1.21, for an older one: its toolchain is a module, whose programs may be run.
fetch_go() {
  local module folder
  module=golang.org/toolchain@v0.0.1-go$1.$(go env GOOS)-$(go env GOARCH)
  folder=$(go env GOMODCACHE)/$module
  cd /
  go mod download "$module"
  chmod -R u+w "$folder"
  chmod +x "$folder"/bin/* "$folder"/pkg/tool/*/*
  cp "$folder/src/_go.mod" "$folder/src/go.mod"
  ln -sfn "$folder" "$cache/go"
}

set_up_go() {
  local module=$here/control-plane/kubernetes needed have remedy
  needed=$(awk '$1 == "go" {print $2}' "$module/go.mod")
  remedy="install Go $needed or newer (https://go.dev/dl), or point CONTROL_PLANE_BIN at ready-made binaries"
  command -v go >/dev/null || { lack "Go is missing: $remedy"; return; }
  have=$(cd / && GOTOOLCHAIN=local go env GOVERSION 2>/dev/null)
  have=${have#go}
  # Inside the module, Go takes the newer toolchain that it has fetched before.
  case $have in devel*) return ;; esac
  [ "$(printf '%s\n' "$needed" "$have" | sort -V | head -n 1)" != "$needed" ] || return 0
  ! (cd "$module" && GOPROXY=off go version 2>/dev/null | grep -qF "go$needed ") || return 0
  if [ "${SETUP:-}" = check ]; then
    lack "Go $have is too old: $remedy"
    return
  fi
  take_turn
  say "fetches Go $needed, as this is Go $have"
  case $have in
    1.[0-9].* | 1.1[0-9]* | 1.20*)
      export -f fetch_go
      cache=$cache attempt "Go $needed" bash -ec 'fetch_go "$1"' - "$needed" ;;
    *) attempt "Go $needed" bash -c 'cd "$1" && go version' - "$module" ;;
  esac
}

# The first build needs the most; what is built already counts as there.
check_disk() {
  local needed_mib=4096 free_mib
  [ -n "${CONTROL_PLANE_BIN:-}" ] || compgen -G "$cache/control-plane/*/kubectl" >/dev/null || needed_mib=12288
  free_mib=$(df -Pm "$cache" 2>/dev/null | awk 'NR == 2 {print $4}')
  [ "${free_mib:-0}" -ge "$needed_mib" ] ||
    lack "not enough disk: ${free_mib:-0} MiB free under $cache, $needed_mib needed; free some or set XDG_CACHE_HOME to another disk"
}

# Where builds and toolchains keep their files.
check_folders() {
  local folder unwritable=
  for folder in "$cache" "$cargo_home" "${GOPATH:-$HOME/go}"; do
    { mkdir -p "$folder" && [ -w "$folder" ]; } 2>/dev/null || unwritable+="${unwritable:+, }$folder"
  done
  [ -z "$unwritable" ] ||
    lack "cannot write to $unwritable: set HOME, or XDG_CACHE_HOME, CARGO_HOME and GOPATH, to folders that can be written"
}

[ "${SETUP:-}" != no ] || exit 0
check_folders
[ "$missing" -eq 0 ] || exit 1
check_disk
[ "$missing" -eq 0 ] || exit 1
set_up_packages
set_up_rust
[ "$level" = operator ] || [ -n "${CONTROL_PLANE_BIN:-}" ] || set_up_go
[ "$missing" -eq 0 ]
