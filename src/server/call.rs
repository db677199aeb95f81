//! What a call says about itself beside its input: who makes it, until when, how urgently, and which heads that lets it
//! use. Every adapter reads its calls through here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::{Request, metadata::MetadataMap};

use super::{convert, identity::Identity, observe::CallRecord, quota::Pixels};
use crate::{
    engine::{self, Engine, Head, Meter, Options, Priority},
    error::{Error, Kind, Result},
    repository::Task,
    trace::Context,
};

/// A call's context.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// When it came.
    pub(super) begun: Instant,
    /// When the caller stops waiting.
    pub(super) deadline: Option<Instant>,
    /// How urgent it is.
    pub(super) priority: Priority,
    /// Who makes it.
    pub(super) identity: Identity,
    /// Where it is in a trace.
    trace: Context,
    /// Charges it for its images.
    meter: Option<Arc<dyn Meter>>,
}

impl Call {
    /// Reads the context of `request`; `priority` is the message's field, `default_deadline` for calls that bring none.
    ///
    /// # Errors
    /// A malformed `grpc-timeout`, or a priority that does not exist.
    pub(super) fn read<T>(
        request: &Request<T>,
        priority: i32,
        default_deadline: Option<Duration>,
    ) -> Result<Self> {
        let within = |after: Duration| Instant::now().checked_add(after);
        let deadline = match timeout(request.metadata())? {
            Some(timeout) => within(working_time(timeout)),
            None => default_deadline.and_then(within),
        };
        let identity = Identity::of(request.extensions());
        let record = request.extensions().get::<CallRecord>();
        let trace = record.map(|record| {
            record.identify(&identity.name());
            record.trace().clone()
        });
        Ok(Self {
            begun: Instant::now(),
            deadline,
            priority: convert::priority(priority)?,
            identity,
            trace: trace.unwrap_or_default(),
            meter: request.extensions().get().map(|pixels: &Pixels| {
                let meter: Arc<dyn Meter> = Arc::new(pixels.clone());
                meter
            }),
        })
    }

    /// The same, of which nothing is recorded in a trace.
    pub(super) fn without_trace(mut self) -> Self {
        self.trace = Context::default();
        self
    }

    /// What the engine is asked for rows that are kept.
    pub(super) fn kept(
        self,
        head: Arc<Head>,
        rows: Vec<engine::Kept>,
        options: Options,
    ) -> engine::KeptRequest {
        engine::KeptRequest {
            head,
            rows,
            options,
            deadline: self.deadline,
            priority: self.priority,
            caller: self.identity.name(),
            trace: self.trace,
        }
    }

    /// What the engine is asked for in this call's name.
    pub(super) fn request(
        self,
        images: Vec<(engine::Source, String)>,
        heads: Vec<Arc<Head>>,
        options: Options,
    ) -> engine::Request {
        engine::Request {
            images,
            heads,
            options,
            features: None,
            deadline: self.deadline,
            priority: self.priority,
            caller: self.identity.name(),
            trace: self.trace,
            meter: self.meter,
            looked: None,
            live: engine::Live::default(),
        }
    }

    /// The head that a call of one task means: the one that is named, or the only one of the task.
    pub(super) fn head(&self, engine: &Engine, name: &str, task: Task) -> Result<Arc<Head>> {
        if name.is_empty() {
            let mut heads = self.identity.heads(engine);
            heads.retain(|head| head.manifest.task == task);
            return match heads.len() {
                1 => Ok(heads.remove(0)),
                0 => {
                    let message = format!("no {task} head is loaded");
                    Err(Error::new(Kind::UnknownHead, message).at("head"))
                }
                count => {
                    let message =
                        format!("is empty, but {count} {task} heads are loaded: name one");
                    Err(Error::invalid("head", message))
                }
            };
        }
        let head = self.identity.head(engine, name, "head")?;
        if head.manifest.task != task {
            let message = format!("the head {name:?} does {}, not {task}", head.manifest.task);
            return Err(Error::new(Kind::WrongTask, message).at("head"));
        }
        Ok(head)
    }

    /// The heads that a call for any task means: those named in the field `heads`, or all that the input fits.
    pub(super) fn heads(
        &self,
        engine: &Engine,
        names: &[String],
        clip: bool,
    ) -> Result<Vec<Arc<Head>>> {
        if names.is_empty() {
            let mut heads = self.identity.heads(engine);
            heads.retain(|head| clip || head.manifest.task != Task::Action);
            if heads.is_empty() {
                let message = "no loaded head takes this input";
                return Err(Error::new(Kind::UnknownHead, message).at("heads"));
            }
            return Ok(heads);
        }
        let mut heads = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let field = format!("heads[{index}]");
            if names[..index].contains(name) {
                return Err(Error::invalid(field, "is named twice"));
            }
            let head = self.identity.head(engine, name, &field)?;
            if head.manifest.task == Task::Action && !clip {
                let message =
                    format!("the head {name:?} does action, which needs a clip, not an image");
                return Err(Error::new(Kind::WrongTask, message).at(field));
            }
            heads.push(head);
        }
        Ok(heads)
    }
}

/// The transport ends a call at its deadline by itself, and says CANCELLED: the answer has to be out before, and the
/// right error too.
const MARGIN: Duration = Duration::from_millis(2);

/// What is left of `timeout` for the work.
fn working_time(timeout: Duration) -> Duration {
    timeout - MARGIN.min(timeout / 10)
}

/// How long the caller waits, from the `grpc-timeout` header.
pub(super) fn timeout(metadata: &MetadataMap) -> Result<Option<Duration>> {
    let Some(value) = metadata.get("grpc-timeout") else {
        return Ok(None);
    };
    let bad = || {
        Error::invalid(
            "grpc-timeout",
            "is not up to 8 digits and one of the units H, M, S, m, u, n",
        )
    };
    let text = value.to_str().map_err(|_| bad())?;
    let (digits, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(bad)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let count: u64 = digits.parse().map_err(|_| bad())?;
    let timeout = match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return Err(bad()),
    };
    Ok(Some(timeout))
}
