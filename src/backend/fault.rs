//! What a failure of ONNX Runtime or of CUDA means for those that wait.

/// What a failed run says about the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The graph failed on these inputs; others may succeed.
    Graph,
    /// The device had no memory for it; a smaller batch may fit.
    OutOfMemory,
    /// The device or its context is gone: nothing can run any more in this process.
    DeviceLost,
}

/// Allocations that failed, as ONNX Runtime's arenas, CUDA, cuBLAS and cuDNN report them.
const OUT_OF_MEMORY: &[&str] = &[
    "failed to allocate memory",
    "out of memory",
    "cuda_error_out_of_memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "std::bad_alloc",
    "is smaller than requested bytes",
];

/// Errors that CUDA keeps returning until the process ends ("sticky"), and those of a device that went.
const DEVICE_LOST: &[&str] = &[
    "illegal memory access",
    "cuda_error_illegal_address",
    "cudaerrorillegaladdress",
    "misaligned address",
    "an illegal instruction was encountered",
    "unspecified launch failure",
    "cuda_error_launch_failed",
    "the launch timed out and was terminated",
    "device-side assert",
    "uncorrectable ecc error",
    "cuda_error_ecc_uncorrectable",
    "uncorrectable nvlink error",
    "hardware stack error",
    "invalid program counter",
    "context is destroyed",
    "cuda_error_context_is_destroyed",
    "gpu has fallen off the bus",
    "cuda_error_device_unavailable",
    "device(s) is/are busy or unavailable",
    "no cuda-capable device",
    "cuda_error_no_device",
    "driver shutting down",
    "cuda_error_deinitialized",
    "cudnn_status_execution_failed",
    "cublas_status_execution_failed",
];

/// Classifies an error by its text, which is all that crosses ONNX Runtime's border.
pub(super) fn classify(detail: &str) -> Fault {
    let detail = detail.to_lowercase();
    let any = |texts: &[&str]| texts.iter().any(|text| detail.contains(text));
    // A lost device may also speak of memory ("an illegal memory access"): it is looked for first.
    if any(DEVICE_LOST) {
        Fault::DeviceLost
    } else if any(OUT_OF_MEMORY) {
        Fault::OutOfMemory
    } else {
        Fault::Graph
    }
}

/// The shared library that a loader's message misses, if that is what it says.
pub(super) fn missing_library(detail: &str) -> Option<&str> {
    let (before, _) = detail.split_once(": cannot open shared object file")?;
    let name = before.rsplit([' ', '\n', '"']).next()?;
    (!name.is_empty()).then_some(name)
}

/// Why a provider does not start, in a sentence, by what ONNX Runtime says as it is registered or first used.
pub(super) fn refusal(detail: &str) -> String {
    if let Some(library) = missing_library(detail) {
        return format!("the library {library}, which its provider loads, is not found");
    }
    let lower = detail.to_lowercase();
    let says = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
    if says(&[
        "driver version is insufficient",
        "cudaerrorinsufficientdriver",
        "system_driver_mismatch",
    ]) {
        "the NVIDIA driver is too old for this ONNX Runtime".to_owned()
    } else if says(&[
        "no cuda-capable device",
        "cudaerrornodevice",
        "cuda_error_no_device",
    ]) {
        "the NVIDIA driver finds no GPU".to_owned()
    } else if says(&["invalid device ordinal", "cudaerrorinvaliddevice"]) {
        "the machine has no device of this number".to_owned()
    } else {
        let first = detail.lines().next().unwrap_or_default();
        format!("its provider does not start ({first})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_told_from_a_device_that_is_not() {
        let out_of_memory = [
            "Non-zero status code returned while running MatMul node. Name:'/layers.2/MatMul' Status Message: \
             /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::\
             AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer \
             of size 905969664",
            "bfc_arena.cc:175 Available memory of 1048576 is smaller than requested bytes of 4194304",
            "CUDA failure 2: out of memory ; GPU=0 ; hostname=gpu ; file=cuda_allocator.cc ; line=47 ; \
             expr=cudaMalloc((void**)&p, size);",
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&cublas_handle_);",
        ];
        let device_lost = [
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaStreamSynchronize(stream)",
            "CUDA failure 719: unspecified launch failure ; GPU=0 ; expr=cudaGetLastError()",
            "CUDA failure 214: uncorrectable ECC error encountered ; GPU=0",
            "CUDA failure 100: no CUDA-capable device is detected ; GPU=-1",
            "DriverError(CUDA_ERROR_LAUNCH_FAILED, \"unspecified launch failure\")",
        ];
        let graph = [
            "Non-zero status code returned while running Gather node. indices element out of data bounds, idx=8",
            "Got invalid dimensions for input: image for the following indices index: 1 Got: 64 Expected: 128",
        ];
        for text in out_of_memory {
            assert_eq!(classify(text), Fault::OutOfMemory, "{text}");
        }
        for text in device_lost {
            assert_eq!(classify(text), Fault::DeviceLost, "{text}");
        }
        for text in graph {
            assert_eq!(classify(text), Fault::Graph, "{text}");
        }
    }

    #[test]
    fn names_the_library_that_a_loader_misses() {
        let text = "Failed to load library libonnxruntime_providers_cuda.so with error: libcudnn.so.9: cannot open \
                    shared object file: No such file or directory";
        assert_eq!(missing_library(text), Some("libcudnn.so.9"));
        assert_eq!(missing_library("something else"), None);
    }
}
