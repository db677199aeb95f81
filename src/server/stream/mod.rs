//! `VisionService.AnalyzeStream`: a task for each call reads its frames, hands them to the engine and tells what became of
//! them.
//!
//! What becomes of a frame is decided by [`crate::stream`]; here are the clock, the engine and the wire. The task is the
//! stream's only owner: when the call is gone everything of it is. It reads all the time, whatever the device does, unless
//! its caller does not read its answers, or has asked for frames to wait.

mod clips;
mod frames;
mod hand_out;
mod results;
mod session;
mod settings;
mod status;
mod words;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::{
    budget::Ledger,
    call::Call,
    config::{ServerConfig, StreamLimits},
    life::{Life, Phase},
    party::Party,
};
use crate::{
    engine::{self, Engine, Room},
    error::{Error, Kind, Result},
    proto::{AnalyzeStreamRequest, AnalyzeStreamResponse},
    stream::{Load, PromiseLimits, Promises, Refused},
};

/// Bytes of a stream of which no frame is under way: its task, its tables and HTTP/2's state of its call. A test holds
/// some 1,500 idle ones to it.
pub const STREAM_BYTES: u64 = 32 << 10;

/// When a caller may come again that was refused a stream.
const WAIT_FOR_A_STREAM: Duration = Duration::from_secs(1);

/// Messages between a stream's task and its connection: what the transport takes at once.
const ON_THE_WAY: usize = 4;

/// Until when frames are taken, once the server stops.
#[derive(Debug, Clone, Copy)]
struct Drain {
    /// No frame is taken after this.
    last_frame: Instant,
    /// What is then still under way is given up after this.
    end: Instant,
}

/// What all streams share.
#[derive(Debug)]
pub(super) struct Streams {
    limits: StreamLimits,
    promises: Mutex<Promises<Party>>,
    numbers: AtomicU64,
    life: Life,
    /// From the begin of a stop to the last frame, and to the end.
    grace: [Duration; 2],
    most_bytes: usize,
}

/// A stream's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    streams: Arc<Streams>,
    party: Party,
    load: Load,
}

impl Streams {
    pub(super) fn new(config: &ServerConfig) -> Arc<Self> {
        let drain = config.drain_timeout;
        let grace = [drain / 2, drain * 3 / 4].map(|part| config.lame_duck + part);
        Arc::new(Self {
            limits: config.stream.clone(),
            promises: Mutex::default(),
            numbers: AtomicU64::new(0),
            life: config.life.clone(),
            grace,
            most_bytes: config.max_response_bytes,
        })
    }

    fn promise_limits(&self, engine: &Engine) -> PromiseLimits {
        let engine::Seconds { lanes, workers } = engine.seconds();
        let share = self.limits.promised_share;
        PromiseLimits {
            streams: self.limits.streams,
            per_caller: self.limits.per_caller,
            load: Load {
                lanes: lanes * share,
                workers: workers * share,
            },
        }
    }

    /// A number that no other stream has had.
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn enter(self: &Arc<Self>, engine: &Engine, party: Party) -> Result<Place> {
        let limits = self.promise_limits(engine);
        let opened = self.promises.lock().open(&party, &limits);
        opened.map_err(|why| {
            engine.config().metrics.refused("streams");
            refused(why, &limits)
        })?;
        Ok(Place {
            streams: Arc::clone(self),
            party,
            load: Load::default(),
        })
    }

    /// Begins the stream of a call; its answers.
    pub(super) fn begin(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        call: Call,
        ledger: Option<Ledger>,
        inbound: Streaming<AnalyzeStreamRequest>,
    ) -> Result<Answers> {
        let party = ledger.as_ref().map_or(Party::Local, Ledger::party);
        let place = self.enter(engine, party)?;
        let (out, answers) = mpsc::channel(ON_THE_WAY);
        let account = ledger.map(|ledger| ledger.account());
        let session = session::Session::new(Arc::clone(engine), place, call, account, out);
        tokio::spawn(session.run(inbound));
        Ok(Answers(answers))
    }
}

impl Place {
    /// Follows the server's life.
    fn life(&self) -> watch::Receiver<Phase> {
        self.streams.life.follow()
    }

    /// Until when frames are taken, if the server stops now.
    fn drain(&self) -> Drain {
        let [last_frame, end] = self.streams.grace.map(|grace| Instant::now() + grace);
        Drain { last_frame, end }
    }

    /// What the stream promises to send takes so much from now on.
    fn promise(&mut self, engine: &Engine, load: Load) -> Result<()> {
        let limits = self.streams.promise_limits(engine);
        let changed = self
            .streams
            .promises
            .lock()
            .change(self.load, load, &limits);
        changed.map_err(|why| {
            engine.config().metrics.refused("streams");
            refused(why, &limits)
        })?;
        self.load = load;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let limits = PromiseLimits {
            streams: 0,
            per_caller: 0,
            load: Load::default(),
        };
        let mut promises = self.streams.promises.lock();
        // Less is never refused.
        let _ = promises.change(self.load, Load::default(), &limits);
        promises.close(&self.party);
    }
}

fn refused(why: Refused, limits: &PromiseLimits) -> Error {
    let message = match why {
        Refused::Full => format!(
            "{} streams are open, which is as many as the server takes (stream.streams)",
            limits.streams
        ),
        Refused::Caller => format!(
            "{} streams of this caller are open, which is as many as one may have (stream.streams_per_caller)",
            limits.per_caller
        ),
        Refused::Rate { wanted, free } => {
            let message = format!(
                "cannot be held: these frames take about {wanted:.2} seconds of the threads a second, and {free:.2} are not \
                 promised to other streams (stream.promised_share)"
            );
            let error = Error::new(Kind::Overloaded, message);
            return error.at("frames_per_second").retry_after(WAIT_FOR_A_STREAM);
        }
    };
    Error::new(Kind::Overloaded, message).retry_after(WAIT_FOR_A_STREAM)
}

/// A message on its way to the caller, with the room that it takes until the transport has it.
#[derive(Debug)]
struct Outgoing {
    message: AnalyzeStreamResponse,
    _room: Option<Arc<Room>>,
}

/// A stream's answers. Dropping them ends the stream.
#[derive(Debug)]
pub(super) struct Answers(mpsc::Receiver<Result<Outgoing, Status>>);

impl Stream for Answers {
    type Item = Result<AnalyzeStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.0.poll_recv(context);
        next.map(|next| next.map(|item| item.map(|outgoing| outgoing.message)))
    }
}
