//! The CUDA driver: one device's context, one stream, and copies on it.
//!
//! The driver library (`libcuda`) is loaded when a CUDA device is asked for; a machine without one runs everything else.
//! ONNX Runtime uses the same primary context, so pointers and the stream are good for both.

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_int, c_void},
    ptr,
};

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};
use ort::{AsPointer, memory::Allocator};

/// CUDA that the GPU build of ONNX Runtime needs, as `cuDriverGetVersion` counts: 1000 x major + 10 x minor.
const NEEDED: c_int = 13_000;

/// A device with its primary context current on demand, and the one stream that everything runs on.
pub(super) struct Cuda {
    pub(super) ordinal: u32,
    /// As the driver calls it, such as `NVIDIA H200`.
    pub(super) name: String,
    /// The CUDA version that the driver supports.
    pub(super) driver: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: the driver's handles may be used from any thread as long as the context is made current there, which every
// method does first.
unsafe impl Send for Cuda {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Cuda {}

/// A moment on the stream.
pub(super) struct Event(sys::CUevent);

// SAFETY: an event's handle is good on every thread.
unsafe impl Send for Event {}
// SAFETY: recording and reading an event from two threads at once is allowed by the driver.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `Cuda::event`, destroyed once. A context that is gone has taken it along.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

impl Cuda {
    /// Opens device `ordinal`; an error is a sentence that says what is missing.
    pub(super) fn open(ordinal: u32) -> Result<Self, String> {
        // SAFETY: looks for the driver library by name, nothing more.
        if !unsafe { sys::is_culib_present() } {
            return Err(
                "there is no NVIDIA driver on this machine (libcuda.so.1 is not found)".to_owned(),
            );
        }
        result::init().map_err(not_started)?;
        let mut version: c_int = 0;
        // SAFETY: writes one integer; needs no context.
        unsafe { sys::cuDriverGetVersion(&raw mut version).result() }.map_err(|error| {
            format!(
                "the NVIDIA driver does not tell its version ({})",
                text(error)
            )
        })?;
        let driver = supported(version)?;
        let count = result::device::get_count().map_err(text)?;
        let index = index(ordinal, count)?;
        let device = result::device::get(index).map_err(text)?;
        let name = result::device::get_name(device).map_err(text)?;
        // SAFETY: the device exists; the retained context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(|error| {
            format!(
                "CUDA device {ordinal} ({name}) cannot be used ({})",
                text(error)
            )
        })?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(text)?;
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(text)?;
        let cuda = Self {
            ordinal,
            name,
            driver,
            device,
            context,
            stream,
        };
        cuda.keep_pool().map_err(text)?;
        Ok(cuda)
    }

    /// Freed memory stays with the stream's pool instead of going back to the driver at each synchronization.
    fn keep_pool(&self) -> Result<(), DriverError> {
        let mut threshold = u64::MAX;
        // SAFETY: the attribute's type is a 64-bit integer, and the pool is the device's own.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.device)?;
            let value = (&raw mut threshold).cast::<c_void>();
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            sys::cuMemPoolSetAttribute(pool, attribute, value).result()
        }
    }

    fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: the context is retained for as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }
    }

    /// The stream, as ONNX Runtime takes it.
    pub(super) fn stream(&self) -> *mut () {
        self.stream.cast()
    }

    /// Free and total bytes of the device.
    pub(super) fn memory(&self) -> Result<(usize, usize), String> {
        self.bind()
            .and_then(|()| result::mem_get_info())
            .map_err(text)
    }

    /// Bytes of device memory, in the stream's order.
    pub(super) fn allocate(&self, bytes: usize) -> Result<*mut u8, String> {
        self.bind().map_err(text)?;
        // SAFETY: an allocation of at least one byte on a live stream; freed by `free`.
        let pointer = unsafe { result::malloc_async(self.stream, bytes.max(1)) }.map_err(text)?;
        Ok(pointer as *mut u8)
    }

    /// Gives back what [`Cuda::allocate`] gave, once the stream is past its last use.
    pub(super) fn free(&self, pointer: *mut u8) {
        // SAFETY: the pointer is from `allocate`, freed once; work enqueued before this call still sees it.
        let freed = self
            .bind()
            .and_then(|()| unsafe { result::free_async(pointer as sys::CUdeviceptr, self.stream) });
        if let Err(error) = freed {
            tracing::warn!(error = text(error), "device memory was not freed");
        }
    }

    /// Pinned host memory, which the device copies from and to by itself.
    pub(super) fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8, String> {
        self.bind().map_err(text)?;
        // SAFETY: freed by `free_pinned`.
        let pointer = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(text)?;
        Ok(pointer.cast())
    }

    /// Gives back what [`Cuda::allocate_pinned`] gave. The stream must be past its last use.
    pub(super) fn free_pinned(&self, pointer: *mut u8) {
        // SAFETY: the pointer is from `allocate_pinned`, freed once.
        let freed = self
            .bind()
            .and_then(|()| unsafe { result::free_host(pointer.cast()) });
        if let Err(error) = freed {
            tracing::warn!(error = text(error), "pinned memory was not freed");
        }
    }

    /// Enqueues a copy between host and device, or within the device; the driver tells by the pointers which.
    ///
    /// # Safety
    /// Both ranges are valid for `bytes`, and stay so until the stream is past the copy.
    pub(super) unsafe fn copy(
        &self,
        to: *mut u8,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), String> {
        self.bind().map_err(text)?;
        let (to, from) = (to as sys::CUdeviceptr, from as sys::CUdeviceptr);
        // SAFETY: as this function asks; unified addressing makes the direction known.
        unsafe { sys::cuMemcpyAsync(to, from, bytes, self.stream) }
            .result()
            .map_err(text)
    }

    /// Waits until the stream is done with everything enqueued.
    pub(super) fn synchronize(&self) -> Result<(), String> {
        self.bind().map_err(text)?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(text)
    }

    /// A moment on the stream, to be recorded.
    pub(super) fn event(&self) -> Result<Event, String> {
        self.bind().map_err(text)?;
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        result::event::create(flags).map(Event).map_err(text)
    }

    /// Marks `event` here on the stream.
    pub(super) fn record(&self, event: &Event) -> Result<(), String> {
        self.bind().map_err(text)?;
        // SAFETY: both handles are live.
        unsafe { result::event::record(event.0, self.stream) }.map_err(text)
    }

    /// Milliseconds between two recorded moments that the stream is past.
    pub(super) fn elapsed(&self, from: &Event, to: &Event) -> Option<f32> {
        self.bind().ok()?;
        // SAFETY: both events are live and were recorded on one stream.
        unsafe { result::event::elapsed(from.0, to.0) }.ok()
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: the stream is this one's own, and the context was retained once.
        let _ = self.bind().and_then(|()| unsafe {
            result::stream::synchronize(self.stream)?;
            result::stream::destroy(self.stream)?;
            result::primary_ctx::release(self.device)
        });
    }
}

