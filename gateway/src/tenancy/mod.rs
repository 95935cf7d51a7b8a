//! The compiled, immutable look-up structure that every request goes through.
//!
//! A request finds its tenant by [`hosts`], its path is brought into the one form that everything else
//! uses by [`path`], and the tenant's [`router`] finds the route. [`snapshot`] holds the tenants of one
//! configuration revision, and [`live`] the snapshot in force.

pub mod compile;
pub mod hosts;
pub mod live;
pub mod path;
pub mod router;
mod shards;
pub mod snapshot;
pub mod tls;

pub use live::Live;
pub use router::Router;
pub use snapshot::{Change, Snapshot, TenantEntry};
