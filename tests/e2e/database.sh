# The DatabaseCluster "orders" in the namespace "shop", and SQL as its users send it. Sourced.
# shellcheck shell=bash

# A volume is a folder of a node, created beforehand: there is no provisioner. Prints its object.
volume() { # name, number of the node, class
  mkdir -p "$STATE/volumes/$1"
  jq -n --arg name "$1" --arg number "$2" --arg class "$3" --arg path "$STATE/volumes/$1" '{
    apiVersion: "v1", kind: "PersistentVolume", metadata: {name: $name}, spec: {
      capacity: {storage: "1Gi"}, accessModes: ["ReadWriteOnce"], storageClassName: $class, local: {path: $path},
      persistentVolumeReclaimPolicy: "Retain", nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [
        {key: "kubernetes.io/hostname", operator: "In", values: ["node-" + $number]}]}]}}}}'
}

# One on each node.
make_volumes() {
  local number
  for number in $(seq "$NODES"); do volume "e2e-$number" "$number" local; done | "$KUBECTL" create -f - >/dev/null
  "$KUBECTL" create -f - >/dev/null <<'Y'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
Y
}

create_database() {
  "$KUBECTL" create namespace shop >/dev/null
  "$KUBECTL" label namespace shop pod-security.kubernetes.io/enforce=restricted >/dev/null
  "$KUBECTL" create -f - >/dev/null <<'Y'
apiVersion: database.io/v1
kind: DatabaseCluster
metadata: {name: orders, namespace: shop}
spec:
  image: localhost/postgres:15
  replicas: 3
  resources: {cpu: 250m, memory: 256Mi}
  storage: {size: 1Gi, className: local}
Y
}

database_is_ready() { is_ready shop orders; }

# Whether a DatabaseCluster of three is Ready with its last change.
is_ready() { # namespace, name
  "$KUBECTL" -n "$1" get dbc "$2" -o json | jq -e '
    .metadata.generation as $generation
    | if .status.phase == "Ready" and .status.readyReplicas == 3 and .status.observedGeneration == $generation then .
      else error("\(.status.phase): \([.status.conditions[]? | select(.status == "True" or .type == "Ready") | "\(.type) \(.reason) \(.message)"])") end' >/dev/null
}

secret_is_mounted_by_key() {
  local mounted
  mounted=$("$KUBECTL" -n shop exec orders-db-0 -c postgres -- ls /secret | tr '\n' ' ')
  [ "$mounted" = "cluster-uid dbname password replication-password username " ] || { echo "mounted are: $mounted"; return 1; }
}

# An application: it has the Secret, and nothing else.
create_client() {
  "$KUBECTL" create -f - >/dev/null <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: client
    image: localhost/postgres:15
    command: [sleep, infinity]
    envFrom: [{secretRef: {name: orders-app}}]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
Y
  "$KUBECTL" -n shop wait pod/client --for=condition=Ready --timeout=60s >/dev/null
}

sql_as_application() { # statement
  # shellcheck disable=SC2016 # expanded in the Pod
  "$KUBECTL" -n shop exec client -- sh -c 'psql -XAtq -v ON_ERROR_STOP=1 -d "$uri" -c "$0"' "$1"
}

replica_reads() { # ordinal, what
  local read
  # shellcheck disable=SC2016 # expanded in the Pod
  read=$("$KUBECTL" -n shop exec client -- sh -c 'PGPASSWORD=$password psql -XAtq -h "orders-db-$0.orders-db" -U "$username" \
    -d "$dbname" -c "SELECT pg_is_in_recovery(), what FROM orders WHERE id = 1"' "$1") || { echo "$read"; return 1; }
  [ "$read" = "t|$2" ] || { echo "it has '$read'"; return 1; }
}
