//! `GET /livez`: whether the process runs. That it answers is the answer.

pub(super) async fn get() -> &'static str {
    "live\n"
}
