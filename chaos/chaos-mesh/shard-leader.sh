#!/bin/sh
# Prints the holder of a shard, by its Lease; with --kill also the PodChaos that kills exactly this one:
#   chaos/chaos-mesh/shard-leader.sh 7 --kill | kubectl apply -f -
set -eu
namespace=${OPERATOR_NAMESPACE:-databasecluster-system}
shard=${1:?"which shard? a number, such as 7"}
case $shard in *[!0-9]*) echo "shard-leader.sh: $shard is no number" >&2; exit 2 ;; esac
# Leading zeros would make it octal.
shard=$(printf '%s' "$shard" | sed 's/^0*\(.\)/\1/')
lease=$(printf 'databasecluster-shard-%03d' "$shard")
holder=$(kubectl get lease --namespace "$namespace" "$lease" --output 'jsonpath={.spec.holderIdentity}')
[ -n "$holder" ] || { echo "shard-leader.sh: $lease has no holder" >&2; exit 1; }
if [ "${2:-}" != --kill ]; then
  echo "$holder"
  exit
fi
cat <<PODCHAOS
apiVersion: chaos-mesh.org/v1alpha1
kind: PodChaos
metadata:
  name: kill-holder-of-$lease
  namespace: $namespace
spec:
  action: pod-kill
  mode: all
  gracePeriod: 0
  selector:
    pods:
      $namespace: ["$holder"]
PODCHAOS
