//! Gateway nodes: what they run, and whether they are there.

use std::sync::Arc;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, IntoActiveModel, ModelTrait,
    PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, Set, Statement,
    sea_query::{Expr, OnConflict},
};
use seiketsu_config::{
    push::{Applied, HEARTBEAT_SECONDS, Heartbeat, Hello, Refused},
    values::Id,
};
use serde::Serialize;
use serde_json::json;
use time::{Duration, OffsetDateTime};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{
    Author, BATCH, PATIENCE, Store, StoreError, audit,
    entities::node::{self, Column},
    events::{EventKind, NewEvent},
    id_of,
    node_memory::{NodeMemory, Of},
    number,
    operators::ManageError,
    signed, within,
};

/// A node that has said nothing for so long is gone.
const GONE_AFTER: Duration = Duration::seconds(3 * HEARTBEAT_SECONDS.cast_signed());

/// Of one answer, more refused documents than these are not told one by one.
const MOST_TOLD: usize = 100;

/// Events of one node. What comes above that is not told: events are kept, and others' would have to go for them.
pub(super) const EVENTS_PER_SECOND: u32 = 10;
pub(super) const EVENTS_AT_ONCE: u32 = 500;

/// A node that was there so lately is between two connections, unless it has said that it ends.
const AWAITED: Duration = Duration::seconds(30);

/// Nodes that are known.
pub(crate) const MOST_NODES: u64 = 10_000;

/// Documents and errors of a node that are kept: as many as gateways tell, and more.
const MOST_REFUSED: usize = 10_000;
const MOST_ERRORS: usize = 20;
const MOST_ERROR_BYTES: usize = 2000;

/// Of all errors of a node together.
const MOST_BYTES: usize = 1 << 20;

/// To get the turn to write what is known of nodes.
const BRIEF: std::time::Duration = std::time::Duration::from_millis(50);

/// The one clock, where there may be several replicas.
const CLOCK: &str = "clock_timestamp()";

/// How long a node's twin is told of. They come by turns, again and again, as long as both run.
const TWIN_REMEMBERED: Duration = Duration::minutes(10);

/// A node, as it was last heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = Node)]
pub struct NodeRow {
    #[schema(value_type = String)]
    pub id: Id,
    /// Whether it is connected and was heard of lately.
    pub live: bool,
    /// Whether a change that is to be applied everywhere waits for it: it is live, or was a moment ago and has not said
    /// that it ends.
    pub awaited: bool,
    /// New at each start of the node.
    pub run: Uuid,
    pub version: String,
    pub region: Option<String>,
    pub zone: Option<String>,
    /// The control plane's process that it is connected to.
    pub replica: Option<Uuid>,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub connected_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub heard_at: OffsetDateTime,
    /// What is in force there, but for what was refused.
    pub revision: u64,
    pub ready: bool,
    pub draining: bool,
    /// Documents that are not in force there as they are, and why.
    #[schema(value_type = Vec<Object>)]
    pub refused: Vec<Refused>,
    /// How many more there are of those.
    pub refused_more: u64,
    /// Whether another process with the same id runs as well, as was seen lately: one of them needs another id.
    pub twin: bool,
}

/// All nodes, and since when they were so.
#[derive(Debug, Default)]
pub(super) struct Lately(Mutex<Option<(Instant, Arc<Vec<NodeRow>>)>>);

impl Store {
    /// A node has connected. A former run of it is forgotten.
    pub async fn node_connected(&self, hello: &Hello, replica: Uuid) -> Result<(), StoreError> {
        let store = self.id();
        within(PATIENCE, async {
            let now = self.now().await?;
            let mut row = node::Model {
                id: hello.node.to_string(),
                run: hello.run,
                version: hello.version.clone(),
                region: hello.region.as_ref().map(Id::to_string),
                zone: hello.zone.as_ref().map(Id::to_string),
                replica: Some(replica),
                connected_at: now,
                heard_at: now,
                revision: hello.holds.filter(|held| held.store == store).map_or(0, |held| signed(held.revision)),
                ready: false,
                draining: false,
                refused: "[]".to_owned(),
                twin_seen_at: None,
                store: Some(store),
                refused_more: 0,
            };
            let Some(memory) = &self.0.nodes else { return self.put_nodes(vec![row]).await };
            let before = match memory.row(&row.id) {
                None => node::Entity::find_by_id(row.id.clone()).one(&self.0.database).await?,
                before => before,
            };
            row.twin_seen_at = before.and_then(|before| before.twin_seen_at);
            memory.put(row);
            Ok(())
        })
        .await?;
        self.write_nodes().await;
        let told = json!({ "node": hello.node, "version": hello.version, "region": hello.region });
        self.tell_of(&hello.node, [NewEvent::new(EventKind::NodeConnected, told)]);
        Ok(())
    }

