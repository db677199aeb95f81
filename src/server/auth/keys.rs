//! The key file: hashes of keys, whom they stand for, and what identities may do.
//!
//! ```toml
//! [[key]]
//! name = "camera-7"
//! sha256 = "…"                     # of the token
//! heads = ["objects", "team-*"]    # default: auth.heads
//! methods = ["VisionService/*"]    # default: auth.methods
//! rate = 50.0                      # calls a second; default: auth.rate
//! burst = 100
//! concurrency = 8
//! pixels = 20_000_000.0            # of images a second; default: auth.pixels
//!
//! [[grant]]                        # for an identity that a token or a certificate brings
//! identity = "cert-dns:client-a.example"
//! heads = ["scene"]
//! ```

use std::{collections::HashMap, sync::Arc};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::super::identity::{Allowed, Grants, Identity, Quota};

/// What every key begins with, so that scanners for leaked secrets can know it.
const PREFIX: &str = "frl_";

/// What identities begin with that a token or a certificate brings.
const SOURCES: [&str; 4] = ["jwt:", "cert-uri:", "cert-dns:", "cert-cn:"];

/// One `[[key]]`.
#[derive(Debug, Clone, Serialize)]
pub struct KeyEntry {
    /// The identity: letters, digits, `-`, `_`, `.`. Several keys may have one name, such as while one replaces another.
    pub name: String,
    /// SHA-256 of the token, hex. A token is 256 random bits, so that a fast hash keeps it.
    pub sha256: String,
    /// What it may do.
    #[serde(flatten)]
    pub grant: Grant,
}

/// What an identity may do; what is left out is as `[auth]` says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Grant {
    /// Heads that it may use; `prefix*` stands for all that begin so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<Vec<String>>,
    /// Methods that it may call, such as `VisionService/Detect`; `prefix*` as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// Calls a second; 0 for no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Calls at once after a pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Calls under way at once; 0 for no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Pixels of images a second, as much as those of a plain JPEG cost; 0 for no bound.
    pub pixels: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct GrantEntry {
    identity: String,
    #[serde(flatten)]
    grant: Grant,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Entries {
    key: Vec<toml::Table>,
    grant: Vec<toml::Table>,
}

/// Keys that hold, and what identities may do.
#[derive(Debug)]
pub(super) struct KeyFile {
    keys: Vec<([u8; 32], Identity)>,
    grants: HashMap<String, Arc<Grants>>,
}

impl KeyFile {
    /// Reads a key file; `default` is for what an entry leaves out.
    ///
    /// # Errors
    /// The entry and the field at fault.
    pub(super) fn parse(bytes: &[u8], default: &Grants) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(bytes).context("is not UTF-8")?;
        let entries: Entries = toml::from_str(text)?;
        let mut keys: Vec<([u8; 32], Identity)> = Vec::new();
        for (index, table) in entries.key.into_iter().enumerate() {
            let (hash, identity) = key(table, default).with_context(|| format!("key[{index}]"))?;
            ensure!(
                keys.iter().all(|(other, _)| *other != hash),
                "key[{index}]: sha256: is another key's as well"
            );
            keys.push((hash, identity));
        }
        let mut grants = HashMap::new();
        for (index, table) in entries.grant.into_iter().enumerate() {
            let place = || format!("grant[{index}]");
            known(&table, &["identity"]).with_context(place)?;
            let entry: GrantEntry = table.try_into().with_context(place)?;
            let granted = entry.grant.over(default).with_context(place)?;
            ensure!(
                SOURCES.iter().any(|s| entry.identity.starts_with(s)),
                "grant[{index}]: identity: is {:?}, but must begin with one of {SOURCES:?}",
                entry.identity
            );
            let before = grants.insert(entry.identity, Arc::new(granted));
            ensure!(before.is_none(), "grant[{index}]: identity: is named twice");
        }
        Ok(Self { keys, grants })
    }

    /// Whose token this is. Takes the same time whichever it is.
    pub(super) fn find(&self, token: &str) -> Option<Identity> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = None;
        for (known, identity) in &self.keys {
            if bool::from(known.ct_eq(&hash)) {
                found = Some(identity);
            }
        }
        found.cloned()
    }

    /// What the file says of an identity that comes from elsewhere.
    pub(super) fn grant(&self, identity: &str) -> Option<Arc<Grants>> {
        self.grants.get(identity).cloned()
    }
}

