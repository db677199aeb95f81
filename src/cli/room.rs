//! Whether the memory that the settings allow the server is there.

use std::{fs, io, path::Path};

use crate::{config::Config, metrics};

const MIB: f64 = (1 << 20) as f64;

/// Folders below the repository's that are looked into: `heads`, and a head's own.
const DEPTH: usize = 2;

/// Prints the most memory that the server takes, by what for, and what there is.
pub(super) fn tell(config: &Config) -> io::Result<()> {
    let worst = config.worst_case(model_bytes(config));
    say!();
    say!("Most memory in MiB, whatever callers send:");
    for (what, setting, bytes) in &worst.parts {
        say!("{:>10.1}  {what:35}  {setting}", *bytes as f64 / MIB);
    }
    let there = metrics::memory_limit();
    let there = there.map_or_else(String::new, |bytes| {
        format!("  of {:.1} that there are", bytes as f64 / MIB)
    });
    say!("{:>10.1}  in all{there}", worst.total() as f64 / MIB);
    Ok(())
}

/// Refuses settings that allow the server more memory than there is.
///
/// # Errors
/// How much each of the largest parts takes, and the setting that bounds it.
pub(super) fn check(config: &Config) -> Result<(), String> {
    let worst = config.worst_case(model_bytes(config));
    let (total, Some(there)) = (worst.total(), metrics::memory_limit()) else {
        return Ok(());
    };
    if total <= there || config.limits.overcommit {
        return Ok(());
    }
    let mut parts = worst.parts;
    parts.retain(|(_, setting, _)| !setting.is_empty());
    parts.sort_by_key(|(.., bytes)| std::cmp::Reverse(*bytes));
    let largest: Vec<_> = parts
        .iter()
        .take(4)
        .map(|(_, setting, bytes)| format!("{setting} {:.0} MiB", *bytes as f64 / MIB))
        .collect();
    let detail = format!(
        "allow callers to make the server take {:.0} MiB, and the control group or machine has {:.0}: lower the largest ({}; \
         `frostline config` lists all), give it more memory, or set limits.overcommit",
        total as f64 / MIB,
        there as f64 / MIB,
        largest.join(", ")
    );
    Err(detail)
}

/// Bytes of the files of the repository; those that cannot be read are told elsewhere.
fn model_bytes(config: &Config) -> u64 {
    let folder = config.repository.path.as_deref();
    folder.map_or(0, |folder| bytes_in(folder, DEPTH))
}

fn bytes_in(folder: &Path, depth: usize) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match fs::metadata(entry.path()) {
        Ok(file) if file.is_file() => file.len(),
        Ok(file) if file.is_dir() && depth > 0 => bytes_in(&entry.path(), depth - 1),
        _ => 0,
    });
    bytes.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_repository_are_counted_and_settings_without_room_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let head = folder.path().join("heads/objects");
        fs::create_dir_all(&head).unwrap();
        fs::write(folder.path().join("backbone.onnx"), [0; 1000]).unwrap();
        fs::write(head.join("head.onnx"), [0; 234]).unwrap();
        let mut config = Config::default();
        config.repository.path = Some(folder.path().to_owned());
        assert_eq!(model_bytes(&config), 1234);
        config.limits.transport_bytes = 1 << 50;
        let refused = check(&config).unwrap_err();
        assert!(
            refused.contains("limits.transport_bytes 1073741824 MiB"),
            "{refused}"
        );
        config.limits.overcommit = true;
        assert!(check(&config).is_ok());
    }
}
