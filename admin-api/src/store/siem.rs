//! Where the audit trail is sent to, and how far it has come there.

use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, ModelTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::Expr,
};
use secrecy::{ExposeSecret as _, SecretString};
use seiketsu_config::values::Id;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use url::Url;
use uuid::Uuid;

use super::{
    Author, Once, PATIENCE, Store, StoreError, audit,
    entities::siem_sink,
    id_of,
    keeping::{KeepError, expect},
    number,
    operators::AnswerOf,
    secrets::{Place, destination},
    signed, within,
    writing::Writing,
};

/// What of a sink can be chosen.
#[derive(Debug, Clone)]
pub struct SinkSettings {
    pub name: Id,
    pub url: Url,
    /// None: none, or the one that there is. Empty: none.
    pub token: Option<SecretString>,
    pub ca: Option<String>,
    pub certificate: Option<String>,
    /// That of the certificate; none where there is none.
    pub private_key: Option<SecretString>,
    pub enabled: bool,
}

/// Where the audit trail is sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct SiemSink {
    pub id: Uuid,
    #[schema(value_type = String)]
    pub name: Id,
    #[schema(value_type = String)]
    pub url: Url,
    pub has_token: bool,
    pub ca: Option<String>,
    pub certificate: Option<String>,
    pub enabled: bool,
    /// The last entry of the trail that was taken.
    pub delivered: u64,
    /// Since when it has taken nothing.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub failing_since: Option<OffsetDateTime>,
    pub last_error: Option<String>,
    /// Counts the sink's changes.
    pub revision: u64,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: OffsetDateTime,
}

/// What a sink is reached with.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) token: Option<SecretString>,
    pub(crate) private_key: Option<SecretString>,
}

impl Store {
    /// All sinks, in the order of their names.
    pub async fn siem_sinks(&self) -> Result<Vec<SiemSink>, StoreError> {
        let find = siem_sink::Entity::find().order_by_asc(siem_sink::Column::Name);
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(sink_of).collect() }).await
    }

    /// Sinks behind a name, in the order of their names.
    pub async fn siem_sinks_after(&self, after: Option<&Id>, most: u64) -> Result<Vec<SiemSink>, StoreError> {
        let mut find = siem_sink::Entity::find().order_by_asc(siem_sink::Column::Name).limit(most);
        if let Some(after) = after {
            find = find.filter(siem_sink::Column::Name.gt(after.as_str()));
        }
        within(PATIENCE, async { find.all(&self.0.database).await?.into_iter().map(sink_of).collect() }).await
    }

    pub async fn siem_sink(&self, id: Uuid) -> Result<Option<SiemSink>, StoreError> {
        let find = siem_sink::Entity::find_by_id(id);
        within(PATIENCE, async { find.one(&self.0.database).await?.map(sink_of).transpose() }).await
    }

    /// `after`: the last entry that is not sent. None: what there is by now is not.
    pub async fn create_siem_sink(
        &self,
        by: &Author,
        settings: SinkSettings,
        after: Option<u64>,
        once: Option<(&Once, AnswerOf<'_, SiemSink>)>,
    ) -> Result<SiemSink, KeepError> {
        within(PATIENCE, async {
            let mut writing = self.keeping(by, once.map(|(once, _)| once)).await?;
            writing.sink_is_free(&settings.name, None).await?;
            let newest = number(writing.control.audit_number);
            let row = siem_sink::Model {
                id: Uuid::now_v7(),
                name: String::new(),
                url: String::new(),
                token: None,
                ca: None,
                certificate: None,
                private_key: None,
                enabled: true,
                delivered: signed(after.unwrap_or(newest).min(newest)),
                failing_since: None,
                last_error: None,
                revision: 1,
                created_at: writing.now,
                mac: None,
            };
            let row = self.0.trail.authenticate(self.with(row, settings)?);
            let sink = sink_of(row.clone())?;
            let entry = audit::Entry::done().with("sink", shown(&sink)).row(&row);
            let insert = siem_sink::Entity::insert(row.into_active_model());
            insert.exec_without_returning(&writing.transaction).await?;
            writing.audit(by, entry).await?;
            if let Some((once, answer)) = once {
                writing.remember(by, once, answer(&sink)).await?;
            }
            writing.finish().await?;
            Ok(sink)
        })
        .await
    }

    pub async fn update_siem_sink(
        &self,
        by: &Author,
        id: Uuid,
        expected: Option<u64>,
        settings: SinkSettings,
    ) -> Result<SiemSink, KeepError> {
        within(PATIENCE, async {
            let mut writing = self.keeping(by, None).await?;
            let (row, before) = writing.sink(id, expected).await?;
            writing.sink_is_free(&settings.name, Some(id)).await?;
            let row = siem_sink::Model { revision: row.revision + 1, ..self.with(row, settings)? };
            let row = self.0.trail.authenticate(row);
            let after = sink_of(row.clone())?;
            let entry = audit::Entry::done().with("before", shown(&before)).with("after", shown(&after)).row(&row);
            row.into_active_model().reset_all().update(&writing.transaction).await?;
            writing.audit(by, entry).await?;
            writing.finish().await?;
            Ok(after)
        })
        .await
    }

    pub async fn delete_siem_sink(&self, by: &Author, id: Uuid, expected: Option<u64>) -> Result<(), KeepError> {
        within(PATIENCE, async {
            let mut writing = self.keeping(by, None).await?;
            let (row, sink) = writing.sink(id, expected).await?;
            row.delete(&writing.transaction).await?;
            let entry = audit::Entry::done().with("sink", shown(&sink)).gone::<siem_sink::Model>(id);
            writing.audit(by, entry).await?;
            Ok(writing.finish().await?)
        })
        .await
    }

    /// For whom the sink's address leads to.
    pub(crate) async fn sink_credentials(&self, sink: &SiemSink) -> Result<Credentials, StoreError> {
        let find = siem_sink::Entity::find_by_id(sink.id);
        let row = within(PATIENCE, async { Ok::<_, StoreError>(find.one(&self.0.database).await?) }).await?;
        let Some(row) = row else { return Ok(Credentials { token: None, private_key: None }) };
        if !self.counts(&row).await {
            return Err(StoreError::corrupt(format!("the sink {}", row.name), &"it was altered"));
        }
        let (at, destination) = (sink.id.to_string(), destination(sink.url.as_str()));
        let open = |column, sealed: Option<String>| {
            sealed.map(|sealed| self.open_sealed(place(&at, column, &destination), &sealed)).transpose()
        };
        Ok(Credentials { token: open("token", row.token)?, private_key: open("private_key", row.private_key)? })
    }

    /// Everything up to this entry was taken.
    pub(crate) async fn sink_took(&self, id: Uuid, delivered: u64) -> Result<(), StoreError> {
        use siem_sink::Column;
        let update = siem_sink::Entity::update_many()
            .col_expr(Column::Delivered, Expr::value(signed(delivered)))
            .col_expr(Column::FailingSince, Expr::value(None::<OffsetDateTime>))
            .col_expr(Column::LastError, Expr::value(None::<String>))
            .filter(Column::Id.eq(id));
        within(PATIENCE, async {
            let _turn = self.0.turn.lock().await;
            update.exec(&self.0.database).await?;
            Ok(())
        })
        .await
    }

    /// It took nothing.
    pub(crate) async fn sink_failed(&self, sink: &SiemSink, error: &str) -> Result<(), StoreError> {
        use siem_sink::Column;
        let since = sink.failing_since.unwrap_or_else(OffsetDateTime::now_utc);
        let update = siem_sink::Entity::update_many()
            .col_expr(Column::FailingSince, Expr::value(Some(since)))
            .col_expr(Column::LastError, Expr::value(Some(error.to_owned())))
            .filter(Column::Id.eq(sink.id));
        within(PATIENCE, async {
            let _turn = self.0.turn.lock().await;
            update.exec(&self.0.database).await?;
            Ok(())
        })
        .await
    }

    /// The number and the hash of the last entry of the trail.
    pub(crate) async fn audit_head(&self) -> Result<(u64, String), StoreError> {
        within(PATIENCE, async {
            let control = self.control(&self.0.database).await?;
            Ok((number(control.audit_number), control.audit_hash))
        })
        .await
    }

    fn with(&self, row: siem_sink::Model, settings: SinkSettings) -> Result<siem_sink::Model, KeepError> {
        let SinkSettings { name, url, token, ca, certificate, private_key, enabled } = settings;
        let (at, destination_now) = (row.id.to_string(), destination(url.as_str()));
        let seal = |column, secret: &SecretString| self.seal(place(&at, column, &destination_now), secret);
        let token = match token {
            Some(token) if token.expose_secret().is_empty() => None,
            Some(token) => Some(seal("token", &token)?),
            None if row.token.is_some() && destination(&row.url) != destination_now => {
                return Err(KeepError::OfOther("token"));
            }
            None => row.token,
        };
        let private_key = private_key.map(|key| seal("private_key", &key)).transpose()?;
        let (name, url) = (name.to_string(), url.to_string());
        Ok(siem_sink::Model { name, url, token, ca, certificate, private_key, enabled, ..row })
    }
}

