//! Decodes files for the scripts that compare with Pillow.
//!
//! Reads paths from standard input, one a line, and answers each with one line of JSON: what `probe` says, how large
//! the process became, and a digest of the pixels or the error. With a folder as argument the pixels are written
//! into it too, `N.rgb` for the Nth path.

use std::{
    env, fs,
    io::{self, BufRead, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use frostline::media::{Limits, decode, probe};
use serde_json::json;
use sha2::{Digest, Sha256};

fn main() -> io::Result<()> {
    let folder = env::args_os().nth(1).map(PathBuf::from);
    let limits = Limits::default();
    let mut out = io::stdout().lock();
    for (number, path) in io::stdin().lock().lines().enumerate() {
        let bytes = fs::read(path?)?;
        // The high-water mark starts anew (proc(5)); where that is not allowed it is the highest so far.
        let _ = fs::write("/proc/self/clear_refs", "5");
        let before = resident("VmHWM:");
        let header = match probe(&bytes, &limits) {
            Ok(header) => json!({
                "format": header.format.name(),
                "width": header.width,
                "height": header.height,
                "scans": header.scans,
            }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        let result = catch_unwind(AssertUnwindSafe(|| decode(&bytes, &limits)));
        let grown = resident("VmHWM:").saturating_sub(before);
        let mut answer = match result {
            Ok(Ok(image)) => {
                if let Some(folder) = &folder {
                    fs::write(folder.join(format!("{number}.rgb")), image.data())?;
                }
                json!({
                    "width": image.width(),
                    "height": image.height(),
                    "sha256": hex::encode(Sha256::digest(image.data())),
                })
            }
            Ok(Err(error)) => json!({ "error": error.to_string() }),
            Err(_) => json!({ "panic": true }),
        };
        answer["probe"] = header;
        answer["grown"] = grown.into();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// A line of `/proc/self/status`, in bytes.
fn resident(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or_default() << 10
}
