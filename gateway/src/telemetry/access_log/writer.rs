//! The thread that formats and writes.

use std::{
    io, mem,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use super::{Shared, line::LineFormat, output::Output, record::Decoded};
use crate::telemetry::metrics::{Counters, LogDrop};

/// Lines wait for this long at most. Waking the writer for each request would cost more than the line.
const INTERVAL: Duration = Duration::from_millis(100);
/// Lines are written in pieces of about this size.
const BATCH_BYTES: usize = 64 << 10;

pub(super) struct Writer {
    shared: Arc<Shared>,
    output: Output,
    format: LineFormat,
    dropped: Counters<LogDrop>,
    /// Changes places with the buffers that are taken, so that none is ever allocated anew.
    spare: Vec<u8>,
    batch: Vec<u8>,
    lines: u64,
    failing: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, output: Output, format: LineFormat, dropped: Counters<LogDrop>) -> Self {
        Self { shared, output, format, dropped, spare: Vec::new(), batch: Vec::new(), lines: 0, failing: false }
    }

    /// Until the log is dropped; what was handed over before is written.
    pub(super) fn run(mut self) {
        loop {
            // Read first: records handed over before the stop are still taken below.
            let stop = self.shared.stop.load(Ordering::Acquire);
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.take_all();
                if let Err(error) = self.output.reopen() {
                    tracing::error!(%error, "cannot open the access log anew; it goes on in the old file");
                }
            }
            self.take_all();
            if stop {
                return;
            }
            thread::park_timeout(INTERVAL);
        }
    }

    fn take_all(&mut self) {
        for index in 0..self.shared.shards.len() {
            mem::swap(&mut *self.shared.shards[index].0.lock(), &mut self.spare);
            let records = mem::take(&mut self.spare);
            let mut rest = &records[..];
            while let Some(record) = Decoded::take(&mut rest) {
                self.format.write(&record, &mut self.batch);
                self.lines += 1;
                if self.batch.len() >= BATCH_BYTES {
                    self.write_batch();
                }
            }
            self.spare = records;
            self.spare.clear();
        }
        self.write_batch();
    }

    fn write_batch(&mut self) {
        if self.lines == 0 {
            return;
        }
        let result = self.output.write(&self.batch);
        self.report(result);
        self.batch.clear();
        self.lines = 0;
    }

    /// Says once that writing began to fail, and once that it works again.
    fn report(&mut self, result: io::Result<()>) {
        let failed = result.is_err();
        if let Err(error) = result {
            self.dropped.add(LogDrop::WriteError, self.lines);
            if !self.failing {
                tracing::error!(%error, "cannot write the access log; lines are lost until it can be written again");
            }
        } else if self.failing {
            tracing::info!("the access log can be written again");
        }
        self.failing = failed;
    }
}
