//! What nodes are told to do with their caches. An order is kept for a day: a node that was away when something was purged
//! hears of it when it comes back, before it has served much of what it holds.

use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, DbBackend, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder, QuerySelect, QueryTrait, Set, Statement, sea_query::OnConflict,
};
use seiketsu_config::{
    push::{Carried, Order, Task},
    values::Id,
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    Author, Once, PATIENCE, Remembered, Store, StoreError, audit,
    connect::ORDER_CHANNEL,
    entities::{control, order, order_answer},
    id_of, number,
    operators::ManageError,
    rows::{self, Damaged},
    signed, within,
};

/// How long orders are kept.
pub(super) const KEPT: Duration = Duration::hours(24);

/// The member of an entry's detail that tells how many orders there were.
pub(super) const ORDERS: &str = "orders";

/// What a tenant may be given of these in that time. Others have to be heard beside it.
const MOST_OF_TENANT: i64 = 5000;
const MOST_BYTES_OF_TENANT: i64 = 32 << 20;

/// A node that has missed more than this begins with an empty cache.
const MOST_MISSED: u64 = 10_000;

/// A node may have said something after an order was lost on its way, and clocks of replicas differ: what was purged so
/// long before it was last heard of is told again, unless it has answered.
const OVERLAP: Duration = Duration::minutes(5);

/// Orders that are read at once.
const AT_ONCE: u64 = 500;

/// An order, as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRow {
    pub number: u64,
    pub tenant: Id,
    pub order: Order,
    pub at: OffsetDateTime,
}

/// What a node answered last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerRow {
    pub node: Id,
    pub run: Uuid,
    pub carried: Carried,
}

/// Some of the orders behind a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrdersPage {
    /// Those that count. There may be none.
    pub orders: Vec<OrderRow>,
    /// Orders behind this number are on further pages.
    pub upto: u64,
}

/// What a node has to do that connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    pub orders: Vec<Order>,
    /// Orders behind this number are yet to come.
    pub upto: u64,
}

impl Store {
    /// The number of the newest order that this process knows of.
    pub fn orders(&self) -> watch::Receiver<u64> {
        self.0.orders.subscribe()
    }

    /// Gives an order, and its id. With an idempotency key that was used for it before: the one that was given then.
    pub async fn give_order(
        &self,
        by: &Author,
        tenant: &Id,
        task: Task,
        once: Option<&Once>,
    ) -> Result<Uuid, ManageError> {
        let given = within(PATIENCE, async {
            let mut writing = self.managing(by, once).await?;
            let old = order::Entity::delete_many().filter(order::Column::At.lt(writing.now - KEPT));
            old.exec(&writing.transaction).await.map_err(StoreError::from)?;
            let order = Order { id: Uuid::now_v7(), task };
            let content = serde_json::to_string(&order).map_err(|why| StoreError::corrupt("an order", &why))?;
            if !has_room(&writing.transaction, tenant, content.len()).await? {
                return Err(ManageError::Orders(tenant.clone()));
            }
            let next = writing.control.orders + 1;
            writing.control.orders = next;
            let row = order::Model {
                number: next,
                id: order.id,
                tenant: tenant.to_string(),
                lasting: !matches!(order.task, Task::Warm { .. }),
                content,
                at: writing.now,
                mac: None,
            };
            let row = self.0.trail.authenticate(row);
            let mut entry = audit::Entry::done().with("order", order.id.to_string()).with("task", shown(&order.task));
            entry = entry.with(ORDERS, next).row(&row);
            let insert = order::Entity::insert(row.into_active_model().reset_all());
            insert.exec_without_returning(&writing.transaction).await.map_err(StoreError::from)?;
            entry.tenant = Some(tenant.as_str());
            writing.audit(by, entry).await?;
            if let Some(once) = once {
                let given = Remembered { status: 200, answer: json!({ "order": order.id }).to_string() };
                writing.remember(by, once, given).await?;
            }
            if writing.transaction.get_database_backend() == DbBackend::Postgres {
                // Heard only if the transaction is committed.
                let values = [ORDER_CHANNEL.into(), next.to_string().into()];
                let notify = Statement::from_sql_and_values(DbBackend::Postgres, "SELECT pg_notify($1, $2)", values);
                writing.transaction.execute_raw(notify).await.map_err(StoreError::from)?;
            }
            writing.finish().await?;
            self.learn_orders(number(next));
            Ok(order.id)
        });
        match given.await {
            Err(ManageError::Repeated(before)) => {
                let read: Value = serde_json::from_str(&before.answer).unwrap_or_default();
                let id = read["order"].as_str().and_then(|id| id.parse().ok());
                id.ok_or(ManageError::KeyUsed)
            }
            given => given,
        }
    }

