//! One node: what it says is heard, and what it lacks is sent, one update at a time.

use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    time::{Duration, Instant},
};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use seiketsu_config::{
    push::{self, Applied, FrameError, FromNode, Hello, MOST_SAID_BYTES, Refused, SCHEMAS, ToNode, Welcome},
    values::Id,
};
use tokio::{
    sync::{Mutex, mpsc},
    time::{sleep, timeout},
};
use uuid::Uuid;

use super::{
    Hub, Shared, credible, orders,
    proof::Proof,
    seats::{Before, Taken},
    updates::{Prepared, length, message},
    usage::{self, Said},
};
use crate::store::{StoreError, nodes::MOST_NODES};

const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Of a node that has said nothing for as long.
const SILENCE: Duration = Duration::from_secs(3 * push::HEARTBEAT_SECONDS);

/// To take one message.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// To apply an update. A hundred thousand tenants take seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);

/// To say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it is looked up whether the token still holds, and whether another replica has the node.
const LOOK_UP_INTERVAL: Duration = Duration::from_secs(10);

/// While the store cannot be read, and between whole configurations for a node that loses them.
pub(super) const RETRY: Duration = Duration::from_secs(1);
const MOST_RETRY: Duration = Duration::from_secs(30);

/// What a node said that the sending side has not looked at yet: more, and the node is not listened to.
const ANSWERS: usize = 8;

/// A node that refuses a document may come to like it, when a file is there that was missing. It is asked this often.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Errors of a refused document that the log tells of, and what of each.
const MOST_LOGGED: usize = 5;
const MOST_LOGGED_BYTES: usize = 1000;

/// The longest reason that a close frame can carry (RFC 6455, section 5.5).
const MOST_REASON_BYTES: usize = 123;

