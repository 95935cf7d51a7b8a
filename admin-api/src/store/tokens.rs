//! What operators and nodes prove themselves with. A token is random, shown once, and kept as its SHA-256 only: one that
//! was not shown cannot be found by trying, so that a slow hash would protect nothing.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, ModelTrait, PaginatorTrait, QueryFilter,
    QueryOrder, QuerySelect,
};
use secrecy::{ExposeSecret, SecretString};
use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, UtcOffset};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    Author, Once, PATIENCE, Store, StoreError, audit,
    entities::{operator, token},
    id_of,
    operators::{self, AnswerOf, ManageError, Operator, Role, is_owner, not_above, operator_of},
    within,
    writing::hex,
};

/// Behind the prefix: 32 random bytes in base64, without padding.
const TOKEN_CHARACTERS: usize = 43;

/// Whom a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    Operator,
    Node,
}

impl TokenKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Node => "node",
        }
    }

    /// So that one is not taken for the other, and scanners find it where it should not be.
    fn prefix(self) -> &'static str {
        match self {
            Self::Operator => "sa_",
            Self::Node => "sn_",
        }
    }
}

/// A token, without what makes it one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = Token)]
pub struct TokenRow {
    pub id: Uuid,
    pub kind: TokenKind,
    pub name: String,
    pub operator: Option<Uuid>,
    /// The one node that it is for. None: it is for any node.
    #[schema(value_type = Option<String>)]
    pub node: Option<Id>,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<OffsetDateTime>,
}

/// A token that is to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    pub kind: TokenKind,
    pub name: String,
    /// For a token of an operator.
    pub operator: Option<Uuid>,
    /// For a token of one node.
    pub node: Option<Id>,
    pub expires_at: Option<OffsetDateTime>,
}

impl Store {
    /// Whose token it is, if it is any that holds. Rows that somebody has put there, or altered, are none.
    pub async fn operator_token(&self, token: &SecretString) -> Result<Option<(Operator, TokenRow)>, StoreError> {
        within(PATIENCE, async {
            let Some(token) = self.token(TokenKind::Operator, token).await? else { return Ok(None) };
            let id = token.operator.unwrap_or_default();
            let Some(operator) = operator::Entity::find_by_id(id).one(&self.0.database).await? else {
                return Ok(None);
            };
            if !self.counts(&operator).await {
                return Ok(None);
            }
            Ok(Some((operator_of(operator)?, token)))
        })
        .await
    }

    /// The token of a node, if it is one that holds.
    pub async fn node_token(&self, token: &SecretString) -> Result<Option<TokenRow>, StoreError> {
        within(PATIENCE, self.token(TokenKind::Node, token)).await
    }

    /// Whether there is a token that holds and is for this node alone.
    pub async fn has_token_of_its_own(&self, node: &Id) -> Result<bool, StoreError> {
        let holds = Condition::any()
            .add(token::Column::ExpiresAt.is_null())
            .add(token::Column::ExpiresAt.gt(OffsetDateTime::now_utc()));
        let find = token::Entity::find().filter(token::Column::Node.eq(node.as_str())).filter(holds);
        within(PATIENCE, async {
            let tokens = find.all(&self.0.database).await?;
            Ok(tokens.iter().any(|token| self.0.trail.is_authentic(token)))
        })
        .await
    }

    async fn token(&self, kind: TokenKind, token: &SecretString) -> Result<Option<TokenRow>, StoreError> {
        if !is_formed(kind, token) {
            return Ok(None);
        }
        let find = token::Entity::find()
            .filter(token::Column::Hash.eq(hash(token)))
            .filter(token::Column::Kind.eq(kind.as_str()));
        let Some(row) = find.one(&self.0.database).await? else { return Ok(None) };
        if !self.counts(&row).await {
            return Ok(None);
        }
        let expired = row.expires_at.is_some_and(|expires| expires <= OffsetDateTime::now_utc());
        if expired { Ok(None) } else { token_of(row).map(Some) }
    }

    /// Changes whenever a token was removed by this replica.
    pub fn revoked(&self) -> watch::Receiver<u64> {
        self.0.revoked.subscribe()
    }

