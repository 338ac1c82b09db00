# The DatabaseCluster "ledger" with optional fields, as the scheduler, the kubelets and clients see them. Sourced.
# shellcheck shell=bash disable=SC2016 # expanded in the Pod

# Two volumes on each node, so that the scheduler has a choice; and nodes for databases only.
prepare_for_fields() {
  local number copy
  for number in $(seq "$NODES"); do
    "$KUBECTL" label node "node-$number" example.com/databases=true "topology.kubernetes.io/zone=zone-$number" >/dev/null
    "$KUBECTL" taint node "node-$number" example.com/databases=true:NoSchedule >/dev/null
    for copy in 1 2; do volume "ledger-$number-$copy" "$number" ledger; done
  done | "$KUBECTL" create -f - >/dev/null
  "$KUBECTL" create -f - >/dev/null <<'Y'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: ledger}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: databases}
value: 1000
---
apiVersion: v1
kind: Namespace
metadata: {name: books, labels: {pod-security.kubernetes.io/enforce: restricted}}
Y
}

# A certificate as cert-manager writes it.
create_certificate() {
  local folder=$STATE/ledger-tls names
  mkdir -p "$folder"
  names=DNS:ledger-rw.books.svc,DNS:ledger-r.books.svc,DNS:ledger-db-0.ledger-db.books.svc
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=books \
    -keyout "$folder/ca.key" -out "$folder/ca.crt" 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=ledger \
    -keyout "$folder/tls.key" -out "$folder/tls.csr" 2>/dev/null
  openssl x509 -req -in "$folder/tls.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial -days 1 \
    -extfile <(printf 'subjectAltName=%s' "$names") -out "$folder/tls.crt" 2>/dev/null
  "$KUBECTL" -n books create secret generic ledger-tls --type kubernetes.io/tls \
    --from-file="$folder/tls.crt" --from-file="$folder/tls.key" --from-file="$folder/ca.crt" >/dev/null
}

create_ledger() {
  "$KUBECTL" create -f - >/dev/null <<'Y'
apiVersion: database.io/v1
kind: DatabaseCluster
metadata: {name: ledger, namespace: books}
spec:
  image: localhost/postgres:15
  replicas: 3
  resources: {cpu: 100m, memory: 256Mi}
  storage: {size: 1Gi, className: ledger}
  priorityClassName: databases
  nodeSelector: {example.com/databases: "true"}
  tolerations: [{key: example.com/databases, operator: Exists, effect: NoSchedule}]
  podTemplate: {metadata: {labels: {example.com/team: payments}}}
  postgresql: {parameters: {work_mem: 8MB}}
  tls: {secretName: ledger-tls, required: true}
Y
}

ledger_pods() { "$KUBECTL" -n books get pods -l app.kubernetes.io/instance=ledger -o json; }

# By default, without a constraint in the spec.
is_spread_over_nodes() {
  ledger_pods | jq -e --argjson nodes "$NODES" '[.items[].spec.nodeName]
    | if (unique | length) == $nodes then . else error("the Pods are on \(.)") end' >/dev/null
}

has_priority_and_labels() {
  ledger_pods | jq -e '[.items[] | [.spec.priority, .metadata.labels["example.com/team"]]] | unique
    | if . == [[1000, "payments"]] then . else error("the Pods have \(.)") end' >/dev/null
}

sql_in_ledger() { # instance, parameters of the connection, statement
  "$KUBECTL" -n books exec "ledger-db-$1" -c postgres -- sh -c \
    'PGPASSWORD=$(cat /secret/password) psql -XAtq -v ON_ERROR_STOP=1 -U "$(cat /secret/username)" \
      -d "dbname=$(cat /secret/dbname) connect_timeout=5 sslrootcert=$TLS_DIR/ca.crt $0" -c "$1"' "$2" "$3"
}

serves_over_tls() {
  local said
  said=$(sql_in_ledger 1 "host=ledger-rw.books.svc sslmode=verify-full" \
    "SELECT ssl, current_setting('work_mem') FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
  [ "$said" = "t|8MB" ] || { echo "it answered '$said'"; return 1; }
}

refuses_without_tls() {
  local said
  if said=$(sql_in_ledger 1 "host=ledger-rw.books.svc sslmode=disable" "SELECT 1" 2>&1); then
    echo "it answered '$said'"
    return 1
  fi
  [[ $said == *"no encryption"* ]] || { echo "it said '$said'"; return 1; }
}

replicates_over_tls() {
  local said
  said=$("$KUBECTL" -n books exec ledger-db-0 -c postgres -- psql -XAtq -U postgres -c \
    "SELECT count(*) FROM pg_stat_replication JOIN pg_stat_ssl USING (pid) WHERE ssl AND state = 'streaming'")
  [ "$said" = 2 ] || { echo "$said replicas stream over TLS"; return 1; }
}

# Nodes as they were, for what follows.
remove_ledger() {
  "$KUBECTL" -n books delete dbc ledger --timeout=120s >/dev/null
  "$KUBECTL" delete namespace books --timeout=120s >/dev/null
  "$KUBECTL" taint nodes --all example.com/databases- >/dev/null
  "$KUBECTL" label nodes --all example.com/databases- topology.kubernetes.io/zone- >/dev/null
}

optional_fields() {
  local from
  prepare_for_fields
  create_certificate
  from=$(now_ms)
  create_ledger
  wait_for "the DatabaseCluster with optional fields to be Ready" 240 is_ready books ledger
  say "Ready after $(seconds $(($(now_ms) - from))), on nodes with a taint that only its Pods tolerate"
  shown "its Pods are on $NODES nodes, by default" is_spread_over_nodes
  shown "they have the priority of their class, and the labels of the spec" has_priority_and_labels
  shown "a client that verifies the name of the Service connects, and finds the parameter of the spec" serves_over_tls
  shown "a client without TLS is refused" refuses_without_tls
  wait_for "the replicas to stream over TLS" 60 replicates_over_tls
  say "ok      both replicas stream over TLS"
  remove_ledger
}
