//! Packed messages (`grpc-encoding`): how a request came, how its answer is wanted, and the work itself, in steps.
//!
//! A message is unpacked in pieces that are made as they fill and go on at once: a length that it claims is held against
//! the limit first and against what comes out then. Steps of any size that others would notice are done off the threads that
//! serve calls, a few at once.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::Arc,
};

use bytes::{Buf, Bytes};
use flate2::{Compression, Decompress, FlushDecompress, Status as Flate, write::GzEncoder};
use http::{HeaderMap, HeaderValue};
use tokio::sync::Semaphore;
use tonic::{Status, metadata::MetadataValue};
use zstd::stream::{
    raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer},
    write::Encoder as ZstdEncoder,
};

use super::status::status;
use crate::error::{Error, Kind, Result};

/// The header that says how messages are packed.
pub(super) const ENCODING: &str = "grpc-encoding";
const ACCEPT: &str = "grpc-accept-encoding";

/// Bytes of a piece of an unpacked message.
const PIECE: usize = 64 << 10;

/// Bytes of a message that are unpacked at once where they come in; a longer one's rest is unpacked elsewhere.
const SHORT: usize = 256 << 10;

/// Bytes that one step elsewhere unpacks at most: others wait for no longer.
const STEP: usize = 4 << 20;

/// Messages under this many bytes are not worth packing.
const WORTHWHILE: usize = 1 << 10;

/// Messages up to this many bytes are packed where they are made.
const SMALL: usize = 16 << 10;

/// Largest window of zstd, as a power of two: what RFC 8878 asks every decoder to take.
const ZSTD_WINDOW: u32 = 23;
/// Bytes of the longest head of one of its frames.
const ZSTD_HEAD: usize = 18;
/// Window bits of gzip: the most that it has.
const GZIP_WINDOW: u8 = 15;

/// Answers are made once and sent once: the fastest levels, but for gzip's first, whose fixed codes make numbers longer.
const GZIP_LEVEL: u32 = 2;
const ZSTD_LEVEL: i32 = 1;

/// How messages are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    fn by_name(name: &[u8]) -> Option<Self> {
        match name {
            b"gzip" => Some(Self::Gzip),
            b"zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Its name in headers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// How the messages of a request are packed; none if they are not.
    ///
    /// # Errors
    /// `UNIMPLEMENTED`, with what is taken, for another way, or for any if `on` is false.
    pub(super) fn of_request(headers: &HeaderMap, on: bool) -> Result<Option<Self>, Status> {
        let name = match headers.get(ENCODING) {
            None => return Ok(None),
            Some(name) if name.as_bytes() == b"identity" => return Ok(None),
            Some(name) => name.as_bytes(),
        };
        match Self::by_name(name) {
            Some(packing) if on => Ok(Some(packing)),
            _ => {
                let shown: String = String::from_utf8_lossy(name).chars().take(64).collect();
                let taken = if on { "gzip,zstd,identity" } else { "identity" };
                let message = format!("messages packed with {shown:?} are not taken, only {taken}");
                let mut refusal = Status::unimplemented(message);
                let taken = MetadataValue::from_static(taken);
                refusal.metadata_mut().insert(ACCEPT, taken);
                Err(refusal)
            }
        }
    }

    /// How the answer to a request with these headers, itself packed as `request` says, is to be packed. Of what its
    /// caller accepts, the way of the request comes first; then the order of the header counts, in which most clients
    /// name `identity`, or nothing, before what they could unpack as well.
    pub(super) fn of_answer(headers: &HeaderMap, request: Option<Self>) -> Option<Self> {
        let accepted = headers.get(ACCEPT)?.as_bytes();
        let mut names = accepted.split(|&b| b == b',').map(<[u8]>::trim_ascii);
        if let Some(packing) = request
            && names.clone().any(|n| n == packing.name().as_bytes())
        {
            return Some(packing);
        }
        let known = names.find(|name| *name == b"identity" || Self::by_name(name).is_some())?;
        Self::by_name(known)
    }

    /// The header that says so.
    pub(super) fn header(self) -> HeaderValue {
        HeaderValue::from_static(self.name())
    }
}

/// Where long work is done: a thread for each of a few at once, in the order in which they came.
#[derive(Debug, Clone)]
pub(super) struct Aside(Arc<Semaphore>);

impl Default for Aside {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new((cores / 2).max(1))))
    }
}

