//! The control plane of Seiketsu Gateway: what is configured, who may change it, who did, and what the nodes have of it.

pub mod api;
mod crowd;
pub mod ctl;
mod patient;
pub mod push;
mod serve;
pub mod settings;
pub mod store;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use tokio::{net::TcpListener, signal::unix::SignalKind};

use self::{settings::Settings, store::Store};

/// Serves until it is asked to end (SIGTERM, SIGINT).
pub async fn run(settings: &Settings) -> Result<()> {
    create_state_dir(&settings.state_dir)?;
    let store = Store::connect(&settings.store()).await.context("the store cannot be opened")?;
    for file in store.first_tokens(&settings.state_dir).await? {
        tracing::info!(file = %file.display(), "a first token was made");
    }
    let listener = TcpListener::bind(settings.listen).await.with_context(|| {
        format!("cannot listen on {}: choose another --listen, or end what has it", settings.listen)
    })?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    tokio::spawn(push::departed::forget(store.clone(), settings.forget_nodes_after.get()));
    let bounds = serve::Bounds {
        per_address: settings.connections_per_address.into(),
        write_timeout: settings.write_timeout.get(),
    };
    let state = api::AppState::new(store.clone(), settings.requests_per_second);
    let hub = push::Hub::new(store, state.registry())?;
    let router = api::router(state).merge(hub.router());
    serve::serve(listener, router, bounds, asked_to_end()?).await;
    // Last, so that those who wait for nodes get their answer.
    hub.drain().await;
    Ok(())
}

fn create_state_dir(path: &Path) -> Result<()> {
    let created = fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)));
    created.with_context(|| format!("cannot make the folder {} (--state-dir)", path.display()))
}

fn asked_to_end() -> Result<impl Future<Output = ()>> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending");
    })
}
