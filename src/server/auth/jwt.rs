//! JSON Web Tokens, checked against a file of public keys.

use std::{collections::HashMap, path::Path, sync::Arc};

use anyhow::Context;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header, errors::ErrorKind, jwk::Jwk,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::{
    AuthConfig,
    identity::{Allowed, Grants},
    watched::{Made, Source, Watched},
};
use super::jwks;
use crate::metrics::Metrics;

/// Checks tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    keys: Watched<Keys>,
    issuer: String,
    audience: String,
    leeway: u64,
    heads_claim: String,
    methods_claim: String,
}

struct Key {
    id: Option<String>,
    /// What it signs with: what the key set says, or all that such a key can.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl Key {
    /// A key as the set has it; `None` for one that is not for signatures.
    fn parse(written: Map<String, Value>) -> anyhow::Result<Option<Self>> {
        let Some(algorithms) = jwks::algorithms(&written)? else {
            return Ok(None);
        };
        let jwk: Jwk = serde_json::from_value(Value::Object(written))?;
        Ok(Some(Self {
            key: DecodingKey::from_jwk(&jwk)?,
            id: jwk.common.key_id,
            algorithms,
        }))
    }
}

struct Keys(Vec<Key>);

/// Whom a token stands for.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) subject: String,
    heads: Option<Allowed>,
    methods: Option<Allowed>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(flatten)]
    rest: HashMap<String, Value>,
}

impl Tokens {
    /// Reads the key set `file`, and watches it.
    ///
    /// # Errors
    /// The file, if it is not a JSON Web Key Set with a public key that signs.
    pub(super) fn new(
        file: &Path,
        config: &AuthConfig,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let name = file.display().to_string();
        let source = Source {
            what: "jwks",
            files: vec![file.to_owned()],
            metrics: Arc::clone(metrics),
        };
        let keys = Watched::new(source, move |contents| {
            Keys::parse(&contents[0]).with_context(|| name.clone())
        })?;
        Ok(Self {
            keys,
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            leeway: config.leeway.as_secs(),
            heads_claim: config.heads_claim.clone(),
            methods_claim: config.methods_claim.clone(),
        })
    }

    /// Whom `token` stands for, or why it does not hold.
    pub(super) fn verify(&self, token: &str) -> Result<Holder, &'static str> {
        let header = decode_header(token).map_err(|_| "the token is not well formed")?;
        // RFC 7515, 4.1.11: what must be understood and is not makes the token void. Nothing of the kind is known here.
        if header.crit.is_some() || header.extras.inner().contains_key("b64") {
            return Err("the token's header has crit or b64, which is not known here");
        }
        let keys = self.keys.get();
        let fits = |key: &&Key| {
            let named = header.kid.is_none() || header.kid == key.id;
            named && key.algorithms.contains(&header.alg)
        };
        let mut reason = "no known key has signed the token";
        for key in keys.0.iter().filter(fits) {
            let mut validation = Validation::new(header.alg);
            validation.leeway = self.leeway;
            validation.validate_nbf = true;
            validation.set_issuer(&[&self.issuer]);
            validation.set_audience(&[&self.audience]);
            validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
            match decode::<Claims>(token, &key.key, &validation) {
                Ok(data) => return self.holder(data.claims),
                Err(error) => match error.kind() {
                    // Another key of the set may have signed it.
                    ErrorKind::InvalidSignature => {}
                    ErrorKind::ExpiredSignature => reason = "the token has expired",
                    ErrorKind::ImmatureSignature => reason = "the token does not hold yet",
                    ErrorKind::InvalidIssuer => reason = "the token is another issuer's",
                    ErrorKind::InvalidAudience => reason = "the token is for another audience",
                    ErrorKind::MissingRequiredClaim(_) => {
                        reason = "the token lacks one of exp, iss, aud and sub";
                    }
                    _ => reason = "the token is not well formed",
                },
            }
        }
        Err(reason)
    }

    fn holder(&self, claims: Claims) -> Result<Holder, &'static str> {
        if claims.sub.is_empty() || claims.sub.len() > 256 {
            return Err("the token's subject is empty or too long");
        }
        // RFC 7519, 4.1.1: one issuer, and not a list that names the right one among others.
        if !claims.rest.get("iss").is_some_and(Value::is_string) {
            return Err("the token's issuer is not a string");
        }
        let names = |claim: &str| match claims.rest.get(claim) {
            None => Ok(None),
            Some(value) => names(value)
                .map(Some)
                .ok_or("a claim is not a list of names"),
        };
        Ok(Holder {
            heads: names(&self.heads_claim)?,
            methods: names(&self.methods_claim)?,
            subject: claims.sub,
        })
    }
}

/// Names in a claim: a list, or words in one string as in OAuth's `scope`.
fn names(value: &Value) -> Option<Allowed> {
    let names: Option<Vec<String>> = match value {
        Value::String(text) => Some(text.split_whitespace().map(str::to_owned).collect()),
        Value::Array(list) => list
            .iter()
            .map(|name| name.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    };
    names.map(Allowed::from_list)
}

impl Holder {
    /// What `grant` gives, and of that no more than the token says that it is good for.
    pub(super) fn narrow(self, grant: Arc<Grants>) -> Arc<Grants> {
        if self.heads.is_none() && self.methods.is_none() {
            return grant;
        }
        let mut grants = Grants::clone(&grant);
        let narrow = |granted: Allowed, claimed: Option<Allowed>| match claimed {
            Some(claimed) => granted.and(claimed),
            None => granted,
        };
        grants.heads = narrow(grants.heads, self.heads);
        grants.methods = narrow(grants.methods, self.methods);
        Arc::new(grants)
    }
}

/// A key set as it is written: what a key is good for is judged before it is made.
#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Map<String, Value>>,
}

impl Keys {
    /// The keys that signatures can be trusted to, and those that are left out.
    fn parse(bytes: &[u8]) -> anyhow::Result<Made<Self>> {
        let set: KeySet = serde_json::from_slice(bytes).context("is not a JSON Web Key Set")?;
        let (mut keys, mut left_out) = (Vec::new(), Vec::new());
        for (index, written) in set.keys.into_iter().enumerate() {
            match Key::parse(written) {
                Ok(key) => keys.extend(key),
                Err(error) => left_out.push(format!("keys[{index}]: {error:#}")),
            }
        }
        anyhow::ensure!(!keys.is_empty() || left_out.is_empty(), left_out.join("; "));
        anyhow::ensure!(!keys.is_empty(), "has no key that signs");
        Ok(Made {
            value: Self(keys),
            left_out,
        })
    }
}

/// The keys of a key set that would be left out.
///
/// # Errors
/// What is no key set, or one without a key that holds.
pub(super) fn check(bytes: &[u8]) -> anyhow::Result<Vec<String>> {
    Ok(Keys::parse(bytes)?.left_out)
}

/// Reads `bytes` as a key set and as a token.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let _ = Keys::parse(bytes);
    let _ = decode_header(bytes);
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<_> = self.0.iter().map(|key| &key.id).collect();
        f.debug_tuple("Keys").field(&ids).finish()
    }
}
