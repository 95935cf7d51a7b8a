//! A webhook, as it is sent and as it is answered.

use std::collections::BTreeSet;

use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{AppState, Problem, body, caller::Caller};
use crate::store::{
    events::EventKind,
    webhooks::{Webhook, WebhookSettings},
};

/// What of a webhook can be chosen.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhookBody {
    /// Lower-case letters, digits, `-`, `_` and `.`.
    #[schema(value_type = String)]
    name: Id,
    /// `https://…`, and no address of a private network.
    #[schema(value_type = String, max_length = 2000)]
    url: String,
    /// At least one. Absent: all.
    #[serde(default)]
    kinds: Option<BTreeSet<EventKind>>,
    /// At least one. Absent: all tenants, and what concerns none in particular.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>, min_items = 1)]
    tenants: Option<BTreeSet<Id>>,
    #[serde(default = "yes")]
    enabled: bool,
}

fn yes() -> bool {
    true
}

/// A webhook, with what it is signed with.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WebhookWithSecret {
    #[serde(flatten)]
    pub(super) webhook: Webhook,
    /// Shown this once. None, if the request was repeated.
    pub(super) secret: Option<String>,
}

const LONGEST_URL: usize = 2000;

impl WebhookBody {
    pub(super) fn checked(self, state: &AppState, caller: &Caller) -> Result<WebhookSettings, Problem> {
        let Self { name, url, kinds, tenants, enabled } = self;
        let (kinds, tenants) = (body::some("kinds", kinds)?, body::some("tenants", tenants)?);
        may_touch(caller, tenants.as_ref())?;
        if tenants.as_ref().is_some_and(BTreeSet::is_empty) {
            return Err(Problem::invalid_at("tenants", "it names none", Some("name one or more, or leave it out")));
        }
        let fix = Some("write https://host/path, with a host that everybody can reach");
        if url.len() > LONGEST_URL {
            return Err(Problem::invalid_at("url", "it is longer than 2000 bytes", fix));
        }
        let url: Url =
            url.parse().map_err(|why| Problem::invalid_at("url", format!("it is no address: {why}"), fix))?;
        if let Some(fault) = state.outbound.fault(&url) {
            return Err(Problem::invalid_at("url", fault, fix));
        }
        Ok(WebhookSettings { name, url, kinds, tenants, enabled })
    }
}

/// Whether the caller may touch everything that a webhook is told of.
pub(super) fn may_touch(caller: &Caller, tenants: Option<&BTreeSet<Id>>) -> Result<(), Problem> {
    match tenants {
        None => caller.may_touch_what_is_of(None),
        Some(tenants) => tenants.iter().try_for_each(|tenant| caller.may_touch(tenant)),
    }
}

/// The webhook, if the caller may touch it.
pub(super) async fn webhook(state: &AppState, caller: &Caller, id: Uuid) -> Result<Webhook, Problem> {
    let webhook = state.store.webhook(id).await?.ok_or_else(|| Problem::not_found("webhook"))?;
    may_touch(caller, webhook.tenants.as_ref())?;
    Ok(webhook)
}
