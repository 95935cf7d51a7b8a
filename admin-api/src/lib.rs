//! The control plane of Seiketsu Gateway: what is configured, who may change it, who did, and what the nodes have of it.

pub mod alerts;
pub mod api;
mod background;
mod crowd;
pub mod ctl;
mod edge;
mod keeper;
mod limit;
pub mod outbound;
mod patient;
pub mod push;
mod serve;
pub mod settings;
mod siem;
pub mod store;
pub mod webhooks;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use tokio::{net::TcpListener, signal::unix::SignalKind};

use self::{
    background::Background,
    settings::{Command, Settings},
    store::{Store, StoreSettings, secrets::KeySource},
};

/// Does what it is told to: serves, in most cases.
pub async fn run(settings: &Settings) -> Result<()> {
    create_state_dir(&settings.state_dir)?;
    match &settings.command {
        None => serve(settings).await,
        Some(Command::RewrapKeys { previous_key_file }) => rewrap_keys(settings, previous_key_file).await,
        Some(Command::NewOwner) => new_owner(settings).await,
    }
}

async fn new_owner(settings: &Settings) -> Result<()> {
    let store = Store::connect(&settings.store()).await.context("the store cannot be opened")?;
    let (name, file) = store.new_owner(&settings.state_dir).await?;
    tracing::info!(operator = %name, file = %file.display(), "an owner was made: see who has altered the others");
    Ok(())
}

async fn rewrap_keys(settings: &Settings, previous: &Path) -> Result<()> {
    let store = StoreSettings { key: KeySource::File(previous.to_owned()), ..settings.store() };
    let store = Store::connect(&store).await.context("the store cannot be opened with the previous key")?;
    let keys = store.rewrap_keys(&settings.key()).await?;
    tracing::info!(keys, "the data keys are wrapped with the new key: start all replicas with that");
    Ok(())
}

/// Serves until it is asked to end (SIGTERM, SIGINT).
async fn serve(settings: &Settings) -> Result<()> {
    let edge = settings.edge.start(settings.listen).await?;
    let node_certificates_required = settings.edge.requires_node_certificates()?;
    let store = Store::connect(&settings.store()).await.context("the store cannot be opened")?;
    for file in store.first_tokens(&settings.state_dir).await? {
        tracing::info!(file = %file.display(), "a first token was made");
    }
    store.first_alert_rules(alerts::first_rules()).await?;
    let listener = TcpListener::bind(settings.listen).await.with_context(|| {
        format!("cannot listen on {}: choose another --listen, or end what has it", settings.listen)
    })?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    tokio::spawn(push::departed::forget(store.clone(), settings.forget_nodes_after.get()));
    serve::raise_limit_of_open_files();
    let bounds = serve::Bounds {
        per_address: settings.connections_per_address.into(),
        write_timeout: settings.write_timeout.get(),
    };
    let outbound = outbound::Outbound::new(&settings.outbound())?;
    let state =
        api::AppState::new(store.clone(), outbound.clone(), settings.requests_per_second, settings.usage.objectives());
    if let Some(replica) = settings.usage.replica() {
        store.read_from(&replica, state.registry())?;
    }
    let _background = Background::start(&store, &settings.usage);
    let hub = push::Hub::new(store, state.registry(), state.doorkeeper(), node_certificates_required)?;
    tokio::spawn(keeper::keep(state.store().clone(), outbound.clone()));
    tokio::spawn(webhooks::deliver(state.store().clone(), outbound, settings.webhook_schedule()));
    let router = api::router(state.clone()).merge(hub.router());
    let asked_to_end = asked_to_end()?;
    let stop = async {
        asked_to_end.await;
        state.end_streams();
    };
    serve::serve(listener, edge, router, bounds, stop).await;
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
