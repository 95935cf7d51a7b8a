//! Documents: the head, and the tenants. This is the only place that writes them, and the tables that follow from them.
//!
//! A document is kept as the JSON of the model that the gateway parses. Its text is what is pushed, compared and hashed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use schemars::JsonSchema;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect, Set,
    sea_query::OnConflict,
};
use seiketsu_config::{
    check,
    load::parallel,
    policy::{Plans, Policies},
    push::{Held, Sum},
    tenant::{Tenant, TenantHead, Upstream},
    values::{HostPattern, Id},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    Author, BATCH, Invalid, Once, PATIENCE, PATIENCE_FOR_ALL, Remembered, Store, StoreError, audit,
    entities::{api_gateway_config, host, revision, revision_change, tenant},
    events::{EventKind, NewEvent},
    gateway_config::GatewayConfig,
    head_of, number, signed, stored,
    tables::{self, Differences},
    tenants::patterns,
    within,
    writing::Writing,
};

/// Changes of fewer documents than this are ordinary requests, which wait for the store no longer than those.
const MANY: usize = 100;

/// A document as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDocument {
    /// None: the head.
    pub tenant: Option<Id>,
    /// The revision that it was last changed in.
    pub revision: u64,
    /// JSON.
    pub content: String,
}

/// What a node needs to come from one state to another.
#[derive(Debug, Clone)]
pub struct Changes {
    pub to: Held,
    /// None: it is what it was.
    pub head: Option<StoredDocument>,
    pub put: Vec<StoredDocument>,
    pub gone: Vec<Id>,
}

/// What stands beside the tenants.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeadDocument {
    /// Policies for all tenants, below plan, tenant and route.
    pub defaults: Policies,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub plans: Plans,
    /// Upstreams that every tenant may use.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub upstreams: BTreeMap<Id, Upstream>,
}

impl HeadDocument {
    pub(super) fn to_json(&self) -> String {
        // It has text keys throughout, so that nothing of it cannot be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(super) fn parse(content: &str) -> Result<Self, StoreError> {
        serde_json::from_str(content).map_err(|why| StoreError::corrupt("the head", &why))
    }
}

impl From<TenantHead> for HeadDocument {
    fn from(head: TenantHead) -> Self {
        let TenantHead { revision: _, defaults, plans, upstreams } = head;
        Self { defaults, plans, upstreams }
    }
}

impl From<HeadDocument> for TenantHead {
    fn from(head: HeadDocument) -> Self {
        let HeadDocument { defaults, plans, upstreams } = head;
        Self { revision: 0, defaults, plans, upstreams }
    }
}

impl StoredDocument {
    /// The tenant that the document is of.
    pub fn parse(&self) -> Result<Tenant, StoreError> {
        let name = self.tenant.as_ref().map_or("", Id::as_str);
        serde_json::from_str(&self.content).map_err(|why| StoreError::corrupt(format!("tenant {name}"), &why))
    }

    /// The head that the document is.
    pub fn parse_head(&self) -> Result<HeadDocument, StoreError> {
        HeadDocument::parse(&self.content)
    }
}

/// Documents that are to be as given here. What is so already is left as it is, and nothing at all is written if
/// everything is.
#[derive(Debug, Clone, Default)]
pub struct ChangeSet {
    pub head: Option<HeadDocument>,
    pub put: Vec<Tenant>,
    /// Those that are not there are passed over.
    pub remove: Vec<Id>,
    /// Remove all that are not in `put`.
    pub remove_others: bool,
    pub reason: Option<String>,
    /// What else is kept with it in the audit trail.
    pub note: Map<String, Value>,
    /// No host of theirs may reach into a wildcard of another tenant, nor a wildcard over others' hosts. For operators who
    /// are not for all tenants.
    pub own_hosts_only: bool,
    /// Do everything, and then leave it.
    pub dry_run: bool,
}

