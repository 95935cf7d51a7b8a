//! Sends requests when they are due, whether or not earlier ones were answered, over connections that stay
//! open.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    time::{Instant, sleep_until, timeout},
};

use super::{Micros, micros, trace::Planned, wall};

/// A request without an answer after this has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the client knows of a request.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    pub number: u64,
    pub tenant: usize,
    pub node: usize,
    pub sent: Micros,
    pub ended: Micros,
    /// 0: there was no answer.
    pub status: u16,
    /// Sent so much later than planned.
    pub slip: Micros,
}

/// A trace that is being sent.
#[derive(Debug)]
pub struct Driving {
    task: tokio::task::JoinHandle<Vec<Answered>>,
    pub began: Micros,
    runtime: Handle,
}

type Pool = Arc<Mutex<Vec<TcpStream>>>;

/// Begins in a moment. `hosts` are those of tenants, `nodes` the addresses of gateways; requests are numbered
/// from `first` on.
pub fn start(
    planned: Vec<Planned>,
    hosts: Arc<Vec<String>>,
    nodes: &[SocketAddr],
    first: u64,
    runtime: &Handle,
) -> Driving {
    let pools: Vec<(SocketAddr, Pool)> = nodes.iter().map(|address| (*address, Pool::default())).collect();
    let ahead = Duration::from_millis(100);
    let began = wall() + micros(ahead);
    let begin = Instant::now() + ahead;
    let task = runtime.spawn(async move {
        let mut sent = Vec::with_capacity(planned.len());
        for (number, Planned { at, tenant, node }) in (first..).zip(planned) {
            sleep_until(begin + at).await;
            let slip = micros(begin.elapsed().saturating_sub(at));
            let (address, pool) = pools[node].clone();
            let hosts = Arc::clone(&hosts);
            sent.push(tokio::spawn(async move {
                let request = format!("GET /r/{number} HTTP/1.1\r\nhost: {}\r\n\r\n", hosts[tenant]);
                let sent = wall();
                let exchange = timeout(PATIENCE, exchange(address, &pool, request.as_bytes()));
                let status = exchange.await.ok().and_then(Result::ok).unwrap_or(0);
                Answered { number, tenant, node, sent, ended: wall(), status, slip }
            }));
        }
        let mut answered = Vec::with_capacity(sent.len());
        for one in sent {
            answered.extend(one.await);
        }
        answered
    });
    Driving { task, began, runtime: runtime.clone() }
}

impl Driving {
    /// Waits until this long after its beginning.
    pub fn wait_until(&self, at: Duration) {
        let due = self.began + micros(at);
        super::pause(Duration::from_micros(due.saturating_sub(wall())));
    }

    pub fn finish(self) -> anyhow::Result<Vec<Answered>> {
        self.runtime.block_on(self.task).context("the driver has failed")
    }
}

/// Over a connection that is idle, or a new one; the status of the answer.
async fn exchange(address: SocketAddr, pool: &Pool, request: &[u8]) -> io::Result<u16> {
    let idle = pool.lock().pop();
    let mut stream = if let Some(stream) = idle {
        stream
    } else {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        stream
    };
    stream.write_all(request).await?;
    let mut read = Vec::with_capacity(2048);
    loop {
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some((status, length)) = whole(&read) {
            // An answer without a length ends with its connection.
            if length == Some(read.len()) {
                pool.lock().push(stream);
            }
            return Ok(status);
        }
    }
}

/// Status and length of an answer that has come whole.
fn whole(read: &[u8]) -> Option<(u16, Option<usize>)> {
    let head = read.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&read[..head]).ok()?;
    let status = text.get(9..12)?.parse().ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    match length {
        Some(length) if read.len() < head + length => None,
        Some(length) => Some((status, Some(head + length))),
        None => Some((status, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let answer = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(whole(answer), Some((429, Some(answer.len()))));
        assert_eq!(whole(&answer[..answer.len() - 1]), None);
        assert_eq!(whole(&answer[..20]), None);
    }
}
