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
    message::Message,
    packing::{self, Aside, PREFIX, Packing, Unpacker},
    status::status,
};
use crate::error::{Error, Kind, Result};

/// A step that is done elsewhere.
type Step = Pin<Box<dyn Future<Output = Result<Box<Job>, Status>> + Send>>;

/// A packed message that has come whole. Its length has to be known before its first byte goes on: where it does not tell
/// it, it is unpacked twice, and the first time only counted.
struct Job {
    unpacker: Unpacker,
    packed: VecDeque<Bytes>,
    /// For the second time, while it is being counted.
    again: Option<VecDeque<Bytes>>,
}

/// The body of packed messages. Of each it hands on the prefix of a plain message and then what was unpacked, in pieces:
/// it holds what came, and no more than a step of what that makes.
pub(super) struct Unpacked {
    inner: Message,
    packing: Packing,
    most_bytes: usize,
    aside: Aside,
    /// Bytes of the packed message that is being unpacked.
    packed_bytes: usize,
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
    /// In a packed one.
    Coming(VecDeque<Bytes>),
    Unpacking(Box<Job>),
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
            packed_bytes: 0,
            input: Bytes::new(),
            prefix: [0; PREFIX],
            prefix_bytes: 0,
            left: 0,
            state: State::Plain,
            ready: VecDeque::new(),
        }
    }

    /// Takes some of what came.
    fn take(&mut self) -> Result<()> {
        if self.left == 0 {
            self.begin();
        } else {
            let taken = self.left.min(self.input.len());
            self.left -= taken;
            let piece = self.input.split_to(taken);
            match &mut self.state {
                State::Coming(packed) => packed.push_back(piece),
                _ => self.ready.push_back(piece),
            }
        }
        if self.left == 0 && matches!(self.state, State::Coming(_)) {
            let state = std::mem::replace(&mut self.state, State::Plain);
            if let State::Coming(packed) = state {
                self.has_come(packed)?;
            }
        }
        Ok(())
    }

    /// Reads a prefix.
    fn begin(&mut self) {
        let taken = (PREFIX - self.prefix_bytes).min(self.input.len());
        let (from, to) = (self.prefix_bytes, self.prefix_bytes + taken);
        self.input.copy_to_slice(&mut self.prefix[from..to]);
        self.prefix_bytes = to;
        if to < PREFIX {
            return;
        }
        self.prefix_bytes = 0;
        let [packed, length @ ..] = self.prefix;
        self.left = u32::from_be_bytes(length) as usize;
        if packed == 0 {
            self.ready.push_back(Bytes::copy_from_slice(&self.prefix));
        } else {
            self.state = State::Coming(VecDeque::new());
        }
    }

    /// A packed message is there.
    fn has_come(&mut self, packed: VecDeque<Bytes>) -> Result<()> {
        self.packed_bytes = packed.iter().map(Bytes::len).sum();
        match packing::declared(self.packing, &packed) {
            Some(length) => self.unpack(packed, length),
            None => {
                self.state = State::Unpacking(Box::new(Job {
                    unpacker: Unpacker::new(self.packing, self.most_bytes, true)?,
                    again: Some(packed.clone()),
                    packed,
                }));
                Ok(())
            }
        }
    }

    /// Begins to hand on a message of `length` bytes.
    fn unpack(&mut self, packed: VecDeque<Bytes>, length: usize) -> Result<()> {
        let most = self.most_bytes;
        if length > most {
            let message = format!("says that it unpacks to more than {most} bytes");
            let error = Error::new(Kind::LimitExceeded, message).at("request");
            return Err(error.with("value", length).with("limit", most));
        }
        // Its reader makes room for all of it when it has the prefix.
        self.inner.keep(self.packed_bytes + length)?;
        // Within the limit, which is a message's.
        let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        self.ready.push_back([&[0], &prefix[..]].concat().into());
        self.state = State::Unpacking(Box::new(Job {
            unpacker: Unpacker::new(self.packing, length, false)?,
            packed,
            again: None,
        }));
        Ok(())
    }

    /// Goes on after a step.
    fn stepped(&mut self, mut job: Box<Job>) -> Result<()> {
        self.ready.extend(job.unpacker.take());
        if !job.packed.is_empty() || !job.unpacker.has_ended() {
            self.state = State::Unpacking(job);
            return Ok(());
        }
        let length = job.unpacker.bytes();
        match job.again {
            Some(packed) => self.unpack(packed, length),
            None if length < job.unpacker.most_bytes() => {
                Err(job.unpacker.damaged("it is shorter than it says"))
            }
            None => self.inner.keep(0),
        }
    }

    /// Does the next step, elsewhere if it is long.
    fn step(&mut self, mut job: Box<Job>) -> Result<()> {
        if job.unpacker.is_short() {
            job.unpacker.step(&mut job.packed)?;
            return self.stepped(job);
        }
        let step = self.aside.clone().run(move || {
            let done = job.unpacker.step(&mut job.packed);
            done.map(|()| job).map_err(|error| status(&error))
        });
        self.state = State::Elsewhere(Box::pin(async move { step.await? }));
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
                this.stepped(done?).map_err(|e| status(&e))?;
            } else if let State::Unpacking(_) = &this.state {
                let state = std::mem::replace(&mut this.state, State::Plain);
                if let State::Unpacking(job) = state {
                    this.step(job).map_err(|e| status(&e))?;
                }
            } else if !this.input.is_empty() {
                this.take().map_err(|e| status(&e))?;
            } else {
                let frame = match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                    Some(frame) => frame?,
                    None if this.left == 0 && this.prefix_bytes == 0 => {
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
