#!/bin/sh
# Runs parts of the GPU kit from the folder that prepare.sh made. Each call takes less than 9 minutes; what is left then is
# done by the same call again. Results are added to out/results.jsonl, and the table of all of them is written to
# out/RESULTS.md at the end of each call.
#
# usage: run.sh [--cpu] [PART...]      PART: rate, variants, report, MODEL or MODEL:WHAT, such as l-384 or g-384:soak
# WHAT, for t-, b-, l- and g- at 384 and 512: export, torch, frostline, parity, oom, soak, variants
# --cpu: a dry run of everything on the CPU, at small size
set -eu

here=$(cd "$(dirname "$0")" && pwd)
if [ -f "$here/gpu.xz" ] && [ ! -x "$here/gpu" ]; then
    xz -dkc "$here/gpu.xz" >"$here/gpu.part" && chmod +x "$here/gpu.part" && mv "$here/gpu.part" "$here/gpu"
fi
if [ -f "$here/onnxruntime.tar.xz" ] && [ "${1:-}" != --cpu ]; then
    [ -d "$here/lib" ] || tar -C "$here" -xJf "$here/onnxruntime.tar.xz"
    export ORT_DYLIB_PATH="$here/lib/libonnxruntime.so"
    # CUDA's libraries and cuDNN, as PyTorch's wheels bring them.
    found=$(python3 -c 'import glob, os, nvidia; print(":".join(glob.glob(os.path.join(list(nvidia.__path__)[0], "*", "lib"))))')
    export LD_LIBRARY_PATH="$here/lib:$found:${LD_LIBRARY_PATH:-}"
fi
export ORT_DISABLE_TELEMETRY=1 ORT_TELEMETRY_DISABLED=1
exec "${PYTHON:-python3}" "$here/kit.py" "$@"
