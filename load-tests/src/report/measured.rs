//! What a run measured, read from its folder.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{REQUESTS, RUN, Run, SAMPLES, SUMMARY, Sample};

#[derive(Debug)]
pub struct Measured {
    pub run: Run,
    /// Of all answered requests, in milliseconds, ascending.
    pub latencies: Vec<f64>,
    /// One entry for each second of the run.
    pub seconds: Vec<Second>,
    /// Requests that got no answer, by reason.
    pub failures: BTreeMap<String, u64>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// How late the generator started its requests, in milliseconds, ascending.
    pub slips: Vec<f64>,
    pub samples: Vec<Sample>,
}

/// One second of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Second {
    /// Answers that came in this second.
    pub answered: u64,
    /// Of them, those with a status of 400 or more.
    pub refused: u64,
    /// Requests that were due in this second and were answered at some time.
    pub due: u64,
    /// Their latencies in milliseconds.
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// One answered request; times in seconds since the generator began.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Answered {
    due: f64,
    end: f64,
    status: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    error_distribution: BTreeMap<String, u64>,
}

impl Measured {
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let summary: Summary = read_json(&folder.join(SUMMARY))?;
        let requests = read(&folder.join(REQUESTS))?;
        let samples = read(&folder.join(SAMPLES))?;
        Self::from_parts(
            read_json(&folder.join(RUN))?,
            &parse_requests(&requests).with_context(|| format!("{REQUESTS} is damaged"))?,
            summary.error_distribution,
            samples
                .lines()
                .map(serde_json::from_str)
                .collect::<Result<_, _>>()
                .with_context(|| format!("{SAMPLES} is damaged"))?,
        )
    }

    fn from_parts(
        run: Run,
        requests: &[Answered],
        failures: BTreeMap<String, u64>,
        samples: Vec<Sample>,
    ) -> anyhow::Result<Self> {
        if requests.is_empty() && failures.is_empty() {
            bail!("the generator sent no request at all");
        }
        let mut statuses = BTreeMap::new();
        for request in requests {
            *statuses.entry(request.status).or_default() += 1;
        }
        Ok(Self {
            latencies: sorted(requests.iter().map(latency_ms)),
            seconds: by_second(requests, run.duration_seconds),
            slips: slips(requests, run.rate),
            run,
            failures,
            statuses,
            samples,
        })
    }

    pub fn answered(&self) -> u64 {
        self.latencies.len() as u64
    }

    /// Requests without an answer, and answers with a status of 400 or more.
    pub fn errors(&self) -> u64 {
        let refused: u64 = self.statuses.range(400..).map(|(_, count)| count).sum();
        self.failures.values().sum::<u64>() + refused
    }

    pub fn requests(&self) -> u64 {
        self.answered() + self.failures.values().sum::<u64>()
    }
}

/// The value that this share of an ascending list does not exceed; 0 of an empty one.
pub fn quantile(ascending: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let rank = (share * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.max(1) - 1).or(ascending.last()).copied().unwrap_or_default()
}