    /// A node has answered an update. Whoever waits for it is told.
    pub async fn node_applied(&self, node: &Id, run: Uuid, applied: &Applied) -> Result<(), StoreError> {
        let (refused, more) = bounded(applied);
        let heard = node::ActiveModel {
            revision: Set(signed(applied.revision)),
            refused: Set(serde_json::to_string(&refused).unwrap_or_default()),
            refused_more: Set(signed(more)),
            ..Default::default()
        };
        let before = within(PATIENCE, async {
            let before = self.node(node).await?.filter(|before| before.run == run);
            self.note(Of { node, run: Some(run), replica: None }, heard, Some(Column::HeardAt)).await?;
            self.write_nodes().await;
            self.notify_applied().await?;
            Ok::<_, StoreError>(before)
        })
        .await?;
        if let Some(before) = before {
            self.tell_of(node, what_is_new(&before, applied.revision, &refused));
        }
        Ok(())
    }

    /// A node has sent a heartbeat. Its revision is left alone: that counts together with what was refused of it, which comes
    /// with the answer to an update.
    pub async fn node_heard(&self, node: &Id, run: Uuid, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        let heard =
            node::ActiveModel { ready: Set(heartbeat.ready), draining: Set(heartbeat.draining), ..Default::default() };
        let of = Of { node, run: Some(run), replica: None };
        within(PATIENCE, self.note(of, heard, Some(Column::HeardAt))).await.map(drop)
    }

    /// The connection of a node to a replica has ended. It may have another one already, to another replica.
    pub async fn node_left(&self, node: &Id, run: Uuid, replica: Uuid) -> Result<(), StoreError> {
        let heard = node::ActiveModel { replica: Set(None), ..Default::default() };
        let of = Of { node, run: Some(run), replica: Some(replica) };
        // It may be connected elsewhere already.
        if within(PATIENCE, self.note(of, heard, None)).await? {
            self.tell_of(node, [NewEvent::new(EventKind::NodeLeft, json!({ "node": node }))]);
        }
        self.write_nodes().await;
        Ok(())
    }

    /// Tells what a node did, unless that is more than one does.
    fn tell_of(&self, node: &Id, events: impl IntoIterator<Item = NewEvent>) {
        let is_told = |_: &NewEvent| self.0.told_of.take(node.clone()).is_ok();
        self.tell(events.into_iter().take_while(is_told));
    }

    /// Another process with the same id runs as well.
    pub async fn node_has_twin(&self, node: &Id) -> Result<(), StoreError> {
        let nothing = node::ActiveModel { ..Default::default() };
        let of = Of { node, run: None, replica: None };
        within(PATIENCE, self.note(of, nothing, Some(Column::TwinSeenAt))).await.map(drop)
    }

