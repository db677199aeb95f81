#!/bin/sh
# Puts the GPU build of the ONNX Runtime library and the CUDA libraries that it loads into a folder, from their wheels, and
# their licences into another.
#
# usage: fetch_gpu.sh REQUIREMENTS FOLDER LICENCES
set -eu

requirements=${1:?usage: fetch_gpu.sh REQUIREMENTS FOLDER LICENCES}
folder=${2:?usage: fetch_gpu.sh REQUIREMENTS FOLDER LICENCES}
licences=${3:?usage: fetch_gpu.sh REQUIREMENTS FOLDER LICENCES}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --only-binary=:all: \
    --target "$work" --requirement "$requirements"
mkdir -p "$folder" "$licences"
for notice in LICENSE ThirdPartyNotices.txt; do
    cp "$work/onnxruntime/$notice" "$licences/onnxruntime-$notice"
done
# Each wheel of CUDA has its own: one file for each package.
for info in "$work"/*.dist-info; do
    name=$(basename "$info" .dist-info)
    find "$info" -type f -iname 'licen*' -exec cat {} + >"$licences/$name.txt"
    [ -s "$licences/$name.txt" ] || rm "$licences/$name.txt"
done
# TensorRT's provider stays out: it needs TensorRT, which is not here.
find "$work" -name '*.so*' ! -name 'libonnxruntime_providers_tensorrt.so' ! -name '*pybind11*' \
    \( -path '*/onnxruntime/capi/*' -o -path '*/nvidia/*/lib/*' \) -exec mv {} "$folder/" \;
cd "$folder"
[ -e libonnxruntime.so ] || mv libonnxruntime.so.* libonnxruntime.so
[ -e libonnxruntime_providers_cuda.so ] && [ -e libonnxruntime_providers_shared.so ] ||
    { echo "fetch_gpu: the wheel has no CUDA provider" >&2; exit 1; }
