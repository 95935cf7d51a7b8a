//! Runs one demo origin until it is told to stop.

use std::{io::Write, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::Parser;
use seiketsu_load_tests::origin::{Origin, serve::serve, tls};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

/// An upstream that answers what a gateway's tests need, and misbehaves on demand.
#[derive(Debug, Parser)]
#[command(name = "seiketsu-demo-origin", version)]
struct Flags {
    /// Address for HTTP/1.1 and HTTP/2; port 0 takes a free one.
    #[arg(long, env = "SEIKETSU_ORIGIN_LISTEN", default_value = "127.0.0.1:9001")]
    listen: SocketAddr,
    /// Named in every answer, as `x-origin-region`.
    #[arg(long, env = "SEIKETSU_ORIGIN_REGION", default_value = "eu-west")]
    region: String,
    /// PEM file of a certificate chain: the port speaks TLS.
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key.
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Worker threads; 0: one per core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let mut runtime = match flags.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if flags.threads > 1 {
        runtime.worker_threads(flags.threads);
    }
    runtime.enable_all().build()?.block_on(run(flags))
}

async fn run(flags: Flags) -> anyhow::Result<()> {
    let origin = Origin::new(&flags.region).with_context(|| format!("--region {:?} fits no header", flags.region))?;
    let tls = match (&flags.tls_cert, &flags.tls_key) {
        (Some(certificate), Some(key)) => Some(tls::acceptor(certificate, key)?),
        _ => None,
    };
    let listener =
        TcpListener::bind(flags.listen).await.with_context(|| format!("cannot listen on {}", flags.listen))?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    writeln!(std::io::stderr(), "listening on {}", listener.local_addr()?)?;

    serve(listener, Arc::new(origin), tls, async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await;
    Ok(())
}