    /// All nodes that are known, in the order of their names.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        self.nodes_after(None, MOST_NODES).await
    }

    /// The same, as they were at this moment or later. However many wait for nodes, each time they are read once.
    pub async fn nodes_since(&self, since: Instant) -> Result<Arc<Vec<NodeRow>>, StoreError> {
        let mut lately = self.0.nodes_lately.0.lock().await;
        if let Some((at, nodes)) = &*lately
            && *at >= since
        {
            return Ok(Arc::clone(nodes));
        }
        let at = Instant::now();
        let nodes = Arc::new(self.nodes().await?);
        *lately = Some((at, Arc::clone(&nodes)));
        Ok(nodes)
    }

    /// Nodes behind a name, in the order of their names.
    pub async fn nodes_after(&self, after: Option<&Id>, most: u64) -> Result<Vec<NodeRow>, StoreError> {
        within(PATIENCE, async {
            let now = self.now().await?;
            let mut find = node::Entity::find().order_by_asc(Column::Id).limit(most);
            if let Some(after) = after {
                find = find.filter(Column::Id.gt(after.as_str()));
            }
            let mut rows = find.all(&self.0.database).await?;
            if let Some(memory) = &self.0.nodes {
                rows = memory.over(rows, after.map(Id::as_str));
            }
            rows.truncate(usize::try_from(most).unwrap_or(usize::MAX));
            rows.into_iter().map(|row| self.node_of(row, now)).collect()
        })
        .await
    }

    /// One node.
    pub async fn node(&self, id: &Id) -> Result<Option<NodeRow>, StoreError> {
        within(PATIENCE, async {
            let now = self.now().await?;
            let known = self.0.nodes.as_ref().and_then(|memory| memory.row(id.as_str()));
            let row = match known {
                None => node::Entity::find_by_id(id.to_string()).one(&self.0.database).await?,
                known => known,
            };
            row.map(|row| self.node_of(row, now)).transpose()
        })
        .await
    }

    /// Whether another one can be known.
    pub async fn has_room_for_a_node(&self) -> Result<bool, StoreError> {
        within(PATIENCE, async {
            let here = self.0.nodes.as_ref().map_or(0, NodeMemory::count);
            Ok(here.max(node::Entity::find().count(&self.0.database).await?) < MOST_NODES)
        })
        .await
    }

    /// A node that is gone for good is known no longer.
    pub async fn delete_node(&self, by: &Author, id: &Id) -> Result<(), ManageError> {
        within(PATIENCE, async {
            let node = self.node(id).await?.ok_or(ManageError::Missing("node"))?;
            if node.live {
                return Err(ManageError::NodeIsLive(node.id));
            }
            let mut writing = self.managing(by, None).await?;
            let row = node::Entity::find_by_id(id.to_string()).one(&writing.transaction).await;
            if let Some(row) = row.map_err(StoreError::from)? {
                row.delete(&writing.transaction).await.map_err(StoreError::from)?;
            }
            writing.audit(by, audit::Entry::done().with("node", id.to_string())).await?;
            if let Some(memory) = &self.0.nodes {
                memory.forget(id.as_str());
            }
            Ok(writing.finish().await?)
        })
        .await
    }

    /// Forgets nodes that were not heard of for so long. Tells how many there were.
    pub async fn forget_departed(&self, after: std::time::Duration) -> Result<u64, StoreError> {
        within(PATIENCE, async {
            let then = self.now().await? - after;
            let old = node::Entity::delete_many().filter(Column::HeardAt.lt(then));
            let _turn = match &self.0.nodes {
                Some(memory) => {
                    let turn = self.0.turn.lock().await;
                    memory.forget_before(then);
                    self.put_unwritten(memory).await?;
                    Some(turn)
                }
                None => None,
            };
            Ok(old.exec(&self.0.database).await?.rows_affected)
        })
        .await
    }

    /// Writes what is only in memory, unless somebody else is writing: then it is written later.
    pub(super) async fn write_nodes(&self) {
        let Some(memory) = &self.0.nodes else { return };
        let Ok(_turn) = timeout(BRIEF, self.0.turn.lock()).await else { return };
        if let Err(error) = within(PATIENCE, self.put_unwritten(memory)).await {
            tracing::debug!(%error, "what is known of nodes is written later");
        }
    }

    /// It is this one's turn to write.
    async fn put_unwritten(&self, memory: &NodeMemory) -> Result<(), StoreError> {
        let rows = memory.unwritten();
        for rows in rows.chunks(BATCH) {
            self.put_nodes(rows.to_vec()).await?;
            memory.written(rows);
        }
        Ok(())
    }

    async fn put_nodes(&self, rows: Vec<node::Model>) -> Result<(), StoreError> {
        let mut columns = vec![
            Column::Run,
            Column::Version,
            Column::Region,
            Column::Zone,
            Column::Replica,
            Column::ConnectedAt,
            Column::HeardAt,
            Column::Revision,
            Column::Ready,
            Column::Draining,
            Column::Refused,
            Column::Store,
            Column::RefusedMore,
        ];
        // Elsewhere what was seen before stays.
        columns.extend(self.0.nodes.is_some().then_some(Column::TwinSeenAt));
        let mut update = OnConflict::column(Column::Id);
        update.update_columns(columns);
        let rows = rows.into_iter().map(|row| row.into_active_model().reset_all());
        node::Entity::insert_many(rows).on_conflict(update).exec_without_returning(&self.0.database).await?;
        Ok(())
    }

    /// Sets what is set in `heard`, and `at` to the time. Whether there is such a node. What is heard of another run than the last one that connected is
    /// of no interest any more.
    async fn note(&self, of: Of<'_>, mut heard: node::ActiveModel, at: Option<Column>) -> Result<bool, StoreError> {
        if let Some(memory) = &self.0.nodes {
            if let Some(at) = at {
                heard.set(at, OffsetDateTime::now_utc().into());
            }
            return memory.note(&of, &heard);
        }
        // Without the turn: rows of nodes are nobody else's.
        let mut update = node::Entity::update_many().set(heard).filter(Column::Id.eq(of.node.as_str()));
        if let Some(run) = of.run {
            update = update.filter(Column::Run.eq(run));
        }
        if let Some(replica) = of.replica {
            update = update.filter(Column::Replica.eq(replica));
        }
        if let Some(at) = at {
            update = update.col_expr(at, Expr::cust(CLOCK));
        }
        Ok(update.exec(&self.0.database).await?.rows_affected > 0)
    }

    async fn now(&self) -> Result<OffsetDateTime, StoreError> {
        if self.0.nodes.is_some() {
            return Ok(OffsetDateTime::now_utc());
        }
        let ask = Statement::from_string(DbBackend::Postgres, format!("SELECT {CLOCK} AS now"));
        let row = self.0.database.query_one_raw(ask).await?;
        let row = row.ok_or_else(|| StoreError::corrupt("the time", &"there is none"))?;
        Ok(row.try_get("", "now")?)
    }

    fn node_of(&self, row: node::Model, now: OffsetDateTime) -> Result<NodeRow, StoreError> {
        let heard_within = |span: Duration| now - row.heard_at < span;
        let live = row.replica.is_some() && heard_within(GONE_AFTER);
        Ok(NodeRow {
            id: id_of(&row.id)?,
            live,
            awaited: live || !row.draining && heard_within(AWAITED),
            run: row.run,
            version: row.version,
            region: row.region,
            zone: row.zone,
            replica: row.replica,
            connected_at: row.connected_at,
            heard_at: row.heard_at,
            revision: if row.store == Some(self.id()) { number(row.revision) } else { 0 },
            ready: row.ready,
            draining: row.draining,
            twin: row.twin_seen_at.is_some_and(|seen| now - seen < TWIN_REMEMBERED),
            refused: serde_json::from_str(&row.refused)
                .map_err(|why| StoreError::corrupt("what a node refused", &why))?,
            refused_more: number(row.refused_more),
        })
    }
}

