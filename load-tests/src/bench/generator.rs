//! wrk and h2load: how they are called, and what they say.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, bail};

use super::{
    OTHER_CORE,
    peer::{API_KEY, Running},
    scenario::Scenario,
};
use crate::{process::command, report::measured::quantile};

const CONNECTIONS: &str = "64";
const STREAMS: &str = "10";
const HANDSHAKES_PER_SECOND: u64 = 500;
/// What a browser's script would send; it brings the CORS policy into play.
const ORIGIN: &str = "Origin: https://app.example.com";

/// What a generator saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    pub requests: u64,
    pub failures: u64,
    pub requests_per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// Puts the scenario's load on the gateway for so long. More than one failure in a thousand is an error.
pub fn run(scenario: Scenario, gateway: &Running, duration: Duration, folder: &Path) -> anyhow::Result<Load> {
    let load = match scenario {
        Scenario::Plain | Scenario::Policies | Scenario::Cache1k | Scenario::Cache64k => {
            wrk(scenario, gateway, duration)?
        }
        _ => h2load(scenario, gateway, duration, &folder.join("h2load.log"))?,
    };
    if load.requests == 0 || load.failures * 1000 > load.requests {
        bail!("{} of {} requests failed", load.failures, load.requests);
    }
    Ok(load)
}

fn wrk(scenario: Scenario, gateway: &Running, duration: Duration) -> anyhow::Result<Load> {
    let mut wrk = command("wrk", Some(OTHER_CORE));
    wrk.args(["-t", "1", "-c", CONNECTIONS, "-d", &format!("{}s", duration.as_secs()), "--latency"])
        .args(["-H", &format!("Host: {}", scenario.host())]);
    if scenario == Scenario::Policies {
        wrk.args(["-H", ORIGIN, "-H", &format!("X-API-Key: {API_KEY}")]);
    }
    wrk.arg(format!("http://{}{}", gateway.address(scenario), scenario.path()));
    parse_wrk(&output(wrk)?).context("wrk printed something else than expected")
}

fn h2load(scenario: Scenario, gateway: &Running, duration: Duration, log: &Path) -> anyhow::Result<Load> {
    if log.exists() {
        fs::remove_file(log)?;
    }
    let address = gateway.address(scenario);
    let mut h2load = command("h2load", Some(OTHER_CORE));
    h2load.args(["-t", "1", "--connect-to", &address.to_string()]).arg(format!("--log-file={}", log.display()));
    match scenario {
        Scenario::TlsH2 => h2load.args(["-c", CONNECTIONS, "-m", STREAMS, "-D", &duration.as_secs().to_string()]),
        Scenario::Handshakes => {
            let all = (HANDSHAKES_PER_SECOND * duration.as_secs()).to_string();
            // One every other millisecond rather than all of a second's at its beginning.
            h2load.args(["--h1", "-c", &all, "-n", &all, "-r", "1", "--rate-period", "2ms"])
        }
        _ => h2load.args(["--h1", "-c", CONNECTIONS, "-D", &duration.as_secs().to_string()]),
    };
    h2load.arg(format!("https://{}:{}{}", scenario.host(), address.port(), scenario.path()));
    let mut load = parse_h2load(&output(h2load)?).context("h2load printed something else than expected")?;
    let latencies = parse_h2load_log(&fs::read_to_string(log).unwrap_or_default());
    (load.p50_ms, load.p99_ms) = (quantile(&latencies, 0.5), quantile(&latencies, 0.99));
    fs::remove_file(log).or_else(|error| if log.exists() { Err(error) } else { Ok(()) })?;
    Ok(load)
}

