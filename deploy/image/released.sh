#!/usr/bin/env bash
# Writes the released image and the project's address into install.yaml, the chart and the OLM bundle of this working
# copy: released.sh IMAGE DIGEST ADDRESS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

image=$1 digest=$2 address=${3%/}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version *= *"\(.*\)"/\1/p' ../Cargo.toml)
own=databasecluster-operator:$version
bundle=olm/manifests/databasecluster-operator.clusterserviceversion.yaml

replace() { # from, to, file ...
  local from=$1 to=$2 file
  shift 2
  for file in "$@"; do
    grep -qF -- "$from" "$file" || { echo "$file has no '$from' to replace" >&2; exit 1; }
    FROM=$from TO=$to perl -pi -e 's/\Q$ENV{FROM}\E/$ENV{TO}/g' "$file"
  done
}

replace "image: $own" "image: $image@$digest" install.yaml chart/Chart.yaml "$bundle"
replace "containerImage: $own" "containerImage: $image@$digest" "$bundle"
replace "repository: databasecluster-operator" "repository: $image" chart/values.yaml
replace 'digest: ""' "digest: $digest" chart/values.yaml
replace https://example.com/databasecluster-operator "$address" chart/Chart.yaml "$bundle"
replace https://example.com/runbooks "$address/blob/v$version/docs/runbooks" chart/values.yaml
