# shellcheck shell=bash
# The node of one control plane: containerd, kubelet and kube-proxy, so that pods run. Sourced by scripts/kube.
#
# A node is one tree of processes in a network, a mount and a process namespace of its own; its first process is our
# pause. When that one ends, however it ends, the kernel ends the tree and takes every mount, link and rule with it. Only
# cgroups stay, which stop removes. Nothing of the machine is changed: kubelet's sysctls are files of the node.
#
#   pods 10.244.0.0/16 ── node ── eth0 198.18.0.N ══ bridge peerage0 ══ the other clusters' nodes, and this machine, 198.18.0.1
#
# Every cluster has the same pods' and Services' addresses, and its pods leave it translated to the node's, as clusters
# in different places do. 198.18.0.0/15 is for tests of networks (RFC 2544): nobody else's addresses.
# shellcheck disable=SC2154

bridge=peerage0
outside=198.18.0
cluster_dns=10.96.0.10
pod_network=10.244.0.0/16

need_for_node() {
    [ "$(id -u)" = 0 ] || die "a node needs root: it makes namespaces, mounts and cgroups. Without --node, root is not needed"
    need ip nft unshare jq tar cc libc-headers containerd runc cni-plugins
}

# Makes the namespaces and the network, after which $inside runs a program in the node's network.
start_node() {
    local log=$data/log/node.log pid
    mkdir -p "$data"/node/{lib,log}
    choose_address
    build_pause
    say "starting the node (log: $log)"
    setsid unshare --net --mount --pid --fork --kill-child --mount-proc "$bin/pause" >"$log" 2>&1 </dev/null 8>&- &
    until_true "the node's first process" first_process "$!"
    pid=$(first_process "$!")
    echo "$pid $(birth "$pid")" >"$data/node.pid"
    prepare_mounts "$pid"
    prepare_network "$pid"
    enter "$pid"
}

# The child of unshare $1, once it is our pause.
first_process() {
    local child
    child=$(cat "/proc/$1/task/$1/children" 2>/dev/null) && child=${child% } && [ -n "$child" ] || return 1
    [ "$(readlink "/proc/$child/exe")" = "$bin/pause" ] && echo "$child"
}

# How programs are run in the node's network, and in all of its namespaces.
enter() {
    # shellcheck disable=SC2034 # cluster.sh runs the control plane with it
    inside=(nsenter "--net=/proc/$1/ns/net")
    whole=(nsenter "--target=$1" --net --mount --pid)
}

build_pause() {
    [ -x "$bin/pause" ] || { cc -static -Os -Wall -Wextra -o "$bin/.pause" "$modules/pause.c" && mv "$bin/.pause" "$bin/pause"; }
}

# What containerd and kubelet keep at fixed places is the node's own. kubelet sets three sysctls of the whole machine: in
# the node they are files of a file system in memory.
prepare_mounts() {
    nsenter "--target=$1" --mount sh -eu -s "$data/node" <<'SCRIPT'
mount --make-rshared /
mount --bind "$1/lib" /var/lib
mount --bind "$1/log" /var/log
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sysctls
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    copy=/run/sysctls/$(echo "$name" | tr / .)
    cat "/proc/sys/$name" >"$copy"
    mount --bind "$copy" "/proc/sys/$name"
done
SCRIPT
}

# An address that no other cluster has; kept, because certificates name it.
choose_address() {
    local number taken
    [ ! -e "$data/address" ] || return 0
    (
        flock 7
        taken=" $(cat "$cache"/clusters/*/address 2>/dev/null | tr '\n' ' ')" || true # there may be none yet
        for ((number = 2; number < 255; number++)); do
            [[ "$taken" == *" $outside.$number "* ]] || { echo "$outside.$number" >"$data/address"; return; }
        done
        die "there are 253 clusters with nodes"
    ) 7>"$cache/clusters/ports.lock"
}