impl Aside {
    /// Does `work` there.
    pub(super) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let lost =
            |error: &dyn std::fmt::Display| status(&Error::new(Kind::Internal, error.to_string()));
        let _one = self.0.acquire().await.map_err(|error| lost(&error))?;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| lost(&error))
    }
}

// === requests ===

/// The length of a packed message when it is unpacked, as it says itself; none if it does not.
pub(super) fn declared(packing: Packing, packed: &VecDeque<Bytes>) -> Option<usize> {
    match packing {
        // The last four bytes, which a message below 4 GiB is told whole by.
        Packing::Gzip => {
            let mut head = packed.iter().flatten();
            if (head.next(), head.next()) != (Some(&0x1f), Some(&0x8b)) {
                return None;
            }
            let mut last = [0; 4];
            let tail = packed.iter().rev().flat_map(|piece| piece.iter().rev());
            let count = tail
                .zip(last.iter_mut().rev())
                .map(|(from, to)| *to = *from)
                .count();
            (count == last.len()).then(|| u32::from_le_bytes(last) as usize)
        }
        Packing::Zstd => {
            let head: Vec<u8> = packed.iter().flatten().take(ZSTD_HEAD).copied().collect();
            let length = zstd::zstd_safe::get_frame_content_size(&head).ok()??;
            usize::try_from(length).ok()
        }
    }
}

/// A message that is being unpacked, or measured.
pub(super) struct Unpacker {
    method: Method,
    packing: Packing,
    most_bytes: usize,
    /// Whether only its length is asked for.
    measuring: bool,
    pieces: VecDeque<Bytes>,
    /// The piece that is being filled.
    piece: Vec<u8>,
    /// Bytes in pieces before that one.
    whole_bytes: usize,
    ended: bool,
}

enum Method {
    Gzip(Decompress),
    Zstd(ZstdDecoder<'static>),
}

impl Unpacker {
    /// For a message of `most_bytes` at most, of which only the length is told if `measuring`.
    ///
    /// # Errors
    /// No memory for what the method keeps.
    pub(super) fn new(packing: Packing, most_bytes: usize, measuring: bool) -> Result<Self> {
        let method = match packing {
            Packing::Gzip => Method::Gzip(Decompress::new_gzip(GZIP_WINDOW)),
            Packing::Zstd => {
                let decoder = ZstdDecoder::new().and_then(|mut decoder| {
                    let window = zstd::zstd_safe::DParameter::WindowLogMax(ZSTD_WINDOW);
                    decoder.set_parameter(window)?;
                    Ok(decoder)
                });
                let full = |error: io::Error| Error::new(Kind::Overloaded, error.to_string());
                Method::Zstd(decoder.map_err(full)?)
            }
        };
        Ok(Self {
            method,
            packing,
            most_bytes,
            measuring,
            pieces: VecDeque::new(),
            piece: Vec::new(),
            whole_bytes: 0,
            ended: false,
        })
    }

    /// Bytes unpacked so far.
    pub(super) fn bytes(&self) -> usize {
        self.whole_bytes + self.piece.len()
    }

    /// Bytes that it may have.
    pub(super) fn most_bytes(&self) -> usize {
        self.most_bytes
    }

    /// Whether the next step is short, and need not be done elsewhere.
    pub(super) fn is_short(&self) -> bool {
        self.bytes() < SHORT
    }

    /// Unpacks what `packed` begins with: all of it, or as much as fills a step.
    ///
    /// # Errors
    /// `LimitExceeded` for a message over the limit, `InvalidArgument` for one that is damaged, or not whole when all of it
    /// has been taken.
    pub(super) fn step(&mut self, packed: &mut VecDeque<Bytes>) -> Result<()> {
        let until = match self.is_short() {
            true => SHORT,
            false => self.bytes() + STEP,
        };
        while self.bytes() < until {
            match packed.front_mut() {
                Some(piece) if piece.is_empty() => drop(packed.pop_front()),
                Some(piece) => self.fill(piece)?,
                None => return self.end(),
            }
            self.check_limit()?;
        }
        Ok(())
    }

    /// Takes out what had no room before.
    fn end(&mut self) -> Result<()> {
        while !self.ended {
            let before = self.bytes();
            let filled = self.fill(&mut Bytes::new());
            if filled.is_err() || self.bytes() == before && !self.ended {
                return Err(self.damaged("it ends too early"));
            }
            self.check_limit()?;
        }
        let piece = std::mem::take(&mut self.piece);
        self.let_go(piece);
        Ok(())
    }

