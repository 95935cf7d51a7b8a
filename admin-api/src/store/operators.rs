//! Who may call the API: a role, for all tenants or for those that are named.

use std::collections::BTreeSet;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, ModelTrait, PaginatorTrait, QueryFilter,
    QueryOrder, QuerySelect, sea_query::IntoCondition,
};
use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Author, Once, PATIENCE, Remembered, Store, StoreError, WriteError, audit,
    entities::{operator, token},
    id_of, number, within,
    writing::Writing,
};

/// What an operator may do; each role may do all that those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads the configuration and the state of nodes.
    Viewer,
    /// Reads also what was changed by whom, and who may do so.
    Auditor,
    /// Changes tenants.
    Operator,
    /// Changes what all tenants share, imports, rolls back, and manages operators up to this role.
    Admin,
    /// Manages owners too.
    Owner,
}

impl Role {
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Auditor, Self::Operator, Self::Admin, Self::Owner];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Auditor => "auditor",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| StoreError::corrupt("the role of an operator", &text))
    }
}

/// Somebody, or something, that may call the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Operator {
    pub id: Uuid,
    #[schema(value_type = String)]
    pub name: Id,
    pub role: Role,
    /// None: all tenants.
    #[schema(value_type = Option<Vec<String>>)]
    pub tenants: Option<BTreeSet<Id>>,
    /// Counts the operator's changes.
    pub revision: u64,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: OffsetDateTime,
}

/// What of an operator can be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorSettings {
    pub name: Id,
    pub role: Role,
    pub tenants: Option<BTreeSet<Id>>,
}

/// Why operators or tokens were not changed.
#[derive(Debug, thiserror::Error)]
pub enum ManageError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no such {0}")]
    Missing(&'static str),
    #[error("there is an operator {0} already")]
    Exists(Id),
    #[error("it was changed in the meantime: revision {expected} was expected")]
    Changed { expected: u64, current: Box<Operator> },
    #[error("the node {0} is connected: end it first")]
    NodeIsLive(Id),
    #[error("the tenant {0} has been given as many orders in a day as it may be")]
    Orders(Id),
    #[error("one owner of all tenants must remain, with a token that holds: nobody could let anybody in any more")]
    LastOwner,
    #[error("that is for an operator who is {} at least", .0.as_str())]
    Above(Role),
    #[error("the idempotency key was used for another request")]
    KeyUsed,
    /// Not an error: it was done before.
    #[error("the request was carried out before")]
    Repeated(Remembered),
}

impl From<WriteError> for ManageError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Store(error) => Self::Store(error),
            WriteError::KeyUsed => Self::KeyUsed,
            WriteError::Repeated(before) => Self::Repeated(before),
            other => Self::Store(StoreError::corrupt("an answer", &other)),
        }
    }
}

/// Makes the answer that is kept for a request with an idempotency key.
pub type AnswerOf<'a, T> = &'a (dyn Fn(&T) -> Remembered + Send + Sync);

