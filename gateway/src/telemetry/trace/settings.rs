//! What the `OTEL_*` environment variables ask for, by the OpenTelemetry specification (SDK environment
//! variables, OTLP exporter). Those that are not named here (`OTEL_EXPORTER_OTLP_HEADERS`, `_TIMEOUT`,
//! `OTEL_BSP_*`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME`) are read by the SDK itself.

use std::path::PathBuf;

use http::Uri;

use super::sampler::Sampler;

/// Where spans go, and of which requests.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// The whole URL, with `/v1/traces`.
    pub(super) endpoint: Uri,
    /// PEM file of the authorities that the collector's certificate must come from. Default: those of
    /// the system.
    pub(super) certificate: Option<PathBuf>,
    pub(super) sampler: Sampler,
}

/// Which variable is wrong, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceSettingsError {
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT: {value:?} is not a URL; write it as in http://collector:4318")]
    Endpoint { value: String },
    #[error(
        "OTEL_EXPORTER_OTLP_PROTOCOL: {value:?} is not supported; use http/protobuf, on port 4318 in most collectors"
    )]
    Protocol { value: String },
    #[error("OTEL_TRACES_EXPORTER: {value:?} is not supported; use otlp or none")]
    Exporter { value: String },
    #[error("OTEL_TRACES_SAMPLER: {value:?} is no sampler; use {}", Sampler::NAMES)]
    Sampler { value: String },
    #[error("OTEL_TRACES_SAMPLER_ARG: {value:?} is not a share; write a number from 0 to 1")]
    SamplerArgument { value: String },
}

impl TraceSettings {
    /// Reads the variables through `variable`. None where no endpoint is set, or traces are switched off
    /// by `OTEL_SDK_DISABLED` or `OTEL_TRACES_EXPORTER=none`.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, TraceSettingsError> {
        // An empty variable means the same as none (specification, "Parsing empty value").
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let of_traces = |name: &str| {
            variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
                .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        match variable("OTEL_TRACES_EXPORTER") {
            None => {}
            Some(value) if value == "otlp" => {}
            Some(value) if value == "none" => return Ok(None),
            Some(value) => return Err(TraceSettingsError::Exporter { value }),
        }
        let endpoint = match variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            Some(whole) => whole,
            None => match variable("OTEL_EXPORTER_OTLP_ENDPOINT") {
                Some(base) => format!("{}/v1/traces", base.trim_end_matches('/')),
                None => return Ok(None),
            },
        };
        if let Some(value) = of_traces("PROTOCOL").filter(|value| value != "http/protobuf") {
            return Err(TraceSettingsError::Protocol { value });
        }
        let ratio = match variable("OTEL_TRACES_SAMPLER_ARG") {
            None => 1.0,
            Some(value) => match value.parse() {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
                _ => return Err(TraceSettingsError::SamplerArgument { value }),
            },
        };
        let sampler = variable("OTEL_TRACES_SAMPLER");
        Ok(Some(Self {
            endpoint: parse_endpoint(endpoint)?,
            certificate: of_traces("CERTIFICATE").map(PathBuf::from),
            sampler: Sampler::named(sampler.as_deref(), ratio)
                .ok_or(TraceSettingsError::Sampler { value: sampler.unwrap_or_default() })?,
        }))
    }
}

fn parse_endpoint(text: String) -> Result<Uri, TraceSettingsError> {
    match text.parse::<Uri>() {
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() => Ok(uri),
        // What stands before an `@` may be a password.
        _ => Err(TraceSettingsError::Endpoint {
            value: text.rsplit_once('@').map(|(_, rest)| format!("***@{rest}")).unwrap_or(text),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<TraceSettings>, TraceSettingsError> {
        TraceSettings::from_environment(|name| {
            variables.iter().find(|(have, _)| *have == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");

    #[test]
    fn traces_are_off_until_an_endpoint_is_set() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), Ok(None));
        assert_eq!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        assert_eq!(read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        let settings = read(&[ENDPOINT]).unwrap().unwrap();
        assert_eq!(settings.endpoint, "http://collector:4318/v1/traces");
        assert_eq!(settings.sampler, Sampler::named(None, 1.0).unwrap());
    }

    #[test]
    fn the_endpoint_of_traces_is_taken_as_it_is() {
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://other/path");
        assert_eq!(read(&[ENDPOINT, own]).unwrap().unwrap().endpoint, "https://other/path");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (variable, error) in [
            (("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), "OTEL_EXPORTER_OTLP_PROTOCOL"),
            (("OTEL_TRACES_EXPORTER", "zipkin"), "OTEL_TRACES_EXPORTER"),
            (("OTEL_TRACES_SAMPLER", "xray"), "OTEL_TRACES_SAMPLER"),
            (("OTEL_TRACES_SAMPLER_ARG", "1.5"), "OTEL_TRACES_SAMPLER_ARG"),
            (("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"), "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ] {
            let message = read(&[ENDPOINT, variable]).unwrap_err().to_string();
            assert!(message.starts_with(error) && message.contains(variable.1), "{message}");
        }
    }

    #[test]
    fn a_refused_endpoint_does_not_tell_its_password() {
        for url in ["ftp://user:hunter2@collector/", "user:hunter2@collector:4318", "http://user:hun@ter2@collector/ "]
        {
            let message = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]).unwrap_err().to_string();
            assert!(message.contains("***@collector") && !message.contains("ter2"), "{message}");
        }
    }
}