fn key(table: toml::Table, default: &Grants) -> anyhow::Result<([u8; 32], Identity)> {
    known(&table, &["name", "sha256"])?;
    // `deny_unknown_fields` and `flatten` do not go together, hence the two steps.
    let text = |field: &str| match table.get(field) {
        Some(toml::Value::String(text)) => Ok(text.clone()),
        Some(_) => bail!("{field}: is not a string"),
        None => bail!("{field}: is missing"),
    };
    let (name, sha256) = (text("name")?, text("sha256")?);
    check_name(&name)?;
    let mut hash = [0; 32];
    hex::decode_to_slice(&sha256, &mut hash)
        .map_err(|_| anyhow::anyhow!("sha256: is not 64 hex digits"))?;
    let grant: Grant = table.try_into()?;
    Ok((hash, Identity::new(name, Arc::new(grant.over(default)?))))
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    ensure!(
        (1..=64).contains(&name.len()) && name.chars().all(plain),
        "name: is {name:?}, but must be 1 to 64 letters, digits, -, _ or ."
    );
    Ok(())
}

fn known(table: &toml::Table, own: &[&str]) -> anyhow::Result<()> {
    let shared = ["heads", "methods", "rate", "burst", "concurrency", "pixels"];
    let unknown = |key: &&String| !own.contains(&key.as_str()) && !shared.contains(&key.as_str());
    match table.keys().find(unknown) {
        Some(key) => bail!("{key}: is not known; known are {own:?} and {shared:?}"),
        None => Ok(()),
    }
}

impl Grant {
    /// What it says, and `default` for the rest.
    fn over(self, default: &Grants) -> anyhow::Result<Grants> {
        let list = |list: Option<Vec<String>>, default: &Allowed| {
            list.map_or_else(|| default.clone(), Allowed::from_list)
        };
        let rate = self.rate.unwrap_or(default.quota.rate);
        ensure!(
            (0.0..=1e6).contains(&rate),
            "rate: is {rate}, but must be from 0 to 1000000"
        );
        let burst = self.burst.unwrap_or(default.quota.burst);
        ensure!(burst >= 1, "burst: is 0, but must be at least 1");
        let pixels = self.pixels.unwrap_or(default.quota.pixels);
        ensure!(
            (0.0..=1e12).contains(&pixels),
            "pixels: is {pixels}, but must be from 0 to 1000000000000"
        );
        Ok(Grants {
            heads: list(self.heads, &default.heads),
            methods: list(self.methods, &default.methods),
            quota: Quota {
                rate,
                burst,
                concurrency: self.concurrency.unwrap_or(default.quota.concurrency),
                pixels,
            },
        })
    }
}

/// A new token for `name`, and its entry for the key file.
///
/// # Errors
/// A name that no identity can have, or a grant out of range.
pub fn new_token(name: &str, grant: Grant) -> anyhow::Result<(String, KeyEntry)> {
    check_name(name)?;
    grant.clone().over(&Grants::default())?;
    let mut secret = [0; 32];
    tokio_rustls::rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut secret)
        .map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    let token = format!("{PREFIX}{}", hex::encode(secret));
    let entry = KeyEntry {
        name: name.to_owned(),
        sha256: hex::encode(Sha256::digest(token.as_bytes())),
        grant,
    };
    Ok((token, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<KeyFile, String> {
        KeyFile::parse(text.as_bytes(), &Grants::default()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_new_token_is_found_by_its_entry_and_no_other_is() {
        let grant = Grant {
            heads: Some(vec!["scene".to_owned()]),
            ..Grant::default()
        };
        let (token, entry) = new_token("alice", grant).unwrap();
        let text = toml::to_string(&entry).unwrap();
        let file = parse(&format!("[[key]]\n{text}")).unwrap();
        let found = file.find(&token).unwrap();
        assert_eq!(&*found.name(), "alice");
        assert!(found.may_use("scene") && !found.may_use("objects"));
        assert!(file.find(&format!("{token}0")).is_none());
        assert!(file.find("").is_none());
        assert!(!text.contains(&token), "the file keeps the hash alone");
    }

    #[test]
    fn mistakes_are_named_by_entry_and_field() {
        let hash = "0".repeat(64);
        let cases = [
            (
                format!("[[key]]\nname = \"a\"\nsha256 = \"{hash}\"\ncolour = 1"),
                "key[0]: colour",
            ),
            (
                "[[key]]\nname = \"a\"\nsha256 = \"12\"".to_owned(),
                "key[0]: sha256",
            ),
            (
                format!("[[key]]\nname = \"a:b\"\nsha256 = \"{hash}\""),
                "key[0]: name",
            ),
            (
                format!("[[key]]\nname = \"a\"\nsha256 = \"{hash}\"\nrate = -1.0"),
                "key[0]: rate",
            ),
            (
                "[[grant]]\nidentity = \"alice\"".to_owned(),
                "grant[0]: identity",
            ),
            // Which of a certificate's names must be said.
            (
                "[[grant]]\nidentity = \"cert:alice\"".to_owned(),
                "grant[0]: identity",
            ),
            ("[[keys]]".to_owned(), "keys"),
        ];
        for (text, named) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(named), "no {named:?} in {error}");
        }
    }
}
