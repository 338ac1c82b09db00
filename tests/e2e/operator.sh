# The operator in the cluster: installing it, its Pods, its shards, and their record in the audit log. Sourced.
# shellcheck shell=bash

operator_namespace=databasecluster-system
operator_label=app.kubernetes.io/name=databasecluster-operator

install_operator() { # file
  "$KUBECTL" apply -f "$1" >"$STATE/log/apply.log" 2>&1 || fail "apply $1: $(cat "$STATE/log/apply.log")"
  roll_out
}

roll_out() {
  "$KUBECTL" -n "$operator_namespace" rollout status deployment/databasecluster-operator --timeout=300s \
    >"$STATE/log/rollout.log" 2>&1 || fail "rollout: $(tail -n 3 "$STATE/log/rollout.log"); $(operator_pods '[.metadata.name, .status.phase] | join(" ")' | paste -sd,)"
}

operator_pods() { # what to print of each
  "$KUBECTL" -n "$operator_namespace" get pods -l "$operator_label" -o json | jq -r ".items[] | select(.metadata.deletionTimestamp == null) | $1"
}

refuses_unrestricted_pod() {
  local said
  if said=$("$KUBECTL" -n "$operator_namespace" run probe --image=localhost/pause:1 --dry-run=server 2>&1); then
    echo "a Pod without any restriction was accepted"
    return 1
  fi
  grep -q 'violates PodSecurity "restricted' <<<"$said" || { echo "$said"; return 1; }
}

shard_leases() { "$KUBECTL" -n "$operator_namespace" get leases -l database.io/role=shard -o json; }

shards_by_holder() {
  shard_leases | jq -r '[.items[].spec.holderIdentity] | group_by(.) | map("\(.[0]) \(length)") | join(", ")'
}

# Every shard is held by an existing Pod, and no Pod has two more than another.
shards_are_even() { # number of Pods
  local pods
  pods=$(operator_pods .metadata.name | jq -R . | jq -s .)
  shard_leases | jq -e --argjson pods "$pods" --argjson count "$1" '
    [.items[].spec.holderIdentity // ""] as $holders
    | ($holders | group_by(.) | map(length)) as $held
    | ($holders | length) == 32 and ($pods | length) == $count and ($held | length) == $count
      and ($held | max - min) <= 1 and ($holders - $pods) == []
    | if . then . else error("shards held: \($holders | group_by(.) | map({(.[0]): length}) | add)") end' >/dev/null
}

# The logs of Pods go with them: a second name keeps each.
keep_logs() {
  local log pod
  mkdir -p "$STATE/operator-logs"
  while :; do
    for log in "$STATE"/node-*/pod-logs/"$operator_namespace"_*/operator/*.log; do
      [ -f "$log" ] || continue
      pod=${log#*"${operator_namespace}"_}
      ln -f "$log" "$STATE/operator-logs/${pod%%_*}.$(basename "$log")" 2>/dev/null || :
    done
    sleep 0.5
  done
}

said_by_replicas() { # message
  sed -n 's/^[^ ]* std[a-z]* F \({.*}\)$/\1/p' "$STATE"/operator-logs/*.log 2>/dev/null | grep -F "\"$1\"" || :
}

# A JSON list of the moves of shards, see moves.jq.
moves_since() { # file with the Leases before, milliseconds
  said_by_replicas 'working on the shard' >"$STATE/working.json"
  jq -n --slurpfile before "$1" --slurpfile working "$STATE/working.json" --argjson since "$2" \
    -f tests/e2e/moves.jq "$STATE/audit.log"
}

# The first move of each shard that a replica held, once all of them have moved and are worked on.
moves_of() { # holder, file with the Leases before, milliseconds
  moves_since "$2" "$3" | jq --arg holder "$1" --slurpfile before "$2" '
    [$before[0].items[] | select(.spec.holderIdentity == $holder) | .metadata.name] as $held
    | [.[] | select(.from == $holder or .from == "") | select(.lease as $lease | $held | index($lease))]
    | group_by(.lease) | map(.[0])
    | if length == ($held | length) and all(.worked_ms) then .
      else error("of \($held | length) shards \(map(select(.worked_ms)) | length) are worked on again") end'
}

leader_of() { # namespace, name
  local lease
  lease=$("$KUBECTL" -n "$1" get dbc "$2" -o jsonpath='{.status.shard.lease}')
  "$KUBECTL" -n "$operator_namespace" get lease "$lease" -o jsonpath='{.spec.holderIdentity}'
}

node_of() { # namespace, Pod
  "$KUBECTL" -n "$1" get pod "$2" -o jsonpath='{.spec.nodeName}'
}

# As the kernel does when memory runs out: the process ends without a chance to react.
kill_container() { # namespace, Pod, container
  local node id process
  node=$(node_of "$1" "$2")
  id=$("$KUBECTL" -n "$1" get pod "$2" -o json | jq -r --arg name "$3" \
    '.status.containerStatuses[] | select(.name == $name) | .containerID | sub("^containerd://"; "")')
  process=$(ctr "${node#node-}" tasks list | awk -v id="$id" '$1 == id {print $2}')
  kill -KILL "$process"
}

# Over all: number, how many were planned, and the time for which no replica worked on a shard.
summary() { # moves
  jq -r 'def at(p): sort | .[((length * p / 100) | ceil) - 1];
    map(.unowned_ms | select(. != null)) as $ms
    | "\(length) moves, \(map(select(.planned)) | length) of them planned; unowned ms: p50 \($ms | at(50) | round), p99 \($ms | at(99) | round), most \($ms | max | round)"' <<<"$1"
}
