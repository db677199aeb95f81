//! Whether the files that a server will need can be used, before anything costs time.

use super::{ServerConfig, auth, tls};

/// The settings whose files cannot be used, each with the file and why. Entries that a server would leave out count where
/// `strict` is set.
#[must_use]
pub fn check_files(config: &ServerConfig, strict: bool) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    if let Some(tls) = &config.tls {
        wrong.extend(tls::check(tls));
    }
    if let Some(auth) = &config.auth {
        wrong.extend(auth::check(auth, strict));
    }
    wrong
}
