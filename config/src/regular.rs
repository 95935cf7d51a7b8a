//! Reading files that somebody else put there.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// Opens a regular file for reading; a pipe, a socket, a device or a folder is an error that says so, at once.
pub fn open(path: &Path) -> io::Result<File> {
    // Opening a pipe would else wait for somebody to write into it, for ever if need be.
    let at_once = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(at_once).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file; put one in its place, or remove it"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_a_regular_file_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "").unwrap();
        open(&path).unwrap();
        for path in [folder.path(), Path::new("/dev/null")] {
            assert!(open(path).unwrap_err().to_string().contains("not a regular file"), "{}", path.display());
        }
    }
}
