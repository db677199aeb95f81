//! Images in and out: bounded decoding, resizing to a network's input, drawing and encoding.
//!
//! Everything here is synchronous and pure. A caller's bytes are hostile until proven otherwise: limits are
//! checked against the header before a pixel is allocated, and a damaged file is an error, never a grey picture.
//! Third-party decoders may still panic on inputs nobody has met yet, so callers that must survive run
//! [`decode`] behind `catch_unwind`.
//!
//! - `format`, `sniff`: what a file is
//! - `decode`: encoded bytes to an upright RGB [`Image`], with a module for each format and `orientation`
//! - `fit`, `geometry`, `preprocess`: an image to a network's input, and coordinates there and back
//! - `watch`: whether a picture is still wanted, asked while it is decoded
//! - `frames`: which frames of a clip are read
//! - `draw`, `encode`: results for people

mod bmp;
mod cost;
mod decode;
pub mod draw;
mod encode;
mod error;
mod fit;
mod format;
mod frames;
mod geometry;
mod gif;
mod image;
mod jpeg;
mod markers;
mod opened;
mod orientation;
mod png;
mod preprocess;
mod resample;
mod sniff;
mod vp8l;
mod watch;
mod webp;

pub use self::cost::Work;
pub use self::decode::{Header, decode, decode_while, probe};
pub use self::encode::{
    encode_bits_png, encode_gray8_png, encode_gray16_png, encode_jpeg, encode_png,
};
pub use self::error::{MediaError, MediaErrorKind};
pub use self::fit::{Filter, Preprocess, ResizeMode};
pub use self::format::Format;
pub use self::frames::sample_frames;
pub use self::geometry::{Geometry, Region, geometry};
pub use self::image::{Image, Limits, RgbView};
pub use self::preprocess::{preprocess_into, preprocess_while};
