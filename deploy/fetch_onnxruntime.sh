#!/bin/sh
# Puts the pinned ONNX Runtime library and its notices into a folder: takes them from its Python wheel, checks the library's
# SHA-256, and does nothing when they are there already.
#
# usage: fetch_onnxruntime.sh FOLDER [PYTHON]
set -eu

version=1.31.1
folder=${1:?usage: fetch_onnxruntime.sh FOLDER [PYTHON]}
python=${2:-python3}

case $(uname -m) in
x86_64)
    platform=manylinux_2_28_x86_64
    sha256=fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3
    ;;
aarch64)
    platform=manylinux_2_28_aarch64
    sha256=8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467
    ;;
*)
    echo "fetch_onnxruntime: no ONNX Runtime $version library for $(uname -m)" >&2
    exit 1
    ;;
esac

library=$folder/libonnxruntime.so
matches() { [ -f "$1" ] && echo "$sha256  $1" | sha256sum --check --status; }

notices='LICENSE ThirdPartyNotices.txt'
noticed() { for notice in $notices; do [ -s "$folder/onnxruntime-$notice" ] || return 1; done; }

if matches "$library" && noticed; then
    exit 0
fi
mkdir -p "$folder"
work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "fetching ONNX Runtime $version"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.11 --implementation cp --abi cp311 --platform "$platform" \
    --dest "$work" "onnxruntime==$version"
(cd "$work" && "$python" -m zipfile -e ./*.whl .)
fetched=$work/onnxruntime/capi/libonnxruntime.so.$version
if ! matches "$fetched"; then
    echo "fetch_onnxruntime: the library in the wheel does not have the pinned SHA-256 $sha256" >&2
    exit 1
fi
chmod 755 "$fetched"
for notice in $notices; do
    mv "$work/onnxruntime/$notice" "$folder/onnxruntime-$notice"
done
mv "$fetched" "$library"
