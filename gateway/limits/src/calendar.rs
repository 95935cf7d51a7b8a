//! Days and months of a calendar, for quotas.
//!
//! The periods of a calendar follow each other without gap or overlap, whatever clocks do: a day with a
//! change of the clocks has 23 or 25 hours, a day that a time zone left out has none.

use std::{fmt, sync::LazyLock};

use jiff::{
    Timestamp, ToSpan,
    civil::{Date, Time},
    tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase},
};

/// Not those of the system: all gateways must know the same ones.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// Which periods a quota counts in, and in which time zone they begin.
#[derive(Debug, Clone, PartialEq)]
pub struct Calendar {
    zone: TimeZone,
    unit: Unit,
    anchor_day: i8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    Day,
    Month,
}

/// Why a calendar cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    #[error("there is no time zone {0:?}: write an IANA name, as in Asia/Tokyo")]
    UnknownZone(String),
    #[error("a month cannot begin with day {0}: write 1 to 31")]
    AnchorDay(u8),
}

/// Moments from here on belong to one last period: the calendar of the library ends some months later.
const END_OF_DAYS: Timestamp = Timestamp::constant(253_370_764_800, 0); // 9999-01-01T00:00:00Z

impl Calendar {
    /// Days from midnight to midnight. The zone has an IANA name.
    pub fn days(zone: &str) -> Result<Self, CalendarError> {
        Ok(Self { zone: zone_named(zone)?, unit: Unit::Day, anchor_day: 1 })
    }

    /// Months that begin with this day, 1 to 31. Months without that day begin with their last.
    pub fn months(zone: &str, anchor_day: u8) -> Result<Self, CalendarError> {
        let day = i8::try_from(anchor_day).ok().filter(|day| (1..=31).contains(day));
        let anchor_day = day.ok_or(CalendarError::AnchorDay(anchor_day))?;
        Ok(Self { zone: zone_named(zone)?, unit: Unit::Month, anchor_day })
    }

    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// The period that a moment, in microseconds since 1970, lies in.
    ///
    /// Zones are looked up for it: keep the period for as long as it [contains](Period::contains) the moment.
    pub fn period(&self, now: u64) -> Period {
        let now = i64::try_from(now).ok().and_then(|micros| Timestamp::from_microsecond(micros).ok());
        let now = now.map_or(END_OF_DAYS, |now| now.min(END_OF_DAYS));
        let mut first_day = self.first_day(self.zone.to_datetime(now).date());
        let mut starts = self.start_of(first_day);
        // Where clocks went back over midnight, the calendar says the former day once more although the
        // new one has begun.
        while starts > now {
            first_day = self.before(first_day);
            starts = self.start_of(first_day);
        }
        let mut ends = self.start_of(self.after(first_day));
        while ends <= now {
            first_day = self.after(first_day);
            starts = ends;
            ends = self.start_of(self.after(first_day));
        }
        Period {
            id: PeriodId::new(first_day, self.unit),
            // A period that began before 1970 has lasted since then.
            starts: u64::try_from(starts.as_microsecond()).unwrap_or(0),
            ends: if ends > END_OF_DAYS { u64::MAX } else { u64::try_from(ends.as_microsecond()).unwrap_or(u64::MAX) },
        }
    }

    /// The first day of the period that this day lies in.
    fn first_day(&self, day: Date) -> Date {
        match self.unit {
            Unit::Day => day,
            Unit::Month => {
                let first = self.anchored(day);
                if first <= day { first } else { self.before(first) }
            }
        }
    }

    /// The first day of the period before the one that begins with this day.
    fn before(&self, first_day: Date) -> Date {
        match self.unit {
            Unit::Day => first_day.saturating_sub(1.day()),
            Unit::Month => self.anchored(first_day.first_of_month().saturating_sub(1.day())),
        }
    }

    /// The first day of the period after the one that begins with this day.
    fn after(&self, first_day: Date) -> Date {
        match self.unit {
            Unit::Day => first_day.saturating_add(1.day()),
            Unit::Month => self.anchored(first_day.last_of_month().saturating_add(1.day())),
        }
    }