    /// A page of the orders behind a number, in the order they were given in, as far as they count. One beyond the newest
    /// was given by nobody.
    pub async fn orders_after(&self, after: u64, newest: u64) -> Result<OrdersPage, StoreError> {
        use order::Column::Number;
        let find = order::Entity::find().filter(Number.gt(signed(after))).filter(Number.lte(signed(newest)));
        let find = find.order_by_asc(Number).limit(AT_ONCE);
        within(PATIENCE, async {
            let rows = rows::read(&self.0.database, find).await?;
            let is_last = (rows.len() as u64) < AT_ONCE;
            let last = rows.last().and_then(|row| match row {
                Ok(row) => Some(number(row.number)),
                Err(damaged) => damaged.row.parse().ok(),
            });
            let orders =
                self.counting(readable(rows)).await.into_iter().map(row_of).collect::<Result<_, StoreError>>()?;
            let upto = last.filter(|_| !is_last).unwrap_or(newest);
            Ok(OrdersPage { orders, upto })
        })
        .await
    }

    pub async fn order(&self, id: Uuid) -> Result<Option<OrderRow>, StoreError> {
        let find = order::Entity::find().filter(order::Column::Id.eq(id));
        within(PATIENCE, async { find.one(&self.0.database).await?.map(row_of).transpose() }).await
    }

    /// What was purged while a node was away: since it was last heard of, as far as this process of it has not answered.
    /// None of it is told one by one if that is longer ago than orders are kept, or if it is very much.
    pub async fn orders_missed(
        &self,
        node: &Id,
        run: Uuid,
        heard_at: Option<OffsetDateTime>,
    ) -> Result<Missed, StoreError> {
        let now = OffsetDateTime::now_utc();
        let since = heard_at.map(|heard| heard - OVERLAP).filter(|since| *since > now - KEPT);
        within(PATIENCE, async {
            let control: Option<i64> = control::Entity::find()
                .select_only()
                .column(control::Column::Orders)
                .into_tuple()
                .one(&self.0.database)
                .await?;
            // What is given from now on comes behind this.
            let upto = control.map_or(0, number);
            let Some(since) = since else { return Ok(everything(upto)) };
            let answered = order_answer::Entity::find()
                .select_only()
                .column(order_answer::Column::OrderId)
                .filter(order_answer::Column::Node.eq(node.as_str()))
                .filter(order_answer::Column::Run.eq(run));
            let missed = Condition::all()
                .add(order::Column::Lasting.eq(true))
                .add(order::Column::At.gte(since))
                .add(order::Column::Number.lte(signed(upto)))
                .add(order::Column::Id.not_in_subquery(answered.into_query()));
            let rows = order::Entity::find().filter(missed).order_by_asc(order::Column::Number);
            let rows = rows::read(&self.0.database, rows.limit(MOST_MISSED + 1)).await?;
            if rows.len() as u64 > MOST_MISSED {
                return Ok(everything(upto));
            }
            let rows = self.counting(readable(rows)).await.into_iter();
            let orders = rows.map(|row| Ok(row_of(row)?.order)).collect::<Result<_, StoreError>>()?;
            Ok(Missed { orders, upto })
        })
        .await
    }

