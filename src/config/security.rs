//! The sections `[tls]` and `[auth]`.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::server::{AuthConfig, CertificateName, TlsConfig};

/// `[tls]`
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The server's certificate chain, PEM; plain text if unset. Taken over when the file changes.
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// Authorities of the clients' certificates, PEM; clients are not asked for one if unset.
    pub client_ca: Option<PathBuf>,
    /// Whether clients without a certificate are let in as well.
    pub client_optional: bool,
}

/// `[auth]`: in force once `keys`, `jwks` or `certificates` is set.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// File of hashed keys and of grants, TOML; `frostline token` makes its entries. Taken over when it changes.
    pub keys: Option<PathBuf>,
    /// File with the public keys of JSON Web Tokens (JWKS). Taken over when it changes.
    pub jwks: Option<PathBuf>,
    /// The `iss` that those tokens must have.
    pub issuer: String,
    /// The `aud` that those tokens must have.
    pub audience: String,
    /// Seconds by which clocks may differ.
    pub leeway_seconds: u64,
    /// Claim with the heads that a token is good for.
    pub heads_claim: String,
    /// Claim with the methods that a token is good for.
    pub methods_claim: String,
    /// Whether a client's certificate says who it is.
    pub certificates: bool,
    /// Which of a certificate's names that is, the first kind that it has: `uri`, `dns`, or `cn`, which name constraints
    /// of an authority do not bound.
    pub certificate_names: Vec<CertificateName>,
    /// Methods that need no identity, such as `Health/Check`; `prefix*` stands for all that begin so.
    pub open_methods: Vec<String>,
    /// Heads of identities that nothing else is said of. If unset, keys of the key file may use all heads, and what tokens
    /// and certificates bring may use those that a grant gives it.
    pub heads: Option<Vec<String>>,
    /// Methods of identities that nothing else is said of.
    pub methods: Vec<String>,
    /// Calls a second of such an identity; 0 for no bound.
    pub rate: f64,
    /// Calls that it may make at once after a pause.
    pub burst: u32,
    /// Calls under way at once of such an identity; 0 for no bound.
    pub concurrency: usize,
    /// Pixels of images a second of such an identity, as much as those of a plain JPEG cost; 0 for no bound.
    pub pixels: f64,
}

impl Default for Auth {
    fn default() -> Self {
        let auth = AuthConfig::default();
        Self {
            keys: auth.keys,
            jwks: auth.jwks,
            issuer: auth.issuer,
            audience: auth.audience,
            leeway_seconds: auth.leeway.as_secs(),
            heads_claim: auth.heads_claim,
            methods_claim: auth.methods_claim,
            certificates: auth.certificates,
            certificate_names: auth.certificate_names,
            open_methods: auth.open_methods,
            heads: auth.heads,
            methods: auth.methods,
            rate: auth.rate,
            burst: auth.burst,
            concurrency: auth.concurrency,
            pixels: auth.pixels,
        }
    }
}

impl Auth {
    /// Whether callers must say who they are.
    #[must_use]
    pub fn on(&self) -> bool {
        self.keys.is_some() || self.jwks.is_some() || self.certificates
    }

    pub(super) fn server(&self) -> Option<AuthConfig> {
        self.on().then(|| AuthConfig {
            keys: self.keys.clone(),
            jwks: self.jwks.clone(),
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            leeway: Duration::from_secs(self.leeway_seconds),
            heads_claim: self.heads_claim.clone(),
            methods_claim: self.methods_claim.clone(),
            certificates: self.certificates,
            certificate_names: self.certificate_names.clone(),
            open_methods: self.open_methods.clone(),
            heads: self.heads.clone(),
            methods: self.methods.clone(),
            rate: self.rate,
            burst: self.burst,
            concurrency: self.concurrency,
            pixels: self.pixels,
        })
    }

    pub(super) fn check(&self, tls: &Tls) -> Result<(), (&'static str, String)> {
        if self.jwks.is_some() {
            for (path, value) in [
                ("auth.issuer", &self.issuer),
                ("auth.audience", &self.audience),
            ] {
                if value.is_empty() {
                    let detail = "is empty, but auth.jwks is set: tokens for others must not hold";
                    return Err((path, detail.to_owned()));
                }
            }
        }
        if self.certificates && tls.client_ca.is_none() {
            let detail = "is true, but tls.client_ca names no authority of such certificates";
            return Err(("auth.certificates", detail.to_owned()));
        }
        if self.certificates && self.certificate_names.is_empty() {
            let detail = "is empty, but auth.certificates is set: name uri, dns or cn";
            return Err(("auth.certificate_names", detail.to_owned()));
        }
        if !(0.0..=1e6).contains(&self.rate) {
            let detail = format!("is {}, but must be from 0 to 1000000", self.rate);
            return Err(("auth.rate", detail));
        }
        if !(0.0..=1e12).contains(&self.pixels) {
            let detail = format!("is {}, but must be from 0 to 1000000000000", self.pixels);
            return Err(("auth.pixels", detail));
        }
        if self.burst == 0 {
            return Err(("auth.burst", "is 0, but must be at least 1".to_owned()));
        }
        Ok(())
    }
}

impl Tls {
    pub(super) fn server(&self) -> Option<TlsConfig> {
        Some(TlsConfig {
            cert: self.cert.clone()?,
            key: self.key.clone()?,
            client_ca: self.client_ca.clone(),
            client_optional: self.client_optional,
        })
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let missing = |path, other| Err((path, format!("is not set, but {other} is")));
        match (&self.cert, &self.key, &self.client_ca) {
            (Some(_), None, _) => missing("tls.key", "tls.cert"),
            (None, Some(_), _) => missing("tls.cert", "tls.key"),
            (None, None, Some(_)) => missing("tls.cert", "tls.client_ca"),
            _ => Ok(()),
        }
    }
}
