//! gRPC's messages on bare HTTP/2.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// Bytes before a message: whether it is compressed, and its length.
pub(crate) const PREFIX: usize = 5;

/// A message behind its prefix.
pub(crate) fn framed(message: &impl Message, compressed: bool) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(compressed.into());
    bytes.put_u32(u32::try_from(length).unwrap());
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}
