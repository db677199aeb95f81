//! Refused callers, on record: a line a second for each reason and caller, with how many it stands for. So many that they
//! could fill a disk are counted, and none is lost; those that wanted to change something are told each by itself.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tonic::Code;

use crate::telemetry::AUDIT;

/// How often a reason and caller may be told.
const INTERVAL: Duration = Duration::from_secs(1);

/// Callers told apart at once; those beyond count as one.
const MOST_CALLERS: usize = 1000;

/// Of those, addresses of callers without an identity: there may be thousands of them.
const MOST_STRANGERS: usize = 2;

/// Methods that change what is served.
const ADMINISTRATION: [&str; 4] = [
    "frostline.v1.ModelService/LoadHead",
    "frostline.v1.ModelService/UnloadHead",
    "inference.GRPCInferenceService/RepositoryModelLoad",
    "inference.GRPCInferenceService/RepositoryModelUnload",
];

/// A refused call.
#[derive(Debug)]
pub(super) struct Refused<'a> {
    pub(super) code: Code,
    pub(super) method: &'a str,
    pub(super) request_id: &'a str,
    /// Who it was, if that is known.
    pub(super) identity: &'a str,
    /// Where it came from, without the port.
    pub(super) from: &'a str,
    /// Why, as the caller was told.
    pub(super) message: &'a str,
}

/// Tells the log of refused calls.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    /// How many calls were not told in the second that runs, by reason and caller.
    recent: Mutex<HashMap<(&'static str, String), u64>>,
}

impl Refusals {
    /// Whether a call that ended so was refused: the caller is at fault, and others should know.
    pub(super) fn concern(code: Code) -> bool {
        matches!(
            code,
            Code::Unauthenticated | Code::PermissionDenied | Code::ResourceExhausted
        )
    }

    /// Tells of a refused call, now or with others when the second ends.
    pub(super) fn tell(&self, refused: &Refused<'_>) {
        let Refused {
            code,
            method,
            request_id,
            identity,
            from,
            message,
        } = *refused;
        let reason = super::status::name(code);
        if ADMINISTRATION.contains(&method) {
            tracing::warn!(
                target: AUDIT,
                action = method, identity, request_id, from, reason, outcome = "refused", error = message,
                "refused a call"
            );
            return;
        }
        let caller = match identity {
            "" => from,
            identity => identity,
        };
        {
            let mut recent = self.0.recent.lock();
            let known = recent.contains_key(&(reason, caller.to_owned()));
            let strangers = || {
                recent
                    .keys()
                    .filter(|(_, caller)| caller.parse::<IpAddr>().is_ok())
            };
            let room = recent.len() < MOST_CALLERS
                && (!identity.is_empty() || strangers().count() < MOST_STRANGERS);
            let caller = match known || room {
                true => caller,
                false => "others",
            };
            if let Some(untold) = recent.get_mut(&(reason, caller.to_owned())) {
                *untold += 1;
                return;
            }
            if recent.is_empty() {
                tokio::spawn(flush(Arc::downgrade(&self.0)));
            }
            recent.insert((reason, caller.to_owned()), 0);
        }
        tracing::warn!(
            method,
            identity,
            request_id,
            from,
            reason,
            error = message,
            "refused a call"
        );
    }
}

/// Tells of the calls of each second that were left out, until one passes without any.
async fn flush(told: Weak<Told>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(told) = told.upgrade() else { return };
        if told.flush() {
            return;
        }
    }
}

impl Told {
    /// Tells of what was left out; whether there is nothing more to wait for.
    fn flush(&self) -> bool {
        let mut recent = self.recent.lock();
        recent.retain(|(reason, caller), untold| {
            if *untold > 0 {
                tracing::warn!(reason, caller, left_out = *untold, "refused further calls");
            }
            // Who was left out has had this second's line; the next second begins with nothing told.
            std::mem::take(untold) > 0
        });
        recent.is_empty()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.flush();
    }
}
