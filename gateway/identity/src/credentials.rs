//! Which credential a request shows. Whether it is genuine is decided elsewhere.
//!
//! There is exactly one place where each kind may stand, and a request shows one credential or none:
//! a request that can be read in two ways would be read differently by gateway and upstream. Keys in
//! URLs are never looked at; they end up in logs, histories and `Referer`.

use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use seiketsu_config::tenant::ApiKeyPlacement;

/// The longest API key that is looked at, in bytes.
pub const MAX_KEY_BYTES: usize = 256;
/// The longest JWT that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 << 10;

/// A credential in a request's header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Credential<'a> {
    ApiKey(&'a str),
    Jwt(&'a str),
}

impl std::fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ApiKey(_) => "ApiKey(…)",
            Self::Jwt(_) => "Jwt(…)",
        })
    }
}

/// Why a request's credential cannot be read at all. Answered with 400 `invalid_request` (RFC 6750 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error("the header field that carries the credential stands more than once; send it once")]
    Repeated,
    #[error("the request carries two credentials; send one")]
    Conflict,
    #[error("the credential holds characters that none has, such as a comma or a space; send exactly one")]
    Malformed,
    #[error("the credential is longer than any that is accepted")]
    TooLong,
}

/// Where a tenant's callers put their credentials.
#[derive(Debug, Clone)]
pub struct Placement {
    key_header: HeaderName,
    key_as_bearer: bool,
    removed: [HeaderName; 2],
}

/// The API key cannot be expected in this header field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "api_keys.header is {0:?}, which has a meaning of its own; choose another, as in x-api-key (keys in `Authorization: Bearer` are accepted with `bearer: true`)"
)]
pub struct ReservedHeader(HeaderName);

impl Placement {
    pub fn compile(config: &ApiKeyPlacement) -> Result<Self, ReservedHeader> {
        let key_header = config.header.get().clone();
        let reserved = ["authorization", "cookie", "host", "connection", "content-length", "transfer-encoding"];
        if reserved.contains(&key_header.as_str()) {
            return Err(ReservedHeader(key_header));
        }
        Ok(Self { removed: [key_header.clone(), AUTHORIZATION], key_header, key_as_bearer: config.bearer })
    }

    /// The one credential in the header, if any.
    ///
    /// `Authorization` with another scheme than `Bearer` is not a credential of the gateway's: it counts
    /// as none.
    pub fn find<'a>(&self, headers: &'a HeaderMap) -> Result<Option<Credential<'a>>, CredentialError> {
        let key = match single(headers, &self.key_header)? {
            Some(value) => Some(Credential::ApiKey(text(value.as_bytes(), MAX_KEY_BYTES)?)),
            None => None,
        };
        let bearer = match single(headers, &AUTHORIZATION)? {
            Some(value) => self.bearer(value)?,
            None => None,
        };
        match (key, bearer) {
            (Some(_), Some(_)) => Err(CredentialError::Conflict),
            (key, bearer) => Ok(key.or(bearer)),
        }
    }

    /// What to remove before the request goes upstream, unless the route lets credentials through.
    pub fn headers_to_remove(&self) -> &[HeaderName] {
        &self.removed
    }

    fn bearer<'a>(&self, value: &'a HeaderValue) -> Result<Option<Credential<'a>>, CredentialError> {
        let value = value.as_bytes();
        let end = value.iter().position(|byte| !byte.is_ascii_alphanumeric()).unwrap_or(value.len());
        let (scheme, rest) = value.split_at(end);
        if !scheme.eq_ignore_ascii_case(b"bearer") {
            // `Basic x, Bearer y` would be a bearer token to some.
            let hidden = value.split(|byte| *byte == b',').skip(1);
            let hidden = hidden
                .map(<[u8]>::trim_ascii_start)
                .any(|part| part.get(..7).is_some_and(|start| start.eq_ignore_ascii_case(b"bearer ")));
            return if hidden { Err(CredentialError::Malformed) } else { Ok(None) };
        }
        let token = rest.strip_prefix(b" ").ok_or(CredentialError::Malformed)?.trim_ascii_start();
        let is_key = self.key_as_bearer && token.starts_with(b"sk_");
        let token = text(token, if is_key { MAX_KEY_BYTES } else { MAX_TOKEN_BYTES })?;
        Ok(Some(if is_key { Credential::ApiKey(token) } else { Credential::Jwt(token) }))
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, CredentialError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(CredentialError::Repeated),
    }
}

/// The `token68` of RFC 9110 §11.2, not empty, and without a bound-breaking length.
fn text(value: &[u8], max: usize) -> Result<&str, CredentialError> {
    if value.len() > max {
        return Err(CredentialError::TooLong);
    }
    // Without a branch per byte: a token has a thousand of them, and this way the loop is vectorised.
    let good = value.iter().fold(true, |good, byte| good & is_token68(*byte));
    if value.is_empty() || !good {
        return Err(CredentialError::Malformed);
    }
    std::str::from_utf8(value).map_err(|_| CredentialError::Malformed)
}