impl Writing<'_> {
    async fn sink(&self, id: Uuid, expected: Option<u64>) -> Result<(siem_sink::Model, SiemSink), KeepError> {
        let found = siem_sink::Entity::find_by_id(id).one(&self.transaction).await?;
        let row = found.ok_or(KeepError::Missing("sink"))?;
        let sink = sink_of(row.clone())?;
        expect(expected, sink.revision, || shown(&sink))?;
        Ok((row, sink))
    }

    async fn sink_is_free(&self, name: &Id, but: Option<Uuid>) -> Result<(), KeepError> {
        let find = siem_sink::Entity::find().filter(siem_sink::Column::Name.eq(name.as_str()));
        match find.one(&self.transaction).await? {
            Some(found) if Some(found.id) != but => Err(KeepError::Exists(name.clone())),
            _ => Ok(()),
        }
    }
}

fn place<'a>(row: &'a str, column: &'static str, destination: &'a str) -> Place<'a> {
    Place { tenant: "", table: "siem_sinks", column, row, destination }
}

fn shown(sink: &SiemSink) -> Value {
    serde_json::to_value(sink).unwrap_or_default()
}

fn sink_of(row: siem_sink::Model) -> Result<SiemSink, StoreError> {
    let url = row.url.parse().map_err(|why| StoreError::corrupt(format!("the sink {}", row.name), &why))?;
    Ok(SiemSink {
        id: row.id,
        name: id_of(&row.name)?,
        url,
        has_token: row.token.is_some(),
        ca: row.ca,
        certificate: row.certificate,
        enabled: row.enabled,
        delivered: number(row.delivered),
        failing_since: row.failing_since,
        last_error: row.last_error,
        revision: number(row.revision),
        created_at: row.created_at,
    })
}