impl Store {
    /// Operators after a name, in the order of their names.
    pub async fn operators(&self, after: Option<&str>, most: u64) -> Result<Vec<Operator>, StoreError> {
        let mut find = operator::Entity::find();
        if let Some(after) = after {
            find = find.filter(operator::Column::Name.gt(after));
        }
        let find = find.order_by_asc(operator::Column::Name).limit(most);
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(operator_of).collect() }).await
    }

    pub async fn operator(&self, id: Uuid) -> Result<Option<Operator>, StoreError> {
        let find = operator::Entity::find_by_id(id);
        within(PATIENCE, async { find.one(&self.0.database).await?.map(operator_of).transpose() }).await
    }

    /// `role`: that of the one who does it.
    pub async fn create_operator(
        &self,
        by: &Author,
        role: Role,
        settings: OperatorSettings,
        once: Option<(&Once, AnswerOf<'_, Operator>)>,
    ) -> Result<Operator, ManageError> {
        within(PATIENCE, async {
            let mut writing = self.managing(by, once.map(|(once, _)| once)).await?;
            not_above(role, settings.role)?;
            writing.is_free(&settings.name, None).await?;
            let operator = Operator {
                id: Uuid::now_v7(),
                name: settings.name,
                role: settings.role,
                tenants: settings.tenants,
                revision: 1,
                created_at: writing.now,
            };
            writing.insert(&operator).await?;
            writing.audit(by, audit::Entry::done().with("operator", shown(&operator)).row(&row(&operator))).await?;
            if let Some((once, answer)) = once {
                writing.remember(by, once, answer(&operator)).await?;
            }
            writing.finish().await?;
            Ok(operator)
        })
        .await
    }

    pub async fn update_operator(
        &self,
        by: &Author,
        role: Role,
        id: Uuid,
        expected: Option<u64>,
        settings: OperatorSettings,
    ) -> Result<Operator, ManageError> {
        within(PATIENCE, async {
            let mut writing = self.managing(by, None).await?;
            let (stored, before) = writing.operator(id, expected).await?;
            not_above(role, before.role.max(settings.role))?;
            writing.is_free(&settings.name, Some(id)).await?;
            let OperatorSettings { name, role, tenants } = settings;
            let after = Operator { name, role, tenants, ..before.clone() };
            // One that was altered stands as it should from now on, if an operator says so.
            if after == before && self.0.trail.is_authentic(&stored) {
                return Ok(before);
            }
            if !is_owner(&after) {
                writing.leaves_an_owner(&before).await?;
            }
            let after = Operator { revision: before.revision + 1, ..after };
            let row = self.0.trail.authenticate(row(&after));
            let entry = audit::Entry::done().with("before", shown(&before)).with("after", shown(&after)).row(&row);
            row.into_active_model().reset_all().update(&writing.transaction).await.map_err(StoreError::from)?;
            writing.audit(by, entry).await?;
            writing.finish().await?;
            Ok(after)
        })
        .await
    }

    /// The operator's tokens go with it.
    pub async fn delete_operator(
        &self,
        by: &Author,
        role: Role,
        id: Uuid,
        expected: Option<u64>,
    ) -> Result<(), ManageError> {
        within(PATIENCE, async {
            let mut writing = self.managing(by, None).await?;
            let (_, operator) = writing.operator(id, expected).await?;
            not_above(role, operator.role)?;
            writing.leaves_an_owner(&operator).await?;
            let mut entry = audit::Entry::done().with("operator", shown(&operator)).gone::<operator::Model>(id);
            let tokens = token::Entity::find().filter(token::Column::OperatorId.eq(id)).all(&writing.transaction).await;
            for token in tokens.map_err(StoreError::from)? {
                entry = entry.gone::<token::Model>(token.id);
            }
            row(&operator).delete(&writing.transaction).await.map_err(StoreError::from)?;
            writing.audit(by, entry).await?;
            Ok(writing.finish().await?)
        })
        .await
    }

    pub(super) async fn managing(&self, by: &Author, once: Option<&Once>) -> Result<Writing<'_>, ManageError> {
        let writing = self.writing_by(by).await?;
        if let Some(once) = once
            && let Some(before) = writing.repeated(by, once).await?
        {
            return Err(ManageError::Repeated(before));
        }
        Ok(writing)
    }
}

