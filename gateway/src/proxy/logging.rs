//! The end of a request: counted, logged, traced.

use pingora_core::Error;
use pingora_proxy::Session;

use super::{RequestContext, Shared};

pub(super) fn finish(_shared: &Shared, _session: &mut Session, _error: Option<&Error>, _ctx: &mut RequestContext) {}
