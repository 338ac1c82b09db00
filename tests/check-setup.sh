#!/bin/sh
# Says in one line each what this machine lacks for building and testing, and how to get it; silent when all is there.
# $1: "operator" needs the Rust toolchain only; "nodes" what real nodes need, with the local control plane; anything else
# what the local control plane needs.
set -u
here=$(cd "$(dirname "$0")" && pwd)
missing=0
lack() { printf 'set-up: %s\n' "$1" >&2; missing=$((missing + 1)); }

needed=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$here/../rust-toolchain.toml")
if ! command -v cargo >/dev/null; then
  lack "Rust is missing: install rustup (https://rustup.rs), which then fetches Rust $needed by itself"
elif command -v rustup >/dev/null; then
  (cd "$here" && rustc --version >/dev/null 2>&1) || lack "Rust $needed is missing: run 'rustup toolchain install $needed --profile minimal -c clippy -c rustfmt'"
else
  have=$(rustc --version 2>/dev/null | cut -d' ' -f2)
  [ "$have" = "$needed" ] || lack "Rust $needed is needed, this is ${have:-none}: install rustup (https://rustup.rs)"
fi
command -v cc >/dev/null || command -v gcc >/dev/null ||
  lack "a C linker is missing: install gcc and the C library's headers (Debian: apt-get install gcc libc6-dev; Fedora: dnf install gcc)"

# Only the tests need a database server, a browser and Prometheus.
if [ -z "${1:-}" ]; then
  ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 ||
    lack "a PostgreSQL server for the tests is missing: install it (Debian: apt-get install postgresql-15)"
  command -v setpriv >/dev/null || lack "setpriv is missing: install it (Debian: apt-get install util-linux)"
  command -v chromedriver >/dev/null || [ -x /usr/lib/chromium/chromedriver ] ||
    lack "a browser and its driver are missing: install Chromium and chromedriver (Debian: apt-get install chromium-driver)"
  if ! command -v promtool >/dev/null || ! command -v prometheus >/dev/null; then
    lack "Prometheus and promtool are missing: install them (Debian: apt-get install prometheus)"
  fi
fi

# Real nodes, and what their images are made of.
if [ "${1:-}" = nodes ]; then
  for program in containerd:containerd runc:runc iptables:iptables ip:iproute2 setpriv:util-linux openssl:openssl jq:jq curl:curl; do
    command -v "${program%%:*}" >/dev/null ||
      lack "${program%%:*} is missing: install it (Debian: apt-get install ${program#*:})"
  done
  [ -x /usr/lib/postgresql/15/bin/postgres ] ||
    lack "PostgreSQL 15 of Debian 12 is missing, of which an image is made: install it (apt-get install postgresql-15)"
fi

if [ "${1:-}" != operator ]; then
  command -v bash >/dev/null || lack "bash is missing: install it (Debian: apt-get install bash)"
  if [ -z "${CONTROL_PLANE_BIN:-}" ]; then
    # Asked inside a module: a newer toolchain that its go.mod wants is fetched by Go itself.
    minor=$(cd "$here/control-plane/kubernetes" && go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
    if ! command -v go >/dev/null; then
      lack "Go is missing: install Go 1.26 or newer (https://go.dev/dl), or point CONTROL_PLANE_BIN at ready-made binaries"
    elif [ -n "$minor" ] && [ "$minor" -lt 26 ]; then
      lack "Go 1.$minor is too old: install Go 1.26 or newer (https://go.dev/dl), or point CONTROL_PLANE_BIN at ready-made binaries"
    fi
  fi
fi

# The first build needs the most; what is built already counts as there.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/databasecluster-operator
need_mib=4096
[ -n "${CONTROL_PLANE_BIN:-}" ] || ls "$cache"/control-plane/*/kubectl >/dev/null 2>&1 || need_mib=12288
mkdir -p "$cache" 2>/dev/null || lack "$cache can not be made: set XDG_CACHE_HOME to a folder that can be written"
free_mib=$(df -Pm "$cache" 2>/dev/null | awk 'NR==2 {print $4}')
[ "${free_mib:-0}" -ge "$need_mib" ] ||
  lack "not enough disk: ${free_mib:-0} MiB free under $cache, $need_mib needed; free some or set XDG_CACHE_HOME to another disk"
[ "$missing" -eq 0 ]
