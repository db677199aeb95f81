//! TLS: the server's certificate, the clients' certificates, and who those name.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use tokio_rustls::rustls::{
    self, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{
    CertificateName, TlsConfig,
    expiry::{Certificate, Expiry},
    watched::{self, Made, Source, Watched},
};
use crate::metrics::Metrics;

/// The settings of new connections.
pub(super) type Settings = Watched<rustls::ServerConfig>;

/// The files that `config` names, each with its setting, in the order in which [`make`] takes their contents.
fn files(config: &TlsConfig) -> (Vec<&'static str>, Vec<PathBuf>) {
    let files = [
        ("tls.cert", Some(&config.cert)),
        ("tls.key", Some(&config.key)),
        ("tls.client_ca", config.client_ca.as_ref()),
    ];
    let named = files
        .into_iter()
        .filter_map(|(setting, file)| Some((setting, file?.clone())));
    named.unzip()
}

/// Reads the files that `config` names, and watches them.
///
/// # Errors
/// The file at fault and why: one that cannot be read, a key of another certificate, a certificate that has ended.
pub(super) fn settings(config: &TlsConfig, metrics: &Arc<Metrics>) -> anyhow::Result<Settings> {
    let (_, files) = files(config);
    let (names, optional) = (files.clone(), config.client_optional);
    let source = Source {
        what: "certificates",
        files,
        metrics: Arc::clone(metrics),
    };
    let expiry = Expiry::new(Arc::clone(metrics));
    Watched::new(source, move |contents| {
        let made = make(contents, optional);
        let (settings, certificates) =
            made.map_err(|(index, error)| error.context(names[index].display().to_string()))?;
        expiry.watch(certificates);
        Ok(Made::whole(settings))
    })
}

/// The settings of `config` whose files do not hold, each with the file and why.
pub(super) fn check(config: &TlsConfig) -> Vec<(&'static str, String)> {
    let (settings, files) = files(config);
    let (mut contents, mut wrong) = (Vec::new(), Vec::new());
    for (setting, file) in settings.iter().zip(&files) {
        match watched::read(std::slice::from_ref(file)) {
            Ok(read) => contents.extend(read),
            Err(error) => wrong.push((*setting, format!("{error:#}"))),
        }
    }
    if wrong.is_empty()
        && let Err((index, error)) = make(&contents, config.client_optional)
    {
        wrong.push((
            settings[index],
            format!("{}: {error:#}", files[index].display()),
        ));
    }
    wrong
}

/// Settings of connections, and the certificates that they are made of; else the index of the file at fault and why.
type Outcome = Result<(rustls::ServerConfig, Vec<Certificate>), (usize, anyhow::Error)>;

fn make(contents: &[Vec<u8>], client_optional: bool) -> Outcome {
    let of = |index: usize| move |error: anyhow::Error| (index, error);
    let chain = certificates(&contents[0]).map_err(of(0))?;
    let usage = |index| if index == 0 { "server" } else { "chain" };
    let mut found = Certificate::read(&chain, usage).map_err(of(0))?;
    found[0].check().map_err(of(0))?;
    let key = PrivateKeyDer::from_pem_slice(&contents[1])
        .context("has no private key")
        .map_err(of(1))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| (0, error.into()))?;
    let builder = match contents.get(2) {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            let authorities = certificates(authorities).map_err(of(2))?;
            found.extend(Certificate::read(&authorities, |_| "client_ca").map_err(of(2))?);
            for authority in authorities {
                roots.add(authority).map_err(|error| (2, error.into()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if client_optional {
                verifier.allow_unauthenticated()
            } else {
                verifier
            };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| (2, error.into()))?)
        }
    };
    let mut settings = builder
        .with_single_cert(chain, key)
        .context("is not the key of tls.cert")
        .map_err(of(1))?;
    // Older HTTP is taken as far as to be told that this is a gRPC port.
    settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((settings, found))
}

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .context("is not PEM")?;
    anyhow::ensure!(!found.is_empty(), "has no certificate");
    Ok(found)
}

/// What a verified certificate says of its holder, each kind of name by itself: an authority may be bounded in one kind
/// (by name constraints) and free in another, so that one must not pass for the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    uri: Option<String>,
    dns: Option<String>,
    common: Option<String>,
}

impl Names {
    /// The names in a certificate that TLS has verified: of each kind the first.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|extension| &extension.value.general_names);
        let mut found = Self::default();
        for name in names.into_iter().flatten() {
            match name {
                GeneralName::URI(uri) => set(&mut found.uri, uri),
                GeneralName::DNSName(dns) => set(&mut found.dns, dns),
                _ => {}
            }
        }
        let common = parsed.subject().iter_common_name().next();
        if let Some(common) = common.and_then(|name| name.as_str().ok()) {
            set(&mut found.common, common);
        }
        Some(found)
    }

    /// The identity that it proves: its name of the first of `kinds` that it has.
    pub(super) fn identity(&self, kinds: &[CertificateName]) -> Option<String> {
        kinds.iter().find_map(|kind| {
            let (prefix, name) = match kind {
                CertificateName::Uri => ("cert-uri:", &self.uri),
                CertificateName::Dns => ("cert-dns:", &self.dns),
                CertificateName::Cn => ("cert-cn:", &self.common),
            };
            Some(format!("{prefix}{}", name.as_ref()?))
        })
    }
}

/// Longest name of a certificate that is taken, bytes.
const MOST_NAME: usize = 256;

fn set(slot: &mut Option<String>, name: &str) {
    if slot.is_none() && !name.is_empty() && name.len() <= MOST_NAME {
        *slot = Some(name.to_owned());
    }
}
