//! Errors of both planes as callers read them: problem details for HTTP APIs (RFC 9457). Each plane has its own kinds; the
//! form is one.

use serde::{Serializer, ser::SerializeMap};
use serde_json::Value;

/// The media type of a problem (RFC 9457 §6.1).
pub const MEDIA_TYPE: &str = "application/problem+json";

/// The members that every problem has.
#[derive(Debug, Clone, Copy)]
pub struct Details<'a> {
    /// Identifies the kind (§3.1.1).
    pub type_uri: &'a str,
    /// The same for every occurrence (§3.1.3).
    pub title: &'a str,
    pub status: u16,
    /// What was wrong this time; left out if it is empty.
    pub detail: &'a str,
    /// The request's id, by which the occurrence is found in the log (§3.1.5).
    pub instance: Option<&'a str>,
}

impl Details<'_> {
    /// With the members of the kind behind them (§3.2).
    pub fn serialize<'a, S: Serializer>(
        &self,
        serializer: S,
        further: impl IntoIterator<Item = (&'a str, &'a Value)>,
    ) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(None)?;
        members.serialize_entry("type", self.type_uri)?;
        members.serialize_entry("title", self.title)?;
        members.serialize_entry("status", &self.status)?;
        if !self.detail.is_empty() {
            members.serialize_entry("detail", self.detail)?;
        }
        if let Some(instance) = self.instance {
            members.serialize_entry("instance", instance)?;
        }
        for (name, value) in further {
            members.serialize_entry(name, value)?;
        }
        members.end()
    }
}

/// Defines what can go wrong: `pub enum Kind;`, and for each kind its name, status, type, title, and what the caller can do.
/// A kind is a promise: its type and status stay what they are.
#[macro_export]
macro_rules! problem_kinds {
    (
        $(#[$meta:meta])* $visibility:vis enum $name:ident;
        $($(#[$doc:meta])* $kind:ident = $status:ident, $type_uri:literal, $title:literal, $remedy:literal;)+
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        $visibility enum $name {
            $($(#[$doc])* $kind,)+
        }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// The `type` member: a URI that identifies the kind (RFC 9457 §3.1.1).
            pub const fn type_uri(self) -> &'static str {
                match self { $(Self::$kind => $type_uri,)+ }
            }

            /// The `title` member: the same for every occurrence (RFC 9457 §3.1.3).
            pub const fn title(self) -> &'static str {
                match self { $(Self::$kind => $title,)+ }
            }

            /// The status of the response, also the `status` member.
            pub const fn status(self) -> ::http::StatusCode {
                match self { $(Self::$kind => ::http::StatusCode::$status,)+ }
            }

            /// What the caller can do about it.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$kind => $remedy,)+ }
            }
        }
    };
}
