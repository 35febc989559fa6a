# shellcheck shell=bash
# The certificates and keys of one control plane. Sourced by scripts/kube. All are X.509 v3 (rustls refuses v1) on
# P-256; each has the one purpose it is for, and the authority's key signs nothing but these.

# certificate FOLDER NAME SUBJECT EXTENSIONS: a leaf of that folder's authority, valid for a year.
certificate() {
    local folder=$1 name=$2 subject=$3 extensions=$4
    openssl ecparam -name prime256v1 -genkey -noout -out "$folder/$name.key" 2>/dev/null
    openssl req -new -key "$folder/$name.key" -subj "$subject" -out "$folder/$name.csr"
    openssl x509 -req -in "$folder/$name.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
        -days 365 -sha256 -extfile <(printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n%s\n' "$extensions") \
        -out "$folder/$name.crt" 2>/dev/null
    rm "$folder/$name.csr"
}

# authority FOLDER NAME: a self-signed authority.
authority() {
    mkdir -p "$1"
    openssl ecparam -name prime256v1 -genkey -noout -out "$1/ca.key" 2>/dev/null
    openssl req -x509 -new -key "$1/ca.key" -subj "/CN=$2" -days 3650 -sha256 -out "$1/ca.crt" \
        -addext "keyUsage=critical,keyCertSign,cRLSign"
}

# certificates FOLDER ADDRESS NAME: everything a control plane at that address needs, and its node NAME, if it has one.
# etcd has an authority of its own: who may talk to the API server may not, by that, talk to etcd.
certificates() (
    umask 077
    local pki=$1 address=$2 name=$3
    [ ! -e "$pki/complete" ] || return 0
    rm -rf "$pki"
    authority "$pki" peerage-test-cluster
    certificate "$pki" apiserver /CN=kube-apiserver \
        $'extendedKeyUsage=serverAuth\nsubjectAltName=IP:127.0.0.1,IP:'"$address"',IP:10.96.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local'
    certificate "$pki" controller-manager-server /CN=kube-controller-manager $'extendedKeyUsage=serverAuth\nsubjectAltName=IP:127.0.0.1'
    certificate "$pki" admin /O=system:masters/CN=peerage-admin extendedKeyUsage=clientAuth
    certificate "$pki" controller-manager /CN=system:kube-controller-manager extendedKeyUsage=clientAuth
    certificate "$pki" kube-scheduler /CN=system:kube-scheduler extendedKeyUsage=clientAuth
    certificate "$pki" kubelet "/O=system:nodes/CN=system:node:$name" extendedKeyUsage=clientAuth
    certificate "$pki" kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client extendedKeyUsage=clientAuth
    certificate "$pki" kube-proxy /CN=system:kube-proxy extendedKeyUsage=clientAuth
    openssl ecparam -name prime256v1 -genkey -noout -out "$pki/service-account.key" 2>/dev/null
    authority "$pki/etcd" peerage-test-etcd
    certificate "$pki/etcd" server /CN=etcd $'extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=IP:127.0.0.1'
    certificate "$pki/etcd" client /CN=kube-apiserver extendedKeyUsage=clientAuth
    touch "$pki/complete"
)
