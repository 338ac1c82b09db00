# Real nodes: each a kubelet with a containerd and a cgroup of its own, all in the one network namespace that the caller
# runs in. Sourced; needs STATE (an empty folder), BIN and NODE_BIN (programs), IMAGES and EARLIER (archives), CGROUP (a name), NODES.
# shellcheck shell=bash

bridge=dbc0
network=10.244.0.0/22
api_address=10.244.0.1 # the bridge's, where Pods reach this namespace
service_range=10.96.0.0/16
service_address=10.96.0.1
export KUBECONFIG=$STATE/kubeconfig
KUBECTL=$BIN/kubectl

node_address() { echo "10.244.0.1$1"; }
socket() { echo "$STATE/node-$1/run/containerd.sock"; }
ctr() { command ctr -a "$(socket "$1")" -n k8s.io "${@:2}"; }
# The files of the cgroup hierarchies: one folder each with version 1, one for all with version 2.
hierarchies() { if [ -f /sys/fs/cgroup/cgroup.controllers ]; then echo /sys/fs/cgroup/; else ls -d /sys/fs/cgroup/*/; fi; }

daemon() { # name, command
  local name=$1
  shift
  "$@" >>"$STATE/log/$name.log" 2>&1 </dev/null &
  echo $! >"$STATE/pid/$name"
  # The shell must not report that it was killed.
  disown
}

# In a shell of its own, as it changes the folder.
certificates() (
  mkdir -p "$STATE/pki"
  cd "$STATE/pki" || exit
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=e2e \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,digitalSignature 2>/dev/null
  openssl genrsa -out accounts.key 2048 2>/dev/null
  openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
  certificate apiserver /CN=kube-apiserver "IP:$api_address,IP:$service_address"
  certificate admin /O=system:masters/CN=admin
  local name number
  for name in kube-controller-manager kube-scheduler kube-proxy coredns; do certificate "$name" "/CN=system:$name"; done
  for number in $(seq "$NODES"); do
    certificate "node-$number" "/O=system:nodes/CN=system:node:node-$number" "IP:$(node_address "$number"),DNS:node-$number"
  done
  cp admin.kubeconfig "$KUBECONFIG"
)

certificate() { # name, subject, names of a server; also creates a kubeconfig
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2" 2>/dev/null
  printf 'extendedKeyUsage=serverAuth,clientAuth\n%s\n' "${3:+subjectAltName=$3}" >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
  jq -n --arg dir "$STATE/pki" --arg name "$1" --arg server "https://$api_address:6443" '{
    apiVersion: "v1", kind: "Config", "current-context": "e2e",
    clusters: [{name: "e2e", cluster: {server: $server, "certificate-authority": ($dir + "/ca.crt")}}],
    users: [{name: "e2e", user: {"client-certificate": "\($dir)/\($name).crt", "client-key": "\($dir)/\($name).key"}}],
    contexts: [{name: "e2e", context: {cluster: "e2e", user: "e2e"}}]}' >"$1.kubeconfig"
}

bridge_up() {
  ip link set lo up
  # Without an address of its own it takes that of a Pod, and another when that Pod ends: then others lose their packets.
  ip link add "$bridge" address 02:00:0a:f4:00:01 type bridge
  ip addr add "$api_address/22" dev "$bridge"
  for number in $(seq "$NODES"); do ip addr add "$(node_address "$number")/22" dev "$bridge"; done
  ip link set "$bridge" up
  echo 1 >/proc/sys/net/ipv4/ip_forward
}

control_plane_up() {
  local pki=$STATE/pki etcd=http://127.0.0.1:2379 peers=http://127.0.0.1:2380 config
  cat >"$STATE/audit.yaml" <<'Y'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: RequestResponse
  verbs: [create, update, patch, delete]
  namespaces: [databasecluster-system]
  resources: [{group: coordination.k8s.io, resources: [leases]}]
- level: None
Y
  daemon etcd "$BIN/etcd" --name=e2e --data-dir="$STATE/etcd" --unsafe-no-fsync --listen-client-urls=$etcd \
    --advertise-client-urls=$etcd --listen-peer-urls=$peers --initial-advertise-peer-urls=$peers --initial-cluster=e2e=$peers
  daemon kube-apiserver "$BIN/kube-apiserver" --etcd-servers=$etcd --bind-address=$api_address --advertise-address=$api_address \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/accounts.pub" \
    --service-account-signing-key-file="$pki/accounts.key" --service-cluster-ip-range=$service_range \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --kubelet-certificate-authority="$pki/ca.crt" --kubelet-client-certificate="$pki/admin.crt" \
    --kubelet-client-key="$pki/admin.key" --kubelet-preferred-address-types=InternalIP \
    --audit-policy-file="$STATE/audit.yaml" --audit-log-path="$STATE/audit.log"
  wait_for "the API server" 60 "$KUBECTL" get --raw /readyz
  config=$pki/kube-controller-manager.kubeconfig
  daemon kube-controller-manager "$BIN/kube-controller-manager" --bind-address=127.0.0.1 --leader-elect=false \
    --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" \
    --use-service-account-credentials --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/accounts.key" \
    --node-monitor-period=2s --node-monitor-grace-period=20s
  config=$pki/kube-scheduler.kubeconfig
  daemon kube-scheduler "$BIN/kube-scheduler" --bind-address=127.0.0.1 --leader-elect=false \
    --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config"
  "$KUBECTL" create clusterrolebinding e2e-proxy --clusterrole=system:node-proxier --user=system:kube-proxy >/dev/null
  "$KUBECTL" create clusterrole e2e-dns --verb=list,watch \
    --resource=services,pods,namespaces,endpointslices.discovery.k8s.io >/dev/null
  "$KUBECTL" create clusterrolebinding e2e-dns --clusterrole=e2e-dns --user=system:coredns >/dev/null
}

containerd_up() { # node number
  local dir=$STATE/node-$1
  mkdir -p "$dir"/{cni,root,run,opt}
  jq -n --arg bridge "$bridge" --arg dir "$dir/ipam" --arg subnet "$network" --arg number "$1" --arg gateway "$api_address" '{
    cniVersion: "1.0.0", name: "e2e", plugins: [
      {type: "bridge", bridge: $bridge, hairpinMode: true, ipam: {type: "host-local", dataDir: $dir, ranges: [[
        {subnet: $subnet, rangeStart: "10.244.\($number).1", rangeEnd: "10.244.\($number).254", gateway: $gateway}]],
        routes: [{dst: "0.0.0.0/0"}]}},
      {type: "portmap", capabilities: {portMappings: true}}]}' >"$dir/cni/10-e2e.conflist"
  cat >"$dir/containerd.toml" <<T
version = 2
root = "$dir/root"
state = "$dir/run"
[grpc]
  address = "$(socket "$1")"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$NODE_BIN"
    conf_dir = "$dir/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "$dir/runc"
T
  daemon "containerd-$1" containerd -c "$dir/containerd.toml"
  wait_for "containerd of node-$1" 30 ctr "$1" version
}

# Both versions of the operator have one name in their archives: the earlier one gets another before the other comes.
load_images() { # node number
  local archive name
  name=docker.io/library/$(tar -xOf "$EARLIER/image.tar" manifest.json | jq -r '.[0].RepoTags[0]')
  ctr "$1" images import "$EARLIER/image.tar" >/dev/null
  ctr "$1" images tag "$name" "${name%:*}:earlier" >/dev/null
  for archive in "$IMAGES"/*.tar; do ctr "$1" images import "$archive" >/dev/null; done
}

kubelet_up() { # node number
  local dir=$STATE/node-$1 group parent file
  mkdir -p "$dir"/{kubelet,pod-logs}
  # Each kubelet sees its own Pods only.
  for group in $(hierarchies); do
    mkdir -p "$group/$CGROUP/node-$1"
    # All Pods together would weigh as much as one process beside them; they get what nodes of two cores give to Pods.
    [ ! -f "$group/$CGROUP/cpu.shares" ] || echo $((2048 * NODES)) >"$group/$CGROUP/cpu.shares"
    if [ "$group" = /sys/fs/cgroup/ ]; then
      for parent in "$group" "$group/$CGROUP"; do echo '+cpu +cpuset +memory +pids' >"$parent/cgroup.subtree_control"; done
      echo $((200 * NODES)) >"$group/$CGROUP/cpu.weight"
      continue
    fi
    for file in cpuset.cpus cpuset.mems; do
      [ -f "$group/$file" ] || continue
      cat "$group/$file" >"$group/$CGROUP/$file"
      cat "$group/$file" >"$group/$CGROUP/node-$1/$file"
    done
  done
  cat >"$dir/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP/node-$1
containerRuntimeEndpoint: unix://$(socket "$1")
address: $(node_address "$1")
healthzBindAddress: 127.0.0.1
healthzPort: 1025$1
tlsCertFile: $STATE/pki/node-$1.crt
tlsPrivateKeyFile: $STATE/pki/node-$1.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $STATE/pki/ca.crt}}
authorization: {mode: Webhook}
clusterDomain: cluster.local
clusterDNS: [$api_address]
resolvConf: ""
podLogsDir: $dir/pod-logs
volumePluginDir: $dir/kubelet/volumeplugins
failSwapOn: false
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 20
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}
Y
  daemon "kubelet-$1" "$NODE_BIN/kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$STATE/pki/node-$1.kubeconfig" \
    --root-dir="$dir/kubelet" --cert-dir="$dir/kubelet/pki" --hostname-override="node-$1" --node-ip="$(node_address "$1")"
}

# One of each is enough, as all nodes share a network namespace.
proxy_and_dns_up() {
  cat >"$STATE/kube-proxy.yaml" <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
bindAddress: $api_address
hostnameOverride: node-1
clusterCIDR: $network
clientConnection: {kubeconfig: $STATE/pki/kube-proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
Y
  daemon kube-proxy "$NODE_BIN/kube-proxy" --config="$STATE/kube-proxy.yaml"
  cat >"$STATE/Corefile" <<C
.:53 {
  bind $api_address
  errors
  cache 2
  kubernetes cluster.local {
    kubeconfig $STATE/pki/coredns.kubeconfig
    ttl 2
  }
  template ANY ANY {
    rcode NXDOMAIN
  }
}
C
  daemon coredns "$NODE_BIN/coredns" -conf "$STATE/Corefile"
}

nodes_up() {
  local number
  mkdir -p "$STATE"/{log,pid,volumes}
  certificates
  bridge_up
  control_plane_up
  for number in $(seq "$NODES"); do
    containerd_up "$number"
    load_images "$number"
    kubelet_up "$number"
  done
  proxy_and_dns_up
  wait_for "$NODES nodes to be Ready" 120 nodes_are_ready "$NODES"
}

nodes_are_ready() {
  [ "$("$KUBECTL" get nodes -o json | jq '[.items[].status.conditions[] | select(.type == "Ready" and .status == "True")] | length')" = "$1" ]
}

# As if the power was cut: the kubelet, the runtime and all containers are killed at once, without notice.
node_down() { # node number
  local group process
  kill -KILL "$(cat "$STATE/pid/kubelet-$1")" "$(cat "$STATE/pid/containerd-$1")"
  {
    for group in $(hierarchies); do find "$group/$CGROUP/node-$1" -name cgroup.procs -exec cat {} + 2>/dev/null || :; done
    # The supervisors of the containers are identified by the socket in their arguments.
    grep -lF -- "$(socket "$1")" /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3 || :
  } | sort -u | while read -r process; do kill -KILL "$process" 2>/dev/null || :; done
}
