#!/bin/bash
# Builds the container image with buildah and runs it for real with runc: non-root, read-only, without capabilities.
#
# usage: deploy/image-test.sh [cpu|openvino|gpu]
#
#   IMAGE_BINARY=FILE    take this binary instead of compiling in the container (beside it, ORT_DYLIB_PATH's library)
#   IMAGE_LIBRARY=FILE   the ONNX Runtime library that goes with it (default target/onnxruntime/libonnxruntime.so)
#   STORAGE_DRIVER=NAME  how layers are kept: overlay where the system has it, else vfs, which takes tens of GB
#   IMAGE_STORE=FOLDER   where images and layers are kept (default target/image-store)
#
# Base images come from their registry; where none can be reached, a Debian of the same release is made with
# debootstrap and the host's Rust toolchain and Python are put on it.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
target=${1:-cpu}
store=${IMAGE_STORE:-$root/target/image-store}
image=localhost/frostline:$target
export BUILDAH_ISOLATION=chroot
mkdir -p "$store"
buildah() { command buildah --storage-driver "$driver" --root "$store/$driver" --runroot "$store/run-$driver" "$@"; }
say() { printf '== %s\n' "$*"; }
# Layers share their files where the system can mount an overlay; else each is a copy of all below it, tens of GB in all.
overlays() {
    local try mounted=1
    try=$(mktemp -d "$store/overlay.XXXXXX")
    mkdir "$try/lower" "$try/upper" "$try/work" "$try/merged"
    if mount -t overlay overlay -o "lowerdir=$try/lower,upperdir=$try/upper,workdir=$try/work" "$try/merged" 2>/dev/null; then
        umount "$try/merged" && mounted=0
    fi
    rm -rf "$try"
    return $mounted
}
driver=${STORAGE_DRIVER:-$(overlays && echo overlay || echo vfs)}
fail() { printf 'image-test: %s\n' "$*" >&2; exit 1; }

missing=()
for tool in buildah runc debootstrap python3; do
    # As a file: a function above has a tool's name.
    type -P "$tool" >/dev/null || missing+=("$tool")
done
if [ ${#missing[@]} -gt 0 ]; then
    install="apt-get install --yes --no-install-recommends ${missing[*]}"
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "missing: ${missing[*]}; as root: $install"
    say "$install"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive $install >"$store/apt.log" 2>&1 || fail "see $store/apt.log"
fi

# === base images ===

debian=docker.io/library/debian:bookworm-slim
arguments=()
volumes=()

make_debian() {
    debian=localhost/frostline-debian:bookworm
    buildah images --quiet "$debian" >/dev/null 2>&1 && return
    say "no registry can be reached: making Debian with debootstrap"
    [ -d "$store/debian/usr/bin" ] || {
        rm -rf "$store/debian"
        debootstrap --variant=minbase --include=ca-certificates,python3-pip bookworm "$store/debian" \
            http://deb.debian.org/debian >"$store/debootstrap.log" 2>&1 || fail "debootstrap: see $store/debootstrap.log"
    }
    local container
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$store/debian" / >/dev/null
    buildah commit --quiet "$container" "$debian" >/dev/null
    buildah rm "$container" >/dev/null
}

make_rust() {
    local rust=localhost/frostline-rust:bookworm container
    arguments+=(--build-arg "RUST_IMAGE=$rust")
    buildah images --quiet "$rust" >/dev/null 2>&1 && return
    say "making the Rust image from the host's toolchain"
    container=$(buildah from "$debian")
    buildah run "$container" -- sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev nasm python3' \
        >/dev/null
    buildah copy --quiet "$container" "$(rustc --print sysroot)" /opt/rust >/dev/null
    buildah config --env PATH=/opt/rust/bin:/usr/local/bin:/usr/bin:/bin "$container"
    buildah commit --quiet "$container" "$rust" >/dev/null
    buildah rm "$container" >/dev/null
}

if ! buildah pull --quiet "$debian" >/dev/null 2>&1; then
    make_debian
    arguments+=(--build-arg "DEBIAN_IMAGE=$debian" --build-arg "PYTHON_IMAGE=$debian")
    volumes+=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
    [ -n "${IMAGE_BINARY:-}" ] || make_rust
fi

# === build ===

# Old buildah builds every stage, needed or not: leave out those of the other way and the other target.
rm -rf target/image
mkdir -p target/image
if [ -n "${IMAGE_BINARY:-}" ]; then
    install -m 755 "$IMAGE_BINARY" target/image/frostline
    strip target/image/frostline
    library=${IMAGE_LIBRARY:-target/onnxruntime/libonnxruntime.so}
    install -m 755 "$library" target/image/libonnxruntime.so
    cp "$(dirname "$library")"/onnxruntime-LICENSE "$(dirname "$library")"/onnxruntime-ThirdPartyNotices.txt target/image/
    python3 deploy/release/licences.py target/image/THIRD_PARTY.txt
    arguments+=(--build-arg BINARY=prebuilt)
    without='build'
    [ "$target" = gpu ] || { without="$without onnxruntime"; arguments+=(--build-arg LIBRARY=prebuilt); }
else
    without='prebuilt'
    # Old buildah takes a default for an image's name, and a given value for a stage's.
    arguments+=(--build-arg BINARY=build --build-arg LIBRARY=onnxruntime)
fi
case $target in
cpu) without="$without plugin rootfs-openvino openvino onnxruntime-gpu rootfs-gpu gpu" ;;
openvino) without="$without rootfs-cpu cpu onnxruntime-gpu rootfs-gpu gpu" ;;
gpu) without="$without onnxruntime library plugin rootfs-cpu cpu rootfs-openvino openvino" ;;
*) fail "no target $target: cpu, openvino or gpu" ;;
esac
awk -v without=" $without " '/^FROM / { skip = index(without, " " $NF " ") } !skip' Dockerfile >"$store/Dockerfile.$target"

say "build $image"
start=$SECONDS
buildah build --quiet --layers --format docker --target "$target" --file "$store/Dockerfile.$target" --tag "$image" \
    ${volumes[@]+"${volumes[@]}"} ${arguments[@]+"${arguments[@]}"} \
    --build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)" \
    --build-arg "CREATED=$(date -u +%Y-%m-%dT%H:%M:%SZ)" \
    --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    . >"$store/build.log" 2>&1 || { tail -40 "$store/build.log" >&2; fail "the build failed: see $store/build.log"; }
say "built in $((SECONDS - start)) s"

# === run ===

container=$(buildah from --pull-never "$image")
mounted=$(buildah mount "$container")
buildah inspect --type image "$image" >"$store/inspect.json"
cleanup() {
    runc --root "$store/runc" delete --force frostline-image-test >/dev/null 2>&1 || true
    buildah umount "$container" >/dev/null 2>&1 || true
    buildah rm "$container" >/dev/null 2>&1 || true
}
trap cleanup EXIT
IMAGE_ROOTFS=$mounted IMAGE_INSPECT=$store/inspect.json IMAGE_TARGET=$target IMAGE_RUNC=$store/runc \
    python3 deploy/image/run_test.py
