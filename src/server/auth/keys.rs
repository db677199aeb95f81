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

use super::{
    super::{
        identity::{Allowed, Grants, Identity, Quota},
        watched::Made,
    },
    Defaults,
};

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
#[derive(Debug, Default)]
pub(super) struct KeyFile {
    keys: Vec<([u8; 32], Identity)>,
    grants: HashMap<String, Arc<Grants>>,
    /// There is a grant of which it is not known whose it is: an identity without one may do nothing until there is not,
    /// for that grant may have been there to bound it.
    closed: bool,
}

impl KeyFile {
    /// Reads a key file; `default` is for what an entry leaves out. Entries that do not hold are left out: a key is then
    /// nobody's, and the identity of a grant may do nothing.
    ///
    /// # Errors
    /// What is no key file, or one of which nothing holds, with the entries and the fields at fault.
    pub(super) fn parse(bytes: &[u8], default: &Defaults) -> anyhow::Result<Made<Self>> {
        let text = std::str::from_utf8(bytes).context("is not UTF-8")?;
        let mut made = Made::whole(Self::default());
        let mut twice = Vec::new();
        let (mut keys, mut grants) = (0, 0);
        for piece in pieces(text) {
            let (file, left_out) = (&mut made.value, &mut made.left_out);
            let line = piece.line;
            let entries = match toml::from_str::<Entries>(piece.text) {
                Ok(entries) => entries,
                Err(error) => {
                    let place = match piece.kind {
                        "" => bail!("line {line}: {}", error.message()),
                        kind => format!("{kind}, line {line}"),
                    };
                    left_out.push(format!("{place}: {}", error.message()));
                    file.closed |= piece.kind != "key";
                    (keys, grants) = match piece.kind {
                        "key" => (keys + 1, grants),
                        _ => (keys, grants + 1),
                    };
                    continue;
                }
            };
            for table in entries.key {
                let added = file.add_key(table, &default.keys, &mut twice);
                let place = |error| format!("key[{keys}]: {error:#}");
                left_out.extend(added.err().map(place));
                keys += 1;
            }
            for table in entries.grant {
                let added = file.add_grant(table, &default.elsewhere);
                let place = |error| format!("grant[{grants}]: {error:#}");
                left_out.extend(added.err().map(place));
                grants += 1;
            }
        }
        made.value.keys.retain(|(hash, _)| !twice.contains(hash));
        let none = made.value.keys.is_empty() && made.value.grants.is_empty();
        ensure!(!none || made.left_out.is_empty(), made.left_out.join("; "));
        Ok(made)
    }

    fn add_key(
        &mut self,
        table: toml::Table,
        default: &Grants,
        twice: &mut Vec<[u8; 32]>,
    ) -> anyhow::Result<()> {
        let (hash, identity) = key(table, default)?;
        if self.keys.iter().any(|(other, _)| *other == hash) {
            // Which of them counts is not known: neither does.
            twice.push(hash);
            bail!("sha256: is another key's as well");
        }
        self.keys.push((hash, identity));
        Ok(())
    }

    fn add_grant(&mut self, table: toml::Table, default: &Grants) -> anyhow::Result<()> {
        let Some(identity) = table.get("identity").and_then(|name| name.as_str()) else {
            self.closed = true;
            bail!("identity: is missing, or is not a string");
        };
        let identity = identity.to_owned();
        let granted = grant(table, default);
        if !SOURCES.iter().any(|source| identity.starts_with(source)) {
            self.closed = true;
            bail!("identity: is {identity:?}, but must begin with one of {SOURCES:?}");
        }
        let (granted, error) = match granted {
            Ok(_) if self.grants.contains_key(&identity) => (
                Grants::none(),
                Some(anyhow::anyhow!("identity: is named twice")),
            ),
            Ok(granted) => (granted, None),
            Err(error) => (Grants::none(), Some(error)),
        };
        self.grants.insert(identity, Arc::new(granted));
        error.map_or(Ok(()), Err)
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
        let granted = self.grants.get(identity).cloned();
        granted.or_else(|| self.closed.then(|| Arc::new(Grants::none())))
    }
}

