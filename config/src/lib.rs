//! The configuration that both planes of Seiketsu Gateway share.
//!
//! [`node`] is what one gateway node reads once at start; [`tenant`] is what changes live, and [`push`] is how the
//! control plane tells nodes of it. What people
//! write is parsed straight into these types: unknown keys and impossible values are refused while
//! reading, and [`check`] refuses what only shows when several values are seen together. Everything a
//! reader can get hold of has passed both.

pub mod cache;
pub mod check;
pub mod error;
pub mod forwarded;
pub mod layers;
pub mod limits;
pub mod load;
pub mod node;
pub mod path;
pub mod policy;
pub mod problem;
pub mod push;
pub mod regular;
pub mod schema;
pub mod secret;
pub mod tenant;
pub mod values;
