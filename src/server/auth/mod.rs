//! Authorization: who calls, by a key, a JSON Web Token or a certificate, and what that allows.
//!
//! Identities are told apart by where they come from: `name` for a key of the key file, `jwt:subject` for a token,
//! `cert-uri:name`, `cert-dns:name` or `cert-cn:name` for a certificate. A call that brings a token is its token's, whatever its connection's certificate.

mod jwks;
mod jwt;
mod keys;

use std::{path::Path, sync::Arc};

use http::{HeaderMap, header::AUTHORIZATION};

use super::{
    AuthConfig, CertificateName,
    identity::{Allowed, Grants, Identity, Quota},
    tls::Names,
    watched::{self, Source, Watched},
};
use crate::{
    error::{Error, Kind, Result},
    metrics::Metrics,
};
use keys::KeyFile;

pub use keys::{Grant, KeyEntry, new_token};

/// Longest token, bytes.
const MOST_TOKEN: usize = 8 << 10;

/// Tells who calls.
#[derive(Debug)]
pub(super) struct Authenticator {
    keys: Option<Watched<KeyFile>>,
    tokens: Option<jwt::Tokens>,
    /// Names of certificates that say who calls; none where certificates do not.
    certificates: Vec<CertificateName>,
    open: Allowed,
    /// What identities may do that a token or a certificate brings and nothing else is said of.
    default: Arc<Grants>,
}

impl Authenticator {
    /// Reads the files that `config` names, and watches them.
    ///
    /// # Errors
    /// The file at fault and why.
    pub(super) fn new(config: &AuthConfig, metrics: &Arc<Metrics>) -> anyhow::Result<Self> {
        let fallback = defaults(config);
        let keys = config.keys.as_ref().map(|file| {
            let name = file.display().to_string();
            let source = Source {
                what: "keys",
                files: vec![file.clone()],
                metrics: Arc::clone(metrics),
            };
            Watched::new(source, move |contents| {
                KeyFile::parse(&contents[0], &fallback).map_err(|e| e.context(name.clone()))
            })
        });
        Ok(Self {
            keys: keys.transpose()?,
            tokens: config
                .jwks
                .as_ref()
                .map(|file| jwt::Tokens::new(file, config, metrics))
                .transpose()?,
            certificates: match config.certificates {
                true => config.certificate_names.clone(),
                false => Vec::new(),
            },
            open: Allowed::from_list(config.open_methods.iter().cloned()),
            default: Arc::new(defaults(config).elsewhere),
        })
    }

    /// Who makes a call of `method` (`Service/Method`) with `headers` on a connection whose certificate has the names
    /// `certificate`. An open method may be called by anybody; such a caller may use no head.
    ///
    /// # Errors
    /// `Unauthenticated` without an identity that holds.
    pub(super) fn identify(
        &self,
        method: &str,
        headers: &HeaderMap,
        certificate: Option<&Names>,
    ) -> Result<Identity> {
        match self.caller(headers, certificate) {
            Err(_) if self.open.holds(method) => Ok(Identity::nobody()),
            caller => caller,
        }
    }

    /// Whether `identity` may call `method`.
    ///
    /// # Errors
    /// `PermissionDenied` if not.
    pub(super) fn permit(&self, identity: &Identity, method: &str) -> Result<()> {
        if self.open.holds(method) || identity.may_call(method) {
            return Ok(());
        }
        let shown: String = method.chars().take(100).collect();
        let message = format!("{:?} may not call {shown}", &*identity.name());
        Err(Error::new(Kind::PermissionDenied, message))
    }