    /// Whether all of it has been unpacked.
    pub(super) fn has_ended(&self) -> bool {
        self.ended && self.piece.is_empty()
    }

    /// What has been unpacked since the last time.
    pub(super) fn take(&mut self) -> VecDeque<Bytes> {
        std::mem::take(&mut self.pieces)
    }

    /// Counts `piece`, and keeps it if it is wanted.
    fn let_go(&mut self, mut piece: Vec<u8>) {
        self.whole_bytes += piece.len();
        if self.measuring {
            piece.clear();
            self.piece = piece;
        } else if !piece.is_empty() {
            self.pieces.push_back(piece.into());
        }
    }

    fn check_limit(&self) -> Result<()> {
        let most = self.most_bytes;
        if self.bytes() <= most {
            return Ok(());
        }
        let message = format!("unpacks to more than the {most} bytes that it may have, or says");
        Err(Error::new(Kind::LimitExceeded, message).at("request"))
    }

    /// Fills the piece, as far as `packed` reaches.
    fn fill(&mut self, packed: &mut Bytes) -> Result<()> {
        if self.ended {
            return Err(self.damaged("there is more behind its end"));
        }
        if self.piece.capacity() == 0 {
            self.piece = Vec::with_capacity(PIECE);
        }
        let before = self.piece.len();
        let taken = match &mut self.method {
            Method::Gzip(gzip) => {
                let before = gzip.total_in();
                let flush = FlushDecompress::None;
                let state = gzip.decompress_vec(packed, &mut self.piece, flush);
                let taken = gzip.total_in() - before;
                state
                    .map(|state| (taken as usize, state == Flate::StreamEnd))
                    .map_err(|error| error.to_string())
            }
            Method::Zstd(zstd) => {
                let mut input = InBuffer::around(packed);
                let mut output = OutBuffer::around_pos(&mut self.piece, before);
                let left = zstd.run(&mut input, &mut output);
                left.map(|left| (input.pos(), left == 0))
                    .map_err(|error| error.to_string())
            }
        };
        let (taken, ended) = taken.map_err(|error| self.damaged(&error))?;
        packed.advance(taken);
        self.ended = ended;
        if taken == 0 && self.piece.len() == before && !ended {
            return Err(self.damaged("it does not go on"));
        }
        if self.piece.len() == self.piece.capacity() {
            let piece = std::mem::take(&mut self.piece);
            self.let_go(piece);
        }
        Ok(())
    }

    /// Why it cannot be unpacked.
    pub(super) fn damaged(&self, why: &str) -> Error {
        let name = self.packing.name();
        Error::invalid("request", format!("cannot be unpacked with {name}: {why}"))
    }
}

// === answers ===

/// Bytes in front of every message: a flag and the length.
pub(super) const PREFIX: usize = 5;

/// Whether `frame` is one whole message that is not packed yet, and worth it.
pub(super) fn is_worthwhile(frame: &[u8]) -> bool {
    let [0, a, b, c, d, message @ ..] = frame else {
        return false;
    };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    length == message.len() && length >= WORTHWHILE
}

/// Whether `frame` is packed in so short a time that it is not worth another thread.
pub(super) fn is_small(frame: &[u8]) -> bool {
    frame.len() <= SMALL
}

/// `frame`, which [`is_worthwhile`], packed; as it was if that makes it no smaller.
pub(super) fn pack(packing: Packing, frame: Bytes) -> Bytes {
    match packed(packing, &frame) {
        Ok(bytes) if bytes.len() < frame.len() => bytes.into(),
        _ => frame,
    }
}

fn packed(packing: Packing, frame: &[u8]) -> io::Result<Vec<u8>> {
    let out = vec![1, 0, 0, 0, 0];
    let message = &frame[PREFIX..];
    let mut out = match packing {
        Packing::Gzip => {
            let mut encoder = GzEncoder::new(out, Compression::new(GZIP_LEVEL));
            encoder.write_all(message)?;
            encoder.finish()?
        }
        Packing::Zstd => {
            let mut encoder = ZstdEncoder::new(out, ZSTD_LEVEL)?;
            encoder.set_pledged_src_size(Some(message.len() as u64))?;
            encoder.write_all(message)?;
            encoder.finish()?
        }
    };
    let length = u32::try_from(out.len() - PREFIX).map_err(io::Error::other)?;
    out[1..PREFIX].copy_from_slice(&length.to_be_bytes());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Packing; 2] = [Packing::Gzip, Packing::Zstd];

