//! Memory held for open connections.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Round, peer::Running, scenario::Scenario};
use crate::process;

/// Connections that are being opened at once.
const AT_ONCE: usize = 64;
const ANSWER_BODY: usize = 1024;
/// For memory that is freed a little after the last answer.
const SETTLE: Duration = Duration::from_secs(2);

/// Opens the connections, makes one request over each, and looks at the process before and after.
pub(super) fn measure(gateway: &Running, connections: usize) -> anyhow::Result<Round> {
    let address = gateway.address(Scenario::Idle);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // What is made once, at the first requests, is not held for connections.
        drop(open(address, AT_ONCE).await?);
        tokio::time::sleep(SETTLE).await;
        let before = process::usage(gateway.pid())?;
        let held = open(address, connections).await?;
        tokio::time::sleep(SETTLE).await;
        let after = process::usage(gateway.pid())?;
        let seen = process::connections_to(address.port());
        if seen < connections {
            bail!("only {seen} of {connections} connections are still open");
        }
        drop(held);
        let grown = after.resident_bytes.saturating_sub(before.resident_bytes) as f64;
        Ok(Round {
            resident_mib: after.resident_bytes as f64 / f64::from(1 << 20),
            kib_per_connection: Some(grown / 1024.0 / connections as f64),
            ..Round::default()
        })
    })
}

async fn open(address: SocketAddr, connections: usize) -> anyhow::Result<Vec<TcpStream>> {
    stream::iter(0..connections).map(|_| one_request(address)).buffer_unordered(AT_ONCE).try_collect().await
}

async fn one_request(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await.context("cannot open one more connection")?;
    let request = format!("GET /v1/bytes/{ANSWER_BODY} HTTP/1.1\r\nHost: {}\r\n\r\n", Scenario::Idle.host());
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(4 << 10);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("a connection was closed after {} bytes of its first answer", answer.len());
        }
        let Some(head) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        if !answer.starts_with(b"HTTP/1.1 200") {
            bail!("answered with {:?}", String::from_utf8_lossy(&answer[..head]));
        }
        if answer.len() >= head + 4 + ANSWER_BODY {
            return Ok(stream);
        }
    }
}