    fn caller(&self, headers: &HeaderMap, certificate: Option<&Names>) -> Result<Identity> {
        let refuse = |message: &str| Error::new(Kind::Unauthenticated, message);
        let keys = self.keys.as_ref().map(Watched::get);
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else {
            return match certificate.and_then(|names| names.identity(&self.certificates)) {
                Some(name) => {
                    let granted = keys.as_ref().and_then(|keys| keys.grant(&name));
                    let grants = granted.unwrap_or_else(|| Arc::clone(&self.default));
                    Ok(Identity::new(name, grants))
                }
                None => Err(refuse(
                    "no token: send the header authorization, Bearer and a token",
                )),
            };
        };
        if values.next().is_some() {
            return Err(refuse("there is more than one authorization header"));
        }
        let token = value
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| refuse("the authorization header is not Bearer and a token"))?;
        if token.len() > MOST_TOKEN {
            return Err(refuse("the token is too long"));
        }
        if token.contains('.') {
            let tokens = self
                .tokens
                .as_ref()
                .ok_or_else(|| refuse("the token is not known"))?;
            let holder = tokens.verify(token).map_err(refuse)?;
            let name = format!("jwt:{}", holder.subject);
            let granted = keys.as_ref().and_then(|keys| keys.grant(&name));
            let base = granted.unwrap_or_else(|| Arc::clone(&self.default));
            return Ok(Identity::new(name, holder.narrow(base)));
        }
        keys.as_ref()
            .and_then(|keys| keys.find(token))
            .ok_or_else(|| refuse("the token is not known"))
    }
}

/// What identities may do that nothing else is said of.
#[derive(Debug, Default)]
pub(super) struct Defaults {
    /// Those of keys: whoever put one into the key file meant it to be used.
    keys: Grants,
    /// Those that a token or a certificate brings: an authority names many who are none of this server's callers.
    elsewhere: Grants,
}

fn defaults(config: &AuthConfig) -> Defaults {
    let grants = |heads| Grants {
        heads,
        methods: Allowed::from_list(config.methods.iter().cloned()),
        quota: Quota {
            rate: config.rate,
            burst: config.burst,
            concurrency: config.concurrency,
            pixels: config.pixels,
        },
    };
    let said = config.heads.clone().map(Allowed::from_list);
    let none = Allowed::from_list([]);
    Defaults {
        keys: grants(said.clone().unwrap_or_default()),
        elsewhere: grants(said.unwrap_or(none)),
    }
}

/// The settings of `config` whose files do not hold, each with the file and why; entries that would be left out count where
/// `strict` is set.
pub(super) fn check(config: &AuthConfig, strict: bool) -> Vec<(&'static str, String)> {
    let keys = |bytes: &[u8]| Ok(KeyFile::parse(bytes, &defaults(config))?.left_out);
    let mut wrong = entries("auth.keys", config.keys.as_deref(), strict, keys);
    wrong.extend(entries(
        "auth.jwks",
        config.jwks.as_deref(),
        strict,
        jwt::check,
    ));
    wrong
}

/// What `parse` finds wrong with the entries of `file`.
fn entries(
    setting: &'static str,
    file: Option<&Path>,
    strict: bool,
    parse: impl FnOnce(&[u8]) -> anyhow::Result<Vec<String>>,
) -> Vec<(&'static str, String)> {
    let Some(file) = file else {
        return Vec::new();
    };
    let name = file.display();
    let contents = watched::read(&[file.to_owned()]);
    match contents.map(|contents| parse(&contents[0])) {
        Ok(Ok(left_out)) => {
            let entries = left_out.into_iter().filter(|_| strict);
            entries
                .map(|entry| (setting, format!("{name}: {entry}")))
                .collect()
        }
        Ok(Err(error)) => vec![(setting, format!("{name}: {error:#}"))],
        Err(error) => vec![(setting, format!("{error:#}"))],
    }
}

/// Reads `bytes` as each file that the authenticator reads, and looks a token up in it.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(file) = KeyFile::parse(bytes, &Defaults::default()) {
        let token = String::from_utf8_lossy(bytes);
        let found = file.value.find(&token);
        assert!(found.is_none(), "a file is no token of its own");
    }
    jwt::fuzz(bytes);
}
