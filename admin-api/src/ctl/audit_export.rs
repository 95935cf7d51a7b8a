//! The whole audit trail, however often the answer breaks off.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::sleep;

use super::{
    client::{Ask, Client},
    failure::Failure,
    output::printable,
    progress::Progress,
    transfer::Take,
};

/// Tries one after the other that bring no more than the few entries which tell of the tries themselves.
const MOST_TRIES: u32 = 5;
const FEW: u64 = 10;

const PAUSE: Duration = Duration::from_secs(1);

/// Goes on behind the last entry that has come, until the end has.
pub(super) async fn export(client: &Client, take: &mut Take<'_>) -> Result<(), Failure> {
    let mut lines = Lines::default();
    let mut tries = 0;
    loop {
        let before = lines.last;
        let ask = Ask::get("/audit/export").query_if("after", Some(before).filter(|last| *last > 0));
        let read = client.read(ask, &Progress::none(), |piece| lines.take(piece, take)).await;
        let failure = match read {
            Ok(()) if lines.are_complete => return Ok(()),
            Ok(()) => Failure::BrokenOff,
            Err(failure @ Failure::Client(_)) => failure,
            Err(Failure::Problem(problem)) if problem.is_passing() => Failure::Problem(problem),
            Err(failure) => return Err(failure),
        };
        tries = if lines.last > before + FEW { 0 } else { tries + 1 };
        // Of a server that never was there, nothing has come.
        if lines.last == 0 || tries >= MOST_TRIES {
            return Err(failure);
        }
        writeln!(io::stderr(), "{}; going on behind entry {}", printable(&failure.to_string()), lines.last)?;
        lines.rest.clear();
        sleep(PAUSE).await;
    }
}

/// What has come, line by line: what breaks off in the middle of one is sent again.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
    /// The number of the last entry.
    last: u64,
    /// Whether that tells of an export.
    is_export: bool,
    /// Whether the end has come: the entry of an export, and its seal.
    are_complete: bool,
}

/// What there is to be known of a line.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    number: u64,
    action: String,
    seal: Option<SealLine>,
}

#[derive(Debug, Deserialize)]
struct SealLine {
    number: u64,
}

impl Lines {
    fn take(&mut self, piece: &[u8], take: &mut Take<'_>) -> Result<(), Failure> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.learn();
                take(&self.rest)?;
                self.rest.clear();
            }
        }
        Ok(())
    }

    /// One that cannot be read stays what it is: whoever verifies the trail is told.
    fn learn(&mut self) {
        let Ok(line) = serde_json::from_slice::<Line>(&self.rest) else { return };
        match line.seal {
            Some(seal) => self.are_complete = self.is_export && seal.number == self.last,
            None => {
                (self.last, self.is_export, self.are_complete) = (line.number, line.action == "export_audit", false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_export_is_complete_with_the_sealed_entry_that_tells_of_it() {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        let mut give = |text: &str, lines: &mut Lines| {
            let mut take = |piece: &[u8]| {
                out.extend_from_slice(piece);
                Ok(())
            };
            lines.take(text.as_bytes(), &mut take).unwrap();
            (lines.last, lines.are_complete)
        };
        let entry = |number: u64, action: &str| format!("{{\"number\":{number},\"action\":\"{action}\"}}\n");
        let seal = |number: u64| format!("{{\"seal\":{{\"number\":{number}}}}}\n");
        assert_eq!(give(&entry(1, "put_tenant"), &mut lines), (1, false));
        assert_eq!(give(&seal(1), &mut lines), (1, false));
        assert_eq!(give(&entry(2, "export_audit"), &mut lines), (2, false));
        assert_eq!(give(&entry(3, "export_audit"), &mut lines), (3, false));
        assert_eq!(give("{\"seal\":{\"num", &mut lines), (3, false));
        lines.rest.clear();
        assert_eq!(give(&seal(2), &mut lines), (3, false));
        assert_eq!(give(&seal(3), &mut lines), (3, true));
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.lines().count(), 6, "{out}");
    }
}
