//! Authorization: who calls, by a key, a JSON Web Token or a certificate, and what that allows.
//!
//! Identities are told apart by where they come from: `name` for a key of the key file, `jwt:subject` for a token,
//! `cert-uri:name`, `cert-dns:name` or `cert-cn:name` for a certificate. A call that brings a token is its token's, whatever its connection's certificate.

mod jwks;
mod jwt;
mod keys;

use std::sync::Arc;

use http::{HeaderMap, header::AUTHORIZATION};

use super::{
    AuthConfig, CertificateName,
    identity::{Allowed, Grants, Identity, Quota},
    tls::Names,
    watched::Watched,
};
use crate::error::{Error, Kind, Result};
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
    default: Arc<Grants>,
}

impl Authenticator {
    /// Reads the files that `config` names, and watches them.
    ///
    /// # Errors
    /// The file at fault and why.
    pub(super) fn new(config: &AuthConfig) -> anyhow::Result<Self> {
        let default = Arc::new(Grants {
            heads: Allowed::from_list(config.heads.iter().cloned()),
            methods: Allowed::from_list(config.methods.iter().cloned()),
            quota: Quota {
                rate: config.rate,
                burst: config.burst,
                concurrency: config.concurrency,
                pixels: config.pixels,
            },
        });
        let fallback = Arc::clone(&default);
        let keys = config.keys.as_ref().map(|file| {
            let name = file.display().to_string();
            Watched::new(vec![file.clone()], move |contents| {
                KeyFile::parse(&contents[0], &fallback).map_err(|e| e.context(name.clone()))
            })
        });
        Ok(Self {
            keys: keys.transpose()?,
            tokens: config
                .jwks
                .as_ref()
                .map(|file| jwt::Tokens::new(file, config))
                .transpose()?,
            certificates: match config.certificates {
                true => config.certificate_names.clone(),
                false => Vec::new(),
            },
            open: Allowed::from_list(config.open_methods.iter().cloned()),
            default,
        })
    }

    /// Who makes a call of `method` (`Service/Method`) with `headers` on a connection whose certificate has the names
    /// `certificate`. An open method may be called by anybody; such a caller may use no head.
    ///
    /// # Errors
    /// `Unauthenticated` without an identity that holds, `PermissionDenied` for a method that it may not call.
    pub(super) fn identify(
        &self,
        method: &str,
        headers: &HeaderMap,
        certificate: Option<&Names>,
    ) -> Result<Identity> {
        let open = self.open.holds(method);
        let identity = match self.caller(headers, certificate) {
            Ok(identity) => identity,
            Err(_) if open => return Ok(Identity::nobody()),
            Err(error) => return Err(error),
        };
        if !open && !identity.may_call(method) {
            let shown: String = method.chars().take(100).collect();
            let message = format!("{:?} may not call {shown}", &*identity.name());
            return Err(Error::new(Kind::PermissionDenied, message));
        }
        Ok(identity)
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

/// Reads `bytes` as each file that the authenticator reads, and looks a token up in it.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8], default: &Grants) {
    if let Ok(file) = KeyFile::parse(bytes, default) {
        let token = String::from_utf8_lossy(bytes);
        assert!(file.find(&token).is_none(), "a file is no token of its own");
    }
    jwt::fuzz(bytes);
}
