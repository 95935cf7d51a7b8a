//! What is known of nodes, where this process is the only one: rows that are written when nobody else writes.
//!
//! SQLite has one writer at a time. A node that is heard of is not to wait for an import.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use sea_orm::{ActiveModelTrait, IntoActiveModel, Iterable, TryIntoModel};
use seiketsu_config::values::Id;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{StoreError, entities::node};

#[derive(Default)]
pub(super) struct NodeMemory(Mutex<BTreeMap<String, Known>>);

struct Known {
    row: node::Model,
    is_written: bool,
}

/// Which row is meant, as long as it is still of this run and this connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) node: &'a Id,
    pub(super) run: Option<Uuid>,
    pub(super) replica: Option<Uuid>,
}

impl NodeMemory {
    pub(super) fn put(&self, row: node::Model) {
        self.0.lock().insert(row.id.clone(), Known { row, is_written: false });
    }

    /// Sets what is set in `heard`. Whether there was such a node.
    pub(super) fn note(&self, of: &Of<'_>, heard: &node::ActiveModel) -> Result<bool, StoreError> {
        let mut rows = self.0.lock();
        let Some(known) = rows.get_mut(of.node.as_str()) else { return Ok(false) };
        let row = &known.row;
        if of.run.is_some_and(|run| run != row.run) || of.replica.is_some_and(|replica| row.replica != Some(replica)) {
            return Ok(false);
        }
        let mut next = row.clone().into_active_model();
        for column in node::Column::iter() {
            if let Some(value) = heard.get(column).into_value() {
                next.set(column, value);
            }
        }
        *known = Known { row: next.try_into_model()?, is_written: false };
        Ok(true)
    }

    pub(super) fn row(&self, node: &str) -> Option<node::Model> {
        self.0.lock().get(node).map(|known| known.row.clone())
    }

    /// Those behind a name that are known here, in place of what was read.
    pub(super) fn over(&self, read: Vec<node::Model>, after: Option<&str>) -> Vec<node::Model> {
        let mut rows: BTreeMap<String, node::Model> = read.into_iter().map(|row| (row.id.clone(), row)).collect();
        let known = self.0.lock();
        let behind = known.iter().filter(|(id, _)| after.is_none_or(|after| id.as_str() > after));
        rows.extend(behind.map(|(id, known)| (id.clone(), known.row.clone())));
        rows.into_values().collect()
    }

    pub(super) fn unwritten(&self) -> Vec<node::Model> {
        self.0.lock().values().filter(|known| !known.is_written).map(|known| known.row.clone()).collect()
    }

    /// They stand in the store now, unless they have changed since.
    pub(super) fn written(&self, written: &[node::Model]) {
        let mut rows = self.0.lock();
        for row in written {
            if let Some(known) = rows.get_mut(&row.id).filter(|known| known.row == *row) {
                known.is_written = true;
            }
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.0.lock().len() as u64
    }

    pub(super) fn forget(&self, node: &str) {
        self.0.lock().remove(node);
    }

    /// Those that were not heard of since then.
    pub(super) fn forget_before(&self, then: OffsetDateTime) {
        self.0.lock().retain(|_, known| known.row.heard_at >= then);
    }
}
