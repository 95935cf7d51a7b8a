//! Routes: which requests, and where they go.

use std::{collections::BTreeMap, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{HeaderCondition, QueryCondition, is_no_policies, no_policies};
use crate::{
    policy::Policies,
    values::{HeaderName, HeaderValue, Id, Method, PathPattern, Percent, optional_url},
};

/// The API's versions, and how a request says which it wants.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    pub by: VersionSource,
    /// The version of requests that name none.
    pub default: Id,
    pub list: BTreeMap<Id, Version>,
}

/// Where a request names its version. Exactly one of these.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VersionSource {
    /// The first segment of the path, as in `/v2/users`. Routes are written with it.
    PathPrefix,
    /// The value of this header.
    Header(HeaderName),
    /// A parameter of the `Accept` header's media type: `version` reads `application/json;version=v2`.
    MediaType(String),
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Version {
    /// Since when it is, or from when it will be, deprecated: sent as `Deprecation` (RFC 9745).
    #[serde(with = "crate::values::timestamp", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub deprecated: Option<OffsetDateTime>,
    /// When it will stop working: sent as `Sunset` (RFC 8594).
    #[serde(with = "crate::values::timestamp", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub sunset: Option<OffsetDateTime>,
    /// Where to read more: sent as `Link` with `rel="deprecation"`.
    #[serde(deserialize_with = "optional_url", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub link: Option<url::Url>,
    /// It no longer works: requests get 410.
    pub retired: bool,
}

/// One route: which requests, and where they go.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Unique within the tenant.
    pub id: Id,
    pub r#match: RouteMatch,
    pub upstream: Id,
    /// Which requests a node refuses first when it is overloaded.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    #[serde(default = "no_policies", skip_serializing_if = "is_no_policies")]
    pub policies: Arc<Policies>,
}

/// How important a route is to those who run the gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Refused last.
    Critical,
    #[default]
    Normal,
    /// Refused first.
    Low,
}

impl Priority {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

/// All conditions must hold. Of several routes that match, the one with the more specific path wins
/// (static before parameter before tail, from the left), then the one with more conditions, then the
/// one that stands first.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteMatch {
    pub path: PathPattern,
    /// Empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Method>,
    /// API versions this route serves; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<Id>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderCondition>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<QueryCondition>,
}

/// A share of a route's requests that goes to another upstream.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    pub upstream: Id,
    /// Share of the requests that no header or cookie decides.
    #[serde(default = "no_share")]
    pub weight: Percent,
    /// Requests with this header and value always go to the canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderIs>,
    /// Requests with this cookie and value always go to the canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<CookieIs>,
    /// Keep each caller on one side while the weight stays: by a cookie of this name that the gateway sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky_cookie: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderIs {
    pub name: HeaderName,
    pub value: HeaderValue,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CookieIs {
    pub name: String,
    pub value: String,
}

/// A share of a route's requests that is sent to a second upstream too, as the first one gets them; its
/// answers are dropped. Requests with a body of more than 64 KiB, or of a length that is not announced,
/// are not mirrored. The caller's assertion in the copy has the mirror as its audience.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    pub upstream: Id,
    #[serde(default = "whole_share")]
    pub share: Percent,
}

fn no_share() -> Percent {
    Percent::new_const(0)
}

fn whole_share() -> Percent {
    Percent::new_const(100)
}