/// Locked for a message at a time: updates and what is said about usage share it.
pub(super) type Sink = Mutex<SplitSink<WebSocket, Message>>;
type Stream = SplitStream<WebSocket>;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the node closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(#[from] axum::Error),
    #[error("no hello came within {} s", HELLO_TIMEOUT.as_secs())]
    NoHello,
    #[error("the node says hello once, and at first")]
    Order,
    #[error("{0}")]
    Excess(String),
    #[error("as many nodes are known as may be ({MOST_NODES}): have those forgotten that are gone for good")]
    Nodes,
    #[error("{0}")]
    Unreadable(#[from] FrameError),
    #[error("no form of documents in common: the control plane knows {known:?}, the node {node:?}", known = SCHEMAS)]
    Schemas { node: Vec<u32> },
    #[error("nothing was heard of the node for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the node did not read for {} s", WRITE_TIMEOUT.as_secs())]
    NotReading,
    #[error("the node did not answer an update for {} s", ANSWER_TIMEOUT.as_secs())]
    NoAnswer,
    #[error("another connection of this node took its place")]
    Replaced,
    #[error("the node sends usage before the last of it was taken")]
    UsageAhead,
    #[error("the certificate has expired")]
    Expired,
    #[error("the token was revoked")]
    Revoked,
    #[error("the certificate is not for a node {node}: give the node its id, or a certificate that names it")]
    Foreign { node: Id },
    #[error("the token is for the node {0} alone")]
    OtherNode(Id),
    #[error("the node {0} has a token of its own: this one is for nodes that have none")]
    HasItsOwn(Id),
    #[error("the store was set back, or is another: all is sent anew")]
    OtherStore,
    #[error("this replica ends")]
    Draining,
    #[error("the store cannot be reached")]
    Store(#[source] StoreError),
}

impl End {
    /// For metrics.
    fn reason(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Broken(_) => "broken",
            Self::NoHello => "no_hello",
            Self::Order | Self::Excess(_) | Self::UsageAhead | Self::Unreadable(_) => "protocol",
            Self::Nodes => "nodes",
            Self::Schemas { .. } => "schemas",
            Self::Silent => "silent",
            Self::NotReading => "not_reading",
            Self::NoAnswer => "no_answer",
            Self::Replaced => "replaced",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Foreign { .. } => "foreign",
            Self::OtherNode(_) | Self::HasItsOwn(_) => "other_node",
            Self::OtherStore => "other_store",
            Self::Draining => "draining",
            Self::Store(_) => "store",
        }
    }

    /// What the node is told.
    fn close_frame(&self) -> Option<CloseFrame> {
        let code = match self {
            Self::Closed | Self::Broken(_) => return None,
            Self::Unreadable(_) | Self::Order | Self::Excess(_) | Self::UsageAhead => close_code::PROTOCOL,
            Self::Draining => close_code::AWAY,
            Self::Store(_) | Self::OtherStore => close_code::AGAIN,
            _ => close_code::POLICY,
        };
        let mut reason = self.to_string();
        reason.truncate(reason.floor_char_boundary(MOST_REASON_BYTES));
        Some(CloseFrame { code, reason: reason.into() })
    }
}

/// Serves a node until its connection ends.
pub(super) async fn serve(hub: Hub, socket: WebSocket, proof: Proof) {
    let shared = &*hub.0;
    let _connection = shared.seats.enter();
    let (sink, mut stream) = socket.split();
    let sink = Sink::new(sink);
    let end = match greet(shared, &mut stream, &proof).await {
        Ok(hello) => attend(shared, &sink, &mut stream, &hello, &proof).await,
        Err(end) => {
            tracing::warn!(%end, "a node was not admitted");
            end
        }
    };
    shared.metrics.ended.with_label_values(&[end.reason()]).inc();
    if let Some(frame) = end.close_frame() {
        // Its answer need not be waited for: the node connects again in any case.
        let _ = timeout(CLOSE_TIMEOUT, async { sink.lock().await.send(Message::Close(Some(frame))).await }).await;
    }
}

async fn greet(shared: &Shared, stream: &mut Stream, proof: &Proof) -> Result<Hello, End> {
    let first = tokio::select! {
        first = timeout(HELLO_TIMEOUT, next(stream)) => first.map_err(|_| End::NoHello)??,
        () = drained(shared) => return Err(End::Draining),
    };
    let FromNode::Hello(hello) = first else { return Err(End::Order) };
    credible::hello(&hello)?;
    if let Some(node) = proof.bound_to().filter(|node| **node != hello.node) {
        return Err(End::OtherNode(node.clone()));
    }
    if !proof.is_for(&hello.node) {
        return Err(End::Foreign { node: hello.node });
    }
    if !proof.names_a_node() && shared.store.has_token_of_its_own(&hello.node).await.map_err(End::Store)? {
        return Err(End::HasItsOwn(hello.node));
    }
    // The highest that both know; ours are few.
    if hello.schemas.iter().any(|schema| SCHEMAS.contains(schema)) {
        Ok(hello)
    } else {
        Err(End::Schemas { node: hello.schemas })
    }
}

async fn attend(shared: &Shared, sink: &Sink, stream: &mut Stream, hello: &Hello, proof: &Proof) -> End {
    let (mut taken, before) = shared.seats.take(hello);
    let Hello { node, run, version, .. } = hello;
    match before {
        Before::Nobody => {}
        Before::Other(former) => tracing::info!(%node, %run, %former, "the node is another process than before"),
        Before::Twin(other) => tell_of_twins(shared, hello, other).await,
    }
    let holds = hello.holds.map(|held| held.revision);
    tracing::info!(%node, %run, %version, ?holds, "a node is connected");
    shared.metrics.nodes.inc();
    let end = Box::pin(exchange(shared, sink, stream, hello, proof, &mut taken)).await;
    shared.metrics.nodes.dec();
    match &end {
        End::Closed | End::Draining => tracing::info!(%node, %run, %end, "a node is gone"),
        _ => tracing::warn!(%node, %run, %end, "a node is gone"),
    }
    // Another connection of the same process has told that it is there.
    if !taken.is_replaced_by_itself()
        && let Ok(Err(error)) = timeout(WRITE_TIMEOUT, shared.store.node_left(node, *run, shared.replica)).await
    {
        tracing::warn!(%node, %error, "cannot note that the node is gone");
    }
    end
}

/// Both directions, until one of them ends.
async fn exchange(
    shared: &Shared,
    sink: &Sink,
    stream: &mut Stream,
    hello: &Hello,
    proof: &Proof,
    taken: &mut Taken<'_>,
) -> End {
    let mut other_store = shared.store.other_store();
    // What it holds need not be in force: that is known when it has answered the first update.
    let connected = Hello { holds: None, ..hello.clone() };
    let former = match shared.store.node(&hello.node).await {
        Ok(former) => former.map(|former| former.heard_at),
        Err(error) => return End::Store(error),
    };
    match shared.store.has_room_for_a_node().await {
        Ok(has_room) if has_room || former.is_some() => {}
        Ok(_) => return End::Nodes,
        Err(error) => return End::Store(error),
    }
    if let Err(error) = shared.store.node_connected(&connected, shared.replica).await {
        return End::Store(error);
    }
    let (answers, answered) = mpsc::channel(ANSWERS);
    if let Err(end) = welcome(shared, sink).await {
        return end;
    }
    let (usage, said) = usage::queue();
    tokio::select! {
        end = ended(listen(shared, stream, hello, &answers, &usage)) => end,
        end = ended(tell(shared, sink, hello, answered)) => end,
        end = ended(orders::pass_on(shared, sink, hello, former)) => end,
        end = ended(usage::answer(shared, sink, hello, said)) => end,
        end = ended(look_up(shared, proof)) => end,
        _ = other_store.changed() => End::OtherStore,
        _ = &mut taken.lost => End::Replaced,
        () = drained(shared) => End::Draining,
    }
}

async fn welcome(shared: &Shared, sink: &Sink) -> Result<(), End> {
    let welcome = Welcome {
        store: shared.store.id(),
        schema: SCHEMAS[0],
        heartbeat_seconds: push::HEARTBEAT_SECONDS,
        usage: true,
    };
    send(sink, message(push::write(&ToNode::Welcome(welcome))?)).await
}

/// Both sides go on until something ends them.
async fn ended(side: impl Future<Output = Result<Infallible, End>>) -> End {
    match side.await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

async fn drained(shared: &Shared) {
    // The sender lives as long as what it is in.
    let _ = shared.draining.subscribe().wait_for(|draining| *draining).await;
}

/// The next message.
async fn next(stream: &mut Stream) -> Result<FromNode, End> {
    loop {
        return match stream.next().await {
            None | Some(Ok(Message::Close(_))) => Err(End::Closed),
            Some(Err(error)) => Err(error.into()),
            Some(Ok(Message::Text(text))) => Ok(push::read_text(text.as_str())?),
            Some(Ok(Message::Binary(bytes))) => Ok(push::read_binary_within(MOST_SAID_BYTES, &bytes)?),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
        };
    }
}

/// Hears what the node says, and writes it into the store.
async fn listen(
    shared: &Shared,
    stream: &mut Stream,
    hello: &Hello,
    answers: &mpsc::Sender<Applied>,
    usage: &usage::Queue,
) -> Result<Infallible, End> {
    let Hello { node, run, .. } = hello;
    let mut looked_up = Instant::now();
    // What the store could not be told when it was said.
    let mut unreported: Option<Applied> = None;
    // It repeats its answers.
    let mut logged = Applied { nonce: 0, revision: 0, refused: Vec::new(), refused_more: 0, lost: false };
    loop {
        match timeout(SILENCE, next(stream)).await.map_err(|_| End::Silent)?? {
            FromNode::Hello(_) => return Err(End::Order),
            FromNode::Usage(page) => usage::take(usage, Said::Page(page))?,
            FromNode::AskUsed(ask) => usage::take(usage, Said::Ask(ask))?,
            FromNode::Applied(applied) => {
                if (&applied.refused, applied.refused_more) != (&logged.refused, logged.refused_more) {
                    log_refusals(shared, node, &applied);
                    logged = applied.clone();
                }
                // The next update need not wait for the store.
                let _ = answers.send(applied.clone()).await;
                // Whoever is lost may tell a revision of another store: what is known of it stays until it has all anew.
                unreported = (!applied.lost).then_some(applied).or(unreported);
            }
            FromNode::Carried(carried) => orders::carried(shared, hello, &credible::carried(carried)).await,
            FromNode::Heartbeat(heartbeat) => {
                if let Err(error) = shared.store.node_heard(node, *run, &heartbeat).await {
                    tracing::warn!(%node, %error, "cannot note that the node was heard of");
                }
            }
        }
        if looked_up.elapsed() > LOOK_UP_INTERVAL {
            looked_up = Instant::now();
            look_for_twin(shared, hello).await?;
        }
        if let Some(applied) = &unreported {
            match shared.store.node_applied(node, *run, applied).await {
                Ok(()) => unreported = None,
                Err(error) => tracing::warn!(%node, %error, "cannot note what the node has applied"),
            }
        }
    }
}

fn log_refusals(shared: &Shared, node: &Id, applied: &Applied) {
    let is_logged = |_: &&Refused| shared.logged.take(node.clone()).is_ok();
    let refused: Vec<&Refused> = applied.refused.iter().take_while(is_logged).collect();
    for refused in &refused {
        let tenant = refused.tenant.as_ref().map_or("(head)", |tenant| tenant.as_str());
        let errors: Vec<&str> = refused.errors.iter().take(MOST_LOGGED).map(|error| shortened(error)).collect();
        tracing::warn!(%node, tenant, ?errors, "a node refuses a document");
    }
    let more = applied.refused_more.saturating_add((applied.refused.len() - refused.len()) as u64);
    if more > 0 {
        tracing::warn!(%node, more, "a node refuses so many more documents");
    }
}

fn shortened(error: &str) -> &str {
    &error[..error.floor_char_boundary(MOST_LOGGED_BYTES)]
}

/// Looks whether what the node was let in with still holds, whatever the node says or does not say.
async fn look_up(shared: &Shared, proof: &Proof) -> Result<Infallible, End> {
    let mut revoked = shared.store.revoked();
    loop {
        proof.check(shared).await?;
        // At once, if a token was removed by this replica.
        let _ = timeout(LOOK_UP_INTERVAL, revoked.changed()).await;
    }
}

/// Whether another replica has a node of this name. This one is there, as it has just said something.
async fn look_for_twin(shared: &Shared, hello: &Hello) -> Result<(), End> {
    match shared.store.node(&hello.node).await {
        Ok(Some(row)) if row.run != hello.run => {
            tell_of_twins(shared, hello, row.run).await;
            Err(End::Replaced)
        }
        _ => Ok(()),
    }
}

async fn tell_of_twins(shared: &Shared, Hello { node, run, .. }: &Hello, other: Uuid) {
    tracing::warn!(
        %node, %run, %other,
        "two nodes that both run have the same id, and take each other's place: give one of them another id"
    );
    if let Err(error) = shared.store.node_has_twin(node).await {
        tracing::warn!(%node, %error, "cannot note that the node has a twin");
    }
}

/// Sends what the node lacks, whenever it lacks something. At first also if it lacks nothing: its answer tells what it
/// has refused.
async fn tell(
    shared: &Shared,
    sink: &Sink,
    hello: &Hello,
    mut answered: mpsc::Receiver<Applied>,
) -> Result<Infallible, End> {
    let mut newest = shared.store.newest();
    let mut held = hello.holds;
    let (mut is_told, mut refuses) = (false, false);
    let mut retry = RETRY;
    loop {
        let revision = *newest.borrow_and_update();
        if is_told && held.is_some_and(|held| held.revision >= revision) {
            tokio::select! {
                changed = newest.changed() => changed.map_err(|_| End::Draining)?,
                Some(applied) = answered.recv() => if applied.lost { held = None },
                () = sleep(ASK_AGAIN), if refuses => is_told = false,
            }
            continue;
        }
        let update = match shared.updates.since(held, revision).await {
            Ok(update) => update,
            Err(error) => {
                tracing::warn!(node = %hello.node, %error, "cannot send what the node lacks; trying again");
                sleep(RETRY).await;
                continue;
            }
        };
        is_told = true;
        let applied = deliver(shared, sink, &update, &mut answered).await?;
        refuses = !applied.refused.is_empty();
        held = (!applied.lost && applied.revision >= update.to.revision).then_some(update.to);
        if held.is_some() {
            retry = RETRY;
        } else if update.whole {
            tracing::error!(node = %hello.node, "the node does not take the whole configuration; trying again");
            sleep(retry).await;
            retry = (retry * 2).min(MOST_RETRY);
        }
    }
}

/// Sends an update and waits for the answer.
async fn deliver(
    shared: &Shared,
    sink: &Sink,
    update: &Prepared,
    answered: &mut mpsc::Receiver<Applied>,
) -> Result<Applied, End> {
    let begun = Instant::now();
    let metrics = &shared.metrics;
    if update.whole { &metrics.whole } else { &metrics.changes }.inc();
    for part in &update.parts {
        metrics.bytes.inc_by(length(part) as u64);
        send(sink, part.clone()).await?;
    }
    let mut deadline = pin!(sleep(ANSWER_TIMEOUT));
    loop {
        let applied = tokio::select! {
            // Its sender is in the other side, with which this one ends.
            Some(applied) = answered.recv() => applied,
            () = &mut deadline => return Err(End::NoAnswer),
        };
        // What it says of earlier ones is written down, and does not matter here.
        if applied.nonce == update.nonce {
            metrics.acknowledgement.observe(begun.elapsed().as_secs_f64());
            return Ok(applied);
        }
    }
}

pub(super) async fn send(sink: &Sink, message: Message) -> Result<(), End> {
    let sent = async { sink.lock().await.send(message).await };
    Ok(timeout(WRITE_TIMEOUT, sent).await.map_err(|_| End::NotReading)??)
}
