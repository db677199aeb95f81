//! A request's body whose messages come packed, as the services read it: unpacked.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body as HttpBody, Frame};
use tonic::Status;

use super::{
    body::Message,
    packing::{Aside, PREFIX, Packing, Unpacker},
    status::status,
};
use crate::error::{Error, Result};

/// A step that is done elsewhere: the unpacker, and what it has not taken yet.
type Step = Pin<Box<dyn Future<Output = Result<(Box<Unpacker>, Bytes), Status>> + Send>>;

/// The body of packed messages. Of each it hands on the prefix of a plain message, once that is known, and then the
/// message.
pub(super) struct Unpacked {
    inner: Message,
    packing: Packing,
    most_bytes: usize,
    aside: Aside,
    /// What came and was not looked at.
    input: Bytes,
    prefix: [u8; PREFIX],
    prefix_bytes: usize,
    /// Bytes of the message that have not been seen.
    left: usize,
    state: State,
    ready: VecDeque<Bytes>,
}

enum State {
    /// Between two messages, or in one that came plain.
    Plain,
    Packed(Box<Unpacker>),
    Elsewhere(Step),
}

impl Unpacked {
    /// The messages of `inner`, each of `most_bytes` at most when it is unpacked.
    pub(super) fn new(inner: Message, packing: Packing, most_bytes: usize, aside: Aside) -> Self {
        Self {
            inner,
            packing,
            most_bytes,
            aside,
            input: Bytes::new(),
            prefix: [0; PREFIX],
            prefix_bytes: 0,
            left: 0,
            state: State::Plain,
            ready: VecDeque::new(),
        }
    }

    /// Goes on with what came.
    fn go_on(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Plain) {
            State::Plain if self.left > 0 => {
                let taken = self.left.min(self.input.len());
                self.left -= taken;
                self.ready.push_back(self.input.split_to(taken));
            }
            State::Plain => self.begin()?,
            State::Packed(mut unpacker) => {
                let taken = self.left.min(self.input.len());
                let mut packed = self.input.split_to(taken);
                self.left -= taken;
                if unpacker.is_short() {
                    unpacker.step(&mut packed)?;
                }
                self.take_up(unpacker, packed)?;
            }
            elsewhere @ State::Elsewhere(_) => self.state = elsewhere,
        }
        Ok(())
    }

    /// Reads a prefix.
    fn begin(&mut self) -> Result<()> {
        let taken = (PREFIX - self.prefix_bytes).min(self.input.len());
        let (from, to) = (self.prefix_bytes, self.prefix_bytes + taken);
        self.input.copy_to_slice(&mut self.prefix[from..to]);
        self.prefix_bytes = to;
        if to < PREFIX {
            return Ok(());
        }
        self.prefix_bytes = 0;
        let [packed, length @ ..] = self.prefix;
        self.left = u32::from_be_bytes(length) as usize;
        if packed == 0 {
            self.ready.push_back(Bytes::copy_from_slice(&self.prefix));
            return Ok(());
        }
        let unpacker = Box::new(Unpacker::new(self.packing, self.most_bytes)?);
        self.take_up(unpacker, Bytes::new())
    }

    /// Goes on with an unpacker that has not taken the rest of `packed` yet.
    fn take_up(&mut self, mut unpacker: Box<Unpacker>, mut packed: Bytes) -> Result<()> {
        if !packed.is_empty() {
            let step = move || {
                let done = unpacker.step(&mut packed);
                done.map(|()| (unpacker, packed)).map_err(|e| status(&e))
            };
            let step = self.aside.clone().run(step);
            self.state = State::Elsewhere(Box::pin(async move { step.await? }));
        } else if self.left > 0 {
            self.state = State::Packed(unpacker);
        } else {
            let (pieces, length) = unpacker.finish()?;
            // Within the limit, which is a message's.
            let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
            let prefix = [&[0], &length[..]].concat();
            self.ready.push_back(prefix.into());
            self.ready.extend(pieces);
        }
        Ok(())
    }
}

impl HttpBody for Unpacked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if let State::Elsewhere(step) = &mut this.state {
                let done = ready!(step.as_mut().poll(context));
                this.state = State::Plain;
                let (unpacker, packed) = done?;
                this.take_up(unpacker, packed).map_err(|e| status(&e))?;
            } else if !this.input.is_empty() {
                this.go_on().map_err(|e| status(&e))?;
            } else {
                let frame = match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                    Some(frame) => frame?,
                    None if matches!(this.state, State::Plain) && this.prefix_bytes == 0 => {
                        return Poll::Ready(None);
                    }
                    None => {
                        let error = Error::invalid("request", "ends within a message");
                        return Poll::Ready(Some(Err(status(&error))));
                    }
                };
                match frame.into_data() {
                    Ok(data) => this.input = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                }
            }
        }
    }
}
