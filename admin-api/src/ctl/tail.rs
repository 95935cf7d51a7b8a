//! `gatewayctl tail`

use std::{
    cell::Cell,
    io::{self, Write},
    time::{Duration, Instant},
};

use clap::Args;
use seiketsu_config::values::Id;
use serde_json::Value;
use tokio::time::sleep;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell, printable},
    progress::Progress,
};
use crate::store::events::EventKind;

/// Three heartbeats of the server.
const SILENCE: Duration = Duration::from_secs(45);

const RETRY: Duration = Duration::from_millis(500);
const MOST_RETRY: Duration = Duration::from_secs(15);

/// The longest line that is kept: nothing the server sends is longer.
const MOST_LINE_BYTES: usize = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only what concerns this tenant.
    #[arg(long)]
    tenant: Option<Id>,
    /// Only these kinds.
    #[arg(long, value_enum, value_delimiter = ',')]
    kind: Vec<EventKind>,
    /// Begin after this event, as far as it is kept, instead of now.
    #[arg(long)]
    after: Option<u64>,
}

pub(super) async fn run(arguments: Arguments, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    let kinds: Vec<&str> = arguments.kind.iter().map(|kind| kind.as_str()).collect();
    let kinds = (!kinds.is_empty()).then(|| kinds.join(","));
    let mut last = arguments.after;
    let mut is_known = false;
    let mut retry = RETRY;
    loop {
        let ask = Ask::get("/events")
            .query_if("tenant", arguments.tenant.as_ref())
            .query_if("kind", kinds.as_ref())
            .query_if("after", last);
        let mut lines = Lines::default();
        let heard = Cell::new(Instant::now());
        let sent = Progress::none();
        let reading = client.read(ask, &sent, |piece| {
            heard.set(Instant::now());
            (is_known, retry) = (true, RETRY);
            lines.take(piece, |event| {
                last = event.id.or(last);
                event.data.map_or(Ok(()), |data| show(event.kind, &data, output))
            })
        });
        let ended = tokio::select! {
            ended = reading => ended,
            () = silence(&heard) => Ok(()),
        };
        let why = match ended {
            Ok(()) => "the stream ended".to_owned(),
            // It may be a server that starts again, but not one that never was there.
            Err(failure @ Failure::Client(_)) if is_known => failure.to_string(),
            Err(Failure::Problem(problem)) if is_known && problem.is_passing() => problem.to_string(),
            Err(failure) => return Err(failure),
        };
        writeln!(io::stderr(), "{}; connecting again", printable(&why))?;
        sleep(retry).await;
        retry = (retry * 2).min(MOST_RETRY);
    }
}

async fn silence(heard: &Cell<Instant>) {
    while let Some(rest) = SILENCE.checked_sub(heard.get().elapsed()) {
        sleep(rest + Duration::from_millis(1)).await;
    }
}

fn show(kind: &str, data: &str, output: &Output) -> Result<(), Failure> {
    let event: Value = serde_json::from_str(data)?;
    if kind == "missed" {
        let (after, next) = (&event["after"], &event["next"]);
        writeln!(io::stderr(), "events after {after} and before {next} are not kept any more")?;
        return Ok(());
    }
    output.line(&event, |event| {
        let detail = event["detail"].as_object().into_iter().flatten();
        let detail: Vec<String> = detail
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| format!("{name}={}", cell(value)))
            .collect();
        let at = cell(&event["at"]);
        format!("{at}  {:<18}  {}  {}", cell(&event["kind"]), cell(&event["tenants"]), detail.join(" "))
    })
}

/// One event of the stream (HTML, section 9.2.6).
#[derive(Debug, PartialEq, Eq)]
struct Sent<'a> {
    id: Option<u64>,
    kind: &'a str,
    /// None: it tells only where to go on.
    data: Option<String>,
}

/// Lines in the making.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
    id: Option<u64>,
    kind: String,
    data: Option<String>,
}

impl Lines {
    fn take(&mut self, piece: &[u8], mut give: impl FnMut(Sent<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            if self.rest.len() > MOST_LINE_BYTES {
                return Err(Failure::Output(io::Error::other("a line of the stream does not end")));
            }
            if !part.ends_with(b"\n") {
                continue;
            }
            let line =
                String::from_utf8_lossy(&std::mem::take(&mut self.rest)).trim_end_matches(['\r', '\n']).to_owned();
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "id" => self.id = value.parse().ok(),
                "event" => value.clone_into(&mut self.kind),
                "data" => {
                    let data = self.data.get_or_insert_default();
                    if !data.is_empty() {
                        data.push('\n');
                    }
                    data.push_str(value);
                }
                "" if line.is_empty() => {
                    let (id, kind, data) = (self.id.take(), std::mem::take(&mut self.kind), self.data.take());
                    give(Sent { id, kind: &kind, data })?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str =
        ":\nid: 6\n\nid: 7\nevent: revision\ndata: {\"a\":\r\ndata: 1}\n\n: beat\n\nid: 8\nevent: x\ndata: {}\n\n";

    proptest! {
        #[test]
        fn the_stream_is_read_the_same_however_it_is_cut(cuts in prop::collection::vec(0..STREAM.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let (mut lines, mut read, mut from) = (Lines::default(), Vec::new(), 0);
            for to in cuts.into_iter().chain([STREAM.len()]) {
                lines.take(&STREAM.as_bytes()[from..to], |sent| {
                    read.push((sent.id, sent.kind.to_owned(), sent.data));
                    Ok(())
                }).unwrap();
                from = to;
            }
            prop_assert_eq!(read, vec![
                (Some(6), String::new(), None),
                (Some(7), "revision".to_owned(), Some("{\"a\":\n1}".to_owned())),
                (None, String::new(), None),
                (Some(8), "x".to_owned(), Some("{}".to_owned())),
            ]);
        }
    }
}
