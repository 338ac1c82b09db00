# Rolling updates under load, removal, installing again, and upgrades. Sourced.
# shellcheck shell=bash disable=SC2154,SC2016 # set by nodes.sh and operator.sh; programs of jq

loaded=40 # DatabaseClusters that are changed all the time; paused, so that no Pod is needed for them

create_load() {
  "$KUBECTL" create namespace load >/dev/null
  jq -n --argjson count "$loaded" 'range($count) | {apiVersion: "database.io/v1", kind: "DatabaseCluster",
    metadata: {name: "load-\(.)", namespace: "load"},
    spec: {image: "localhost/postgres:15", replicas: 0, storage: {className: "local"}}}' |
    "$KUBECTL" create -f - >/dev/null
  wait_for "the load to be Ready" 60 load_is_done
}

# Nothing is lost: each has its last change in its status.
load_is_done() {
  "$KUBECTL" -n load get dbc -o json | jq -e '[.items[] | select(.status.phase != "Ready"
    or .status.observedGeneration != .metadata.generation) | .metadata.name]
    | if . == [] then true else error("not Ready with their last change: \(.)") end' >/dev/null
}

# One change after the other, 25 a second at most over one connection, until it is ended.
change_load() {
  local number pki=$STATE/pki
  for number in $(seq $((${ROLLOUTS:-2} * 5000))); do
    printf 'url = "https://%s:6443/apis/database.io/v1/namespaces/load/databaseclusters/load-%d"\n' "$api_address" $((number % loaded))
    printf 'request = PATCH\nheader = "Content-Type: application/merge-patch+json"\n'
    printf 'data = "{\\"spec\\":{\\"resources\\":{\\"cpu\\":\\"%dm\\"}}}"\n' $((100 + number % 400))
    printf 'cacert = "%s"\ncert = "%s"\nkey = "%s"\n' "$pki/ca.crt" "$pki/admin.crt" "$pki/admin.key"
    printf 'output = /dev/null\nnext\n'
  done >"$STATE/load.conf"
  exec curl -s --rate 25/s -K "$STATE/load.conf"
}

changes_of_load() { "$KUBECTL" -n load get dbc -o json | jq '[.items[].metadata.generation - 1] | add'; }

none_cut_short() {
  said_by_replicas stopped | jq -se 'map((.fields // .).reconciles_cut_short) | add
    | if . == 0 then . else error("\(.) were, as the stopped replicas logged") end'
}

rolling_updates() {
  local from moves changing round
  create_load
  shard_leases >"$STATE/before.json"
  change_load &
  changing=$!
  from=$(now_ms)
  for round in $(seq "${ROLLOUTS:-2}"); do
    "$KUBECTL" -n "$operator_namespace" rollout restart deployment/databasecluster-operator >/dev/null
    roll_out
    wait_for "every shard to be held, evenly, by the Pods of update $round" 60 shards_are_even 3
    say "update $round of ${ROLLOUTS:-2} is complete"
  done
  kill "$changing"
  wait "$changing" 2>/dev/null || :
  wait_for "the load to be Ready with its last change" 60 load_is_done
  moves=$(moves_since "$STATE/before.json" "$from")
  say "$(summary "$moves"); $(changes_of_load) changes of $loaded DatabaseClusters meanwhile"
  shown "there was load" [ "$(changes_of_load)" -gt "$loaded" ]
  shown "each shard moved, and each move was planned and has its time" jq -e \
    'all(.planned and .unowned_ms != null) and (map(.lease) | unique | length) == 32' <<<"$moves"
  goal "unowned, p99" "$(jq 'map(.unowned_ms) | sort | .[((length * 0.99) | ceil) - 1]' <<<"$moves")" 100
  shown "no reconcile was cut short" none_cut_short
  "$KUBECTL" delete namespace load --wait=false >/dev/null
}

# What a restart of a database would change.
database_pods() {
  "$KUBECTL" -n shop get pods -l app.kubernetes.io/name=postgresql -o json |
    jq -c '[.items[] | [.metadata.name, .metadata.uid, (.status.containerStatuses | map(.restartCount))]]'
}

same_database_pods() { # as before
  local now
  now=$(database_pods)
  [ "$now" = "$1" ] || { echo "before $1, now $now"; return 1; }
}

operator_is_gone() {
  local left
  left=$("$KUBECTL" get namespace "$operator_namespace" --ignore-not-found -o name; "$KUBECTL" get clusterrole databasecluster-operator --ignore-not-found -o name)
  [ -z "$left" ] || { echo "$left is there"; return 1; }
}

data_is_there() {
  local claims read
  claims=$("$KUBECTL" -n shop get pvc -o json | jq '[.items[] | select(.status.phase == "Bound")] | length')
  [ "$claims" = 3 ] || { echo "$claims claims are bound"; return 1; }
  read=$(sql_as_application "SELECT what FROM orders WHERE id = 1") || { echo "$read"; return 1; }
  [ "$read" = 'written by the primary' ] || { echo "read '$read'"; return 1; }
}

# An operator that serves this database re-creates a deleted Service.
service_comes_back() {
  "$KUBECTL" -n shop delete service orders-r >/dev/null
  wait_for "the Service to be re-created" 60 "$KUBECTL" -n shop get service orders-r
}

uninstall() {
  "$KUBECTL" delete -f deploy/install.yaml -l 'database.io/keep!=true' --ignore-not-found >"$STATE/log/delete.log" 2>&1 ||
    fail "uninstall: $(cat "$STATE/log/delete.log")"
  wait_for "the operator to be removed" 120 operator_is_gone
}

remove_and_upgrade() {
  local pods
  pods=$(database_pods)
  uninstall
  wait_for "claims and data without the operator" 30 data_is_there
  say "ok      without the operator, claims and data still exist"
  shown "its removal restarted no Pod of the database" same_database_pods "$pods"
  install_operator "$EARLIER/install.yaml"
  wait_for "every shard to be held, evenly" 60 shards_are_even 3
  say "ok      the earlier version is installed: $(operator_pods '.spec.containers[0].image' | sort -u)"
  service_comes_back
  say "ok      it found the database and serves it"
  install_operator deploy/install.yaml
  wait_for "every shard to be held, evenly" 60 shards_are_even 3
  say "ok      it is upgraded: $(operator_pods '.spec.containers[0].image' | sort -u)"
  service_comes_back
  wait_for "the DatabaseCluster to be Ready" 60 database_is_ready
  wait_for "claims and data" 30 data_is_there
  say "ok      claims and data still exist"
  shown "neither restarted a Pod of the database" same_database_pods "$pods"
}