    /// Tokens after an id, in the order they were made in.
    pub async fn tokens(&self, after: Option<Uuid>, most: u64) -> Result<Vec<TokenRow>, StoreError> {
        let mut find = token::Entity::find();
        if let Some(after) = after {
            find = find.filter(token::Column::Id.gt(after));
        }
        let find = find.order_by_asc(token::Column::Id).limit(most);
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(token_of).collect() }).await
    }

    /// Makes a token. What it is called with is given out here, and never again.
    pub async fn create_token(
        &self,
        by: &Author,
        role: Role,
        new: NewToken,
        once: Option<(&Once, AnswerOf<'_, TokenRow>)>,
    ) -> Result<(TokenRow, SecretString), ManageError> {
        let secret = generate(new.kind)?;
        within(PATIENCE, async {
            let mut writing = self.managing(by, once.map(|(once, _)| once)).await?;
            if let Some(operator) = new.operator {
                let operator = operator::Entity::find_by_id(operator).one(&writing.transaction).await;
                let operator = operator.map_err(StoreError::from)?.ok_or(ManageError::Missing("operator"))?;
                not_above(role, operator_of(operator)?.role)?;
            }
            let row = self.0.trail.authenticate(row(new, &secret, writing.now));
            let insert = token::Entity::insert(row.clone().into_active_model().reset_all());
            insert.exec_without_returning(&writing.transaction).await.map_err(StoreError::from)?;
            let token = token_of(row.clone())?;
            let entry = audit::Entry::done().with("token", shown(&token)).row(&row);
            writing.audit(by, entry).await?;
            if let Some((once, answer)) = once {
                writing.remember(by, once, answer(&token)).await?;
            }
            writing.finish().await?;
            Ok((token, secret))
        })
        .await
    }

    /// From now on it is no token any more.
    pub async fn delete_token(&self, by: &Author, role: Role, id: Uuid) -> Result<(), ManageError> {
        within(PATIENCE, async {
            let mut writing = self.managing(by, None).await?;
            let row = token::Entity::find_by_id(id).one(&writing.transaction).await.map_err(StoreError::from)?;
            let row = row.ok_or(ManageError::Missing("token"))?;
            if let Some(operator) = row.operator_id {
                let operator = operator::Entity::find_by_id(operator).one(&writing.transaction).await;
                if let Some(operator) = operator.map_err(StoreError::from)? {
                    let operator = operator_of(operator)?;
                    not_above(role, operator.role)?;
                    if is_owner(&operator) {
                        writing.leaves_a_token(token::Column::Id.ne(id)).await?;
                    }
                }
            }
            let token = token_of(row.clone())?;
            row.delete(&writing.transaction).await.map_err(StoreError::from)?;
            let entry = audit::Entry::done().with("token", shown(&token)).gone::<token::Model>(id);
            writing.audit(by, entry).await?;
            writing.finish().await?;
            self.0.revoked.send_modify(|times| *times += 1);
            Ok(())
        })
        .await
    }

    /// A store without operators gets an owner, and one without tokens for nodes such a token; both are written into
    /// files that only this user may read. Gives the files that were written.
    pub async fn first_tokens(&self, folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
        let mut writing = self.writing().await?;
        let by = Author {
            id: None,
            name: "first-start".to_owned(),
            address: None,
            request: Uuid::now_v7().to_string(),
            action: "first_start",
        };
        let mut written = Vec::new();
        if operator::Entity::find().count(&writing.transaction).await? == 0 {
            written.push(writing.first_owner(&by, id_of(OWNER)?, "first owner", folder.join("admin-token")).await?);
        }
        let nodes = token::Entity::find().filter(token::Column::Kind.eq(TokenKind::Node.as_str()));
        if nodes.count(&writing.transaction).await? == 0 {
            let (kind, name) = (TokenKind::Node, "nodes".to_owned());
            let new = NewToken { kind, name, operator: None, node: None, expires_at: None };
            written.push(writing.first_token(&by, new, None, folder.join("node-token")).await?);
        }
        if !written.is_empty() {
            writing.finish().await?;
        }
        Ok(written)
    }

    /// An owner more, and the file in which its token is. For whoever has the key of the store and lost all owners: rows that
    /// somebody has altered, or put there, let nobody in, and keep others from being made.
    pub async fn new_owner(&self, folder: &Path) -> Result<(Id, PathBuf), StoreError> {
        within(PATIENCE, async {
            let mut writing = self.writing().await?;
            let by = Author {
                id: None,
                name: "seiketsu-admin".to_owned(),
                address: None,
                request: Uuid::now_v7().to_string(),
                action: "new_owner",
            };
            let name = writing.free_operator_name(OWNER).await?;
            // Beside the token of another owner, which may still hold.
            let path = folder.join(format!("{name}-token"));
            let path = writing.first_owner(&by, name.clone(), "new owner", path).await?;
            writing.finish().await?;
            Ok((name, path))
        })
        .await
    }
}

