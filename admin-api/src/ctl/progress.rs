//! A bar for what takes long, on a terminal only.

use std::{
    convert::Infallible,
    io::{self, IsTerminal},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use indicatif::{ProgressBar, ProgressStyle};

/// Sending one piece of this size after the other shows how far it is.
const PIECE_BYTES: usize = 64 << 10;

#[derive(Debug, Clone)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn none() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Of so many bytes; of an unknown number, if none.
    pub(super) fn new(doing: &'static str, bytes: Option<usize>) -> Self {
        if !io::stderr().is_terminal() {
            return Self::none();
        }
        let (bar, style) = match bytes {
            Some(bytes) => (ProgressBar::new(bytes as u64), "{msg} [{bar:40}] {bytes}/{total_bytes} {elapsed}"),
            None => (ProgressBar::no_length(), "{spinner} {msg} {bytes} {elapsed}"),
        };
        bar.set_message(doing);
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Of so many things.
    pub(super) fn of(doing: &'static str, number: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self::none();
        }
        let bar = ProgressBar::new(number);
        bar.set_message(doing);
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// So many of them are done, of so many.
    pub(super) fn reach(&self, done: u64, of: u64) {
        self.0.set_length(of);
        self.0.set_position(done);
    }

    pub(super) fn add(&self, bytes: usize) {
        self.0.inc(bytes as u64);
        if self.0.length() == Some(self.0.position()) {
            self.0.set_message("the control plane checks it, and writes");
        }
    }

    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}

/// A body that is counted while it is sent.
#[derive(Debug)]
pub(super) struct Counted {
    left: Bytes,
    progress: Progress,
}

impl Counted {
    pub(super) fn new(body: Bytes, progress: Progress) -> Self {
        Self { left: body, progress }
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.left.is_empty() {
            return Poll::Ready(None);
        }
        let piece = this.left.split_to(this.left.len().min(PIECE_BYTES));
        this.progress.add(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}