fn latency_ms(request: &Answered) -> f64 {
    (request.end - request.due) * 1000.0
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// What comes after the last second of the run counts into it.
fn by_second(requests: &[Answered], duration_seconds: u64) -> Vec<Second> {
    let last = usize::try_from(duration_seconds).unwrap_or(usize::MAX).max(1) - 1;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole seconds of a short run")]
    let second = |time: f64| (time.max(0.0) as usize).min(last);
    let mut seconds = vec![Second::default(); last + 1];
    let mut latencies = vec![Vec::new(); last + 1];
    for request in requests {
        latencies[second(request.due)].push(latency_ms(request));
        let ended = &mut seconds[second(request.end)];
        ended.answered += 1;
        ended.refused += u64::from(request.status >= 400);
    }
    for (second, latencies) in seconds.iter_mut().zip(latencies) {
        let latencies = sorted(latencies.into_iter());
        second.due = latencies.len() as u64;
        second.p50 = quantile(&latencies, 0.5);
        second.p99 = quantile(&latencies, 0.99);
        second.max = quantile(&latencies, 1.0);
    }
    seconds
}

/// The n-th request is due n / rate seconds after the first.
fn slips(requests: &[Answered], rate: f64) -> Vec<f64> {
    let due = sorted(requests.iter().map(|request| request.due));
    let first = due.first().copied().unwrap_or_default();
    sorted(due.iter().enumerate().map(|(n, due)| ((due - first - n as f64 / rate) * 1000.0).max(0.0)))
}

/// Lines of `due,end,status`, seconds since the generator began.
fn parse_requests(csv: &str) -> anyhow::Result<Vec<Answered>> {
    let parse = |line: &str| {
        let mut fields = line.split(',');
        let mut field = || fields.next().context("a field is missing");
        anyhow::Ok(Answered { due: field()?.parse()?, end: field()?.parse()?, status: field()?.trim_end().parse()? })
    };
    csv.lines().enumerate().map(|(n, line)| parse(line).with_context(|| format!("line {}: {line:?}", n + 1))).collect()
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    serde_json::from_str(&read(path)?).with_context(|| format!("{} is damaged", path.display()))
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// A thousand requests in two seconds, each answered after as many tenths of a millisecond as its number.
    pub(in crate::report) fn example() -> Measured {
        let requests: Vec<_> = (0..1000)
            .map(|n| {
                let due = f64::from(n) / 500.0;
                Answered { due, end: due + f64::from(n) / 10_000.0, status: if n == 999 { 503 } else { 200 } }
            })
            .collect();
        let run = Run {
            target: "http://127.0.0.1:8080/v1/bytes/1024".to_owned(),
            host: "umbrella.localhost".to_owned(),
            connections: 100,
            rate: 500.0,
            duration_seconds: 2,
            began: "2026-01-01T00:00:00Z".to_owned(),
            generator: "oha 1.16.0".to_owned(),
            machine: "2 cores".to_owned(),
            file_limit: 20_000,
        };
        let sample = |seconds, cpu_seconds, resident_bytes, connections| Sample {
            seconds,
            cpu_seconds,
            resident_bytes,
            connections,
        };
        let samples = vec![
            sample(-0.1, 1.0, 10 << 20, Some(0)),
            sample(1.0, 1.02, 11 << 20, Some(100)),
            sample(2.0, 1.05, 11 << 20, None),
        ];
        Measured::from_parts(run, &requests, BTreeMap::from([("timeout".to_owned(), 1)]), samples).unwrap()
    }

    #[test]
    fn errors_are_bad_statuses_and_missing_answers() {
        let measured = example();
        assert_eq!((measured.answered(), measured.requests(), measured.errors()), (1000, 1001, 2));
    }

    #[test]
    fn latency_belongs_to_the_second_a_request_was_due_and_throughput_to_the_one_it_was_answered() {
        let measured = example();
        let [first, second] = measured.seconds.as_slice() else { panic!("{:?}", measured.seconds) };
        assert_eq!((first.due, second.due), (500, 500));
        // Each is answered a twentieth later than it is due, and the last after the end.
        assert_eq!((first.answered, second.answered), (477, 523));
        assert!(first.max < second.p50);
        assert_eq!((first.refused, second.refused), (0, 1));
    }

    #[test]
    fn a_generator_that_keeps_its_schedule_has_no_slip() {
        assert!(example().slips.last().unwrap() < &0.001);
        let late = [0.0, 0.010, 0.025].map(|due| Answered { due, end: 1.0, status: 200 });
        assert!((slips(&late, 100.0).last().unwrap() - 5.0).abs() < 1e-6);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let error = parse_requests("0.1,0.2,200\n0.1,x,200\n").unwrap_err();
        assert_eq!(error.to_string(), "line 2: \"0.1,x,200\"");
    }

    proptest! {
        #[test]
        fn a_quantile_is_exceeded_by_no_more_than_the_rest(values in prop::collection::vec(0.0..1e6_f64, 1..300), share in 0.0..1.0_f64) {
            let ascending = sorted(values.into_iter());
            let value = quantile(&ascending, share);
            let above = ascending.iter().filter(|other| **other > value).count() as f64;
            prop_assert!(above <= (1.0 - share) * ascending.len() as f64 + 1e-9);
            let below = ascending.iter().filter(|other| **other < value).count() as f64;
            prop_assert!(below <= share * ascending.len() as f64 + 1e-9);
        }
    }
}