fn output(mut generator: Command) -> anyhow::Result<String> {
    let output = generator.output().context("cannot run the generator: apt-get install wrk nghttp2-client")?;
    if !output.status.success() {
        bail!("the generator ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn parse_wrk(text: &str) -> Option<Load> {
    let line = |name: &str| text.lines().map(str::trim).find_map(|line| line.strip_prefix(name)).map(str::trim);
    let bad_answers = line("Non-2xx or 3xx responses:").map_or(Some(0), |count| count.parse().ok())?;
    let socket_errors: u64 = line("Socket errors:")
        .map_or(0, |errors| errors.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum());
    Some(Load {
        requests: text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())?,
        failures: bad_answers + socket_errors,
        requests_per_second: line("Requests/sec:")?.parse().ok()?,
        p50_ms: wrk_time(line("50%")?)?,
        p99_ms: wrk_time(line("99%")?)?,
    })
}

/// `812.00us`, `1.23ms`, `2.00s`, in milliseconds.
fn wrk_time(text: &str) -> Option<f64> {
    let [(us, to_us), (ms, to_ms), (s, to_s)] = [("us", 0.001), ("ms", 1.0), ("s", 1000.0)];
    let (number, factor) = if let Some(number) = text.strip_suffix(us) {
        (number, to_us)
    } else if let Some(number) = text.strip_suffix(ms) {
        (number, to_ms)
    } else {
        (text.strip_suffix(s)?, to_s)
    };
    Some(number.parse::<f64>().ok()? * factor)
}

fn parse_h2load(text: &str) -> Option<Load> {
    let finished = text.lines().find_map(|line| line.strip_prefix("finished in "))?;
    let rate = finished.split(", ").find_map(|part| part.strip_suffix(" req/s"))?.parse().ok()?;
    let counts = text.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let count = |name: &str| counts.split(", ").find_map(|part| part.strip_suffix(name)?.trim().parse::<u64>().ok());
    Some(Load {
        requests: count(" succeeded")?,
        failures: count(" failed")?,
        requests_per_second: rate,
        ..Load::default()
    })
}

/// Lines of start, status and microseconds, set apart by tabs; in milliseconds, ascending.
fn parse_h2load_log(text: &str) -> Vec<f64> {
    let micros = text.lines().filter_map(|line| line.split('\t').nth(2)?.parse::<f64>().ok());
    let mut latencies: Vec<f64> = micros.map(|micros| micros / 1000.0).collect();
    latencies.sort_unstable_by(f64::total_cmp);
    latencies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_wrk_is_read() {
        let text = "Running 5s test @ http://127.0.0.1:8080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.63ms  320.51us  11.02ms   92.13%
    Req/Sec    39.29k     1.91k   41.37k    80.00%
  Latency Distribution
     50%  812.00us
     75%    1.65ms
     90%    1.76ms
     99%    2.64ms
  195452 requests in 5.00s, 232.41MB read
  Socket errors: connect 0, read 3, write 0, timeout 1
  Non-2xx or 3xx responses: 7
Requests/sec:  39086.77
Transfer/sec:     46.48MB
";
        let load =
            Load { requests: 195_452, failures: 11, requests_per_second: 39_086.77, p50_ms: 0.812, p99_ms: 2.64 };
        assert_eq!(parse_wrk(text), Some(load));
    }

    #[test]
    fn the_output_of_h2load_is_read() {
        let text = "starting benchmark...
finished in 5.00s, 21034.20 req/s, 21.35MB/s
requests: 105171 total, 105811 started, 105171 done, 105171 succeeded, 2 failed, 2 errored, 0 timeout
status codes: 105171 2xx, 0 3xx, 0 4xx, 0 5xx
";
        let load = Load { requests: 105_171, failures: 2, requests_per_second: 21_034.2, ..Load::default() };
        assert_eq!(parse_h2load(text), Some(load));
        assert_eq!(parse_h2load_log("1\t200\t2500\n2\t200\t500\n"), [0.5, 2.5]);
    }

    #[test]
    fn what_is_no_result_is_not_taken_for_one() {
        assert_eq!(parse_wrk("unable to connect to 127.0.0.1:1 Connection refused"), None);
        assert_eq!(parse_h2load(""), None);
    }
}