impl Writing<'_> {
    pub(super) async fn insert(&self, operator: &Operator) -> Result<(), StoreError> {
        let row = self.store.0.trail.authenticate(row(operator));
        let insert = operator::Entity::insert(row.into_active_model().reset_all());
        insert.exec_without_returning(&self.transaction).await?;
        Ok(())
    }

    async fn operator(&self, id: Uuid, expected: Option<u64>) -> Result<(operator::Model, Operator), ManageError> {
        let found = operator::Entity::find_by_id(id).one(&self.transaction).await.map_err(StoreError::from)?;
        let row = found.ok_or(ManageError::Missing("operator"))?;
        let operator = operator_of(row.clone())?;
        match expected {
            Some(expected) if expected != operator.revision => {
                Err(ManageError::Changed { expected, current: Box::new(operator) })
            }
            _ => Ok((row, operator)),
        }
    }

    /// The name, or one like it, if there is an operator of this name.
    pub(super) async fn free_operator_name(&self, name: &str) -> Result<Id, StoreError> {
        let mut free = name.to_owned();
        for further in 2.. {
            let find = operator::Entity::find().filter(operator::Column::Name.eq(free.as_str()));
            if find.count(&self.transaction).await? == 0 {
                break;
            }
            free = format!("{name}-{further}");
        }
        id_of(&free)
    }

    async fn is_free(&self, name: &Id, but: Option<Uuid>) -> Result<(), ManageError> {
        let find = operator::Entity::find().filter(operator::Column::Name.eq(name.as_str()));
        let found = find.one(&self.transaction).await.map_err(StoreError::from)?;
        match found {
            Some(found) if Some(found.id) != but => Err(ManageError::Exists(name.clone())),
            _ => Ok(()),
        }
    }

    /// Nobody could let anybody in any more.
    async fn leaves_an_owner(&self, operator: &Operator) -> Result<(), ManageError> {
        if !is_owner(operator) {
            return Ok(());
        }
        self.leaves_a_token(operator::Column::Id.ne(operator.id)).await
    }

    /// Whether any owner of all tenants has a token that holds, of those that are left. What was altered lets nobody in.
    pub(super) async fn leaves_a_token(&self, left: impl IntoCondition) -> Result<(), ManageError> {
        let tokens = token::Entity::find()
            .find_also_related(operator::Entity)
            .filter(operator::Column::Role.eq(Role::Owner.as_str()))
            .filter(operator::Column::Tenants.is_null())
            .filter(Condition::any().add(token::Column::ExpiresAt.is_null()).add(token::Column::ExpiresAt.gt(self.now)))
            .filter(left);
        let tokens = tokens.all(&self.transaction).await.map_err(StoreError::from)?;
        let trail = &self.store.0.trail;
        let holds = |(token, operator): &(token::Model, Option<operator::Model>)| {
            trail.is_authentic(token) && operator.as_ref().is_some_and(|operator| trail.is_authentic(operator))
        };
        if tokens.iter().any(holds) { Ok(()) } else { Err(ManageError::LastOwner) }
    }
}

pub(super) fn is_owner(operator: &Operator) -> bool {
    operator.role == Role::Owner && operator.tenants.is_none()
}

/// Nobody raises anybody above themselves.
pub(super) fn not_above(own: Role, wanted: Role) -> Result<(), ManageError> {
    if wanted > own { Err(ManageError::Above(wanted)) } else { Ok(()) }
}

fn shown(operator: &Operator) -> serde_json::Value {
    serde_json::to_value(operator).unwrap_or_default()
}

/// Without its MAC.
pub(super) fn row(operator: &Operator) -> operator::Model {
    operator::Model {
        id: operator.id,
        name: operator.name.to_string(),
        role: operator.role.as_str().to_owned(),
        tenants: operator.tenants.as_ref().map(|tenants| serde_json::to_string(tenants).unwrap_or_default()),
        revision: super::signed(operator.revision),
        created_at: operator.created_at,
        mac: None,
    }
}

#[allow(clippy::needless_pass_by_value)] // Rows become what they are rows of.
pub(super) fn operator_of(row: operator::Model) -> Result<Operator, StoreError> {
    let tenants = row.tenants.as_deref().map(serde_json::from_str).transpose();
    Ok(Operator {
        id: row.id,
        name: id_of(&row.name)?,
        role: Role::parse(&row.role)?,
        tenants: tenants.map_err(|why| StoreError::corrupt("the tenants of an operator", &why))?,
        revision: number(row.revision),
        created_at: row.created_at,
    })
}
