//! Time zones.

use std::{fmt, str::FromStr, sync::LazyLock};

use jiff::tz::TimeZoneDatabase;

use super::{InvalidValue, text_value};

/// Not those of the system, which other parts of the program may have asked the library for.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// A time zone by its IANA name, as in `Asia/Tokyo`. Known are those that the program brings with it, so
/// that every node knows the same ones, whatever its system has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TimeZone(Box<str>);

impl TimeZone {
    pub fn utc() -> Self {
        Self("UTC".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TimeZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TimeZone {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(zone) = ZONES.get(text)
            && let Some(name) = zone.iana_name()
        {
            return Ok(Self(name.into()));
        }
        let known: Vec<String> = ZONES.available().map(|name| name.to_string()).collect();
        let fix = match crate::error::nearest(text, &known) {
            Some(nearest) => format!("did you mean {nearest}?"),
            None => "write an IANA name, as in Asia/Tokyo, Europe/Berlin or UTC".to_owned(),
        };
        Err(InvalidValue::new(format!("{text:?} is not a time zone: {fix}")))
    }
}

text_value!(
    TimeZone,
    "TimeZone",
    "The IANA name of a time zone: UTC, Asia/Tokyo",
    Some("^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$")
);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn time_zones_are_those_of_the_iana() {
        for (text, name) in [
            ("UTC", "UTC"),
            ("Asia/Tokyo", "Asia/Tokyo"),
            ("asia/tokyo", "Asia/Tokyo"),
            ("America/Argentina/Buenos_Aires", "America/Argentina/Buenos_Aires"),
            ("Etc/GMT+8", "Etc/GMT+8"),
        ] {
            assert_eq!(text.parse::<TimeZone>().unwrap().as_str(), name);
        }
        for bad in ["", "JST-9", "+09:00", "Asia", "Asia/", "../Asia/Tokyo", "Mars/Olympus", "localtime", "ä"] {
            let error = bad.parse::<TimeZone>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?} is not a time zone")), "{error}");
        }
        let error = "Asia/Tokio".parse::<TimeZone>().unwrap_err().to_string();
        assert!(error.ends_with("did you mean Asia/Tokyo?"), "{error}");
    }
}
