//! Which processes a cluster consists of. One that has been replaced may have lost its accounts, also those that
//! nobody asks for at the moment.

use std::{collections::HashMap, time::Duration};

use redis::aio::ConnectionLike;
use tokio::time::timeout;

/// The run ids of a cluster's masters as they were last seen.
#[derive(Debug, Default)]
pub(super) struct Shards {
    run_ids: Vec<String>,
}

impl Shards {
    /// The run ids, one after another.
    pub(super) fn ids(&self) -> String {
        self.run_ids.join(",")
    }

    /// Looks again; whether any of them is another one than before. One that does not answer is looked at the
    /// next time.
    pub(super) async fn have_changed(&mut self, cluster: &mut impl ConnectionLike, patience: Duration) -> bool {
        let mut command = redis::cmd("INFO");
        command.arg("server");
        // By address: INFO goes to all masters.
        let Ok(Ok(infos)) = timeout(patience, command.query_async::<HashMap<String, String>>(cluster)).await else {
            return false;
        };
        let mut run_ids: Vec<String> = infos.values().filter_map(|info| run_id(info)).collect();
        run_ids.sort_unstable();
        let before = std::mem::replace(&mut self.run_ids, run_ids);
        !before.is_empty() && before != self.run_ids
    }
}

fn run_id(info: &str) -> Option<String> {
    info.lines().find_map(|line| line.strip_prefix("run_id:")).map(|id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_id_is_found_in_what_redis_says_of_itself() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:5f1c\r\ntcp_port:6379\r\n";
        assert_eq!(run_id(info).as_deref(), Some("5f1c"));
        assert_eq!(run_id("# Server\r\n"), None);
    }
}
