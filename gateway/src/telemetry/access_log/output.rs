//! Where lines go: standard output or a file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// An output, and how to open it anew.
pub(super) struct Output {
    sink: Box<dyn Write + Send>,
    path: Option<PathBuf>,
    /// The last write broke off within a line.
    torn: bool,
}

impl Output {
    pub(super) fn stdout() -> Self {
        Self { sink: Box::new(io::stdout()), path: None, torn: false }
    }

    /// Appends to a file, which is made if it is not there.
    pub(super) fn file(path: &Path) -> io::Result<Self> {
        Ok(Self { sink: Box::new(append(path)?), path: Some(path.to_owned()), torn: false })
    }

    #[cfg(test)]
    pub(super) fn other(sink: Box<dyn Write + Send>) -> Self {
        Self { sink, path: None, torn: false }
    }

    /// Opens the file of the same path again; standard output stays what it is.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.sink = Box::new(append(path)?);
            self.torn = false;
        }
        Ok(())
    }

    /// Writes whole lines. After a write that broke off, the next begins on a line of its own.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.torn {
            self.sink.write_all(b"\n")?;
            self.torn = false;
        }
        let result = self.sink.write_all(lines).and_then(|()| self.sink.flush());
        self.torn = result.is_err();
        result
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
