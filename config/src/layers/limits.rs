//! The limits of a tenant, merged field by field.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Layer, Setting};
use crate::{
    limits::{Calendar, Concurrency, KeyedLimit, Limits, Quota, Quotas, Rate, Slots, TokenBucket, Unreachable},
    values::Id,
};

/// What holds for all requests of a tenant together, each field with the layer that set it. A field that
/// no layer sets is no limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TenantLimits {
    pub rate: Option<Setting<Rate>>,
    pub quotas: TenantQuotas,
    pub concurrency: TenantConcurrency,
    pub calendar: Setting<Calendar>,
    pub unreachable: Setting<Unreachable>,
    pub count_failures: Setting<bool>,
    /// The more specific layer replaces the limit of a name whole.
    pub keyed: BTreeMap<Id, Setting<KeyedLimit>>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TenantQuotas {
    pub daily: Option<Setting<Quota>>,
    pub monthly: Option<Setting<Quota>>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TenantConcurrency {
    pub requests: Option<Setting<Slots>>,
    pub websockets: Option<Setting<Slots>>,
}

impl TenantLimits {
    pub(super) fn built_in() -> Self {
        fn setting<T: Default>(value: T) -> Setting<T> {
            Setting { layer: Layer::BuiltIn, value }
        }
        Self {
            rate: None,
            quotas: TenantQuotas::default(),
            concurrency: TenantConcurrency::default(),
            calendar: setting(Calendar::default()),
            unreachable: setting(Unreachable::default()),
            count_failures: setting(true),
            keyed: BTreeMap::new(),
        }
    }

    pub(super) fn merge(&mut self, limits: &Limits, layer: Layer) {
        let Limits {
            rate,
            quotas: Quotas { daily, monthly },
            concurrency: Concurrency { requests, websockets },
            calendar,
            unreachable,
            count_failures,
            // Weighs one request, so it belongs to a route alone.
            cost: _,
            keyed,
        } = limits;
        set_optional(&mut self.rate, layer, *rate);
        set_optional(&mut self.quotas.daily, layer, *daily);
        set_optional(&mut self.quotas.monthly, layer, *monthly);
        set_optional(&mut self.concurrency.requests, layer, *requests);
        set_optional(&mut self.concurrency.websockets, layer, *websockets);
        set(&mut self.calendar, layer, calendar.clone());
        set(&mut self.unreachable, layer, *unreachable);
        set(&mut self.count_failures, layer, *count_failures);
        for limit in keyed {
            self.keyed.insert(limit.id.clone(), Setting { layer, value: limit.clone() });
        }
    }

    /// The tenant's token bucket, unless its rate is unlimited.
    pub fn bucket(&self) -> Option<&TokenBucket> {
        self.rate.as_ref()?.value.bucket()
    }

    /// The daily quota, unless there is none.
    pub fn daily(&self) -> Option<u64> {
        self.quotas.daily.as_ref()?.value.get()
    }

    /// The monthly quota, unless there is none.
    pub fn monthly(&self) -> Option<u64> {
        self.quotas.monthly.as_ref()?.value.get()
    }

    /// How many requests at the same time, unless any number.
    pub fn concurrent_requests(&self) -> Option<u64> {
        self.concurrency.requests.as_ref()?.value.get()
    }

    /// How many WebSockets at the same time, unless any number.
    pub fn websockets(&self) -> Option<u64> {
        self.concurrency.websockets.as_ref()?.value.get()
    }

    /// The limits for each caller, address, header value or claim, in the order of their names.
    pub fn keyed(&self) -> impl Iterator<Item = &KeyedLimit> {
        self.keyed.values().map(|setting| &setting.value)
    }
}

fn set<T>(current: &mut Setting<T>, layer: Layer, value: Option<T>) {
    if let Some(value) = value {
        *current = Setting { layer, value };
    }
}

fn set_optional<T>(current: &mut Option<Setting<T>>, layer: Layer, value: Option<T>) {
    if let Some(value) = value {
        *current = Some(Setting { layer, value });
    }
}
