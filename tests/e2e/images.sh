#!/usr/bin/env bash
# Makes the images that the nodes need besides the operator's, from files of this machine: "pause", and PostgreSQL 15 of
# Debian in the manner of the official image. $1: the folder where the archives go. Nothing is pulled.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$1
pg=/usr/lib/postgresql/15
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# An archive as `docker save` writes it, which containerd reads: one layer, all of it root's.
archive() { # name and tag, folder, the image's configuration
  local name=$1 folder=$2 config=$3 parts=$work/parts layer
  rm -rf "$parts"
  mkdir -p "$parts"
  tar -C "$folder" --owner=0 --group=0 --numeric-owner --sort=name -cf "$parts/layer.tar" .
  layer=$(sha256sum "$parts/layer.tar" | cut -d' ' -f1)
  jq -n --argjson config "$config" --arg layer "sha256:$layer" --arg machine "$(dpkg --print-architecture)" \
    '{os: "linux", architecture: $machine, config: $config, rootfs: {type: "layers", diff_ids: [$layer]}}' >"$parts/config.json"
  jq -n --arg name "$name" '[{Config: "config.json", RepoTags: [$name], Layers: ["layer.tar"]}]' >"$parts/manifest.json"
  tar -C "$parts" -cf "$out/.part" manifest.json config.json layer.tar
  name=${name##*/}
  mv "$out/.part" "$out/${name%%:*}.tar"
}

pause() {
  mkdir -p "$work/pause"
  cc -Os -static -s -o "$work/pause/pause" "$here/pause.c"
  archive localhost/pause:1 "$work/pause" '{"Entrypoint": ["/pause"], "User": "65535:65535"}'
}

# Copies files to where they are here, below $work/postgres, links followed.
take() {
  local file folder
  for file in "$@"; do
    folder=$work/postgres$(realpath "$(dirname "$file")")
    mkdir -p "$folder"
    cp -L --preserve=mode "$file" "$folder/"
  done
}

postgres() {
  local root=$work/postgres programs tool
  mkdir -p "$root"/usr/{bin,lib,lib64,share} "$root"/{etc,tmp,var/run/postgresql,docker-entrypoint-initdb.d,pgdata}
  for tool in bin lib lib64; do ln -s "usr/$tool" "$root/$tool"; done
  programs=$(for tool in base64 cat chmod cmp cp cut date dirname env find grep head id ls mkdir mktemp mv rm sed sha256sum sleep sort tail timeout tr wc; do
    command -v "$tool"
  done)
  # shellcheck disable=SC2086 # a list, split on purpose
  take /bin/sh $programs
  mkdir -p "$root$pg" "$root/usr/share/postgresql"
  cp -a "$pg/bin" "$pg/lib" "$root$pg/"
  # Compiling queries would need LLVM; without its file the server does not do it.
  rm -rf "$root$pg"/lib/llvmjit* "$root$pg/lib/bitcode"
  cp -a /usr/share/postgresql/15 "$root/usr/share/postgresql/"
  cp -aL /usr/share/zoneinfo "$root/usr/share/"
  mkdir -p "$root/usr/lib/locale"
  cp -a /usr/lib/locale/C.utf8 "$root/usr/lib/locale/"
  # What all of them are linked to.
  { find "$root/usr" -type f \( -perm -100 -o -name '*.so*' \) -exec ldd {} + 2>/dev/null || :; } |
    grep -oE '/[^ ]+\.so[^ ]*' | sort -u >"$work/libraries"
  # shellcheck disable=SC2046 # a list, split on purpose
  take $(grep -v "^$work" "$work/libraries")
  cp "$here/postgres/entrypoint.sh" "$root/usr/bin/docker-entrypoint.sh"
  printf 'root:x:0:0::/:/bin/sh\npostgres:x:999:999::/pgdata:/bin/sh\n' >"$root/etc/passwd"
  printf 'root:x:0:\npostgres:x:999:\n' >"$root/etc/group"
  printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
  chmod 1777 "$root/tmp"
  archive localhost/postgres:15 "$root" "$(jq -n --arg path "$pg/bin:/usr/bin:/bin" '{
    Env: ["PATH=" + $path, "LANG=C.UTF-8", "PGDATA=/pgdata/data"],
    Entrypoint: ["docker-entrypoint.sh"], Cmd: ["postgres"], StopSignal: "SIGINT"}')"
}

mkdir -p "$out"
pause
postgres
