//! The proof that a change of a limit is enforced on all nodes at once: a real Postgres, replicas of the control plane,
//! real gateways, and clients that see when the answers change.
//!
//! | file | what happens there |
//! |---|---|
//! | [`postgres`] | the store's server |
//! | [`cluster`] | replicas and gateways |
//! | [`http`] | a connection that is kept |
//! | [`run`](mod@run) | change after change, and when each node enforced it |
//! | [`costs`] | what configuration costs a gateway, and whether its clients notice |
//! | [`report`] | the table |

pub mod cluster;
pub mod costs;
pub mod http;
pub mod postgres;
pub mod report;
pub mod run;
