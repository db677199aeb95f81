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

use super::{CertificateName, TlsConfig, watched::Watched};

/// The settings of new connections.
pub(super) type Settings = Watched<rustls::ServerConfig>;

/// Reads the files that `config` names, and watches them.
///
/// # Errors
/// The file at fault and why.
pub(super) fn settings(config: &TlsConfig) -> anyhow::Result<Settings> {
    let mut files = vec![config.cert.clone(), config.key.clone()];
    files.extend(config.client_ca.clone());
    let (names, optional) = (files.clone(), config.client_optional);
    Watched::new(files, move |contents| make(&names, contents, optional))
}

fn make(
    names: &[PathBuf],
    contents: &[Vec<u8>],
    client_optional: bool,
) -> anyhow::Result<rustls::ServerConfig> {
    let name = |index: usize| names[index].display().to_string();
    let chain = certificates(&contents[0]).with_context(|| name(0))?;
    let key = PrivateKeyDer::from_pem_slice(&contents[1])
        .context("has no private key")
        .with_context(|| name(1))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match contents.get(2) {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(authorities).with_context(|| name(2))? {
                roots.add(authority).with_context(|| name(2))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if client_optional {
                verifier.allow_unauthenticated()
            } else {
                verifier
            };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let mut settings = builder
        .with_single_cert(chain, key)
        .with_context(|| format!("{} and {} do not go together", name(0), name(1)))?;
    // Older HTTP is taken as far as to be told that this is a gRPC port.
    settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(settings)
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
