//! When certificates expire.

use prometheus::proto::MetricFamily;

use super::family::Family;
use crate::{server::tls::LiveTls, telemetry::names};

/// However many there are, what has to be renewed next is among these.
const MOST: usize = 100;

pub(super) fn family(tls: &LiveTls) -> Option<MetricFamily> {
    let mut family = Family::gauge(names::CERTIFICATE_NOT_AFTER);
    for expiry in tls.first_to_expire(MOST) {
        family.add(&[expiry.tenant.as_deref().unwrap_or(names::NONE), &expiry.host], expiry.at as f64);
    }
    family.finish()
}
