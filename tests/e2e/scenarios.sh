# What is shown on real nodes, in order. Runs as the first process of its own namespaces; run.sh calls it.
# shellcheck shell=bash
set -euo pipefail
# shellcheck disable=SC1091 # each is checked by itself
source tests/e2e/report.sh
source tests/e2e/nodes.sh
source tests/e2e/operator.sh
source tests/e2e/database.sh
source tests/e2e/faults.sh
source tests/e2e/life.sh
source tests/e2e/fields.sh

# Folders with fixed names that the parts write to; they go with this mount namespace.
for folder in /run /var/lib /var/log; do mount -t tmpfs tmpfs "$folder"; done
mkdir -p /run/etc/{upper,work}
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc

k() { "$KUBECTL" "$@"; }

scenario_a() {
  heading "a. The operator on three real nodes"
  nodes_up
  say "$NODES nodes are Ready: $(k version -o json | jq -r .serverVersion.gitVersion), $(containerd --version | cut -d' ' -f3), $(runc --version | head -n 1)"
  keep_logs &
  install_operator deploy/install.yaml
  say "three Pods are Ready and available, on $(operator_pods '.spec.nodeName' | sort -u | wc -l) nodes"
  shown "Pods that Pod Security 'restricted' forbids are refused there" refuses_unrestricted_pod
  wait_for "every shard to be held, evenly" 60 shards_are_even 3
  say "ok      each of the Pods holds a third of the shards: $(shards_by_holder)"
}

scenario_b() {
  heading "b. A database of three Pods"
  local from
  make_volumes
  from=$(now_ms)
  create_database
  wait_for "the DatabaseCluster to be Ready" 240 database_is_ready
  say "Ready after $(seconds $(($(now_ms) - from))), Pods on $(k get pods -n shop -l app.kubernetes.io/name=postgresql -o jsonpath='{.items[*].spec.nodeName}')"
  shown "the Pods have five keys of the Secret, and no other" secret_is_mounted_by_key
  create_client
  shown "SQL through the Service, with the credentials of the Secret" sql_as_application \
    "CREATE TABLE orders (id int PRIMARY KEY, what text); INSERT INTO orders VALUES (1, 'written by the primary');"
  for replica in 1 2; do
    wait_for "replica $replica to have what the primary wrote" 30 replica_reads "$replica" 'written by the primary'
    say "ok      replica $replica reads what the primary wrote, and is read-only"
  done
}

scenario_c() {
  heading "c. A leader is killed, one is deleted, a node is lost"
  container_killed
  pod_deleted
  node_lost
}

scenario_d() {
  heading "d. Rolling updates under load"
  rolling_updates
}

scenario_e() {
  heading "e. Removal, installing an earlier version, upgrade"
  remove_and_upgrade
}

scenario_f() {
  heading "f. Optional fields: where Pods run, and how clients connect"
  optional_fields
}

mkdir -p "$STATE/log"
for scenario in ${ONLY:-a b f c d e}; do
  [ "$(type -t "scenario_$scenario")" = function ] || fail "ONLY=$ONLY: there is no scenario '$scenario', only a b c d e f"
done
for scenario in ${ONLY:-a b f c d e}; do "scenario_$scenario"; done
heading "done in $(seconds $(($(now_ms) - started_ms)))"
[ "$missed" -eq 0 ] || fail "$missed goals were missed"
say "everything was shown, every goal was met"
