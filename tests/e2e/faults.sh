# What happens to replicas, and what becomes of their shards. Sourced.
# shellcheck shell=bash disable=SC2154,SC2016 # set by operator.sh; programs of jq

# A replica and its container restarted by the kubelet: the same Pod, so its shards are its own at once.
container_killed() {
  local victim moves from
  victim=$(leader_of shop orders)
  shard_leases >"$STATE/before.json"
  from=$(now_ms)
  kill_container "$operator_namespace" "$victim" operator
  wait_for "the shards of $victim" 60 moves_of "$victim" "$STATE/before.json" "$from"
  moves=$(moves_of "$victim" "$STATE/before.json" "$from")
  say "SIGKILL of the leader of orders: $(jq length <<<"$moves") shards"
  shown "the same Pod resumed all of them" jq -e --arg victim "$victim" 'all(.to == $victim)' <<<"$moves"
  # Others would have to wait for the lease, 6 s.
  goal "from the SIGKILL until the last one was worked on" "$(jq 'map(.worked_ms) | max' <<<"$moves")" 5000
  wait_for "every shard to be held, evenly" 60 shards_are_even 3
}

pod_deleted() {
  local victim moves from
  roll_out
  victim=$(leader_of shop orders)
  shard_leases >"$STATE/before.json"
  from=$(now_ms)
  "$KUBECTL" -n "$operator_namespace" delete pod "$victim" --wait=false >/dev/null
  wait_for "the shards of $victim" 60 moves_of "$victim" "$STATE/before.json" "$from"
  moves=$(moves_of "$victim" "$STATE/before.json" "$from")
  say "the leader's Pod deleted: $(summary "$moves")"
  shown "it handed all of them to the others" jq -e --arg victim "$victim" 'all(.planned and .to != $victim)' <<<"$moves"
  # The drain, and 4 s for the handovers themselves.
  goal "from the deletion until the last one was worked on" "$(jq 'map(.worked_ms) | max' <<<"$moves")" 14000
  roll_out
  wait_for "every shard to be held, evenly" 60 shards_are_even 3
}

node_lost() {
  local number primary victim moves from
  primary=$(node_of shop orders-db-0)
  victim=$(operator_pods '"\(.spec.nodeName) \(.metadata.name)"' | grep -v "^$primary " | head -n 1)
  number=${victim%% *}
  number=${number#node-}
  victim=${victim#* }
  shard_leases >"$STATE/before.json"
  from=$(now_ms)
  node_down "$number"
  wait_for "the shards of $victim" 60 moves_of "$victim" "$STATE/before.json" "$from"
  moves=$(moves_of "$victim" "$STATE/before.json" "$from")
  say "node-$number lost with all on it: $(jq length <<<"$moves") shards of $victim"
  shown "the others took all of them over" jq -e --arg victim "$victim" 'all(.to != $victim and (.planned | not))' <<<"$moves"
  # The lease, and 1 s.
  goal "from the loss until the last one was worked on" "$(jq 'map(.worked_ms) | max' <<<"$moves")" 7000
  wait_for "the node to be NotReady" 60 nodes_are_ready $((NODES - 1))
  say "the node is NotReady after $(seconds $(($(now_ms) - from)))"
  shown "the database takes writes meanwhile" sql_as_application "INSERT INTO orders VALUES (2, 'written with a node lost')"
  containerd_up "$number"
  kubelet_up "$number"
  wait_for "the node to be Ready again" 120 nodes_are_ready "$NODES"
  wait_for "the DatabaseCluster to be Ready again" 300 database_is_ready
  say "ok      node and database are Ready again, $(seconds $(($(now_ms) - from))) after the loss"
  roll_out
  wait_for "every shard to be held, evenly" 120 shards_are_even 3
}