prepare_network() {
    local address link
    address=$(cat "$data/address")
    link=peerage-${address##*.}
    (
        flock 7 # the bridge may be going away
        [ -e "/sys/class/net/$bridge" ] || { ip link add "$bridge" type bridge && ip addr add "$outside.1/24" dev "$bridge"; }
        ip link set "$bridge" up
        ip link add "$link" type veth peer name eth0 netns "$1"
        ip link set "$link" master "$bridge" up
    ) 7>"$cache/clusters/ports.lock"
    nsenter "--net=/proc/$1/ns/net" sh -eu -s "$address" "$outside.1" <<'SCRIPT'
ip link set lo up
ip addr add "$1/24" dev eth0
ip link set eth0 up
ip route add default via "$2"
echo 1 >/proc/sys/net/ipv4/ip_forward
SCRIPT
    nsenter "--net=/proc/$1/ns/net" nft -f - <<NFT
table ip peerage-node {
    chain postrouting {
        type nat hook postrouting priority srcnat + 10; policy accept;
        ip saddr $pod_network ip daddr != $pod_network masquerade
    }
}
NFT
}

# Everything that runs pods; the control plane is there already.
start_node_programs() {
    local name=$1
    write_node_configuration "$name"
    run_whole containerd /usr/bin/containerd --config "$data/node/containerd.toml"
    until_true containerd ctr version
    load_image pause '{"Entrypoint": ["/pause"], "User": "65532:65532"}' peerage-test/pause:1
    load_image coredns '{"Entrypoint": ["/coredns"], "User": "65532:65532"}' peerage-test/coredns:1
    run_whole kubelet "$bin/kubelet" --config="$data/node/kubelet.yaml" --kubeconfig="$data/kubelet.conf" --hostname-override="$name" \
        --node-ip="$(cat "$data/address")" --v=1
    run_whole kube-proxy "$bin/kube-proxy" --config="$data/node/kube-proxy.yaml"
    kubectl_as_admin apply -f "$modules/coredns/coredns.yaml" >/dev/null
    until_true "$name: its node" kubectl_as_admin wait --for=condition=Ready --timeout=1s "node/$name"
    # Its Service, because a Deployment that has a past says of itself what was.
    until_true "$name: cluster DNS" "${inside[@]}" timeout 1 bash -c "exec 6<>/dev/tcp/$cluster_dns/53"
}

# Runs a program in all of the node's namespaces. What is written down is the nsenter that waits for it.
run_whole() {
    local part=$1
    shift
    say "starting $part (log: $data/log/$part.log)"
    setsid "${whole[@]}" "$@" >"$data/log/$part.log" 2>&1 </dev/null 8>&- &
    echo "$! $(birth "$!")" >"$data/$part.pid"
    disown # or the shell says how it ended
}

ctr() { "${whole[@]}" ctr --address /run/containerd/containerd.sock --namespace k8s.io "$@"; }

# load_image PROGRAM CONFIG REFERENCE: an image of one of our static programs, made and loaded.
load_image() {
    local folder=$data/node/image
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$bin/$1" "$folder/$1"
    image_archive "$folder.tar" "$3" "$folder" "$2"
    ctr images import - <"$folder.tar" >/dev/null
    rm -rf "$folder" "$folder.tar"
}

# load NAME ARCHIVE…: makes images of archives available to the pods of a cluster.
load() {
    local name=$1 archive pid
    shift
    pid=$(pid_of node) || die "$name has no running node"
    enter "$pid"
    for archive; do
        [ -r "$archive" ] || die "there is no $archive"
        ctr images import - <"$archive" >&2
    done
}

write_node_configuration() {
    local name=$1 part
    for part in kubelet kube-proxy; do kubeconfig "$part" >"$data/$part.conf"; done
    echo "nameserver $cluster_dns" >"$data/node/resolv.conf"
    mkdir -p "$data/node/cni"
    # A link for each pod and a route between: the bridge plugin's pods would talk past the rules that Services are made of.
    cat >"$data/node/cni/10-pods.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "$pod_network"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
JSON
    cat >"$data/node/containerd.toml" <<TOML
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  # Root without CAP_SYS_RESOURCE may not lower a process's score; runc would fail, where Kubernetes only wishes.
  restrict_oom_score_adj = true
  sandbox_image = "docker.io/peerage-test/pause:1"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "$data/node/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "$(snapshotter)"
TOML
    write_kubernetes_configuration "$name"
}

# Where a kernel or a file system stacks no overlays, files are copied.
snapshotter() {
    local probe=$data/node/probe
    mkdir -p "$probe"/{lower,upper,work,merged}
    if unshare --mount mount -t overlay -o "lowerdir=$probe/lower,upperdir=$probe/upper,workdir=$probe/work" overlay "$probe/merged" 2>/dev/null; then
        echo overlayfs
    else
        echo native
    fi
    rm -rf "$probe"
}

write_kubernetes_configuration() {
    # No registry would give an image back, so none is ever collected.
    cat >"$data/node/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "$data/pki/ca.crt"}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /peerage-$1
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
resolvConf: "$data/node/resolv.conf"
clusterDNS: [$cluster_dns]
clusterDomain: cluster.local
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
# Each pod asks for its ConfigMaps and Secrets anew; a test does not wait a minute for that.
syncFrequency: 10s
YAML
    cat >"$data/node/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: "$data/kube-proxy.conf"}
clusterCIDR: $pod_network
hostnameOverride: $1
nodePortAddresses: [0.0.0.0/0]
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
    local hierarchy
    for hierarchy in $(cgroup_hierarchies); do mkdir -p "$hierarchy/peerage-$1"; done
}

# One with cgroup v2; with v1 one for each controller.
cgroup_hierarchies() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts; }

# What is left when the node's processes are gone.
clean_node() {
    local hierarchy folder name=${data##*/}
    has_node || return 0
    for hierarchy in $(cgroup_hierarchies); do
        folder=$hierarchy/peerage-$name
        [ ! -d "$folder" ] || find "$folder" -depth -type d -exec rmdir {} +
    done
    (
        flock 7
        # The link goes with the namespace, which the kernel takes apart when it has the time.
        [ ! -e "$data/address" ] || ip link delete "peerage-$(sed 's/.*\.//' "$data/address")" 2>/dev/null || true
        [ ! -d "/sys/class/net/$bridge/brif" ] || [ -n "$(ls "/sys/class/net/$bridge/brif")" ] || ip link delete "$bridge"
    ) 7>"$cache/clusters/ports.lock"
}
