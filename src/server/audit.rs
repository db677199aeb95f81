//! Who changed what: lines of the target `frostline::audit`, which no filter of the log leaves out.

use std::sync::Arc;

use tonic::Request;

use super::{identity::Identity, observe::CallRecord, peer::Peer, socket::Origin};
use crate::{
    engine::{Engine, Head},
    error::{Error, Kind},
    telemetry::AUDIT,
};

/// Who asks for a change.
#[derive(Debug)]
pub(super) struct By {
    identity: Arc<str>,
    request_id: String,
    from: Option<Origin>,
}

impl By {
    /// Who makes `request`.
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        let extensions = request.extensions();
        let record = extensions.get::<CallRecord>();
        Self {
            identity: Identity::of(extensions).name(),
            request_id: record.map(CallRecord::request_id).unwrap_or_default(),
            from: extensions.get::<Arc<Peer>>().map(|peer| peer.origin),
        }
    }

    /// Begins a change of the head `name`.
    pub(super) fn changes(self, engine: &Engine, action: &'static str, name: &str) -> Change {
        Change {
            by: self,
            action,
            name: name.chars().take(64).collect(),
            old: engine.head(name),
        }
    }
}

/// A change of a head, before it is known what becomes of it.
#[derive(Debug)]
pub(super) struct Change {
    by: By,
    action: &'static str,
    name: String,
    old: Option<Arc<Head>>,
}

impl Change {
    /// Tells what became of it: the head that serves from now on, none if it was taken out.
    pub(super) fn tell(self, new: Result<Option<&Head>, &Error>) {
        let Self {
            by,
            action,
            name,
            old,
        } = self;
        let By {
            identity,
            request_id,
            from,
        } = by;
        let (old, old_version) = sort(old.as_deref());
        let (error, outcome) = match new {
            Ok(_) => (None, "done"),
            Err(error) if error.kind() == Kind::PermissionDenied => (Some(error), "refused"),
            Err(error) => (Some(error), "failed"),
        };
        let (new, new_version) = sort(new.ok().flatten());
        tracing::info!(
            target: AUDIT,
            action,
            head = name,
            identity = &*identity,
            request_id,
            from = from.map(tracing::field::display),
            old,
            old_version,
            new,
            new_version,
            outcome,
            error = error.map(tracing::field::display),
            "a head was to change"
        );
    }
}

/// A head's fingerprint and version.
fn sort(head: Option<&Head>) -> (Option<&str>, Option<&str>) {
    let manifest = head.map(|head| &head.manifest);
    let fingerprint = manifest.map(|manifest| manifest.sha256.as_str());
    (
        fingerprint,
        manifest.map(|manifest| manifest.version.as_str()),
    )
}
