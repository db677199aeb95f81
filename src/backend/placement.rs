//! Which provider ONNX Runtime gave each node to.

#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char},
    ptr,
};

use ort::{AsPointer, session::Session, sys};

/// Asks ONNX Runtime to remember where it put each node.
pub(super) const RECORD: &str = "session.record_ep_graph_assignment_info";

/// Where a graph's nodes run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// Nodes of each provider.
    pub nodes: BTreeMap<String, usize>,
    /// Operator and name of each node that is not on the device's provider.
    pub fallen_back: Vec<(String, String)>,
}

impl Placement {
    /// Reads the placement of `session`, which was opened with [`RECORD`] set; `wanted` is the device's provider.
    pub(super) fn read(session: &Session, wanted: &str) -> ort::Result<Self> {
        let api = ort::api();
        let (mut parts, mut count) = (ptr::null(), 0);
        // SAFETY: the session is live; ONNX Runtime owns the array, which lives as long as the session.
        unsafe {
            let status = (api.Session_GetEpGraphAssignmentInfo)(
                session.ptr(),
                &raw mut parts,
                &raw mut count,
            );
            ort::Error::result_from_status(status)?;
        }
        let mut placement = Self::default();
        // SAFETY: as above, `count` entries.
        for &part in unsafe { slice(parts, count) } {
            // SAFETY: each entry is live, and so is every string that it gives, as long as the session is.
            let provider = unsafe { text(|out| (api.EpAssignedSubgraph_GetEpName)(part, out)) }?;
            let (mut nodes, mut count) = (ptr::null(), 0);
            // SAFETY: as above.
            unsafe {
                let status =
                    (api.EpAssignedSubgraph_GetNodes)(part, &raw mut nodes, &raw mut count);
                ort::Error::result_from_status(status)?;
            }
            *placement.nodes.entry(provider.clone()).or_default() += count;
            if provider == wanted {
                continue;
            }
            // SAFETY: as above, `count` entries.
            for &node in unsafe { slice(nodes, count) } {
                // SAFETY: as above.
                let (operator, name) = unsafe {
                    (
                        text(|out| (api.EpAssignedNode_GetOperatorType)(node, out))?,
                        text(|out| (api.EpAssignedNode_GetName)(node, out))?,
                    )
                };
                placement.fallen_back.push((operator, name));
            }
        }
        Ok(placement)
    }

    /// Nodes of each provider, in a line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let each = self
            .nodes
            .iter()
            .map(|(name, count)| format!("{count} on {name}"));
        each.collect::<Vec<_>>().join(", ")
    }

    /// The nodes that fell back, by operator, in a line for people; empty if none did.
    #[must_use]
    pub fn fallen_back(&self) -> String {
        let mut by_operator: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (operator, name) in &self.fallen_back {
            by_operator.entry(operator).or_default().push(name);
        }
        let each = by_operator.iter().map(|(operator, names)| {
            let named: Vec<_> = names
                .iter()
                .take(3)
                .map(|name| format!("{name:?}"))
                .collect();
            let more = if names.len() > named.len() {
                ", …"
            } else {
                ""
            };
            format!("{} {operator} ({}{more})", names.len(), named.join(", "))
        });
        each.collect::<Vec<_>>().join("; ")
    }
}

/// # Safety
/// `start` points to `count` entries, or `count` is 0.
unsafe fn slice<'a, T>(start: *const T, count: usize) -> &'a [T] {
    if count == 0 {
        return &[];
    }
    // SAFETY: as this function asks.
    unsafe { std::slice::from_raw_parts(start, count) }
}

/// # Safety
/// `read` gives a null-terminated string that is live for the call, or none.
unsafe fn text(read: impl FnOnce(*mut *const c_char) -> sys::OrtStatusPtr) -> ort::Result<String> {
    let mut out = ptr::null();
    // SAFETY: as this function asks.
    unsafe {
        ort::Error::result_from_status(read(&raw mut out))?;
        // A node need not have a name.
        if out.is_null() {
            return Ok(String::new());
        }
        Ok(CStr::from_ptr(out).to_string_lossy().into_owned())
    }
}