    /// The day of this day's month that a period begins with.
    fn anchored(&self, day: Date) -> Date {
        let last = day.last_of_month();
        last.with().day(self.anchor_day.min(last.day())).build().unwrap_or(last)
    }

    /// The first moment of a day. A day that a zone left out begins when the next one does.
    fn start_of(&self, day: Date) -> Timestamp {
        let midnight = self.zone.to_ambiguous_timestamp(day.to_datetime(Time::midnight()));
        let offset = midnight.offset();
        // Where midnight comes twice, the first one counts.
        let Ok(start) = midnight.earlier() else {
            return if day.year() < 0 { Timestamp::MIN } else { Timestamp::MAX };
        };
        match offset {
            // Where there is no midnight, the day begins when the clocks go forward over it.
            AmbiguousOffset::Gap { .. } => {
                self.zone.following(start).next().map_or(start, |transition| transition.timestamp())
            }
            AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => start,
        }
    }
}

fn zone_named(name: &str) -> Result<TimeZone, CalendarError> {
    ZONES.get(name).map_err(|_| CalendarError::UnknownZone(name.to_owned()))
}

/// One day or month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    pub id: PeriodId,
    /// Microseconds since 1970.
    pub starts: u64,
    /// The first microsecond after it.
    pub ends: u64,
}

impl Period {
    pub fn contains(&self, now: u64) -> bool {
        // The last one has no end.
        self.starts <= now && (now < self.ends || self.ends == u64::MAX)
    }
}

/// Names a period within its calendar: `2026-11-24` is a day, `2026-11` the month that begins then. Of two
/// periods of a calendar the later one has the greater name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeriodId {
    text: [u8; 10],
    length: u8,
}

