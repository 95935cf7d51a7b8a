//! Header policies, merged entry by entry.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::Layer;
use crate::{
    policy::{HeaderChanges, Headers},
    values::{HeaderName, HeaderValue},
};

/// One entry and the layer that set it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting<T> {
    pub layer: Layer,
    pub value: T,
}

/// The security headers of every response. An entry without a value was removed by its layer: the
/// gateway does not send the header.
pub type SecurityHeaders = BTreeMap<HeaderName, Setting<Option<HeaderValue>>>;

/// What the gateway sends where no layer says otherwise. Chosen for APIs: strict, and without effect
/// on scripts that read answers under the tenant's CORS policy. Whoever serves pages or media through
/// the gateway relaxes them for those routes.
const BUILT_IN: [(&str, &str); 8] = [
    // No mixed-up content types (Fetch §3.6): a JSON answer never runs as a script.
    ("x-content-type-options", "nosniff"),
    // RFC 6797. Sent over TLS only, browsers ignore it elsewhere. Without includeSubDomains: hosts
    // below this one may belong to others.
    ("strict-transport-security", "max-age=31536000"),
    // An answer that is opened as a page loads nothing, runs nothing and is framed by nobody (CSP 3).
    // It governs documents only: for fetch() it is without effect.
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    // The same for browsers that do not know frame-ancestors.
    ("x-frame-options", "DENY"),
    // Paths of an API hold identifiers: they do not leak to where a link leads.
    ("referrer-policy", "no-referrer"),
    // Documents again: no device is within reach of an answer that is opened as a page.
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    // Other sites that open an answer in a window get no handle to it (HTML §7.1.3).
    ("cross-origin-opener-policy", "same-origin"),
    // Keeps other sites from embedding answers as image, media or script. The check is made for
    // "no-cors" requests only (Fetch §3.7), so reading across origins under CORS is not touched.
    // Recordings that pages of other sites embed without CORS want "same-site" or "cross-origin".
    ("cross-origin-resource-policy", "same-origin"),
];

pub(super) fn built_in() -> SecurityHeaders {
    BUILT_IN
        .into_iter()
        .filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)))
        .map(|(name, value)| (name, Setting { layer: Layer::BuiltIn, value: Some(value) }))
        .collect()
}

/// Changes to header fields in both directions.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct HeaderRules {
    pub request: HeaderEntries,
    pub response: HeaderEntries,
}

impl HeaderRules {
    pub(super) fn merge(&mut self, headers: &Headers, layer: Layer) {
        self.request.merge(&headers.request, layer);
        self.response.merge(&headers.response, layer);
    }
}

/// Changes to the header fields of one direction, carried out in this order: rename, remove, set, add.
///
/// A layer that names a header decides about it alone: what layers below do with that header is
/// dropped, be it by another operation. So a route that removes a header is not overruled by a tenant
/// that sets it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct HeaderEntries {
    pub rename: BTreeMap<HeaderName, Setting<HeaderName>>,
    pub remove: BTreeMap<HeaderName, Setting<()>>,
    #[serde(serialize_with = "without_credentials")]
    pub set: BTreeMap<HeaderName, Setting<HeaderValue>>,
    #[serde(serialize_with = "without_credentials")]
    pub add: BTreeMap<HeaderName, Setting<HeaderValue>>,
}

impl HeaderEntries {
    fn merge(&mut self, changes: &HeaderChanges, layer: Layer) {
        let HeaderChanges { rename, remove, set, add } = changes;
        for name in rename.keys().chain(remove).chain(set.keys()).chain(add.keys()) {
            self.forget(name);
        }
        let setting = |value: &HeaderValue| Setting { layer, value: value.clone() };
        self.rename.extend(rename.iter().map(|(from, to)| (from.clone(), Setting { layer, value: to.clone() })));
        self.remove.extend(remove.iter().map(|name| (name.clone(), Setting { layer, value: () })));
        self.set.extend(set.iter().map(|(name, value)| (name.clone(), setting(value))));
        self.add.extend(add.iter().map(|(name, value)| (name.clone(), setting(value))));
    }

    fn forget(&mut self, name: &HeaderName) {
        self.rename.remove(name);
        self.remove.remove(name);
        self.set.remove(name);
        self.add.remove(name);
    }
}

/// Configuration is shown to operators; what the gateway shows to upstreams as its credential is not.
fn without_credentials<S: Serializer>(
    entries: &BTreeMap<HeaderName, Setting<HeaderValue>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().map(|(name, setting)| {
        let value = if is_credential(name) { "(hidden)".to_owned() } else { setting.value.to_string() };
        (name, Setting { layer: setting.layer, value })
    }))
}

fn is_credential(name: &HeaderName) -> bool {
    ["auth", "cookie", "key", "password", "secret", "token"].iter().any(|word| name.get().as_str().contains(word))
}
