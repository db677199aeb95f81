//! Which frames of a clip a head reads.

/// Indices of the `wanted` frames that are read of a clip of `count`, in order; `models/GEOMETRY.md` is the rule.
///
/// - With a `stride`, and a clip of at least `(wanted - 1) * stride + 1` frames: frames `stride` apart in the middle
///   of the clip, an odd frame more before them than after.
/// - Else the middles of `wanted` equal parts of the whole clip. A clip of as many frames as wanted is read as it
///   is; of a shorter one some are read again.
///
/// Empty for a clip of no frames.
#[must_use]
pub fn sample_frames(count: usize, wanted: usize, stride: Option<usize>) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let span = |stride: usize| wanted.saturating_sub(1).saturating_mul(stride) + 1;
    match stride {
        Some(stride) if span(stride) <= count => {
            let start = (count - span(stride)).div_ceil(2);
            (0..wanted).map(|index| start + index * stride).collect()
        }
        _ => (0..wanted)
            .map(|index| (2 * index + 1) * count / (2 * wanted))
            .collect(),
    }
}
