#!/bin/sh
# Puts the pinned ONNX Runtime library and its notices into a folder, and beside it, where there is one for this processor,
# the pinned OpenVINO plugin: takes them from their Python wheels, checks each file's SHA-256, and does nothing when they are
# there already.
#
# usage: fetch_onnxruntime.sh FOLDER [PYTHON] [PARTS]
#
# PARTS: "onnxruntime", "openvino", or both (the default).
set -eu

folder=${1:?usage: fetch_onnxruntime.sh FOLDER [PYTHON] [PARTS]}
python=${2:-python3}
parts=${3:-onnxruntime openvino}

version=1.31.1
openvino=1.8.1
case $(uname -m) in
x86_64)
    platform=manylinux_2_28_x86_64
    sha256=fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3
    ;;
aarch64)
    platform=manylinux_2_28_aarch64
    sha256=8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467
    # There is no wheel of the plugin.
    openvino=
    ;;
*)
    echo "fetch_onnxruntime: no ONNX Runtime $version library for $(uname -m)" >&2
    exit 1
    ;;
esac

matches() { [ -f "$1" ] && echo "$2  $1" | sha256sum --check --status; }

# wheel FOLDER REQUIREMENT: unpacks the wheel into a folder.
wheel() {
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.11 --implementation cp --abi cp311 --platform "$platform" --dest "$1" "$2"
    (cd "$1" && "$python" -m zipfile -e ./*.whl .)
}

work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT
mkdir -p "$folder"

fetch_library() {
    library=$folder/libonnxruntime.so
    notices='LICENSE ThirdPartyNotices.txt'
    complete=yes
    for notice in $notices; do [ -s "$folder/onnxruntime-$notice" ] || complete=no; done
    [ $complete = no ] || ! matches "$library" "$sha256" || return 0
    work=$(mktemp -d "$folder/fetch.XXXXXX")
    echo "fetching ONNX Runtime $version"
    wheel "$work" "onnxruntime==$version"
    fetched=$work/onnxruntime/capi/libonnxruntime.so.$version
    if ! matches "$fetched" "$sha256"; then
        echo "fetch_onnxruntime: the library in the wheel does not have the pinned SHA-256 $sha256" >&2
        exit 1
    fi
    chmod 755 "$fetched"
    for notice in $notices; do
        mv "$work/onnxruntime/$notice" "$folder/onnxruntime-$notice"
    done
    mv "$fetched" "$library"
    rm -rf "$work"
}

# What the plugin loads on a CPU, without the plugins of other devices.
openvino_files() {
    cat <<'FILES'
99644306dea90173d2fac5e2ad8d10c9574ecf6e6e71ca30e426531abd5a717f libonnxruntime_providers_openvino_plugin.so
9b9a80ac1f18e07b13ed54459d9a865bcfe9dc170dbf8fe740c2974b85ecedc1 libopenvino.so.2641
6599e3dd300d047b5ed72f8e48101c5f312c25321f35f57f803641ff8372900b libopenvino_intel_cpu_plugin.so
82d499f5b5e8514def7aaa1ecd5a9f570542d33ae9d00a0077f707cccd0e0192 libopenvino_onnx_frontend.so.2641
ac9518497a4f2cb6729792730f145ee58367316031511923fef263c9ac81ca61 libtbb.so.12
FILES
}

# Each file is put in place once all have come: a folder with some of them is refused by the server.
fetch_openvino() {
    missing=no
    while read -r sum file; do
        matches "$folder/$file" "$sum" || missing=yes
    done <<FILES
$(openvino_files)
FILES
    [ -s "$folder/openvino-third-party-programs.txt" ] || missing=yes
    [ $missing = yes ] || return 0
    work=$(mktemp -d "$folder/fetch.XXXXXX")
    echo "fetching OpenVINO's plugin $openvino"
    wheel "$work" "onnxruntime-ep-openvino==$openvino"
    from=$work/onnxruntime_ep_openvino
    while read -r sum file; do
        if ! matches "$from/$file" "$sum"; then
            echo "fetch_onnxruntime: $file in the wheel does not have the pinned SHA-256 $sum" >&2
            exit 1
        fi
    done <<FILES
$(openvino_files)
FILES
    while read -r _ file; do
        chmod 755 "$from/$file"
        mv "$from/$file" "$folder/$file"
    done <<FILES
$(openvino_files)
FILES
    mv "$from/third-party-programs.txt" "$folder/openvino-third-party-programs.txt"
    rm -rf "$work"
}

for part in $parts; do
    case $part in
    onnxruntime) fetch_library ;;
    openvino) [ -z "$openvino" ] || fetch_openvino ;;
    *)
        echo "fetch_onnxruntime: no part $part: onnxruntime or openvino" >&2
        exit 2
        ;;
    esac
done
