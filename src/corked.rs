//! Writes that wait for each other.
//!
//! HTTP/2 here hands a message over in parts, an answer's headers with its message and then the trailers, and flushes
//! after each. Each would be a system call and would wake the reader once. Small parts are therefore kept until the
//! connection's task has done its turn: whatever that turn wrote, for every call on the connection, then goes out at once.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are kept at most; to copy more costs as much as to write it.
const MOST: usize = 32 << 10;

/// Slices that one system call takes together with what is kept.
const SLICES: usize = 8;

/// A stream whose small writes leave together. What it keeps goes out when it is next read from, for which it wakes its
/// task, when more than [`MOST`] come together, and before it is shut down. Its task has to read from it in every turn, as
/// HTTP/2's does.
#[derive(Debug)]
pub struct Corked<S> {
    inner: S,
    kept: BytesMut,
    /// A flush was asked for: the task that asked is woken for another turn.
    due: bool,
}

impl<S> Corked<S> {
    /// Around `inner`, with nothing kept yet.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            kept: BytesMut::new(),
            due: false,
        }
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Writes what is kept.
    fn poll_let_go(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.kept.has_remaining() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &self.kept))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.kept.advance(written);
        }
        // Connections that rest hold no buffer.
        self.kept = BytesMut::new();
        self.due = false;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn keep(&mut self, slices: &[io::IoSlice<'_>]) -> Option<usize> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        if bytes > MOST - self.kept.len() {
            return None;
        }
        if self.kept.is_empty() {
            self.kept.reserve(MOST);
        }
        slices.iter().for_each(|s| self.kept.extend_from_slice(s));
        Some(bytes)
    }

    /// Writes what is kept and then `slices`, of which as much as was written is returned.
    fn poll_write_through(
        &mut self,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        while !self.kept.is_empty() {
            let mut all = [io::IoSlice::new(&[]); SLICES];
            let count = slices.len().min(SLICES - 1);
            all[0] = io::IoSlice::new(&self.kept);
            all[1..=count].copy_from_slice(&slices[..count]);
            let inner = Pin::new(&mut self.inner);
            let written = ready!(inner.poll_write_vectored(context, &all[..=count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let kept = self.kept.len();
            self.kept.advance(written.min(kept));
            if written > kept {
                return Poll::Ready(Ok(written - kept));
            }
        }
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A full socket does not keep us from reading: it wakes this task when it has room.
        if self.due
            && let Poll::Ready(Err(error)) = self.poll_let_go(context)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(kept) = self.keep(slices) {
            return Poll::Ready(Ok(kept));
        }
        self.poll_write_through(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.kept.is_empty() {
            return Pin::new(&mut self.inner).poll_flush(context);
        }
        if !self.due {
            self.due = true;
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_let_go(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Wake, Waker},
    };

    use super::*;

    /// Takes `room` bytes at a time and notes what each write brought.
    #[derive(Default)]
    struct Writes {
        all: Vec<Vec<u8>>,
        room: usize,
        shut: bool,
    }

    impl AsyncRead for Writes {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Writes {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let mut bytes: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
            bytes.truncate(self.room);
            if bytes.is_empty() {
                return Poll::Pending;
            }
            self.all.push(bytes.clone());
            Poll::Ready(Ok(bytes.len()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut = true;
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Turn {
        stream: Corked<Writes>,
        wakes: Arc<Wakes>,
        waker: Waker,
    }

    impl Turn {
        fn new(room: usize) -> Self {
            let wakes = Arc::new(Wakes::default());
            Self {
                stream: Corked::new(Writes {
                    room,
                    ..Writes::default()
                }),
                waker: Arc::clone(&wakes).into(),
                wakes,
            }
        }

        fn write(&mut self, bytes: &[u8]) -> Poll<usize> {
            let context = &mut Context::from_waker(&self.waker);
            let written = Pin::new(&mut self.stream).poll_write(context, bytes);
            written.map(Result::unwrap)
        }

        fn flush(&mut self) {
            let context = &mut Context::from_waker(&self.waker);
            assert!(Pin::new(&mut self.stream).poll_flush(context).is_ready());
        }

        fn read(&mut self) {
            let context = &mut Context::from_waker(&self.waker);
            let (mut room, mut buffer) = ([0; 8], None);
            let buffer = buffer.insert(ReadBuf::new(&mut room));
            assert!(
                Pin::new(&mut self.stream)
                    .poll_read(context, buffer)
                    .is_pending()
            );
        }
    }

    #[test]
    fn what_one_turn_writes_leaves_at_once_in_the_next() {
        let mut turn = Turn::new(usize::MAX);
        for part in [&b"headers"[..], b"message", b"trailers"] {
            assert_eq!(turn.write(part), Poll::Ready(part.len()));
            turn.flush();
        }
        assert!(turn.stream.inner.all.is_empty());
        assert_eq!(turn.wakes.0.load(Ordering::Relaxed), 1, "one more turn");
        turn.read();
        assert_eq!(turn.stream.inner.all, [b"headersmessagetrailers"]);
        turn.flush();
        turn.read();
        assert_eq!(turn.stream.inner.all.len(), 1);
    }

    #[test]
    fn a_large_write_takes_what_is_kept_along() {
        let mut turn = Turn::new(usize::MAX);
        assert_eq!(turn.write(b"head"), Poll::Ready(4));
        let large = vec![7; MOST];
        assert_eq!(turn.write(&large), Poll::Ready(MOST));
        let expected = [b"head", &large[..]].concat();
        assert_eq!(turn.stream.inner.all, [expected]);
    }

    #[test]
    fn a_slow_reader_gets_every_byte_in_order_and_once() {
        let mut turn = Turn::new(1000);
        let sent: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        let (mut rest, mut step) = (&sent[..], 0);
        while !rest.is_empty() {
            step = (step * 7 + 13) % 50_000;
            let Poll::Ready(written) = turn.write(&rest[..rest.len().min(step + 1)]) else {
                panic!("there is room");
            };
            rest = &rest[written..];
            turn.flush();
            if step % 3 == 0 {
                turn.read();
            }
        }
        let context = &mut Context::from_waker(&turn.waker);
        let shut = Pin::new(&mut turn.stream).poll_shutdown(context);
        assert!(shut.is_ready() && turn.stream.inner.shut);
        assert_eq!(turn.stream.inner.all.concat(), sent);
    }

    #[test]
    fn a_full_socket_holds_up_writes_but_not_reads() {
        let mut turn = Turn::new(0);
        assert_eq!(turn.write(&vec![1; MOST]), Poll::Ready(MOST));
        turn.flush();
        turn.read();
        assert_eq!(turn.write(b"more"), Poll::Pending);
        turn.stream.inner.room = usize::MAX;
        turn.read();
        assert_eq!(turn.stream.inner.all, [vec![1; MOST]]);
    }
}
