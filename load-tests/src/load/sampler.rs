//! Looks at the gateway's process once a second while the generator runs.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::{process, report::Sample};

const EVERY: Duration = Duration::from_secs(1);
/// Counting connections reads the kernel's whole table, so it is done with each fifth sample only.
const COUNT_CONNECTIONS_EVERY: u32 = 5;

#[derive(Debug)]
pub struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Sampler {
    /// Takes a first sample at once. Without a `pid` it writes none: the gateway is on another machine.
    pub fn start(pid: Option<u32>, port: u16, file: &Path) -> anyhow::Result<Self> {
        let mut file = BufWriter::new(File::create(file).with_context(|| format!("cannot write {}", file.display()))?);
        let (stop, stopped) = mpsc::channel();
        let began = Instant::now();
        let mut take = move |count: bool| -> anyhow::Result<()> {
            let Some(pid) = pid else { return Ok(()) };
            let usage = process::usage(pid).context("the gateway's process is gone")?;
            let sample = Sample {
                seconds: began.elapsed().as_secs_f64(),
                cpu_seconds: usage.cpu.as_secs_f64(),
                resident_bytes: usage.resident_bytes,
                connections: count.then(|| process::connections_to(port)),
            };
            serde_json::to_writer(&mut file, &sample)?;
            writeln!(file)?;
            Ok(file.flush()?)
        };
        take(true)?;
        let thread = thread::spawn(move || {
            for number in 1.. {
                let due = began + EVERY * number;
                match stopped.recv_timeout(due.saturating_duration_since(Instant::now())) {
                    Err(RecvTimeoutError::Timeout) => take(number % COUNT_CONNECTIONS_EVERY == 0)?,
                    _ => break,
                }
            }
            take(false)
        });
        Ok(Self { stop, thread })
    }

    /// Takes a last sample and waits for it to be written.
    pub fn stop(self) -> anyhow::Result<()> {
        drop(self.stop);
        self.thread.join().map_err(|_| anyhow::anyhow!("the sampler panicked"))?
    }
}
