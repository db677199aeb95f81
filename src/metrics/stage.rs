//! Steps of a request's way.

/// A step of a request's way, as the label `stage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for a lane, decoding left out.
    Queue,
    /// Decoding and resizing the image.
    Decode,
    /// The backbone's batch.
    Backbone,
    /// The head's batch.
    Head,
    /// From the head's output to the result.
    Postprocess,
    /// From the request's arrival in the engine to its answer.
    Total,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [
        Self::Queue,
        Self::Decode,
        Self::Backbone,
        Self::Head,
        Self::Postprocess,
        Self::Total,
    ];

    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Decode => "decode",
            Self::Backbone => "backbone",
            Self::Head => "head",
            Self::Postprocess => "postprocess",
            Self::Total => "total",
        }
    }
}