/// How owners are called that nobody has named.
const OWNER: &str = "owner";

impl super::writing::Writing<'_> {
    async fn first_owner(
        &mut self,
        by: &Author,
        name: Id,
        token: &'static str,
        path: PathBuf,
    ) -> Result<PathBuf, StoreError> {
        let (id, created_at) = (Uuid::now_v7(), self.now);
        let owner = Operator { id, name, role: Role::Owner, tenants: None, revision: 1, created_at };
        self.insert(&owner).await?;
        let new = NewToken {
            kind: TokenKind::Operator,
            name: token.to_owned(),
            operator: Some(id),
            node: None,
            expires_at: None,
        };
        self.first_token(by, new, Some(&owner), path).await
    }

    /// The file is there before the token holds: should this process end in between, the next start makes both anew.
    async fn first_token(
        &mut self,
        by: &Author,
        new: NewToken,
        owner: Option<&Operator>,
        path: PathBuf,
    ) -> Result<PathBuf, StoreError> {
        let secret = generate(new.kind)?;
        write_secret(&path, &secret).map_err(|source| StoreError::File { path: path.clone(), source })?;
        let row = self.store.0.trail.authenticate(row(new, &secret, self.now));
        let token = token_of(row.clone())?;
        let insert = token::Entity::insert(row.clone().into_active_model().reset_all());
        insert.exec_without_returning(&self.transaction).await?;
        let mut entry = audit::Entry::done().with("token", shown(&token)).row(&row);
        if let Some(owner) = owner {
            entry = entry.row(&operators::row(owner));
        }
        self.audit(by, entry).await?;
        Ok(path)
    }
}

/// Readable by this user only from the first moment on.
fn write_secret(path: &Path, secret: &SecretString) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    writeln!(file, "{}", secret.expose_secret())?;
    file.sync_all()?;
    fs::rename(beside, path)
}

fn generate(kind: TokenKind) -> Result<SecretString, StoreError> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| StoreError::NoRandomness)?;
    Ok(format!("{}{}", kind.prefix(), URL_SAFE_NO_PAD.encode(bytes)).into())
}

/// Whether it has the form of a token of this kind: the store need not be asked for others.
pub(crate) fn is_formed(kind: TokenKind, token: &SecretString) -> bool {
    let random = token.expose_secret().strip_prefix(kind.prefix());
    let is_of_alphabet = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    random.is_some_and(|random| random.len() == TOKEN_CHARACTERS && random.bytes().all(is_of_alphabet))
}

fn hash(token: &SecretString) -> String {
    hex(&Sha256::digest(token.expose_secret()))
}

/// Without its MAC.
fn row(new: NewToken, secret: &SecretString, now: OffsetDateTime) -> token::Model {
    token::Model {
        id: Uuid::now_v7(),
        kind: new.kind.as_str().to_owned(),
        name: new.name,
        operator_id: new.operator,
        hash: hash(secret),
        created_at: now,
        // As both stores give it back: its row is hashed.
        expires_at: new.expires_at.map(|at| {
            let at = at.to_offset(UtcOffset::UTC);
            at.replace_nanosecond(at.microsecond() * 1000).unwrap_or(at)
        }),
        node: new.node.map(|node| node.to_string()),
        mac: None,
    }
}

fn token_of(row: token::Model) -> Result<TokenRow, StoreError> {
    let kind = [TokenKind::Operator, TokenKind::Node].into_iter().find(|kind| kind.as_str() == row.kind);
    Ok(TokenRow {
        id: row.id,
        kind: kind.ok_or_else(|| StoreError::corrupt("the kind of a token", &row.kind))?,
        name: row.name,
        operator: row.operator_id,
        node: row.node.as_deref().map(id_of).transpose()?,
        created_at: row.created_at,
        expires_at: row.expires_at,
    })
}

fn shown(token: &TokenRow) -> serde_json::Value {
    serde_json::to_value(token).unwrap_or_default()
}