/// An entry of a key file, or what is before the first.
struct Piece<'a> {
    /// `key`, `grant`, or what else is between its brackets; empty for what is before the first.
    kind: &'a str,
    /// Its first line, counted from 1.
    line: usize,
    text: &'a str,
}

/// The whole text where it is TOML of the right form, else each entry by itself: one that cannot be read must not take the
/// others along.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let piece = |kind, line, text| Piece { kind, line, text };
    if toml::from_str::<Entries>(text).is_ok() {
        return vec![piece("", 1, text)];
    }
    let (mut pieces, mut kind, mut line, mut start) = (Vec::new(), "", 1, 0);
    let mut end = 0;
    for (index, row) in text.split_inclusive('\n').enumerate() {
        if let Some(header) = row.trim_start().strip_prefix("[[") {
            pieces.push(piece(kind, line, &text[start..end]));
            kind = header.split(']').next().unwrap_or(header).trim();
            (line, start) = (index + 1, end);
        }
        end += row.len();
    }
    pieces.push(piece(kind, line, &text[start..]));
    pieces
}

fn grant(table: toml::Table, default: &Grants) -> anyhow::Result<Grants> {
    known(&table, &["identity"])?;
    let entry: GrantEntry = table.try_into()?;
    entry.grant.over(default)
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
        let made = KeyFile::parse(text.as_bytes(), &Defaults::default());
        let made = made.map_err(|error| format!("{error:#}"))?;
        assert!(made.left_out.is_empty(), "{made:?}");
        Ok(made.value)
    }

    #[test]
    fn one_bad_entry_is_left_out_and_the_others_hold() {
        let (token, entry) = new_token("alice", Grant::default()).unwrap();
        let good = format!("[[key]]\n{}", toml::to_string(&entry).unwrap());
        let scene = "[[grant]]\nidentity = \"jwt:a\"\nheads = [\"scene\"]\n";
        let hash = "0".repeat(64);
        // What is beside the good ones, what is said of it, and whether others than `jwt:a` may do anything.
        let cases = [
            (
                format!("[[key]]\nname = \"b\"\nsha256 = \"{hash}\"\nrate = -1.0\n"),
                "key[1]: rate",
                true,
            ),
            (
                format!("[[key]]\nname = \"b\nsha256 = \"{hash}\"\n"),
                "key, line 5",
                true,
            ),
            ("[[key]]\nname = = 1\n".to_owned(), "key, line 5", true),
            (
                "[[grant]]\nidentity = \"jwt:b\"\nhead = []\n".to_owned(),
                "grant[0]: head",
                true,
            ),
            (
                "[[grant]]\nidentity = \"b\"\n".to_owned(),
                "grant[0]: identity",
                false,
            ),
            (
                "[[grant]]\nidentity = jwt:b\n".to_owned(),
                "grant, line 5",
                false,
            ),
            (
                "[[grants]]\nidentity = \"jwt:b\"\n".to_owned(),
                "grants, line 5",
                false,
            ),
        ];
        for (bad, said, open) in cases {
            let text = format!("{good}# a note\n{bad}{scene}");
            let made = KeyFile::parse(text.as_bytes(), &Defaults::default()).unwrap();
            assert_eq!(made.left_out.len(), 1, "{made:?}");
            assert!(
                made.left_out[0].starts_with(said),
                "no {said:?} in {made:?}"
            );
            let file = made.value;
            assert_eq!(&*file.find(&token).unwrap().name(), "alice");
            assert!(file.grant("jwt:a").unwrap().heads.holds("scene"));
            let nothing = |name: &str| file.grant(name).is_some_and(|g| !g.heads.holds("scene"));
            assert_eq!(nothing("jwt:c"), !open, "{said}");
            // The one that a bad grant names may do nothing, whatever others may by default.
            assert!(!bad.contains("\"jwt:b\"") || nothing("jwt:b"), "{said}");
        }
        let twice = format!("{good}{good}{scene}");
        let made = KeyFile::parse(twice.as_bytes(), &Defaults::default()).unwrap();
        assert!(made.value.find(&token).is_none(), "neither counts");
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