/// Why the driver does not start, in a sentence.
fn not_started(error: DriverError) -> String {
    match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => "the NVIDIA driver finds no GPU".to_owned(),
        _ => format!("the NVIDIA driver does not start ({})", text(error)),
    }
}

/// The CUDA version that a driver supports, as it is written, if it is enough.
fn supported(version: c_int) -> Result<String, String> {
    let written = |version: c_int| format!("{}.{}", version / 1000, version % 1000 / 10);
    if version >= NEEDED {
        return Ok(written(version));
    }
    Err(format!(
        "the NVIDIA driver is too old: it supports CUDA {}, but this ONNX Runtime needs CUDA {}",
        written(version),
        written(NEEDED)
    ))
}

/// The driver's index of device `ordinal` of a machine with `count`.
fn index(ordinal: u32, count: c_int) -> Result<c_int, String> {
    let index = c_int::try_from(ordinal).ok().filter(|index| *index < count);
    index.ok_or_else(|| format!("there is no CUDA device {ordinal}: the machine has {count}"))
}

/// Options of the CUDA provider as ONNX Runtime has understood them, its defaults included.
pub(super) fn read_back(given: &[(&str, String)]) -> ort::Result<String> {
    let text = |text: &str| CString::new(text).map_err(ort::Error::wrap);
    let keys: Vec<CString> = given
        .iter()
        .map(|(key, _)| text(key))
        .collect::<Result<_, _>>()?;
    let values: Vec<CString> = given
        .iter()
        .map(|(_, value)| text(value))
        .collect::<Result<_, _>>()?;
    let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
    let (keys, values) = (pointers(&keys), pointers(&values));
    let api = ort::api();
    let allocator = Allocator::default();
    let (mut options, mut out) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the options are created here and released once; the text is the allocator's, copied and freed.
    unsafe {
        ort::Error::result_from_status((api.CreateCUDAProviderOptions)(&raw mut options))?;
        let update = api.UpdateCUDAProviderOptions;
        let updated = update(options, keys.as_ptr(), values.as_ptr(), keys.len());
        let read = ort::Error::result_from_status(updated).and_then(|()| {
            let read = api.GetCUDAProviderOptionsAsString;
            ort::Error::result_from_status(read(options, allocator.ptr().cast_mut(), &raw mut out))
        });
        (api.ReleaseCUDAProviderOptions)(options);
        read?;
        if out.is_null() {
            return Ok(String::new());
        }
        let text = CStr::from_ptr(out).to_string_lossy().into_owned();
        allocator.free(out);
        Ok(text)
    }
}

/// The driver's words for an error.
fn text(error: DriverError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_one_sentence() {
        let error = |code| not_started(DriverError(code));
        assert_eq!(
            error(sys::CUresult::CUDA_ERROR_NO_DEVICE),
            "the NVIDIA driver finds no GPU"
        );
        assert_eq!(
            supported(12_080).unwrap_err(),
            "the NVIDIA driver is too old: it supports CUDA 12.8, but this ONNX Runtime needs CUDA 13.0"
        );
        assert_eq!(supported(13_020).as_deref(), Ok("13.2"));
        assert_eq!(
            index(2, 2).unwrap_err(),
            "there is no CUDA device 2: the machine has 2"
        );
        assert_eq!(index(1, 2), Ok(1));
    }
}
