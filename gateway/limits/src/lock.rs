//! The lock of a file that several processes write. The system lets it go when a process ends, however that ends.

use std::{
    fs::{File, TryLockError},
    io, thread,
    time::{Duration, Instant},
};

const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Takes the lock, on a thread that may wait. Others hold it for as long as the disk takes; one that was stopped
/// meanwhile is not waited for for ever.
///
/// # Errors
/// [`TimedOut`](io::ErrorKind::TimedOut) if another process keeps it for longer than `patience`.
pub fn take(file: &File, patience: Duration) -> io::Result<()> {
    let until = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::park_timeout(LOOK_AGAIN),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process keeps it locked"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}
