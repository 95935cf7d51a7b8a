//! Why an exchange with an upstream failed, in a word.

use pingora_core::{Error, ErrorType};

/// Why no connection came about.
pub fn of_connect(error: &Error) -> &'static str {
    match error.etype() {
        ErrorType::ConnectTimedout => "connect_timeout",
        ErrorType::ConnectRefused => "connection_refused",
        ErrorType::ConnectNoRoute => "no_route",
        ErrorType::TLSHandshakeTimedout => "tls_timeout",
        _ => of_tls(error).unwrap_or("connect_failed"),
    }
}

/// Why an exchange broke off.
pub fn of_break(error: &Error) -> &'static str {
    // A client certificate that is not wanted is told of only when the handshake is over (RFC 8446 §4.6.2).
    of_tls(error).unwrap_or("reset")
}

/// What was wrong with TLS, if that is what it was.
pub fn of_tls(error: &Error) -> Option<&'static str> {
    // Of the error of rustls, Pingora keeps the text only.
    let text = error.to_string();
    if let Some((_, certificate)) = text.split_once("invalid peer certificate: ") {
        let known = [
            ("UnknownIssuer", "unknown_issuer"),
            ("certificate not valid for name", "not_valid_for_name"),
            ("NotValidForName", "not_valid_for_name"),
            ("certificate expired", "expired"),
            ("Expired", "expired"),
            ("certificate not valid yet", "not_valid_yet"),
            ("NotValidYet", "not_valid_yet"),
            ("Revoked", "revoked"),
            ("BadSignature", "bad_signature"),
        ];
        let known = known.iter().find(|(start, _)| certificate.starts_with(start));
        return Some(known.map_or("bad_certificate", |(_, cause)| cause));
    }
    if text.contains("received fatal alert: ") {
        return Some("tls_alert");
    }
    matches!(
        error.etype(),
        ErrorType::TLSHandshakeFailure
            | ErrorType::TLSWantX509Lookup
            | ErrorType::InvalidCert
            | ErrorType::HandshakeError
    )
    .then_some("tls_failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_what_rustls_says() {
        let told = |text: &str| {
            let text = format!("TLS connect() failed:  TLSHandshakeFailure context: {text}, SNI: x.test");
            of_connect(&Error::explain(ErrorType::TLSHandshakeFailure, text))
        };
        for (error, cause) in [
            (rustls::CertificateError::UnknownIssuer, "unknown_issuer"),
            (rustls::CertificateError::NotValidForName, "not_valid_for_name"),
            (rustls::CertificateError::Expired, "expired"),
            (rustls::CertificateError::NotValidYet, "not_valid_yet"),
            (rustls::CertificateError::Revoked, "revoked"),
            (rustls::CertificateError::BadSignature, "bad_signature"),
            (rustls::CertificateError::BadEncoding, "bad_certificate"),
        ] {
            assert_eq!(told(&rustls::Error::InvalidCertificate(error).to_string()), cause);
        }
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        assert_eq!((told(&alert.to_string()), told("unexpected EOF")), ("tls_alert", "tls_failed"));
        assert_eq!(of_break(&Error::explain(ErrorType::ReadError, alert.to_string())), "tls_alert");
        assert_eq!(of_break(&Error::explain(ErrorType::ReadError, "")), "reset");
        assert_eq!(of_connect(&Error::explain(ErrorType::ConnectRefused, "")), "connection_refused");
    }
}
