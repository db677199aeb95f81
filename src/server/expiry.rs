//! Until when certificates hold: as metrics, and as a warning while there is time to do something.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::metrics::{CertificateTimes, Metrics};

/// Time left in which one is warned of, seconds; of certificates of short life the last quarter of it.
const SOON: i64 = 14 * 86_400;

/// How often what holds is looked at again.
const INTERVAL: Duration = Duration::from_secs(6 * 3600);

/// Longest name that becomes a label, characters.
const MOST_NAME: usize = 64;

/// A certificate's use, name and time.
#[derive(Debug, Clone)]
pub(super) struct Certificate {
    times: CertificateTimes,
}

impl Certificate {
    /// Reads the certificates `chain`, each used for what `usage` says of its place.
    ///
    /// # Errors
    /// What is no certificate.
    pub(super) fn read(
        chain: &[CertificateDer<'_>],
        usage: impl Fn(usize) -> &'static str,
    ) -> anyhow::Result<Vec<Self>> {
        let read = |(index, der): (usize, &CertificateDer<'_>)| {
            let parsed = X509Certificate::from_der(der);
            let (_, parsed) = parsed
                .map_err(|error| anyhow::anyhow!("{error}"))
                .with_context(|| format!("certificate {index} cannot be read"))?;
            let validity = parsed.validity();
            Ok(Self {
                times: CertificateTimes {
                    usage: usage(index),
                    name: name(&parsed),
                    not_before: validity.not_before.timestamp(),
                    not_after: validity.not_after.timestamp(),
                },
            })
        };
        chain.iter().enumerate().map(read).collect()
    }

    /// Refuses one that has ended.
    ///
    /// # Errors
    /// Its name and when it ended.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let left = self.left();
        ensure!(
            left > 0,
            "the certificate of {:?} ended {} ago",
            self.times.name,
            spell(-left)
        );
        Ok(())
    }

    /// Seconds that it holds on.
    fn left(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        self.times.not_after - i64::try_from(now).unwrap_or(i64::MAX)
    }

    fn tell(&self) {
        let CertificateTimes { usage, name, .. } = &self.times;
        let life = self.times.not_after - self.times.not_before;
        let left = self.left();
        if left <= 0 {
            let ended = spell(-left);
            tracing::error!(usage, name, ended, "a certificate has ended");
        } else if left < SOON && left < life / 4 {
            let left = spell(left);
            tracing::warn!(usage, name, left, "a certificate ends soon");
        }
    }
}

/// Keeps an eye on certificates for as long as it lives.
#[derive(Debug)]
pub(super) struct Expiry {
    metrics: Arc<Metrics>,
    certificates: Arc<Mutex<Vec<Certificate>>>,
}

impl Expiry {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        let certificates: Arc<Mutex<Vec<Certificate>>> = Arc::default();
        let watched = Arc::downgrade(&certificates);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(INTERVAL).await;
                let Some(certificates) = watched.upgrade() else {
                    return;
                };
                let now = certificates.lock().clone();
                now.iter().for_each(Certificate::tell);
            }
        });
        Self {
            metrics,
            certificates,
        }
    }

    /// These are in use from now on.
    pub(super) fn watch(&self, certificates: Vec<Certificate>) {
        certificates.iter().for_each(Certificate::tell);
        let times = certificates.iter().map(|one| one.times.clone());
        self.metrics.certificates(times.collect());
        *self.certificates.lock() = certificates;
    }
}

/// The name that it is known by: its first alternative name, else its common name.
fn name(certificate: &X509Certificate<'_>) -> String {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| &extension.value.general_names);
    let alternative = names.into_iter().flatten().find_map(|name| match name {
        GeneralName::URI(name) | GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let common = || {
        certificate
            .subject()
            .iter_common_name()
            .next()?
            .as_str()
            .ok()
    };
    let name = alternative.or_else(common).unwrap_or_default();
    name.chars().take(MOST_NAME).collect()
}

/// A time in its largest unit.
fn spell(seconds: i64) -> String {
    match seconds {
        172_800.. => format!("{} days", seconds / 86_400),
        7_200.. => format!("{} hours", seconds / 3600),
        _ => format!("{} minutes", seconds / 60),
    }
}
