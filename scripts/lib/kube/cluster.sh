# shellcheck shell=bash
# Starts, watches and stops one control plane. Sourced by scripts/kube, which sets what is used here: $bin, $cache, and
# $data, the folder of the control plane in question.
# shellcheck disable=SC2154

# The last is stopped first. A control plane with a node (node.sh) has more of them.
parts=(etcd kube-apiserver kube-controller-manager)
inside=() # what runs a program where the control plane is: in this machine's network, or in the node's
patience=180 # seconds until something counts as not starting; it takes 10 on an idle machine

start() {
    local name=$1 started=$SECONDS
    mkdir -p "$data/log"
    exec 8>"$data/lock"
    flock -n 8 || die "$name is being started or stopped by somebody else"
    if all_run; then
        say "$name: already running"
        return
    fi
    stop_parts
    choose_ports
    # shellcheck source=/dev/null
    source "$data/ports"
    host=127.0.0.1
    if has_node; then
        start_node
        host=$(cat "$data/address")
    fi
    certificates "$data/pki" "$host" "$name"
    kubeconfig admin >"$data/admin.conf"
    kubeconfig controller-manager >"$data/controller-manager.conf"
    printf 'apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n' >"$data/audit-policy.yaml"
    start_etcd
    start_apiserver
    start_controller_manager
    until_true "$name: the default ServiceAccount" kubectl_as_admin get serviceaccount default
    if has_node; then
        start_scheduler
        start_node_programs "$name"
    fi
    say "$name: Kubernetes $(server_version) is ready at https://$host:$api_port after $((SECONDS - started)) s"
    say "export KUBECONFIG=$data/admin.conf PATH=$bin:\$PATH"
}

# Whether pods run there: said at its first start, and kept.
has_node() { [ -e "$data/has-node" ]; }

start_etcd() {
    local pki=$data/pki/etcd at=https://127.0.0.1
    # What a machine that loses power would lose is a test's; to write it through costs each object of every test.
    run etcd --unsafe-no-fsync --name=default --data-dir="$data/etcd" --listen-client-urls=$at:"$etcd_port" --advertise-client-urls=$at:"$etcd_port" \
        --listen-peer-urls=$at:"$etcd_peer_port" --initial-advertise-peer-urls=$at:"$etcd_peer_port" \
        --initial-cluster=default=$at:"$etcd_peer_port" \
        --cert-file="$pki/server.crt" --key-file="$pki/server.key" --trusted-ca-file="$pki/ca.crt" --client-cert-auth \
        --peer-cert-file="$pki/server.crt" --peer-key-file="$pki/server.key" --peer-trusted-ca-file="$pki/ca.crt" --peer-client-cert-auth
    until_true etcd "${inside[@]}" curl -sf --cacert "$pki/ca.crt" --cert "$pki/client.crt" --key "$pki/client.key" "$at:$etcd_port/health"
}

start_apiserver() {
    local pki=$data/pki how=()
    if has_node; then
        how=(--bind-address=0.0.0.0 --advertise-address="$host" --kubelet-preferred-address-types=InternalIP
            --kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key")
    else
        # The advertised address is one of documentation (RFC 5737) and never published: no pod of this control plane runs.
        how=(--bind-address=127.0.0.1 --advertise-address=192.0.2.1 --endpoint-reconciler-type=none)
    fi
    run kube-apiserver --secure-port="$api_port" "${how[@]}" \
        --etcd-servers=https://127.0.0.1:"$etcd_port" --etcd-cafile="$pki/etcd/ca.crt" \
        --etcd-certfile="$pki/etcd/client.crt" --etcd-keyfile="$pki/etcd/client.key" \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
        --authorization-mode=Node,RBAC --anonymous-auth=false --enable-admission-plugins=NodeRestriction \
        --feature-gates=MutatingAdmissionPolicy=true --runtime-config=admissionregistration.k8s.io/v1beta1=true \
        --service-cluster-ip-range=10.96.0.0/16 --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file="$pki/service-account.key" --service-account-signing-key-file="$pki/service-account.key" \
        --audit-policy-file="$data/audit-policy.yaml" --audit-log-path="$data/log/audit.json" --audit-log-maxsize=100 --audit-log-maxbackup=10
    until_true kube-apiserver kubectl_as_admin get --raw /readyz
}

start_controller_manager() {
    local pki=$data/pki
    run kube-controller-manager --kubeconfig="$data/controller-manager.conf" --bind-address=127.0.0.1 --secure-port="$manager_port" \
        --authentication-kubeconfig="$data/controller-manager.conf" --authorization-kubeconfig="$data/controller-manager.conf" \
        --tls-cert-file="$pki/controller-manager-server.crt" --tls-private-key-file="$pki/controller-manager-server.key" \
        --use-service-account-credentials --leader-elect=false --root-ca-file="$pki/ca.crt" \
        --service-account-private-key-file="$pki/service-account.key" \
        --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key"
    until_true kube-controller-manager "${inside[@]}" curl -sf --cacert "$pki/ca.crt" "https://127.0.0.1:$manager_port/healthz"
}

start_scheduler() {
    local given=$data/kube-scheduler.conf
    kubeconfig kube-scheduler >"$given"
    run kube-scheduler --kubeconfig="$given" --authentication-kubeconfig="$given" --authorization-kubeconfig="$given" \
        --bind-address=127.0.0.1 --leader-elect=false
}

# Runs a program of ours in the background, apart from this shell, and writes down who it is.
run() {
    local part=$1
    shift
    say "starting $part (log: $data/log/$part.log)"
    setsid "${inside[@]}" "$bin/$part" "$@" >"$data/log/$part.log" 2>&1 </dev/null 8>&- &
    echo "$! $(birth "$!")" >"$data/$part.pid"
}

# When process $1 was born, in clock ticks since boot (proc(5), stat, field 22). A pid alone may be somebody else's later.
birth() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) } # the name before it may hold spaces
    cut -d' ' -f20 <<<"$stat"
}

