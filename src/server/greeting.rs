//! The first bytes of a connection: HTTP/2's preface, or what shows that somebody else has called.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// What every HTTP/2 client begins with.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The preface and the head of the SETTINGS frame that has to follow.
const GREETING: usize = PREFACE.len() + 9;

/// Bytes of a request in another protocol that are read and thrown away, so that its sender sees the answer: a socket that
/// is closed over unread bytes is reset, and what was written is lost.
const UNREAD: u64 = 256 << 10;

/// What those who speak no gRPC are told.
pub(super) const HINT: &str = "this is a gRPC port: it takes application/grpc over HTTP/2 (try grpcurl, or a client made from the .proto files)\n";

/// The first bytes of an HTTP/2 connection, to be read once more.
#[derive(Debug)]
pub(super) struct Greeting {
    bytes: [u8; GREETING],
    read: usize,
}

/// What a connection begins with.
#[derive(Debug)]
pub(super) enum Begun {
    /// HTTP/2.
    Http2(Greeting),
    /// A request of an older HTTP.
    Http1,
    /// Something else.
    Other,
}

impl Greeting {
    /// Puts what is left of it into `buffer`; false if nothing is.
    pub(super) fn replay(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        if self.read == GREETING {
            return false;
        }
        let taken = (GREETING - self.read).min(buffer.remaining());
        buffer.put_slice(&self.bytes[self.read..][..taken]);
        self.read += taken;
        true
    }
}

/// Reads the first bytes of `stream`, no more than are needed to know what it is.
///
/// # Errors
/// The stream's, and its end before that.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Begun> {
    let (mut bytes, mut came) = ([0; GREETING], 0);
    while came < GREETING {
        let count = stream.read(&mut bytes[came..]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        came += count;
        let known = came.min(PREFACE.len());
        if bytes[..known] != PREFACE[..known] {
            // Methods are words in capitals.
            return Ok(match bytes[0].is_ascii_uppercase() {
                true => Begun::Http1,
                false => Begun::Other,
            });
        }
    }
    Ok(Begun::Http2(Greeting { bytes, read: 0 }))
}

/// Tells a caller of an older HTTP where it is.
pub(super) async fn tell_http1(stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 415 Unsupported Media Type\r\ncontent-type: text/plain; charset=utf-8\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{HINT}",
        HINT.len()
    );
    say(stream, answer.as_bytes()).await
}

/// Tells an HTTP/2 caller for whom there is no place: an empty SETTINGS frame, and GOAWAY before any call.
pub(super) async fn refuse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    why: &str,
) -> io::Result<()> {
    const ENHANCE_YOUR_CALM: u32 = 11;
    let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    // Its length in 24 bits, type and flags, stream 0; the last call that was taken, of which there is none; the reason.
    let length = u32::try_from(8 + why.len()).unwrap_or(8);
    frames.extend_from_slice(&length.to_be_bytes()[1..]);
    frames.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    frames.extend_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
    frames.extend_from_slice(why.as_bytes());
    say(stream, &frames).await
}

/// Writes `bytes`, then reads on until the caller has closed, or has sent more than it should.
async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(UNREAD), &mut tokio::io::sink()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn begun(mut bytes: &[u8]) -> io::Result<Begun> {
        read(&mut bytes).await
    }

    #[tokio::test]
    async fn http2_is_known_by_its_preface_and_read_again_whole() {
        let bytes = [&PREFACE[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0, 77]].concat();
        let Ok(Begun::Http2(mut greeting)) = begun(&bytes).await else {
            panic!("it is HTTP/2");
        };
        let mut seen = Vec::new();
        loop {
            let mut room = [0; 10];
            let mut buffer = ReadBuf::new(&mut room);
            if !greeting.replay(&mut buffer) {
                break;
            }
            seen.extend_from_slice(buffer.filled());
        }
        // What follows was not taken from the stream.
        assert_eq!(seen, &bytes[..GREETING]);
    }

    #[tokio::test]
    async fn older_http_and_noise_are_known_as_soon_as_they_differ() {
        for request in ["GET / HTTP/1.1\r\n", "POST", "PUT", "PRI * HTTP/1.1\r\n"] {
            let begun = begun(request.as_bytes()).await;
            assert!(matches!(begun, Ok(Begun::Http1)), "{request}");
        }
        assert!(matches!(begun(&[22, 3, 1]).await, Ok(Begun::Other)));
        assert!(begun(b"PRI").await.is_err());
    }
}
