//! `GET /livez`: whether the process runs. That it answers is the answer.

use super::{Answer, respond};

pub(super) fn get() -> Answer {
    respond::text("text/plain; charset=utf-8", "live\n")
}
