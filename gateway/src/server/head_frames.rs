//! The deadline of a header block in HTTP/2.
//!
//! A request's head is a HEADERS frame and the CONTINUATION frames behind it (RFC 9113 §4.3). The library tells
//! nothing of one that is not whole, and meanwhile nothing else can come on the connection. So the frames are
//! followed here, by their first nine bytes.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::http2::PREFACE;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// Length, kind, flags and stream (RFC 9113 §4.1).
const FRAME_HEAD: usize = 9;

/// Follows the frames that a client sends.
pub(super) struct HeadFrames {
    head: [u8; FRAME_HEAD],
    /// How much of `head` has come.
    known: usize,
    /// Bytes that are left of the present frame's content.
    left: usize,
    /// A block has begun and not ended.
    open: bool,
    /// It ends with the present frame.
    ends: bool,
    since: Option<Instant>,
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    overdue: Arc<AtomicBool>,
}

impl HeadFrames {
    /// From the preface on. A block must be whole after `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            head: [0; FRAME_HEAD],
            known: 0,
            left: PREFACE.len(),
            open: false,
            ends: false,
            since: None,
            limit,
            timer: None,
            overdue: Arc::default(),
        }
    }

    /// Whether it came to that.
    pub(super) fn overdue(&self) -> Arc<AtomicBool> {
        self.overdue.clone()
    }

    /// These bytes have come.
    pub(super) fn received(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                self.left -= taken;
                bytes = &bytes[taken..];
            } else {
                let taken = (FRAME_HEAD - self.known).min(bytes.len());
                self.head[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
                self.known += taken;
                bytes = &bytes[taken..];
                if self.known < FRAME_HEAD {
                    break;
                }
                self.frame_begins();
            }
            if self.left == 0 && self.ends {
                (self.open, self.ends, self.since) = (false, false, None);
            }
        }
        if self.open && self.since.is_none() {
            self.since = Some(Instant::now());
        }
    }

    fn frame_begins(&mut self) {
        self.known = 0;
        let [high, middle, low, kind, flags, ..] = self.head;
        self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.open |= kind == HEADERS;
        self.ends = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0;
    }

    /// Ready once a block has not come in time. Polled when nothing more has come.
    pub(super) fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(since) = self.since else { return Poll::Pending };
        let due = since + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        let overdue = timer.as_mut().poll(cx);
        if overdue.is_ready() {
            self.overdue.store(true, Ordering::Relaxed);
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let length_bytes = u32::try_from(length).unwrap_or_default().to_be_bytes();
        let mut frame = vec![length_bytes[1], length_bytes[2], length_bytes[3], kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEAD + length, 0xff);
        frame
    }

    fn is_open(pieces: &[&[u8]]) -> bool {
        let mut frames = HeadFrames::new(Duration::from_secs(1));
        frames.received(PREFACE);
        for piece in pieces {
            frames.received(piece);
        }
        frames.since.is_some()
    }

    #[test]
    fn a_block_is_open_until_its_last_byte() {
        let (settings, data) = (frame(4, 0, 18), frame(0, 1, 300));
        let whole = frame(HEADERS, END_HEADERS | 1, 40);
        let (first, last) = (frame(HEADERS, 1, 40), frame(CONTINUATION, END_HEADERS, 5));
        for (bytes, open) in [
            (vec![&settings[..], &whole, &data], false),
            (vec![&settings, &whole[..30]], true),
            (vec![&settings, &whole[..FRAME_HEAD]], true),
            (vec![&data, &first], true),
            (vec![&data, &first, &frame(CONTINUATION, 0, 0)], true),
            (vec![&data, &first, &last[..last.len() - 1]], true),
            (vec![&data, &first, &last], false),
            (vec![&data, &first, &frame(CONTINUATION, END_HEADERS, 0)], false),
            (vec![&data[..100]], false),
        ] {
            assert_eq!(is_open(&bytes), open, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(
            kinds in prop::collection::vec((0..10_u8, any::<u8>(), 0..50_usize), 0..10),
            cut in 0..600_usize,
            size in 1..20_usize,
        ) {
            let mut bytes: Vec<u8> = kinds.iter().flat_map(|(kind, flags, length)| frame(*kind, *flags, *length)).collect();
            bytes.truncate(cut);
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(is_open(&pieces), is_open(&[&bytes]));
        }
    }
}