/// A node repeats its answers; what it has said already is not told again.
fn what_is_new(before: &NodeRow, revision: u64, all: &[Refused]) -> Vec<NewEvent> {
    let mut told = Vec::new();
    if before.revision != revision {
        let detail = json!({ "node": before.id, "revision": revision, "refused": all.len() });
        told.push(NewEvent::new(EventKind::NodeApplied, detail));
    }
    for refused in all.iter().filter(|refused| !before.refused.contains(refused)).take(MOST_TOLD) {
        let detail = json!({ "node": before.id, "revision": revision, "errors": refused.errors });
        told.push(NewEvent::about(EventKind::NodeRefused, refused.tenant.as_ref().map(Id::as_str), detail));
    }
    told
}

/// No more than is kept of what a node says, and how much more there is.
fn bounded(applied: &Applied) -> (Vec<Refused>, u64) {
    let shortened = |error: &String| error[..error.floor_char_boundary(MOST_ERROR_BYTES)].to_owned();
    let mut room = MOST_BYTES;
    let kept = applied.refused.iter().take(MOST_REFUSED).map(|refused| {
        let errors: Vec<String> = refused.errors.iter().take(MOST_ERRORS).map(shortened).collect();
        room = room.saturating_sub(errors.iter().map(String::len).sum());
        Refused { tenant: refused.tenant.clone(), errors: if room > 0 { errors } else { Vec::new() } }
    });
    let more = applied.refused.len().saturating_sub(MOST_REFUSED) as u64;
    (kept.collect(), applied.refused_more.saturating_add(more))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn of_a_node_that_says_very_much_a_part_is_kept_and_the_rest_is_counted() {
        let one = |number: usize| Refused {
            tenant: Some(format!("t{number}").parse().unwrap()),
            errors: if number < 100 { vec!["é".repeat(1 << 16); 100] } else { Vec::new() },
        };
        let refused = (0..MOST_REFUSED + 5).map(one).collect();
        let applied = Applied { nonce: 1, revision: 1, refused, refused_more: 7, lost: false };
        let (kept, more) = bounded(&applied);
        assert_eq!((kept.len(), more), (MOST_REFUSED, 12));
        assert_eq!((kept[0].errors.len(), kept[0].errors[0].len()), (MOST_ERRORS, MOST_ERROR_BYTES));
        let bytes: usize = kept.iter().flat_map(|refused| &refused.errors).map(String::len).sum();
        assert!((MOST_BYTES / 2..=MOST_BYTES).contains(&bytes), "{bytes}");
    }
}