#[allow(clippy::needless_bitwise_bool)] // `|` has no branch.
fn is_token68(byte: u8) -> bool {
    let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
    let digit_dash_dot_or_slash = byte.wrapping_sub(b'-') < 13;
    letter | digit_dash_dot_or_slash | (byte == b'_') | (byte == b'~') | (byte == b'+') | (byte == b'=')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn placement() -> Placement {
        Placement::compile(&ApiKeyPlacement::default()).unwrap()
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn find(fields: &[(&'static str, &str)]) -> Result<Option<String>, CredentialError> {
        let headers = headers(fields);
        let found = placement().find(&headers)?;
        Ok(found.map(|credential| match credential {
            Credential::ApiKey(key) => format!("key {key}"),
            Credential::Jwt(token) => format!("jwt {token}"),
        }))
    }

    #[test]
    fn each_kind_is_found_where_it_belongs() {
        let some = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(find(&[]), Ok(None));
        assert_eq!(find(&[("x-api-key", "sk_abc_def")]), some("key sk_abc_def"));
        assert_eq!(find(&[("authorization", "Bearer sk_abc_def")]), some("key sk_abc_def"));
        assert_eq!(find(&[("authorization", "bEARER   a.b.c")]), some("jwt a.b.c"));
        assert_eq!(find(&[("authorization", "Basic dXNlcjpwYXNz")]), Ok(None));
        assert_eq!(find(&[("authorization", "Bearerish a.b.c")]), Ok(None));
    }

    #[test]
    fn a_request_shows_one_credential_or_is_refused() {
        use CredentialError::{Conflict, Malformed, Repeated};
        assert_eq!(find(&[("x-api-key", "sk_a_b"), ("x-api-key", "sk_a_b")]), Err(Repeated));
        assert_eq!(find(&[("authorization", "Bearer a.b.c"), ("authorization", "Basic eA==")]), Err(Repeated));
        assert_eq!(find(&[("x-api-key", "sk_a_b"), ("authorization", "Bearer a.b.c")]), Err(Conflict));
        assert_eq!(find(&[("x-api-key", "sk_a_b"), ("authorization", "Bearer sk_a_b")]), Err(Conflict));
        assert_eq!(find(&[("x-api-key", "sk_a_b, sk_c_d")]), Err(Malformed));
        assert_eq!(find(&[("authorization", "Bearer a.b.c, Bearer d.e.f")]), Err(Malformed));
        assert_eq!(find(&[("authorization", "Basic eA==, Bearer d.e.f")]), Err(Malformed));
        for value in ["Bearer", "Bearer ", "Bearer\ta.b.c", "Bearer a b", "Bearer a.b.c;x"] {
            assert_eq!(find(&[("authorization", value)]), Err(Malformed), "{value:?}");
        }
        assert_eq!(find(&[("x-api-key", "")]), Err(Malformed));
    }

    #[test]
    fn oversized_credentials_are_refused_unread() {
        let long = |n| "a".repeat(n);
        assert!(find(&[("x-api-key", &long(MAX_KEY_BYTES))]).is_ok());
        assert_eq!(find(&[("x-api-key", &long(MAX_KEY_BYTES + 1))]), Err(CredentialError::TooLong));
        assert!(find(&[("authorization", &format!("Bearer {}", long(MAX_TOKEN_BYTES)))]).is_ok());
        let bearer = format!("Bearer {}", long(MAX_TOKEN_BYTES + 1));
        assert_eq!(find(&[("authorization", &bearer)]), Err(CredentialError::TooLong));
    }

    #[test]
    fn a_key_as_bearer_is_a_key_only_where_the_tenant_says_so() {
        let config = ApiKeyPlacement { bearer: false, ..ApiKeyPlacement::default() };
        let headers = headers(&[("authorization", "Bearer sk_abc_def")]);
        let found = Placement::compile(&config).unwrap().find(&headers).unwrap();
        assert!(matches!(found, Some(Credential::Jwt(_))));
    }

    #[test]
    fn headers_with_another_meaning_do_not_carry_keys() {
        let header = "Authorization".parse().unwrap();
        assert!(Placement::compile(&ApiKeyPlacement { header, bearer: true }).is_err());
    }

    #[test]
    fn the_clients_credential_is_removed_wherever_it_stood() {
        let names: Vec<_> = placement().headers_to_remove().iter().map(HeaderName::to_string).collect();
        assert_eq!(names, ["x-api-key", "authorization"]);
    }

    #[test]
    fn a_token68_has_the_characters_of_rfc_9110() {
        let expected = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=";
        for byte in 0..=255 {
            assert_eq!(is_token68(byte), expected.contains(&byte), "{byte:#x}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_found_is_one_clean_token_of_the_header(value in "[ -~]{0,60}", bearer in any::<bool>()) {
            let value = if bearer { format!("Bearer {value}") } else { value };
            let headers = headers(&[("authorization", &value)]);
            if let Ok(Some(Credential::ApiKey(text) | Credential::Jwt(text))) = placement().find(&headers) {
                prop_assert!(!text.is_empty() && !text.contains([' ', ',', '"', ';']));
                prop_assert!(value.ends_with(text));
            }
        }
    }
}