    /// A node has answered an order. Whoever waits for it is told.
    pub async fn order_carried(&self, node: &Id, run: Uuid, carried: &Carried) -> Result<(), StoreError> {
        use order_answer::Column;
        let row = order_answer::ActiveModel {
            order_id: Set(carried.id),
            node: Set(node.to_string()),
            run: Set(run),
            done: Set(carried.done),
            content: Set(serde_json::to_string(carried).map_err(|why| StoreError::corrupt("an answer", &why))?),
            at: Set(OffsetDateTime::now_utc()),
        };
        let mut update = OnConflict::columns([Column::OrderId, Column::Node]);
        update.update_columns([Column::Run, Column::Done, Column::Content, Column::At]);
        within(PATIENCE, async {
            {
                let _turn = self.0.turn.lock().await;
                let known = order::Entity::find().filter(order::Column::Id.eq(carried.id));
                // It may have been forgotten meanwhile, or none of those that are kept.
                if known.one(&self.0.database).await?.is_none() {
                    return Ok(());
                }
                let insert = order_answer::Entity::insert(row).on_conflict(update);
                insert.exec_without_returning(&self.0.database).await?;
            }
            self.notify_applied().await
        })
        .await
    }

    /// What nodes have answered to an order.
    pub async fn order_answers(&self, id: Uuid) -> Result<Vec<AnswerRow>, StoreError> {
        let find = order_answer::Entity::find().filter(order_answer::Column::OrderId.eq(id));
        let find = find.order_by_asc(order_answer::Column::Node);
        let answer = |row: order_answer::Model| {
            let carried = serde_json::from_str(&row.content);
            let carried = carried.map_err(|why| StoreError::corrupt("what a node answered", &why))?;
            Ok(AnswerRow { node: id_of(&row.node)?, run: row.run, carried })
        };
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(answer).collect() }).await
    }

    /// Another replica, or this one, has given this order.
    pub(super) fn learn_orders(&self, newest: u64) {
        self.0.orders.send_if_modified(|known| {
            let newer = newest > *known;
            *known = newest.max(*known);
            newer
        });
    }
}

/// Whether the tenant may be given another order of so many bytes.
async fn has_room(transaction: &impl ConnectionTrait, tenant: &Id, bytes: usize) -> Result<bool, StoreError> {
    let sql = "SELECT COUNT(*) AS orders, CAST(COALESCE(SUM(LENGTH(content)), 0) AS BIGINT) AS bytes FROM orders \
         WHERE tenant = $1";
    let statement = Statement::from_sql_and_values(transaction.get_database_backend(), sql, [tenant.as_str().into()]);
    let Some(row) = transaction.query_one_raw(statement).await? else { return Ok(true) };
    let (orders, given): (i64, i64) = (row.try_get("", "orders")?, row.try_get("", "bytes")?);
    Ok(orders < MOST_OF_TENANT && given.saturating_add(signed(bytes as u64)) <= MOST_BYTES_OF_TENANT)
}

/// Those that can be read. The others count as none, as those do that were altered.
fn readable(rows: Vec<Result<order::Model, Damaged>>) -> Vec<order::Model> {
    let warn =
        |Damaged { row, why, .. }: &Damaged| tracing::error!(row, why, "an order cannot be read: it counts as none");
    rows.into_iter().filter_map(|row| row.inspect_err(warn).ok()).collect()
}

fn everything(upto: u64) -> Missed {
    Missed { orders: vec![Order { id: Uuid::nil(), task: Task::PurgeEverything }], upto }
}

#[allow(clippy::needless_pass_by_value)] // Rows become what they are rows of.
fn row_of(row: order::Model) -> Result<OrderRow, StoreError> {
    Ok(OrderRow {
        number: number(row.number),
        tenant: id_of(&row.tenant)?,
        order: serde_json::from_str(&row.content).map_err(|why| StoreError::corrupt("an order", &why))?,
        at: row.at,
    })
}

/// For the audit trail: header fields may be secrets, and a long list helps nobody.
fn shown(task: &Task) -> Value {
    match task {
        Task::Warm { urls, .. } => json!({ "warm": { "urls": urls.len(), "first": urls.first() } }),
        other => serde_json::to_value(other).unwrap_or_default(),
    }
}
