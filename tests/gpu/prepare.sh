#!/bin/sh
# Packs what a GPU host without a network needs into a folder: the measuring program, the GPU build of ONNX Runtime with
# code for one architecture, and the export tools. The host brings PyTorch with CUDA, cuDNN, onnx and onnxscript.
#
# usage: prepare.sh FOLDER [PYTHON] [SM]
set -eu

folder=${1:?usage: prepare.sh FOLDER [PYTHON] [SM]}
python=${2:-python3}
sm=${3:-90}
here=$(dirname "$0")
version=$(grep -oP '^onnxruntime-gpu==\K.*' "$here/../../deploy/image/gpu-requirements.txt")

# Without the demo models, which the kit does not use and which do not pack; in a folder of its own, for cargo builds the
# server beside it, and a target/release/frostline without models is not what anybody wants there.
build="$here/../../target/without-models"
cargo bench --locked --quiet --no-run --no-default-features --bench gpu --target-dir "$build"
program=$(cargo bench --locked --no-run --no-default-features --bench gpu --target-dir "$build" --message-format=json 2>/dev/null |
    grep '"name":"gpu"' | grep -oP '"executable":"\K[^"]+' | tail -1)
mkdir -p "$folder"
rm -rf "$folder/gpu" "$folder/lib"
cp "$program" "$folder/gpu"
strip "$folder/gpu" 2>/dev/null || true
xz -9 -f "$folder/gpu"
cp "$here"/kit.py "$here"/report.py "$here"/run.sh "$folder/"
rm -rf "$folder/frostline_models" && cp -r "$here/../../models/frostline_models" "$folder/"
find "$folder" -name __pycache__ -prune -exec rm -rf {} +

if [ ! -s "$folder/onnxruntime.tar.xz" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.12 --implementation cp --abi cp312 --platform manylinux_2_28_x86_64 \
        --dest "$work" "onnxruntime-gpu==$version"
    (cd "$work" && "$python" -m zipfile -e ./*.whl .)
    mkdir "$work/lib"
    mv "$work/onnxruntime/capi/libonnxruntime.so.$version" "$work/lib/libonnxruntime.so"
    mv "$work/onnxruntime/capi/libonnxruntime_providers_shared.so" "$work/lib/"
    "$python" "$here/slim.py" "$work/onnxruntime/capi/libonnxruntime_providers_cuda.so" \
        "$work/lib/libonnxruntime_providers_cuda.so" "$sm"
    tar -C "$work" -cf - lib | xz -9 -T0 >"$folder/onnxruntime.tar.xz"
fi
bytes=$(du -sb --exclude=out "$folder" | cut -f1)
echo "$folder: $((bytes / 1024)) KiB"
