//! Gateway nodes: what they run, and whether they are there.

use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, Set,
    sea_query::{Expr, OnConflict},
};
use seiketsu_config::{
    push::{Applied, HEARTBEAT_SECONDS, Heartbeat, Hello, Refused},
    values::Id,
};
use serde::Serialize;
use serde_json::json;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    PATIENCE, Store, StoreError,
    entities::node,
    events::{EventKind, NewEvent},
    id_of, number, signed, within,
};

/// A node that has said nothing for so long is gone.
const GONE_AFTER: Duration = Duration::seconds(3 * HEARTBEAT_SECONDS.cast_signed());

/// Of one answer, more refused documents than these are not told one by one.
const MOST_REFUSED: usize = 100;

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
    /// Whether another process with the same id runs as well, as was seen lately: one of them needs another id.
    pub twin: bool,
}

impl Store {
    /// A node has connected. A former run of it is forgotten.
    pub async fn node_connected(&self, hello: &Hello, replica: Uuid) -> Result<(), StoreError> {
        use node::Column;
        let now = OffsetDateTime::now_utc();
        let row = node::Model {
            id: hello.node.to_string(),
            run: hello.run,
            version: hello.version.clone(),
            region: hello.region.as_ref().map(Id::to_string),
            zone: hello.zone.as_ref().map(Id::to_string),
            replica: Some(replica),
            connected_at: now,
            heard_at: now,
            revision: hello.holds.filter(|held| held.store == self.id()).map_or(0, |held| signed(held.revision)),
            ready: false,
            draining: false,
            refused: "[]".to_owned(),
            // What was seen before stays.
            twin_seen_at: None,
        };
        let mut update = OnConflict::column(Column::Id);
        update.update_columns([
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
        ]);
        let insert = node::Entity::insert(row.into_active_model().reset_all()).on_conflict(update);
        within(PATIENCE, async {
            let _turn = self.0.turn.lock().await;
            insert.exec_without_returning(&self.0.database).await?;
            Ok::<_, StoreError>(())
        })
        .await?;
        let told = json!({ "node": hello.node, "version": hello.version, "region": hello.region });
        self.tell(vec![NewEvent::new(EventKind::NodeConnected, told)]).await
    }

    /// A node has answered an update. Whoever waits for it is told.
    pub async fn node_applied(&self, node: &Id, run: Uuid, applied: &Applied) -> Result<(), StoreError> {
        let refused = serde_json::to_string(&applied.refused).unwrap_or_default();
        let heard = node::ActiveModel {
            revision: Set(signed(applied.revision)),
            refused: Set(refused),
            heard_at: Set(OffsetDateTime::now_utc()),
            ..Default::default()
        };
        let before = within(PATIENCE, async {
            let before = node::Entity::find_by_id(node.to_string()).one(&self.0.database).await?;
            self.node_heard_of(node, run, heard).await?;
            self.notify_applied().await?;
            before
                .filter(|before| before.run == run)
                .map(|before| node_of(before, OffsetDateTime::now_utc()))
                .transpose()
        })
        .await?;
        match before {
            Some(before) => self.tell(what_is_new(&before, applied)).await,
            None => Ok(()),
        }
    }

    /// A node has sent a heartbeat.
    pub async fn node_heard(&self, node: &Id, run: Uuid, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        let heard = node::ActiveModel {
            revision: Set(signed(heartbeat.revision)),
            ready: Set(heartbeat.ready),
            draining: Set(heartbeat.draining),
            heard_at: Set(OffsetDateTime::now_utc()),
            ..Default::default()
        };
        within(PATIENCE, self.node_heard_of(node, run, heard)).await
    }

    /// The connection of a node to a replica has ended. It may have another one already, to another replica.
    pub async fn node_left(&self, node: &Id, run: Uuid, replica: Uuid) -> Result<(), StoreError> {
        let update = node::Entity::update_many()
            .col_expr(node::Column::Replica, Expr::value(None::<Uuid>))
            .filter(node::Column::Id.eq(node.as_str()))
            .filter(node::Column::Run.eq(run))
            .filter(node::Column::Replica.eq(replica));
        let left = within(PATIENCE, async {
            let _turn = self.0.turn.lock().await;
            Ok::<_, StoreError>(update.exec(&self.0.database).await?.rows_affected)
        })
        .await?;
        // It may be connected elsewhere already.
        let told = (left > 0).then(|| NewEvent::new(EventKind::NodeLeft, json!({ "node": node })));
        self.tell(told.into_iter().collect()).await
    }

    /// Another process with the same id runs as well.
    pub async fn node_has_twin(&self, node: &Id) -> Result<(), StoreError> {
        let update = node::Entity::update_many()
            .col_expr(node::Column::TwinSeenAt, Expr::value(OffsetDateTime::now_utc()))
            .filter(node::Column::Id.eq(node.as_str()));
        within(PATIENCE, async {
            let _turn = self.0.turn.lock().await;
            update.exec(&self.0.database).await?;
            Ok(())
        })
        .await
    }

    /// What is heard of another run than the last one that connected is of no interest any more.
    async fn node_heard_of(&self, node: &Id, run: Uuid, heard: node::ActiveModel) -> Result<(), StoreError> {
        let update = node::Entity::update_many()
            .set(heard)
            .filter(node::Column::Id.eq(node.as_str()))
            .filter(node::Column::Run.eq(run));
        let _turn = self.0.turn.lock().await;
        update.exec(&self.0.database).await?;
        Ok(())
    }

    /// All nodes that have ever connected, in the order of their names.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        let find = node::Entity::find().order_by_asc(node::Column::Id);
        let now = OffsetDateTime::now_utc();
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(|row| node_of(row, now)).collect() })
            .await
    }

    /// One node.
    pub async fn node(&self, id: &Id) -> Result<Option<NodeRow>, StoreError> {
        let find = node::Entity::find_by_id(id.to_string());
        let now = OffsetDateTime::now_utc();
        within(PATIENCE, async { find.one(&self.0.database).await?.map(|row| node_of(row, now)).transpose() }).await
    }
}

/// A node repeats its answers; what it has said already is not told again.
fn what_is_new(before: &NodeRow, applied: &Applied) -> Vec<NewEvent> {
    let mut told = Vec::new();
    let Applied { revision, refused, .. } = applied;
    if before.revision != *revision {
        let detail = json!({ "node": before.id, "revision": revision, "refused": refused.len() });
        told.push(NewEvent::new(EventKind::NodeApplied, detail));
    }
    for refused in refused.iter().filter(|refused| !before.refused.contains(refused)).take(MOST_REFUSED) {
        let detail = json!({ "node": before.id, "revision": revision, "errors": refused.errors });
        told.push(NewEvent::about(EventKind::NodeRefused, refused.tenant.as_ref().map(Id::as_str), detail));
    }
    told
}

fn node_of(row: node::Model, now: OffsetDateTime) -> Result<NodeRow, StoreError> {
    Ok(NodeRow {
        id: id_of(&row.id)?,
        live: row.replica.is_some() && now - row.heard_at < GONE_AFTER,
        run: row.run,
        version: row.version,
        region: row.region,
        zone: row.zone,
        replica: row.replica,
        connected_at: row.connected_at,
        heard_at: row.heard_at,
        revision: number(row.revision),
        ready: row.ready,
        draining: row.draining,
        twin: row.twin_seen_at.is_some_and(|seen| now - seen < TWIN_REMEMBERED),
        refused: serde_json::from_str(&row.refused).map_err(|why| StoreError::corrupt("what a node refused", &why))?,
    })
}