impl PeriodId {
    fn new(first_day: Date, unit: Unit) -> Self {
        let year = first_day.year().unsigned_abs();
        let (month, day) = (first_day.month().unsigned_abs(), first_day.day().unsigned_abs());
        // 0 to 9 each: the remainder fits into a byte.
        let digit = |number: u16| b'0' + (number % 10) as u8;
        let two = |number: u8| [digit(u16::from(number / 10)), digit(u16::from(number))];
        let ([m1, m2], [d1, d2]) = (two(month), two(day));
        let (y1, y2, y3, y4) = (digit(year / 1000), digit(year / 100), digit(year / 10), digit(year));
        match unit {
            Unit::Day => Self { text: [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2], length: 10 },
            Unit::Month => Self { text: [y1, y2, y3, y4, b'-', m1, m2, 0, 0, 0], length: 7 },
        }
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Display for PeriodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for PeriodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 3_600_000_000;

    fn micros(time: &str) -> u64 {
        time.parse::<Timestamp>().unwrap().as_microsecond().try_into().unwrap()
    }

    /// Id, first moment and hours of the period that a moment lies in.
    fn period(calendar: &Calendar, time: &str) -> (String, String, u64) {
        let period = calendar.period(micros(time));
        assert!(period.contains(micros(time)));
        let starts = Timestamp::from_microsecond(period.starts.try_into().unwrap()).unwrap();
        assert_eq!((period.ends - period.starts) % (HOUR / 4), 0);
        (period.id.to_string(), starts.to_string(), (period.ends - period.starts) / HOUR)
    }

    #[test]
    fn a_day_begins_at_midnight_of_its_zone() {
        for (zone, time, id, starts, hours) in [
            ("UTC", "2026-11-24T23:59:59.999999Z", "2026-11-24", "2026-11-24T00:00:00Z", 24),
            ("UTC", "2026-11-25T00:00:00Z", "2026-11-25", "2026-11-25T00:00:00Z", 24),
            ("UTC", "2028-02-29T12:00:00Z", "2028-02-29", "2028-02-29T00:00:00Z", 24),
            ("Asia/Tokyo", "2026-11-24T14:59:59Z", "2026-11-24", "2026-11-23T15:00:00Z", 24),
            ("Asia/Tokyo", "2026-11-24T15:00:00Z", "2026-11-25", "2026-11-24T15:00:00Z", 24),
            // Clocks go forward, and back.
            ("America/New_York", "2026-03-08T12:00:00Z", "2026-03-08", "2026-03-08T05:00:00Z", 23),
            ("America/New_York", "2026-03-09T03:59:59Z", "2026-03-08", "2026-03-08T05:00:00Z", 23),
            ("America/New_York", "2026-03-09T04:00:00Z", "2026-03-09", "2026-03-09T04:00:00Z", 24),
            ("America/New_York", "2026-11-01T12:00:00Z", "2026-11-01", "2026-11-01T04:00:00Z", 25),
            ("America/New_York", "2026-11-02T04:59:59Z", "2026-11-01", "2026-11-01T04:00:00Z", 25),
            // Midnight is left out: the day begins at 1.
            ("America/Sao_Paulo", "2018-11-04T12:00:00Z", "2018-11-04", "2018-11-04T03:00:00Z", 23),
            ("America/Sao_Paulo", "2018-11-04T02:59:59Z", "2018-11-03", "2018-11-03T03:00:00Z", 24),
            ("Africa/Cairo", "2024-04-26T12:00:00Z", "2024-04-26", "2024-04-25T22:00:00Z", 23),
            ("Asia/Beirut", "2024-03-31T12:00:00Z", "2024-03-31", "2024-03-30T22:00:00Z", 23),
            // Clocks go back from midnight to 23: the day before has 25 hours.
            ("America/Sao_Paulo", "2018-02-18T02:30:00Z", "2018-02-17", "2018-02-17T02:00:00Z", 25),
            ("Africa/Cairo", "2024-10-31T20:30:00Z", "2024-10-31", "2024-10-30T21:00:00Z", 25),
            // Clocks go back from 0:01 to 23:01: the new day goes on while they say the former one.
            ("America/St_Johns", "2006-10-29T02:30:30Z", "2006-10-29", "2006-10-29T02:30:00Z", 25),
            ("America/St_Johns", "2006-10-29T03:00:00Z", "2006-10-29", "2006-10-29T02:30:00Z", 25),
            // By half an hour.
            ("Australia/Lord_Howe", "2026-10-04T00:00:00Z", "2026-10-04", "2026-10-03T13:30:00Z", 23),
            // The 30th of December was left out.
            ("Pacific/Apia", "2011-12-30T09:59:59Z", "2011-12-29", "2011-12-29T10:00:00Z", 24),
            ("Pacific/Apia", "2011-12-30T10:00:00Z", "2011-12-31", "2011-12-30T10:00:00Z", 24),
            // A zone at the edge of the day.
            ("Pacific/Kiritimati", "2026-12-31T10:00:00Z", "2027-01-01", "2026-12-31T10:00:00Z", 24),
        ] {
            let calendar = Calendar::days(zone).unwrap();
            let expected = (id.to_owned(), starts.to_owned(), hours);
            assert_eq!(period(&calendar, time), expected, "{zone} {time}");
        }
    }

    #[test]
    fn a_day_begins_after_a_gap_that_midnight_lies_in() {
        // Clocks went from 23:30 to 0:30.
        let zone = ZONES.get("America/Toronto").unwrap();
        let calendar = Calendar { zone, unit: Unit::Day, anchor_day: 1 };
        let start = calendar.start_of(jiff::civil::date(1919, 3, 31));
        assert_eq!(start.to_string(), "1919-03-31T04:30:00Z");
    }

    #[test]
    fn a_month_begins_with_its_anchor_or_its_last_day() {
        for (zone, anchor, time, id, starts, days) in [
            ("UTC", 1, "2026-11-24T00:00:00Z", "2026-11", "2026-11-01T00:00:00Z", 30),
            ("UTC", 15, "2026-11-14T23:59:59Z", "2026-10", "2026-10-15T00:00:00Z", 31),
            ("UTC", 15, "2026-11-15T00:00:00Z", "2026-11", "2026-11-15T00:00:00Z", 30),
            ("UTC", 31, "2026-02-27T23:59:59Z", "2026-01", "2026-01-31T00:00:00Z", 28),
            ("UTC", 31, "2026-02-28T00:00:00Z", "2026-02", "2026-02-28T00:00:00Z", 31),
            ("UTC", 31, "2028-02-28T12:00:00Z", "2028-01", "2028-01-31T00:00:00Z", 29),
            ("UTC", 29, "2028-02-29T00:00:00Z", "2028-02", "2028-02-29T00:00:00Z", 29),
            ("UTC", 30, "2026-12-31T00:00:00Z", "2026-12", "2026-12-30T00:00:00Z", 31),
            ("Asia/Tokyo", 1, "2026-12-31T15:00:00Z", "2027-01", "2026-12-31T15:00:00Z", 31),
        ] {
            let calendar = Calendar::months(zone, anchor).unwrap();
            let expected = (id.to_owned(), starts.to_owned(), days * 24);
            assert_eq!(period(&calendar, time), expected, "{zone} {anchor} {time}");
        }
        // A month with a change of the clocks.
        let calendar = Calendar::months("America/New_York", 1).unwrap();
        assert_eq!(period(&calendar, "2026-03-20T00:00:00Z").2, 31 * 24 - 1);
    }

    #[test]
    fn the_first_and_the_last_period_have_no_border() {
        for zone in ["America/New_York", "Pacific/Kiritimati", "UTC"] {
            for calendar in [Calendar::days(zone).unwrap(), Calendar::months(zone, 31).unwrap()] {
                assert_eq!(calendar.period(0).starts, 0, "{zone}");
                for moment in [u64::MAX, u64::MAX - 1, 1 << 63, micros("9999-06-01T00:00:00Z")] {
                    let last = calendar.period(moment);
                    assert!(last.contains(moment) && last.ends == u64::MAX, "{zone} {last:?}");
                    assert_eq!(last, calendar.period(last.starts));
                }
            }
        }
    }

    #[test]
    fn impossible_calendars_are_refused() {
        assert_eq!(Calendar::days("Mars"), Err(CalendarError::UnknownZone("Mars".to_owned())));
        for day in [0, 32, 255] {
            assert_eq!(Calendar::months("UTC", day), Err(CalendarError::AnchorDay(day)));
        }
    }

    fn calendars() -> impl Strategy<Value = Calendar> {
        let zones: Vec<String> = ZONES.available().map(|name| name.to_string()).collect();
        (prop::sample::select(zones), prop_oneof![Just(None), (1_u8..=31).prop_map(Some)]).prop_map(|(zone, anchor)| {
            match anchor {
                None => Calendar::days(&zone).unwrap(),
                Some(day) => Calendar::months(&zone, day).unwrap(),
            }
        })
    }

    /// Mostly the years that have many odd rules.
    fn moments() -> impl Strategy<Value = u64> {
        let end = u64::try_from(END_OF_DAYS.as_microsecond()).unwrap();
        prop_oneof![0..4_102_444_800_000_000_u64, 0..end + 400 * 24 * HOUR]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn periods_tile_time(calendar in calendars(), now in moments()) {
            let period = calendar.period(now);
            prop_assert!(period.contains(now));
            prop_assert_eq!(calendar.period(period.starts), period);
            if period.starts > 0 {
                let before = calendar.period(period.starts - 1);
                prop_assert_eq!(before.ends, period.starts);
                prop_assert!(before.id < period.id, "{} {}", before.id, period.id);
            }
            if period.ends < u64::MAX {
                prop_assert_eq!(calendar.period(period.ends - 1), period);
                let after = calendar.period(period.ends);
                prop_assert_eq!(after.starts, period.ends);
                prop_assert!(after.id > period.id);
            }
        }

        #[test]
        fn a_period_has_the_length_of_a_day_or_month(calendar in calendars(), now in moments()) {
            let period = calendar.period(now);
            if period.starts > 0 && period.ends < u64::MAX {
                // Zones have moved over the date line: by up to a day.
                let hours = (period.ends - period.starts) / HOUR;
                let expected = if calendar.unit() == Unit::Day { 20..=48 } else { 26 * 24..=33 * 24 };
                prop_assert!(expected.contains(&hours), "{hours}");
            }
        }
    }
}
