//! Who may read the admin port's metrics and its log's filter, where that is not everybody who reaches it.

use std::{path::Path, sync::Arc};

use anyhow::{bail, ensure};
use http::{HeaderMap, header};
use sha2::{Digest, Sha256};

use super::watched::{self, Made, Source, Watched};
use crate::metrics::Metrics;

/// Shortest token, bytes: what is shorter can be tried out.
const LEAST: usize = 16;
/// Most of them: a new one beside the old one while both are in use.
const MOST: usize = 16;

/// Hashes of tokens, so that to compare them tells nothing of them.
type Hashes = Vec<[u8; 32]>;

/// The tokens of a file, one a line, read again when it changes.
#[derive(Debug)]
pub struct AdminTokens(Watched<Hashes>);

impl AdminTokens {
    /// Reads `file`. Needs a tokio runtime.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no tokens.
    pub fn read(file: &Path, metrics: &Arc<Metrics>) -> anyhow::Result<Self> {
        let source = Source {
            what: "admin_tokens",
            files: vec![file.to_owned()],
            metrics: Arc::clone(metrics),
        };
        Watched::new(source, |contents| Ok(Made::whole(make(&contents[0])?))).map(Self)
    }

    /// Whether these headers bring one of them.
    pub(super) fn admit(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else {
            return false;
        };
        let Some((scheme, token)) = value.to_str().ok().and_then(|text| text.split_once(' '))
        else {
            return false;
        };
        let hash: [u8; 32] = Sha256::digest(token.trim().as_bytes()).into();
        scheme.eq_ignore_ascii_case("bearer") && self.0.get().contains(&hash)
    }
}

/// Whether `file` can be used.
///
/// # Errors
/// As [`AdminTokens::read`].
pub fn check_admin_tokens(file: &Path) -> anyhow::Result<()> {
    let read = watched::read(&[file.to_owned()])?;
    make(&read[0]).map(drop)
}

fn make(content: &[u8]) -> anyhow::Result<Hashes> {
    let text = std::str::from_utf8(content);
    let Ok(text) = text else {
        bail!("is no text: it must hold tokens, one a line");
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let tokens: Vec<_> = lines.collect();
    ensure!(!tokens.is_empty(), "holds no token");
    ensure!(tokens.len() <= MOST, "holds more than {MOST} tokens");
    for (line, token) in tokens.iter().enumerate() {
        let graphic = token.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(
            graphic && token.len() >= LEAST,
            "token {} is none: it must have at least {LEAST} letters, digits and signs",
            line + 1
        );
    }
    let hash = |token: &&str| Sha256::digest(token.as_bytes()).into();
    Ok(tokens.iter().map(hash).collect())
}
