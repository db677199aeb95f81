//! Memory of a device, and of the host beside it.

use std::sync::Arc;

use super::{
    BackendError, Device,
    device::{Address, Place},
};

/// Whose memory a [`Buffer`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    /// The device's.
    Device,
    /// The host's, pinned where the device copies.
    Host,
}

/// Bytes in the device's memory or in host memory that it copies from and to. Not initialized.
pub(super) struct Buffer {
    device: Arc<Device>,
    pointer: *mut u8,
    bytes: usize,
    space: Space,
}

// SAFETY: a buffer owns its bytes; what is read or written from the host goes through `&self` and `&mut self`.
#[allow(unsafe_code)]
unsafe impl Send for Buffer {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Buffer {}

/// Alignment of buffers outside CUDA, whose own are aligned to at least as much.
const ALIGN: usize = 64;

impl Buffer {
    /// `bytes` bytes.
    pub(super) fn new(
        device: &Arc<Device>,
        bytes: usize,
        space: Space,
    ) -> Result<Self, BackendError> {
        let pointer = match (device.place(), space) {
            (Place::Cuda(cuda), Space::Device) => cuda.allocate(bytes),
            (Place::Cuda(cuda), Space::Host) => {
                let free = device
                    .pinned()
                    .lock()
                    .get_mut(&size_class(bytes))
                    .and_then(Vec::pop);
                match free {
                    Some(Address(pointer)) => Ok(pointer),
                    None => cuda.allocate_pinned(size_class(bytes)),
                }
            }
            _ => host_block(bytes),
        }
        .map_err(|error| device.failed(error))?;
        Ok(Self {
            device: Arc::clone(device),
            pointer,
            bytes,
            space,
        })
    }

    pub(super) fn pointer(&self) -> *mut u8 {
        self.pointer
    }

    pub(super) fn space(&self) -> Space {
        self.space
    }

    /// Enqueues a copy of all of `from`'s bytes to `offset`.
    ///
    /// # Safety
    /// `from` is valid for `bytes` until the stream is past the copy.
    #[allow(unsafe_code)]
    pub(super) unsafe fn fill(
        &self,
        offset: usize,
        from: *const u8,
        bytes: usize,
        source: Space,
    ) -> Result<(), BackendError> {
        let end = offset.checked_add(bytes);
        if end.is_none_or(|end| end > self.bytes) {
            let has = self.bytes;
            let error = format!("{bytes} bytes at {offset} do not fit into a buffer of {has}");
            return Err(self.device.failed(error));
        }
        // SAFETY: the range lies within this buffer, as was just checked.
        let to = unsafe { self.pointer.add(offset) };
        match self.device.place() {
            Place::Cuda(cuda) => {
                // SAFETY: as this function asks, and `to` is this buffer's own.
                unsafe { cuda.copy(to, from, bytes) }.map_err(|error| self.device.failed(error))?
            }
            // SAFETY: host memory on both sides; the ranges belong to different allocations.
            _ => unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) },
        }
        self.device.ticket();
        match (source, self.space) {
            (Space::Host, Space::Device) => self.device.count_to_device(bytes),
            (Space::Device, Space::Host) => self.device.count_to_host(bytes),
            _ => {}
        }
        Ok(())
    }

    /// The bytes, to be written by the host. For host buffers that no copy is under way from.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(
            self.space == Space::Host,
            "device memory is not the host's to write"
        );
        // SAFETY: host memory of this length, owned; bytes need no initialization to be written, and fresh blocks
        // outside CUDA are zeroed, pinned ones handed out by the driver are mapped.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.pointer, self.bytes)
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer")
            .field("bytes", &self.bytes)
            .field("space", &self.space)
            .finish_non_exhaustive()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match (self.device.place(), self.space) {
            (Place::Cuda(cuda), Space::Device) => cuda.free(self.pointer),
            (Place::Cuda(_), Space::Host) => {
                let mut pinned = self.device.pinned().lock();
                let free = pinned.entry(size_class(self.bytes)).or_default();
                free.push(Address(self.pointer));
            }
            _ => host_free(self.pointer, self.bytes),
        }
    }
}

/// Pinned blocks are kept by power of two, so that they are found again.
fn size_class(bytes: usize) -> usize {
    bytes.max(4096).next_power_of_two()
}

#[allow(unsafe_code)]
fn host_block(bytes: usize) -> Result<*mut u8, String> {
    let failed = || format!("Failed to allocate memory for {bytes} bytes");
    let layout = std::alloc::Layout::from_size_align(bytes.max(1), ALIGN).map_err(|_| failed())?;
    // SAFETY: the layout's size is not 0.
    let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
    if pointer.is_null() {
        Err(failed())
    } else {
        Ok(pointer)
    }
}

#[allow(unsafe_code)]
fn host_free(pointer: *mut u8, bytes: usize) {
    if let Ok(layout) = std::alloc::Layout::from_size_align(bytes.max(1), ALIGN) {
        // SAFETY: allocated by `host_block` with this layout, freed once.
        unsafe { std::alloc::dealloc(pointer, layout) };
    }
}
