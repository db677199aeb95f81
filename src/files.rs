//! Files that a setting names: regular ones, read whole and bounded.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

/// Opens `file`, which may have `most` bytes at the most; with the number that it has.
fn open(file: &Path, most: u64) -> io::Result<(File, usize)> {
    // Without O_NONBLOCK the open of a pipe waits for a writer; for regular files it means nothing.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(file)?;
    let metadata = opened.metadata()?;
    let wrong = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    if !metadata.is_file() {
        return wrong("is not a regular file".to_owned());
    }
    let bytes = metadata.len();
    match usize::try_from(bytes) {
        Ok(length) if bytes <= most => Ok((opened, length)),
        _ => wrong(format!("has {bytes} bytes, but the limit is {most}")),
    }
}

/// The bytes of `file`, which may have `most` at the most. A pipe or a device is not waited for.
///
/// # Errors
/// A file that cannot be opened or read, is not a regular one, or is longer.
pub(crate) fn read(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (opened, length) = open(file, most)?;
    let mut bytes = Vec::with_capacity(length);
    // What it grows by while it is read is left out.
    opened.take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// As [`read`], to be shared without a copy.
///
/// # Errors
/// As [`read`], and a file that becomes shorter meanwhile.
pub(crate) fn read_shared(file: &Path, most: u64) -> io::Result<Arc<[u8]>> {
    let (mut opened, length) = open(file, most)?;
    let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, length).collect();
    if let Some(own) = Arc::get_mut(&mut bytes) {
        opened.read_exact(own)?;
    }
    Ok(bytes)
}

/// As [`read`], as text.
///
/// # Errors
/// As [`read`], and bytes that are not UTF-8.
pub(crate) fn read_text(file: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(file, most)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8"))
}

/// Whether this process may make files in `folder`.
pub(crate) fn may_write(folder: &Path) -> bool {
    use rustix::fs::{Access, access};
    access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_no_regular_file_or_too_long_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "12345").unwrap();
        assert_eq!(read_text(&file, 5).unwrap(), "12345");
        assert_eq!(&*read_shared(&file, 5).unwrap(), b"12345");
        let long = read(&file, 4).unwrap_err().to_string();
        assert!(
            long.contains("5 bytes") && long.contains("limit is 4"),
            "{long}"
        );

        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        let cases = [pipe.as_path(), Path::new("/dev/zero"), folder.path()];
        for odd in cases {
            let error = read(odd, 1 << 20).unwrap_err().to_string();
            assert!(error.contains("regular"), "{}: {error}", odd.display());
        }
        fs::write(&file, [0xff]).unwrap();
        assert!(read_text(&file, 5).is_err());
    }
}
