#!/bin/sh
# Prints the krew manifest of a release:
#   deploy/plugin/krew.sh v0.1.0 https://example.com/owner/repository folder-with-archives
# The folder has kubectl-dbc-<version without v>-<os>-<arch>.tar.gz for each platform that is released, as
# deploy/image/archive.sh writes it: kubectl-dbc, kubectl_complete-dbc and LICENSE at its top.
set -eu
version=$1 home=$2 archives=$3
case $version in
v[0-9]*) ;;
*)
  echo "krew.sh: the version is $version, and has to begin with v and a digit" >&2
  exit 2
  ;;
esac
cat <<MANIFEST
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: dbc
spec:
  version: $version
  homepage: $home
  shortDescription: Show, explain and change PostgreSQL DatabaseClusters
  description: |
    Shows DatabaseClusters with their instances, lag and volume use, explains why one
    is not Ready, opens psql and logs, and shows and moves the shards of the operator's
    replicas. It needs databasecluster-operator in the cluster, and has the rights of
    your kubeconfig.
  platforms:
MANIFEST
found=no
number=${version#v}
for archive in "$archives/kubectl-dbc-$number"-*-*.tar.gz; do
  [ -e "$archive" ] || continue
  found=yes
  file=${archive##*/}
  platform=${file#"kubectl-dbc-$number-"}
  platform=${platform%.tar.gz}
  sum=$(sha256sum "$archive")
  cat <<PLATFORM
  - selector:
      matchLabels:
        os: ${platform%%-*}
        arch: ${platform#*-}
    uri: $home/releases/download/$version/$file
    sha256: ${sum%% *}
    bin: kubectl-dbc
PLATFORM
done
[ "$found" = yes ] || {
  echo "krew.sh: $archives has no kubectl-dbc-$number-<os>-<arch>.tar.gz" >&2
  exit 1
}