    fn frame(message: &[u8]) -> Bytes {
        let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
        [&[0], &length[..], message].concat().into()
    }

    fn cut(bytes: &[u8], size: usize) -> VecDeque<Bytes> {
        bytes.chunks(size).map(Bytes::copy_from_slice).collect()
    }

    /// Unpacks `bytes`, which come in pieces of `size`; a second time to measure them.
    fn unpack(packing: Packing, bytes: &[u8], size: usize, most: usize) -> Result<Vec<u8>> {
        let mut whole = Vec::new();
        for measuring in [false, true] {
            let mut packed = cut(bytes, size);
            let mut unpacker = Unpacker::new(packing, most, measuring)?;
            while !unpacker.has_ended() || !packed.is_empty() {
                unpacker.step(&mut packed)?;
                whole.extend(unpacker.take().into_iter().flatten());
            }
            assert_eq!(unpacker.bytes(), whole.len());
        }
        Ok(whole)
    }

    #[test]
    fn what_is_packed_is_unpacked_however_it_is_cut() -> Result<()> {
        let noise: Vec<u8> = (0..300_000_u32)
            .map(|i| (i.wrapping_mul(i) >> 7) as u8)
            .collect();
        let even = vec![7; 1_000_000];
        for packing in BOTH {
            for message in [&noise[..], &even[..], &noise[..PIECE], &even[..WORTHWHILE]] {
                let packed = pack(packing, frame(message));
                assert_eq!(packed[0], 1, "no smaller");
                assert_eq!(packed[1..PREFIX], (packed.len() as u32 - 5).to_be_bytes());
                for size in [1, 7, 1000, usize::MAX] {
                    let back = unpack(packing, &packed[PREFIX..], size, message.len())?;
                    assert!(back == message, "{packing:?} {size}");
                    let pieces = cut(&packed[PREFIX..], size);
                    assert_eq!(declared(packing, &pieces), Some(message.len()));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_over_the_limit_damaged_or_cut_is_refused() {
        let message = vec![7; 1_000_000];
        for packing in BOTH {
            let packed = pack(packing, frame(&message)).slice(PREFIX..);
            let kind = |bytes: &[u8], most| unpack(packing, bytes, 999, most).map_err(|e| e.kind());
            assert_eq!(kind(&packed, 999_999), Err(Kind::LimitExceeded));
            assert_eq!(kind(&packed, 100), Err(Kind::LimitExceeded));
            let bad = Err(Kind::InvalidArgument);
            for cut in 0..packed.len() {
                assert_eq!(kind(&packed[..cut], 1 << 20), bad, "{packing:?} {cut}");
            }
            let more = [&packed[..], &[0]].concat();
            assert_eq!(kind(&more, 1 << 20), bad);
            assert_eq!(kind(b"not packed at all", 1 << 20), bad);
        }
    }

    #[test]
    fn a_window_that_takes_more_memory_than_a_message_may_is_refused() {
        // The head of a frame with a window of 2 GiB: exponent 21 over 2^10.
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
        let refused = unpack(Packing::Zstd, &head, usize::MAX, 1 << 20);
        assert_eq!(refused.map_err(|e| e.kind()), Err(Kind::InvalidArgument));
    }

    #[test]
    fn an_answer_is_packed_as_its_caller_asks() {
        let asked = |accept: &'static str, request| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            Packing::of_answer(&headers, request)
        };
        let (gzip, zstd) = (Some(Packing::Gzip), Some(Packing::Zstd));
        assert_eq!(asked("gzip", None), gzip);
        assert_eq!(asked("zstd,gzip, identity", None), zstd);
        assert_eq!(asked("br, gzip", None), gzip);
        // gRPC's C core names what it could take, and likes it plain.
        assert_eq!(asked("identity, deflate, gzip", None), None);
        assert_eq!(asked("identity, deflate, gzip", gzip), gzip);
        assert_eq!(asked("identity, deflate, gzip", zstd), None);
        assert_eq!(asked("gzip, zstd", zstd), zstd);
        assert_eq!(asked("deflate", None), None);
        assert_eq!(Packing::of_answer(&HeaderMap::new(), gzip), None);
    }
}