# Prints the pid of part $1 if it runs.
pid_of() {
    local pid born
    [ -e "$data/$1.pid" ] && read -r pid born <"$data/$1.pid" || return 1
    [ -n "$born" ] && [ "$(birth "$pid")" = "$born" ] && echo "$pid"
}

all_run() {
    local part
    for part in "${parts[@]}"; do pid_of "$part" >/dev/null || return 1; done
}

# until_true WHAT COMMAND…: asks until the answer is yes, and gives up when a part has ended or patience has.
until_true() {
    local what=$1 end=$((SECONDS + patience)) part
    shift
    until "$@" >/dev/null 2>&1; do
        for part in "${parts[@]}"; do
            [ ! -e "$data/$part.pid" ] || pid_of "$part" >/dev/null || give_up "$part ended while we waited for $what" "$part"
        done
        [ "$SECONDS" -lt "$end" ] || give_up "$what was not ready within $patience s" "${what##*: }"
        sleep 0.2
    done
}

give_up() {
    say "error: $1; the end of its log:"
    tail -n 20 "$data/log/$2.log" >&2 2>/dev/null || true
    stop_parts
    exit 1
}

stop() {
    [ -d "$data" ] || { say "$1: there is none"; return; }
    exec 8>"$data/lock"
    flock -n 8 || die "$1 is being started or stopped by somebody else"
    stop_parts
    say "$1: stopped"
}

# Ends what we started, the last first, and nothing else: the API server must still find etcd while it ends.
stop_parts() {
    local at part pid end
    for ((at = ${#parts[@]} - 1; at >= 0; at--)); do
        part=${parts[$at]}
        if pid=$(pid_of "$part"); then
            kill "$pid" 2>/dev/null || true
            end=$((SECONDS + 30))
            while pid_of "$part" >/dev/null && [ "$SECONDS" -lt "$end" ]; do sleep 0.1; done
            if pid_of "$part" >/dev/null; then kill -KILL "$pid" && say "$part did not end by itself"; fi
        fi
        rm -f "$data/$part.pid"
    done
    clean_node
}

status() {
    local folder name part
    [ -d "$cache/clusters" ] || { say "there is no control plane"; return; }
    for folder in "$cache"/clusters/*/; do
        [ -d "$folder" ] || continue
        data=${folder%/} name=$(basename "$folder")
        parts_of_cluster
        for part in "${parts[@]}"; do
            if pid_of "$part" >/dev/null; then say "$name: $part runs as $(pid_of "$part")"; else say "$name: $part is stopped"; fi
        done
        ! all_run || say "$name: /readyz says $(kubectl_as_admin get --raw /readyz 2>&1 | tail -n 1)"
    done
}

kubectl_as_admin() { "$bin/kubectl" --kubeconfig "$data/admin.conf" --request-timeout=5s "$@"; }

server_version() { kubectl_as_admin version -o json | sed -n 's/.*"gitVersion": "\(v[^"]*\)".*/\1/p' | tail -n 1; }

# Four ports that nothing listens on and no other control plane has; kept, so that a kubeconfig stays good over restarts.
choose_ports() {
    local name port taken chosen=()
    [ ! -e "$data/ports" ] || return 0
    (
        flock 7
        taken="$(cat "$cache"/clusters/*/ports 2>/dev/null | sed -n 's/.*=//p' | tr '\n' ' ')" || true # there may be none yet
        taken=" $taken "
        # Below the range that Linux hands out by itself (32768), or a client's socket could sit on one later.
        for ((port = 26443; ${#chosen[@]} < 4 && port < 32000; port++)); do
            [[ "$taken" != *" $port "* ]] && ! (exec 6<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && chosen+=("$port")
        done
        [ "${#chosen[@]}" = 4 ] || die "found no four free ports"
        for name in api_port etcd_port etcd_peer_port manager_port; do
            echo "$name=${chosen[0]}"
            chosen=("${chosen[@]:1}")
        done >"$data/ports"
    ) 7>"$cache/clusters/ports.lock"
}

# The kubeconfig of certificate $1. Its context is called as the control plane is, so that several files go together in
# KUBECONFIG.
kubeconfig() {
    local pki=$data/pki called=${data##*/}
    cat <<TXT
apiVersion: v1
kind: Config
clusters: [{name: "$called", cluster: {server: "https://$host:$api_port", certificate-authority: "$pki/ca.crt"}}]
users: [{name: "$1-$called", user: {client-certificate: "$pki/$1.crt", client-key: "$pki/$1.key"}}]
contexts: [{name: "$called", context: {cluster: "$called", user: "$1-$called"}}]
current-context: "$called"
TXT
}
