//! Lists of what tenants have: in the order of tenants, then of names, and only of tenants that are asked for and may be
//! seen.

use std::{collections::BTreeSet, fmt, str::FromStr};

use sea_orm::{ColumnTrait, Condition};
use seiketsu_config::values::Id;

use super::tables::HEAD;

/// Where in such a list something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// None: beside the tenants, before all of them.
    pub tenant: Option<Id>,
    pub name: String,
}

/// No name has a slash.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant.as_ref().map_or(HEAD, Id::as_str), self.name)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (tenant, name) = text.split_once('/').ok_or(())?;
        let tenant = if tenant == HEAD { None } else { Some(tenant.parse().map_err(drop)?) };
        Ok(Self { tenant, name: name.to_owned() })
    }
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen<'a> {
    /// None: from the beginning.
    pub after: Option<&'a Place>,
    pub most: u64,
    pub tenant: Option<&'a Id>,
    /// None: whoever asks may see all tenants.
    pub only: Option<&'a BTreeSet<Id>>,
}

impl Seen<'_> {
    pub(super) fn condition<C: ColumnTrait>(&self, tenant: C, name: C) -> Condition {
        let mut all = Condition::all();
        if let Some(only) = self.only {
            all = all.add(tenant.is_in(only.iter().map(Id::as_str)));
        }
        if let Some(one) = self.tenant {
            all = all.add(tenant.eq(one.as_str()));
        }
        if let Some(Place { tenant: of, name: after }) = self.after {
            let of = of.as_ref().map_or(HEAD, Id::as_str);
            let same = Condition::all().add(tenant.eq(of)).add(name.gt(after.as_str()));
            all = all.add(Condition::any().add(tenant.gt(of)).add(same));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_place_is_read_as_it_was_written() {
        for (tenant, name) in [(None, "demo"), (Some("acme-eu.1"), "a_b"), (Some("acme"), "AbCd0123")] {
            let place = Place { tenant: tenant.map(|tenant| tenant.parse().unwrap()), name: name.to_owned() };
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        assert_eq!("acme".parse::<Place>(), Err(()));
        assert_eq!("ACME/x".parse::<Place>(), Err(()));
    }
}
