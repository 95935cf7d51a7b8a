//! Header fields changed on the way to the upstream and on the way back.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use seiketsu_config::{
    layers::{HeaderEntries, Setting},
    values,
};
use seiketsu_identity::forged::remove_twins;

/// Whether a change concerns requests or responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Request,
    Response,
}

/// Why header changes are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderChangesError {
    #[error(
        "header {0} cannot be changed: it belongs to the connection or to the framing of the body, which the gateway sets itself (RFC 9110 §7.6.1); take it out of the changes"
    )]
    HopByHop(HeaderName),
    #[error("header host cannot be changed here: set `host_header` on the upstream instead")]
    Host,
}

/// Header changes, checked and ready. Carried out in this order: rename, remove, set, add.
///
/// Of requests, what is removed or set, or is the new name of a renamed field, goes with `_` for `-` too: servers that
/// hand headers on as variables do not tell them apart.
#[derive(Debug, Clone)]
pub struct HeaderChanges {
    /// Names with a `-` that clients must not write with `_`.
    guarded: Box<[HeaderName]>,
    rename: Box<[(HeaderName, HeaderName)]>,
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
}

impl HeaderChanges {
    /// Refuses changes to fields that the gateway alone may write.
    pub fn compile(config: &HeaderEntries, direction: Direction) -> Result<Self, HeaderChangesError> {
        let renamed = config.rename.iter().flat_map(|(from, to)| [from, &to.value]);
        let named = renamed.chain(config.remove.keys()).chain(config.set.keys()).chain(config.add.keys());
        for name in named {
            refuse_reserved(name.get(), direction)?;
        }
        let fields = |map: &BTreeMap<values::HeaderName, Setting<values::HeaderValue>>| {
            map.iter().map(|(name, setting)| (name.get().clone(), setting.value.get().clone())).collect()
        };
        let replaced = config.rename.values().map(|to| &to.value);
        let guarded = replaced.chain(config.remove.keys()).chain(config.set.keys());
        let guarded = guarded.map(values::HeaderName::get).filter(|name| name.as_str().contains('-'));
        Ok(Self {
            guarded: if direction == Direction::Request { guarded.cloned().collect() } else { Box::default() },
            rename: config.rename.iter().map(|(from, to)| (from.get().clone(), to.value.get().clone())).collect(),
            remove: config.remove.keys().map(|name| name.get().clone()).collect(),
            set: fields(&config.set),
            add: fields(&config.add),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.rename.is_empty() && self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    pub fn apply(&self, fields: &mut HeaderMap) {
        self.rename(fields);
        if !self.guarded.is_empty() {
            remove_twins(fields, &self.guarded);
        }
        for name in &self.remove {
            fields.remove(name);
        }
        for (name, value) in &self.set {
            fields.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            fields.append(name, value.clone());
        }
    }

    /// All sources are taken before any target is written, so that two names can change places. What
    /// was there under the new name gives way, so that a client cannot mix values of its own in.
    fn rename(&self, fields: &mut HeaderMap) {
        let mut taken: Vec<(&HeaderName, Vec<HeaderValue>)> = Vec::new();
        for (from, to) in &self.rename {
            let values: Vec<HeaderValue> = fields.get_all(from).iter().cloned().collect();
            if !values.is_empty() {
                fields.remove(from);
                taken.push((to, values));
            }
        }
        for (to, _) in &taken {
            fields.remove(*to);
        }
        for (to, values) in taken {
            for value in values {
                fields.append(to, value);
            }
        }
    }
}

fn refuse_reserved(name: &HeaderName, direction: Direction) -> Result<(), HeaderChangesError> {
    let hop_by_hop = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
    ]
    .contains(name)
        || name.as_str().starts_with("proxy-")
        || matches!(name.as_str(), "keep-alive" | "http2-settings");
    if hop_by_hop {
        Err(HeaderChangesError::HopByHop(name.clone()))
    } else if *name == header::HOST && direction == Direction::Request {
        Err(HeaderChangesError::Host)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use seiketsu_config::{layers::Layer, policy};
    use serde_json::json;

    use super::*;

    /// As if one layer had set all of it.
    fn entries(value: serde_json::Value) -> HeaderEntries {
        fn setting<T>(value: T) -> Setting<T> {
            Setting { layer: Layer::Tenant, value }
        }
        let policy::HeaderChanges { rename, remove, set, add } = serde_json::from_value(value).unwrap();
        HeaderEntries {
            rename: rename.into_iter().map(|(from, to)| (from, setting(to))).collect(),
            remove: remove.into_iter().map(|name| (name, setting(()))).collect(),
            set: set.into_iter().map(|(name, value)| (name, setting(value))).collect(),
            add: add.into_iter().map(|(name, value)| (name, setting(value))).collect(),
        }
    }

    fn changes(value: serde_json::Value) -> HeaderChanges {
        HeaderChanges::compile(&entries(value), Direction::Request).unwrap()
    }

    fn request(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut request = HeaderMap::new();
        for (name, value) in fields {
            request.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        request
    }

    fn all(request: &HeaderMap, name: &str) -> Vec<String> {
        request.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn rename_remove_set_and_add_run_in_this_order() {
        let changes = changes(json!({
            "rename": { "x-old": "x-new" },
            "remove": ["x-new-2", "x-gone"],
            "set": { "x-gone": "back", "x-set": "ours" },
            "add": { "x-set": "more" },
        }));
        let mut head =
            request(&[("X-Old", "1"), ("X-Old", "2"), ("x-gone", "a"), ("x-set", "theirs"), ("x-set", "too")]);
        changes.apply(&mut head);
        assert!(all(&head, "x-old").is_empty());
        assert_eq!(all(&head, "x-new"), ["1", "2"]);
        assert_eq!(all(&head, "x-gone"), ["back"]);
        assert_eq!(all(&head, "x-set"), ["ours", "more"]);
    }

    #[test]
    fn a_renamed_header_replaces_what_the_client_sent_under_the_new_name() {
        let changes = changes(json!({ "rename": { "x-user": "x-verified-user" } }));
        let mut head = request(&[("x-user", "alice"), ("x-verified-user", "root")]);
        changes.apply(&mut head);
        assert_eq!(all(&head, "x-verified-user"), ["alice"]);
    }

    #[test]
    fn an_underscore_is_no_way_around_a_change() {
        let config = json!({
            "rename": { "x_old": "x-new-name" }, "remove": ["x-debug-mode"], "set": { "x-set-to": "ours", "x_own": "1" },
        });
        let sent = [
            ("x_debug-mode", "1"),
            ("x_debug_mode", "1"),
            ("x_set_to", "theirs"),
            ("x_new_name", "theirs"),
            ("x_old", "1"),
            ("x_other", "1"),
            ("x_own", "2"),
        ];
        let mut head = request(&sent);
        changes(config.clone()).apply(&mut head);
        for (name, values) in [
            ("x_debug-mode", vec![]),
            ("x_debug_mode", vec![]),
            ("x_set_to", vec![]),
            ("x_new_name", vec![]),
            ("x-set-to", vec!["ours"]),
            ("x-new-name", vec!["1"]),
            ("x_other", vec!["1"]),
            ("x_own", vec!["1"]),
        ] {
            assert_eq!(all(&head, name), values, "{name}");
        }
        let mut response = request(&sent);
        HeaderChanges::compile(&entries(config), Direction::Response).unwrap().apply(&mut response);
        assert_eq!(all(&response, "x_debug_mode"), ["1"], "upstreams are not clients");
    }

    #[test]
    fn two_headers_can_change_places() {
        let changes = changes(json!({ "rename": { "x-a": "x-b", "x-b": "x-a" } }));
        let mut head = request(&[("x-a", "1"), ("x-b", "2")]);
        changes.apply(&mut head);
        assert_eq!((all(&head, "x-a"), all(&head, "x-b")), (vec!["2".to_owned()], vec!["1".to_owned()]));
    }

    #[test]
    fn framing_and_hop_by_hop_headers_cannot_be_touched() {
        for name in [
            "Connection",
            "Content-Length",
            "Transfer-Encoding",
            "TE",
            "Trailer",
            "Upgrade",
            "Keep-Alive",
            "Proxy-Connection",
            "Proxy-Authorization",
            "HTTP2-Settings",
        ] {
            for config in [
                json!({ "set": { name: "1" } }),
                json!({ "add": { name: "1" } }),
                json!({ "remove": [name] }),
                json!({ "rename": { name: "x" } }),
                json!({ "rename": { "x": name } }),
            ] {
                for direction in [Direction::Request, Direction::Response] {
                    let error = HeaderChanges::compile(&entries(config.clone()), direction).unwrap_err();
                    assert!(matches!(error, HeaderChangesError::HopByHop(_)), "{name}: {error}");
                }
            }
        }
    }

    #[test]
    fn host_is_set_on_the_upstream_not_here() {
        let config = entries(json!({ "set": { "Host": "evil.example" } }));
        let error = HeaderChanges::compile(&config, Direction::Request).unwrap_err();
        assert_eq!(error, HeaderChangesError::Host);
        assert!(HeaderChanges::compile(&config, Direction::Response).is_ok());
    }
}
