//! A sink of the audit trail, as it is sent.

use secrecy::SecretString;
use seiketsu_config::values::Id;
use serde::Deserialize;
use url::Url;
use utoipa::ToSchema;

use super::{AppState, Problem};
use crate::{siem, store::siem::SinkSettings};

/// What of a sink can be chosen.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SiemSinkBody {
    /// Lower-case letters, digits, `-`, `_` and `.`.
    #[schema(value_type = String)]
    name: Id,
    /// `syslogs://host:6514`: syslog over TLS (RFC 5425). `https://host/path`: events of OCSF, in lists of JSON.
    #[schema(value_type = String, max_length = 2000)]
    url: String,
    /// Sent as `Authorization: Bearer …`, by HTTP. When a sink is changed, absent: the one that there is, unless scheme, host
    /// or port are others; empty: none.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    token: Option<SecretString>,
    /// PEM of authorities that the receiver's certificate may come from, beside those of the system.
    #[serde(default)]
    ca: Option<String>,
    /// PEM of the certificate that is shown to the receiver, and those that lead to its authority.
    #[serde(default)]
    certificate: Option<String>,
    /// PEM of the key of `certificate`; sent together with it.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    private_key: Option<SecretString>,
    #[serde(default = "yes")]
    enabled: bool,
    /// For new sinks: the last entry that is not sent; 0 sends the whole trail. Absent: only what comes from now on.
    #[serde(default)]
    pub(super) after: Option<u64>,
}

fn yes() -> bool {
    true
}

impl SiemSinkBody {
    pub(super) fn checked(self, state: &AppState) -> Result<SinkSettings, Problem> {
        use secrecy::ExposeSecret as _;
        let Self { name, url, token, ca, certificate, private_key, enabled, after: _ } = self;
        let fix = Some("write syslogs://host:6514 or https://host/path");
        let url: Url =
            url.parse().map_err(|why| Problem::invalid_at("url", format!("it is no address: {why}"), fix))?;
        if certificate.is_some() != private_key.is_some() {
            let fix = Some("send certificate and private_key together, or neither");
            return Err(Problem::invalid_at("certificate", "a certificate and its key belong together", fix));
        }
        let identity = certificate.as_deref().zip(private_key.as_ref().map(SecretString::expose_secret));
        if let Some((place, fault)) = siem::fault(&state.outbound, &url, ca.as_deref(), identity) {
            return Err(Problem::invalid_at(place, fault, fix.filter(|_| place == "url")));
        }
        Ok(SinkSettings { name, url, token, ca, certificate, private_key, enabled })
    }
}
