//! Tenants from the control plane.
//!
//! [`subscription`] holds the connection, [`holding`] knows what was sent, [`applier`] puts it in force on the thread of
//! the configuration, and [`keeper`] keeps it on disk: a node starts from that while its control plane is away, and
//! asks only for what has changed since when it is back. [`orders`] are carried out beside that.

mod applier;
mod clashes;
mod holding;
mod keeper;
mod numbering;
mod orders;
pub(super) mod subscription;
mod usage;

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, mpsc},
    time::Instant,
};

use seiketsu_config::{
    node::ControlPlane,
    push::{FromNode, Held, ToNode},
};
use tokio::{runtime::Handle, sync::oneshot};
use uuid::Uuid;

use self::{
    applier::Applier,
    keeper::{Keeper, Report},
    orders::Orders,
    subscription::{Received, Replies, Reply, Subscription},
};
use super::{Order, POLL, SourceError, StatusCell, seal::UnsealKey};
use crate::{limits::UsedBefore, operations::Readiness, proxy::Shared, server::tls::LiveTls};

/// What the thread of the configuration is told.
#[derive(Debug)]
enum Message {
    /// A connection is about to be made: what is held, once all that came on the last one has been looked at?
    Connecting(oneshot::Sender<Option<Held>>),
    /// By the control plane of this store.
    Welcomed(Uuid),
    Received {
        received: Received,
        replies: Replies,
    },
    Kept(Report),
    Order(Order),
}

/// What follows the control plane.
pub(super) struct Follower {
    _subscription: Subscription,
    applier: Applier,
    orders: Orders,
    used_before: Arc<UsedBefore>,
    readiness: Arc<Readiness>,
    inbox: mpsc::Receiver<Message>,
}

impl Follower {
    /// Starts from what was kept, if anything was, and connects. Gives with it how to give orders.
    pub(super) fn start(
        settings: &ControlPlane,
        shared: &Arc<Shared>,
        tls: Arc<LiveTls>,
        status: Arc<StatusCell>,
        readiness: Arc<Readiness>,
        runtime: &Handle,
    ) -> Result<(Self, impl Fn(Order) + Send + 'static), SourceError> {
        let key = UnsealKey::read(settings.unseal_key.as_ref(), &shared.node.state_dir)?;
        let (messages, inbox) = mpsc::channel();
        let reports = messages.clone();
        let report = move |report| drop(reports.send(Message::Kept(report)));
        let (keeper, kept) = Keeper::start(&shared.node.state_dir, key, report)?;
        let mut applier = Applier::new(settings, shared.clone(), tls, status.clone(), runtime.clone(), keeper);
        if let Some(error) = applier.certificate_error() {
            return Err(SourceError::NodeCertificates(error.clone()));
        }
        applier.load(kept);
        let subscription = Subscription::start(shared, settings, status, readiness.clone(), messages.clone(), runtime)?;
        let order = move |order| drop(messages.send(Message::Order(order)));
        let orders = Orders::new(shared.cache.clone(), runtime.clone());
        let used_before = shared.limits.used_before.clone();
        Ok((Self { _subscription: subscription, applier, orders, used_before, readiness, inbox }, order))
    }

    /// Applies what comes until it is told to end. `loaded` is called when there is a configuration in force.
    pub(super) fn follow(mut self, mut loaded: impl FnMut()) {
        let mut polled = Instant::now();
        loop {
            if self.applier.is_loaded() {
                loaded();
            }
            match self.inbox.recv_timeout(POLL.saturating_sub(polled.elapsed())) {
                Ok(Message::Connecting(answer)) => {
                    // Nobody waits any more if the node ends.
                    let _ = answer.send(self.applier.begin());
                }
                Ok(Message::Welcomed(store)) => self.applier.welcomed(store),
                Ok(Message::Received { received, replies }) => self.receive(received, &replies),
                Ok(Message::Kept(report)) => self.applier.kept(report),
                Ok(Message::Order(Order::ReloadAll)) => self.applier.look(true),
                Ok(Message::Order(Order::Stop)) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            if self.readiness.is_draining() {
                self.applier.stop_keeping();
            }
            if polled.elapsed() >= POLL {
                self.applier.look(false);
                polled = Instant::now();
            }
        }
    }

    fn receive(&mut self, received: Received, replies: &Replies) {
        let message = received.read();
        // There is room for the next one while this one is applied.
        drop(received);
        let reply = match message {
            Ok(ToNode::Update(update)) => {
                let Some(applied) = self.applier.take(*update) else { return };
                Reply::Say(FromNode::Applied(applied))
            }
            Ok(ToNode::Order(order)) => return self.orders.carry_out(*order, replies),
            Ok(ToNode::UsageTaken(taken)) => {
                let _ = replies.taken.send(taken);
                return;
            }
            Ok(ToNode::Used(used)) => return self.used_before.heard(used),
            // Once is enough, and a second one changes nothing.
            Ok(ToNode::Welcome(_)) => return,
            Err(error) => {
                self.applier.refuse_message(&error);
                Reply::Leave(error.to_string())
            }
        };
        // Nobody hears it if the connection has ended.
        let _ = replies.replies.send(reply);
    }
}
