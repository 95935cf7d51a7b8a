//! Everything that puts load on the gateway, and that stands behind it while it is tried out.
//!
//! [`origin`] is the demo origin: the upstream of `script/server`, of the gateway's own tests and of the
//! load tests. [`load`] drives one open-loop run and [`report`] turns what it measured into a verdict and
//! a page. [`limits`] proves what was promised of limits, [`push`] what was promised of changes. [`mod@bench`] compares the CPU time per request of several gateways. [`process`] starts, watches
//! and ends the processes that all of this needs.

pub mod bench;
pub mod limits;
pub mod load;
pub mod origin;
pub mod process;
pub mod push;
pub mod report;