/// What must be so for a change to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// The document (None: the head) was last changed in this revision.
    Revision { tenant: Option<Id>, revision: u64 },
    /// There is no such tenant.
    Absent(Id),
    /// There is such a tenant.
    Present(Id),
    /// Nothing at all was changed since this revision.
    Newest(u64),
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The revision that it made; the one that there is, if it changed nothing.
    pub revision: u64,
    /// Tenants that were added, changed or removed, in the order of their names.
    pub changed: Vec<Id>,
    pub head: bool,
}

impl Written {
    pub fn is_change(&self) -> bool {
        self.head || !self.changed.is_empty()
    }
}

/// Why a change was not made. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// At least one.
    #[error("the configuration would not be valid: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Invalid>),
    #[error("it was changed in the meantime: revision {expected} was expected")]
    Changed { expected: u64, current: Option<Box<StoredDocument>> },
    #[error(
        "the configuration was changed in the meantime: revision {expected} was expected, and {newest} is the newest"
    )]
    ChangedSince { expected: u64, newest: u64 },
    #[error("the host {host} and {pattern} of another tenant reach into each other")]
    HostOfOthers { host: String, pattern: String },
    #[error("there is a tenant {0} already")]
    Exists(Id),
    #[error("there is no tenant {0}")]
    Missing(Id),
    /// Something within a tenant.
    #[error("the tenant {tenant} has no {what} {name}")]
    NotInTenant { tenant: Id, what: &'static str, name: String },
    #[error("the tenant {tenant} has a {what} {name} already")]
    InTenant { tenant: Id, what: &'static str, name: String },
    #[error("there is no revision {0}")]
    NoRevision(u64),
    #[error("the idempotency key was used for another request")]
    KeyUsed,
    /// Not an error: it was done before.
    #[error("the request was carried out before")]
    Repeated(Remembered),
}

/// What a request with an idempotency key is answered with, made when it is known what was written.
pub type Answer<'a> = &'a (dyn Fn(&Written) -> Remembered + Send + Sync);

impl Store {
    /// Makes a change: all of it, with its revision and its entry in the audit trail, or nothing.
    pub async fn write(
        &self,
        by: &Author,
        change: ChangeSet,
        expected: Option<Expected>,
    ) -> Result<Written, WriteError> {
        self.write_once(by, change, expected, None).await
    }

    /// As [`write`](Self::write), once for each idempotency key.
    pub async fn write_once(
        &self,
        by: &Author,
        change: ChangeSet,
        expected: Option<Expected>,
        once: Option<(&Once, Answer<'_>)>,
    ) -> Result<Written, WriteError> {
        let many = change.head.is_some() || change.remove_others || change.put.len() + change.remove.len() > MANY;
        let patience = if many { PATIENCE_FOR_ALL } else { PATIENCE };
        within(patience, async {
            let writing = self.begin(by, once).await?;
            writing.expect(expected.as_ref()).await?;
            writing.carry_out(by, change, once).await
        })
        .await
    }

    /// Changes a tenant to what `edit` makes of it; nobody else changes it meanwhile.
    pub async fn edit<F>(
        &self,
        by: &Author,
        id: &Id,
        expected: Option<u64>,
        once: Option<(&Once, Answer<'_>)>,
        edit: F,
    ) -> Result<Written, WriteError>
    where
        F: FnOnce(Tenant) -> Result<Tenant, Vec<Invalid>> + Send,
    {
        let edit = |tenant| edit(tenant).map_err(WriteError::Invalid);
        self.edit_with_note(by, id, expected, once, Map::new(), edit).await
    }

    /// As [`edit`](Self::edit), with what else is to be kept of it in the audit trail.
    pub async fn edit_with_note<F>(
        &self,
        by: &Author,
        id: &Id,
        expected: Option<u64>,
        once: Option<(&Once, Answer<'_>)>,
        note: Map<String, Value>,
        edit: F,
    ) -> Result<Written, WriteError>
    where
        F: FnOnce(Tenant) -> Result<Tenant, WriteError> + Send,
    {
        within(PATIENCE, async {
            let writing = self.begin(by, once).await?;
            let expected = match expected {
                Some(revision) => Expected::Revision { tenant: Some(id.clone()), revision },
                None => Expected::Present(id.clone()),
            };
            writing.expect(Some(&expected)).await?;
            let current = writing.tenant(id).await?.ok_or_else(|| WriteError::Missing(id.clone()))?;
            let edited = edit(stored(current)?.parse()?)?;
            writing.carry_out(by, ChangeSet { put: vec![edited], note, ..ChangeSet::default() }, once).await
        })
        .await
    }

    pub(super) async fn begin(
        &self,
        by: &Author,
        once: Option<(&Once, Answer<'_>)>,
    ) -> Result<Writing<'_>, WriteError> {
        let writing = self.writing_by(by).await?;
        if let Some((once, _)) = once
            && let Some(before) = writing.repeated(by, once).await?
        {
            return Err(WriteError::Repeated(before));
        }
        Ok(writing)
    }
}

/// A tenant that is to be written.
struct Put {
    id: Uuid,
    is_new: bool,
    tenant: Arc<Tenant>,
    content: String,
}

impl Writing<'_> {
    async fn tenant(&self, id: &Id) -> Result<Option<tenant::Model>, StoreError> {
        let find = tenant::Entity::find().filter(tenant::Column::Name.eq(id.as_str()));
        Ok(find.one(&self.transaction).await?)
    }

    pub(super) async fn expect(&self, expected: Option<&Expected>) -> Result<(), WriteError> {
        let (id, revision) = match expected {
            None => return Ok(()),
            Some(Expected::Newest(expected)) => {
                let (expected, newest) = (*expected, number(self.control.revision));
                return if expected == newest { Ok(()) } else { Err(WriteError::ChangedSince { expected, newest }) };
            }
            Some(Expected::Revision { tenant: None, revision }) if signed(*revision) == self.control.head_revision => {
                return Ok(());
            }
            Some(Expected::Revision { tenant: None, revision }) => {
                let current = Some(Box::new(head_of(&self.control)));
                return Err(WriteError::Changed { expected: *revision, current });
            }
            Some(Expected::Revision { tenant: Some(id), revision }) => (id, Some(*revision)),
            Some(Expected::Absent(id) | Expected::Present(id)) => (id, None),
        };
        let current = self.tenant(id).await?;
        match (expected, current, revision) {
            (Some(Expected::Absent(_)), Some(_), _) => Err(WriteError::Exists(id.clone())),
            (Some(Expected::Present(_)), None, _) => Err(WriteError::Missing(id.clone())),
            (_, Some(row), Some(expected)) if number(row.revision) != expected => {
                Err(WriteError::Changed { expected, current: Some(Box::new(stored(row)?)) })
            }
            (_, None, Some(expected)) => Err(WriteError::Changed { expected, current: None }),
            _ => Ok(()),
        }
    }

    /// Writes what differs from what is there.
    pub(super) async fn carry_out(
        mut self,
        by: &Author,
        change: ChangeSet,
        once: Option<(&Once, Answer<'_>)>,
    ) -> Result<Written, WriteError> {
        let ChangeSet { head, put, remove, remove_others, reason, note, own_hosts_only, dry_run } = change;
        let head = head.map(|head| (head.to_json(), head)).filter(|(content, _)| *content != self.control.head);
        let (put, gone, mut changes) = self.differences(put, remove, remove_others).await?;
        let Some(next) = (head.is_some() || !changes.is_empty()).then_some(self.control.revision + 1) else {
            let written = Written { revision: number(self.control.revision), changed: Vec::new(), head: false };
            if let Some((once, answer)) = once {
                self.remember(by, once, answer(&written)).await?;
                self.finish().await?;
            }
            return Ok(written);
        };
        let changed_head = head.as_ref().map(|(_, head)| head.clone());
        self.validate(changed_head, &put, &gone).await?;
        if own_hosts_only {
            self.reaches_into_no_other(&put).await?;
        }

        let mut sum: Sum = self.control.sum.parse().map_err(|why| StoreError::corrupt("the sum", &why))?;
        let head_changed = head.is_some();
        if let Some((content, head)) = head {
            let mut differences = Differences::default();
            differences.add_head(&HeadDocument::parse(&self.control.head)?, &head);
            differences.write(&self.transaction).await?;
            let before = std::mem::replace(&mut self.control.head, content.clone());
            changes.insert(0, change_of(next, "", Some(before), Some(content)));
            self.control.head_revision = next;
        }
        let mut changed = Vec::new();
        for change in &changes {
            let id = (!change.tenant.is_empty()).then(|| super::id_of(&change.tenant)).transpose()?;
            sum = change.before.as_ref().map_or(sum, |before| sum.without(Sum::of(id.as_ref(), before)));
            sum = change.after.as_ref().map_or(sum, |after| sum.with(Sum::of(id.as_ref(), after)));
            changed.extend(id);
        }
        self.control.sum = sum.to_string();
        self.control.revision = next;

        self.remove(&gone).await?;
        self.put(next, &put, &changes).await?;
        let written = Written { revision: number(next), changed, head: head_changed };
        if dry_run {
            return Ok(written);
        }
        let mut entry = audit::of_revision(next, &changes, reason.as_deref());
        entry.detail.extend(note);
        entry.tenant = match &written.changed[..] {
            [one] if !head_changed => Some(one.as_str()),
            _ => None,
        };
        self.audit(by, entry).await?;
        let mut told = NewEvent::new(
            EventKind::Revision,
            json!({
                "revision": next, "author": by.name, "action": by.action, "reason": reason,
                "changed": changes.len(), "head": head_changed,
            }),
        );
        told.tenants = (!written.changed.is_empty()).then(|| written.changed.iter().map(Id::to_string).collect());
        self.events.push(told);
        self.append(by, reason, changes).await?;
        if let Some((once, answer)) = once {
            self.remember(by, once, answer(&written)).await?;
        }
        self.finish().await?;
        Ok(written)
    }

    /// What is to be written, what is to be removed, and how each document changes, in the order of names.
    async fn differences(
        &self,
        put: Vec<Tenant>,
        remove: Vec<Id>,
        remove_others: bool,
    ) -> Result<(Vec<Put>, Vec<tenant::Model>, Vec<revision_change::Model>), WriteError> {
        let next = self.control.revision + 1;
        let mut names: Vec<&str> = put.iter().map(|tenant| tenant.id.as_str()).collect();
        names.sort_unstable();
        if let Some((twice, _)) = names.iter().zip(names.iter().skip(1)).find(|(one, next)| one == next) {
            let detail = format!("the tenant {twice} is given twice");
            let fix = Some("give it once".to_owned());
            return Err(WriteError::Invalid(vec![Invalid { tenant: None, path: "tenants".to_owned(), detail, fix }]));
        }
        let wanted: HashSet<&str> = names.iter().copied().collect();
        let mut there = HashMap::new();
        for names in names.chunks(BATCH) {
            let find = tenant::Entity::find().filter(tenant::Column::Name.is_in(names.iter().copied()));
            let rows = find.all(&self.transaction).await.map_err(StoreError::from)?;
            there.extend(rows.into_iter().map(|row| (row.name.clone(), row)));
        }
        let gone = self.to_remove(&remove, remove_others, &wanted).await?;
        let mut changes: Vec<_> =
            gone.iter().map(|row| change_of(next, &row.name, Some(row.content.clone()), None)).collect();
        let mut different = Vec::new();
        for tenant in put {
            let content = serde_json::to_string(&tenant)
                .map_err(|why| StoreError::corrupt(format!("tenant {}", tenant.id), &why))?;
            let before = there.remove(tenant.id.as_str());
            if before.as_ref().is_some_and(|before| before.content == content) {
                continue;
            }
            let (id, is_new) = before.as_ref().map_or_else(|| (Uuid::now_v7(), true), |before| (before.id, false));
            let before = before.map(|before| before.content);
            changes.push(change_of(next, tenant.id.as_str(), before, Some(content.clone())));
            different.push(Put { id, is_new, tenant: Arc::new(tenant), content });
        }
        changes.sort_unstable_by(|one, other| one.tenant.cmp(&other.tenant));
        Ok((different, gone, changes))
    }

    async fn to_remove(
        &self,
        remove: &[Id],
        remove_others: bool,
        wanted: &HashSet<&str>,
    ) -> Result<Vec<tenant::Model>, StoreError> {
        let mut gone = Vec::new();
        if remove_others {
            let mut last = String::new();
            loop {
                let find = tenant::Entity::find().filter(tenant::Column::Name.gt(last.as_str()));
                let find = find.order_by_asc(tenant::Column::Name).limit(BATCH as u64);
                let rows = find.all(&self.transaction).await?;
                let Some(end) = rows.last() else { break };
                last.clone_from(&end.name);
                gone.extend(rows.into_iter().filter(|row| !wanted.contains(&*row.name)));
            }
            return Ok(gone);
        }
        for ids in remove.chunks(BATCH) {
            let names = ids.iter().map(Id::as_str).filter(|id| !wanted.contains(id));
            let find = tenant::Entity::find().filter(tenant::Column::Name.is_in(names));
            gone.extend(find.all(&self.transaction).await?);
        }
        Ok(gone)
    }

    /// Checks what would be written as the gateway would; with a new head, all tenants that refer to it.
    async fn validate(
        &self,
        changed_head: Option<HeadDocument>,
        put: &[Put],
        gone: &[tenant::Model],
    ) -> Result<(), WriteError> {
        let head_changed = changed_head.is_some();
        let head = match changed_head {
            Some(head) => head,
            None => HeadDocument::parse(&self.control.head)?,
        };
        let head = Arc::new(TenantHead::from(head));
        let mut invalid = Vec::new();
        if head_changed {
            let problems = check::head(&head).into_iter().chain(check::confined_head(&head));
            invalid.extend(problems.map(|problem| Invalid::new(None, &problem)));
        }
        let tenants: Vec<Arc<Tenant>> = put.iter().map(|put| Arc::clone(&put.tenant)).collect();
        for tenant in &tenants {
            let foreign = check::confined_tenant(tenant);
            invalid.extend(foreign.iter().map(|problem| Invalid::new(Some(&tenant.id), problem)));
        }
        invalid.extend(checked(Arc::clone(&head), tenants).await?);
        if head_changed && invalid.is_empty() {
            let mut others: HashSet<&str> = put.iter().map(|put| put.tenant.id.as_str()).collect();
            others.extend(gone.iter().map(|row| &*row.name));
            invalid.extend(self.check_others(&head, &others).await?);
        }
        if invalid.is_empty() { Ok(()) } else { Err(WriteError::Invalid(invalid)) }
    }

    /// Tenants that are not written, against a head that is.
    async fn check_others(&self, head: &Arc<TenantHead>, except: &HashSet<&str>) -> Result<Vec<Invalid>, StoreError> {
        let (mut invalid, mut last) = (Vec::new(), String::new());
        loop {
            let find = tenant::Entity::find().filter(tenant::Column::Name.gt(last.as_str()));
            let find = find.order_by_asc(tenant::Column::Name).limit(BATCH as u64);
            let rows = find.all(&self.transaction).await?;
            let Some(end) = rows.last() else { break };
            last.clone_from(&end.name);
            let others = rows.into_iter().filter(|row| !except.contains(&*row.name));
            let others = others.map(|row| Ok(Arc::new(stored(row)?.parse()?)));
            let others: Vec<Arc<Tenant>> = others.collect::<Result<_, StoreError>>()?;
            invalid.extend(checked(Arc::clone(head), others).await?);
        }
        Ok(invalid)
    }

    /// Whoever serves a host below another tenant's wildcard takes its callers, and their credentials.
    async fn reaches_into_no_other(&self, put: &[Put]) -> Result<(), WriteError> {
        let find = |condition| host::Entity::find().filter(condition).all(&self.transaction);
        for put in put {
            let own = find(host::Column::TenantId.eq(put.id)).await.map_err(StoreError::from)?;
            let is_new = |pattern: &&HostPattern| !own.iter().any(|row| row.pattern == pattern.to_string());
            for pattern in put.tenant.hosts.iter().filter(is_new) {
                let mut others =
                    find(host::Column::Pattern.is_in(patterns(pattern))).await.map_err(StoreError::from)?;
                if pattern.is_wildcard() {
                    let below = format!(".{}", pattern.name());
                    let found = find(host::Column::Pattern.ends_with(&below)).await.map_err(StoreError::from)?;
                    // In SQL, `_` stands for any character.
                    others.extend(found.into_iter().filter(|row| row.pattern.ends_with(&below)));
                }
                // The same pattern is told of as every taken host is.
                let is_others = |row: &host::Model| row.tenant_id != put.id && row.pattern != pattern.to_string();
                if let Some(other) = others.into_iter().find(is_others) {
                    return Err(WriteError::HostOfOthers { host: pattern.to_string(), pattern: other.pattern });
                }
            }
        }
        Ok(())
    }

    async fn remove(&self, gone: &[tenant::Model]) -> Result<(), StoreError> {
        for rows in gone.chunks(BATCH) {
            // What follows from a tenant goes with it.
            let ids = rows.iter().map(|row| row.id);
            tenant::Entity::delete_many().filter(tenant::Column::Id.is_in(ids)).exec(&self.transaction).await?;
            tables::remove(&self.transaction, &rows.iter().map(|row| &*row.name).collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// `changes` in the order of names.
    async fn put(&self, revision: i64, put: &[Put], changes: &[revision_change::Model]) -> Result<(), WriteError> {
        for put in put.chunks(BATCH) {
            // Hosts that move between two tenants of the change are free before they are taken.
            let ids = put.iter().filter(|put| !put.is_new).map(|put| put.id);
            let delete = host::Entity::delete_many().filter(host::Column::TenantId.is_in(ids));
            delete.exec(&self.transaction).await.map_err(StoreError::from)?;
        }
        for put in put.chunks(BATCH) {
            self.put_tenants(revision, put).await?;
            self.put_hosts(put).await?;
            self.put_tables(put, changes).await?;
        }
        Ok(())
    }

    async fn put_tables(&self, put: &[Put], changes: &[revision_change::Model]) -> Result<(), StoreError> {
        let mut differences = Differences::default();
        for Put { tenant, .. } in put {
            let found = changes.binary_search_by(|change| (*change.tenant).cmp(tenant.id.as_str())).ok();
            let before = found.and_then(|at| changes[at].before.as_deref()).map(serde_json::from_str::<Tenant>);
            let before =
                before.transpose().map_err(|why| StoreError::corrupt(format!("tenant {}", tenant.id), &why))?;
            differences.add_tenant(before.as_ref(), tenant, self.now);
        }
        differences.write(&self.transaction).await
    }

    async fn put_tenants(&self, revision: i64, put: &[Put]) -> Result<(), StoreError> {
        use api_gateway_config::Column as Config;
        let rows = put.iter().map(|put| tenant::ActiveModel {
            id: Set(put.id),
            name: Set(put.tenant.id.to_string()),
            revision: Set(revision),
            content: Set(put.content.clone()),
            created_at: Set(self.now),
            updated_at: Set(self.now),
        });
        let mut update = OnConflict::column(tenant::Column::Id);
        update.update_columns([tenant::Column::Revision, tenant::Column::Content, tenant::Column::UpdatedAt]);
        tenant::Entity::insert_many(rows).on_conflict(update).exec_without_returning(&self.transaction).await?;

        let rows = put.iter().map(|put| {
            let row = GatewayConfig::of(&put.tenant).into_row(put.id, self.now);
            api_gateway_config::ActiveModel { id: Set(Uuid::now_v7()), ..row.into_active_model().reset_all() }
        });
        let mut update = OnConflict::column(Config::TenantId);
        update.update_columns([
            Config::RateLimitRpm,
            Config::BurstLimit,
            Config::QuotaDaily,
            Config::QuotaMonthly,
            Config::CustomHeaders,
            Config::CorsConfig,
            Config::CachingEnabled,
            Config::CacheTtlSeconds,
        ]);
        let insert = api_gateway_config::Entity::insert_many(rows).on_conflict(update);
        insert.exec_without_returning(&self.transaction).await?;
        Ok(())
    }

    async fn put_hosts(&self, put: &[Put]) -> Result<(), WriteError> {
        let mut rows = Vec::new();
        let mut taken = Vec::new();
        for put in put {
            for (index, pattern) in put.tenant.hosts.iter().enumerate() {
                rows.push((put, index, host::Model { pattern: pattern.to_string(), tenant_id: put.id }));
            }
        }
        for rows in rows.chunks(BATCH) {
            let patterns = rows.iter().map(|(_, _, row)| row.pattern.as_str());
            let find = host::Entity::find().filter(host::Column::Pattern.is_in(patterns));
            let there = find.all(&self.transaction).await.map_err(StoreError::from)?;
            let mut there: HashSet<String> = there.into_iter().map(|row| row.pattern).collect();
            for (put, index, row) in rows {
                if !there.insert(row.pattern.clone()) {
                    // Whose it is concerns nobody but those who may see all tenants, and they can look it up.
                    taken.push(Invalid {
                        tenant: Some(put.tenant.id.clone()),
                        path: format!("hosts[{index}]"),
                        detail: format!("{:?}: another tenant has this host", row.pattern),
                        fix: Some("take another host, or take it away from the other tenant first".to_owned()),
                    });
                }
            }
            if taken.is_empty() {
                let rows = rows.iter().map(|(_, _, row)| row.clone().into_active_model().reset_all());
                let insert = host::Entity::insert_many(rows);
                insert.exec_without_returning(&self.transaction).await.map_err(StoreError::from)?;
            }
        }
        if taken.is_empty() { Ok(()) } else { Err(WriteError::Invalid(taken)) }
    }

    async fn append(
        &self,
        by: &Author,
        reason: Option<String>,
        changes: Vec<revision_change::Model>,
    ) -> Result<(), StoreError> {
        let row = revision::Model {
            number: self.control.revision,
            at: self.now,
            author: by.name.clone(),
            action: by.action.to_owned(),
            reason,
            changed: i64::try_from(changes.len()).unwrap_or(i64::MAX),
        };
        let insert = revision::Entity::insert(row.into_active_model());
        insert.exec_without_returning(&self.transaction).await?;
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let rows = changes.by_ref().take(BATCH).map(|row| row.into_active_model().reset_all());
            let rows: Vec<_> = rows.collect();
            revision_change::Entity::insert_many(rows).exec_without_returning(&self.transaction).await?;
        }
        Ok(())
    }
}

fn change_of(revision: i64, tenant: &str, before: Option<String>, after: Option<String>) -> revision_change::Model {
    revision_change::Model { revision, tenant: tenant.to_owned(), before, after }
}

/// Many tenants are checked on threads of their own: it takes a while.
async fn checked(head: Arc<TenantHead>, tenants: Vec<Arc<Tenant>>) -> Result<Vec<Invalid>, StoreError> {
    let check = move || {
        let found = parallel::map(&tenants, 64, |tenant| {
            let problems = check::tenant(tenant, &head);
            problems.iter().map(|problem| Invalid::new(Some(&tenant.id), problem)).collect::<Vec<_>>()
        });
        found.into_iter().flatten().collect()
    };
    tokio::task::spawn_blocking(check).await.map_err(|why| StoreError::corrupt("a tenant", &why))
}
