# shellcheck shell=bash
# Container images without a container engine: one layer from a folder, as the archive that `docker load`, `podman load`,
# `ctr images import` and `kind load image-archive` read. The same folder gives the same bytes. Sourced.

# image_archive ARCHIVE NAME:TAG FOLDER CONFIG [ARCHITECTURE]: CONFIG is the image's "config" member in JSON: Entrypoint,
# User, ….
image_archive() (
    local archive=$1 reference=$2 folder=$3 config=$4 work layer id kind
    kind=${5:-$(machine_architecture)}
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    plain_tar "$folder" "$work/layer.tar" .
    layer=$(sha256sum <"$work/layer.tar" | cut -d' ' -f1)
    jq -cn --arg architecture "$kind" --arg layer "sha256:$layer" --argjson config "$config" \
        '{architecture: $architecture, os: "linux", config: $config, rootfs: {type: "layers", diff_ids: [$layer]},
          created: "1970-01-01T00:00:00Z", history: [{created: "1970-01-01T00:00:00Z", created_by: "scripts/images"}]}' >"$work/config"
    id=$(sha256sum <"$work/config" | cut -d' ' -f1)
    mv "$work/config" "$work/$id.json"
    jq -cn --arg id "$id" --arg reference "$reference" '[{Config: "\($id).json", RepoTags: [$reference], Layers: ["layer.tar"]}]' >"$work/manifest.json"
    plain_tar "$work" "$archive.part" manifest.json "$id.json" layer.tar
    mv "$archive.part" "$archive"
)

# What images call this machine's kind, and what the kernel calls one of theirs.
machine_architecture() {
    case "$(uname -m)" in
        x86_64) echo amd64 ;;
        aarch64) echo arm64 ;;
        *) die "no image is made for $(uname -m)" ;;
    esac
}
machine_of() {
    case "$1" in
        amd64) echo x86_64 ;;
        arm64) echo aarch64 ;;
        *) die "an architecture is amd64 or arm64, not $1" ;;
    esac
}

# plain_tar FOLDER ARCHIVE NAME…: nothing in it of who made it, and when.
plain_tar() {
    tar --create --file "$2" --directory "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu "${@:3}"
}
