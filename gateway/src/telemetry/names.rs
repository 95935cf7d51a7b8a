//! The name, help text and labels of every metric, in Prometheus conventions: base units (seconds,
//! bytes), and `_total` on what only grows.
//!
//! No label value ever comes from a client. The tenant label names the tenants with the most traffic,
//! a hundred at most; all others count together as [`OTHER`]. The leading underscore keeps such values
//! apart from tenants and routes of that name: those begin with a letter or digit.

/// Tenants or routes beyond the bound, together.
pub const OTHER: &str = "_other";
/// Requests that no tenant or no route could be found for.
pub const NONE: &str = "_none";

/// What a metric is called and means.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub help: &'static str,
    pub labels: &'static [&'static str],
}

macro_rules! metrics {
    ($($constant:ident = $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(pub const $constant: Metric = Metric { name: $name, help: $help, labels: &[$($label),*] };)+
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    REQUESTS = "seiketsu_requests_total" ["tenant", "route", "class"]
        "Requests that ended, by tenant, route and class of the status; class none: the client left before an answer.";
    REFUSALS = "seiketsu_refusals_total" ["tenant", "reason"]
        "Requests that the gateway answered with a problem of its own, by tenant and type of the problem.";
    NONCONFORMING = "seiketsu_nonconforming_requests_total" ["tenant"]
        "Requests that validation in report mode let pass although they do not conform, by tenant.";
    REQUEST_DURATION = "seiketsu_request_duration_seconds" ["tenant"]
        "Time from the first byte of a request to the last byte of its response, by tenant.";
    STAGE_DURATION = "seiketsu_stage_duration_seconds" ["stage"]
        "Time per request over all tenants, in fine buckets: total, waiting for upstreams, and the gateway's own.";
    IN_FLIGHT = "seiketsu_requests_in_flight" ["tenant"]
        "Requests being served now, by tenant; WebSockets and event streams among them.";
    REQUEST_BYTES = "seiketsu_request_bytes_total" ["tenant"]
        "Bytes of request bodies received from clients, by tenant.";
    RESPONSE_BYTES = "seiketsu_response_bytes_total" ["tenant"]
        "Bytes of response bodies sent to clients, by tenant.";
    UPSTREAM_ATTEMPTS = "seiketsu_upstream_attempts_total" ["tenant", "result"]
        "Attempts to get an answer from an upstream, by tenant and result.";
    UPSTREAM_RETRIES = "seiketsu_upstream_retries_total" ["tenant"]
        "Attempts beyond the first of a request, by tenant.";
    TENANTS = "seiketsu_tenants" []
        "Tenants that this node has metrics for: those of the running configuration and those removed lately.";

    CONNECTIONS_ACCEPTED = "seiketsu_connections_accepted_total" []
        "Client connections accepted.";
    CONNECTIONS_OPEN = "seiketsu_connections_open" []
        "Client connections open now.";
    CONNECTIONS_REFUSED = "seiketsu_connections_refused_total" ["reason"]
        "Client connections closed before their first request, by reason.";
    TLS_HANDSHAKES = "seiketsu_tls_handshakes_total" ["result"]
        "TLS handshakes with clients, by result.";
    EARLY_ERRORS = "seiketsu_early_errors_total" ["reason"]
        "Requests whose head could not be accepted, by reason; no tenant is known yet.";
    RETRIES_DENIED = "seiketsu_upstream_retries_denied_total" []
        "Retries not made because the retry budget of the upstream was used up.";
    DNS_FAILURES = "seiketsu_dns_failures_total" ["reason"]
        "Look-ups of names that failed, found no address, or found one that may not be connected to, by reason.";
    EJECTIONS = "seiketsu_upstream_ejections_total" ["reason"]
        "Upstream endpoints taken out of balancing, by reason.";
    ENDPOINTS_EJECTED = "seiketsu_upstream_endpoints_ejected" []
        "Upstream endpoints that are out of balancing now.";
    MIRRORED = "seiketsu_mirrored_requests_total" ["result"]
        "Copies of requests for mirror upstreams, by what became of them.";
    BREAKER_TRANSITIONS = "seiketsu_breaker_transitions_total" ["state"]
        "State changes of circuit breakers, by new state.";
    BREAKERS_OPEN = "seiketsu_breakers_open" []
        "Circuit breakers that are open now.";
    WORKER_LAG = "seiketsu_worker_lag_seconds" ["worker"]
        "For how long a task that is ready waits for its turn at least, by worker; load shedding goes by it.";
    SHEDDING_LIMIT = "seiketsu_shedding_limit" ["worker"]
        "Requests that a worker may have in flight before it sheds even critical ones.";
    SHEDDING_IN_FLIGHT = "seiketsu_shedding_requests_in_flight" ["priority"]
        "Requests being served, by priority of the route; without WebSockets and streams that have begun.";
    SHED = "seiketsu_shed_requests_total" ["priority"]
        "Requests refused because their worker was overloaded, by priority of the route.";
    LIMIT_DECISIONS = "seiketsu_limit_decisions_total" ["by"]
        "Requests that limits decided about, by what they decided with: a lease at hand, the coordinator, or alone.";
    LIMIT_REFUSALS = "seiketsu_limit_refusals_total" ["scope", "limit"]
        "Requests that a limit refused, by whose limit it is and by its kind.";
    LIMIT_EXCHANGES = "seiketsu_limit_exchanges_total" ["result"]
        "Exchanges with the coordinator of limits, by result; `failed` where the node counts by itself and could not write.";
    LIMIT_EXCHANGE_DURATION = "seiketsu_limit_exchange_duration_seconds" []
        "How long Redis took to answer an exchange.";
    LIMIT_UNBACKED = "seiketsu_limit_unbacked_tokens_total" []
        "Tokens spent without the coordinator: as many may have been too many.";
    LIMIT_COORDINATOR_UP = "seiketsu_limit_coordinator_up" []
        "Whether Redis is connected; where the node counts by itself, whether it could last write down what is used of quotas.";
    LIMIT_GATEWAYS = "seiketsu_limit_gateways" []
        "Nodes that share the limits, as last known.";
    CACHE_REQUESTS = "seiketsu_cache_requests_total" ["tenant", "result"]
        "Requests on routes with a cache, by tenant and by what the cache did for them.";
    CACHE_SERVED_BYTES = "seiketsu_cache_served_bytes_total" ["tenant"]
        "Bytes of response bodies that clients got from the cache, by tenant.";
    CACHE_STORED_BYTES = "seiketsu_cache_stored_bytes" ["tenant"]
        "Memory that stored responses take, by tenant.";
    CACHE_STORED_KEYS = "seiketsu_cache_stored_keys" ["tenant"]
        "Keys that responses are stored under, by tenant; each may have several variants.";
    CACHE_EVICTIONS = "seiketsu_cache_evictions_total" ["tenant"]
        "Keys that had to make room for others, by tenant.";
    CACHE_BUDGET = "seiketsu_cache_budget_bytes" []
        "Memory that stored responses of all tenants may take.";
    CACHE_FILE_BYTES = "seiketsu_cache_file_bytes" []
        "Memory that stored bodies take once more, in files that the kernel sends without copying them.";
    CACHE_LENT_BYTES = "seiketsu_cache_lent_bytes" []
        "Memory of bodies that have left the cache and that clients have not got all of yet. Where a tenant has too much of it, nothing new is stored for it.";
    CACHE_PURGES = "seiketsu_cache_purges_total" ["by"]
        "Purges, by who made them: operators of this node, unsafe requests to it, another node, or all at once since some may have been missed of what is stored.";
    CACHE_PURGES_FOLDED = "seiketsu_cache_purges_folded_total" []
        "How often a tenant had so many purges that older ones are not told apart any more: a little more is purged then.";
    CACHE_PURGES_UNTOLD = "seiketsu_cache_purges_untold_total" []
        "Purges that other nodes were not told of in time, or not by themselves: they hear of them later, and purge all of a tenant where there were too many.";
    CACHE_PURGES_HEARD = "seiketsu_cache_purges_heard" []
        "Whether purges of other nodes are heard; 1 where there are none to be heard.";
    CACHE_BACKGROUND = "seiketsu_cache_background_requests_total" ["result"]
        "Requests that the cache made itself, to validate stale responses and to warm, by what came of them; given_up: after a minute, and then as one of the first two as well; refused: there were too many.";
    CONFIG_RELOADS = "seiketsu_config_reloads_total" ["result"]
        "Configurations read, by result.";
    CONFIG_REVISION = "seiketsu_config_revision" []
        "Revision of the running configuration.";
    CONFIG_LAST_SUCCESS = "seiketsu_config_last_success_timestamp_seconds" []
        "When a configuration was last taken into use, as a Unix time.";
    CONFIG_FILES_READ = "seiketsu_config_files_read_total" []
        "Files of tenants read by reloads.";
    CONFIG_TENANTS_COMPILED = "seiketsu_config_tenants_compiled_total" []
        "Tenants that reloads found new or changed.";
    LAST_KNOWN_GOOD_OUTDATED = "seiketsu_config_last_known_good_outdated" []
        "Whether the running configuration could not be kept on disk, for a start from files that are wrong; 1: it could not.";
    CONTROL_PLANE_CONNECTED = "seiketsu_control_plane_connected" []
        "Whether the node is connected to its control plane; 1 where it has none.";
    CONTROL_PLANE_FAILURES = "seiketsu_control_plane_failures_total" []
        "Connections to the control plane that did not come about or broke off.";
    CONTROL_PLANE_UPDATES = "seiketsu_control_plane_updates_total" ["result"]
        "Updates from the control plane, by result; refused: nothing of it could be used.";
    CONTROL_PLANE_REFUSED = "seiketsu_control_plane_refused_documents" []
        "Tenants, and what stands beside them, that are not in force as the control plane sent them.";
    CERTIFICATE_NOT_AFTER = "seiketsu_certificate_not_after_timestamp_seconds" ["tenant", "host"]
        "Until when a certificate in use is valid, as a Unix time, by the first host that it is shown for; the hundred that expire first.";
    ACCESS_LOG_DROPPED = "seiketsu_access_log_dropped_total" ["reason"]
        "Access-log lines that were not written, by reason.";
    SPANS_DROPPED = "seiketsu_trace_spans_failed_total" []
        "Trace spans that the collector did not take.";
    USAGE_WRITTEN = "seiketsu_usage_records_total" []
        "Records of usage written.";
    USAGE_LOST = "seiketsu_usage_records_lost_total" []
        "Records of usage dropped before they were taken over, to make room for later ones.";
    USAGE_WRITE_FAILURES = "seiketsu_usage_write_failures_total" []
        "Attempts to write usage that failed; what was counted is kept in memory meanwhile.";
    USAGE_BYTES = "seiketsu_usage_bytes" []
        "Disk space that records of usage take.";
    USAGE_OLDEST = "seiketsu_usage_oldest_timestamp_seconds" []
        "Unix time of the oldest record of usage that was not taken over; 0 when all were.";
    BUILD_INFO = "seiketsu_build_info" ["version"]
        "Always 1; the version of the gateway is in the label.";

    PROCESS_CPU = "process_cpu_seconds_total" []
        "User and system CPU time spent, in seconds.";
    PROCESS_MEMORY = "process_resident_memory_bytes" []
        "Resident memory, in bytes.";
    PROCESS_FDS = "process_open_fds" []
        "Open file descriptors.";
    PROCESS_MAX_FDS = "process_max_fds" []
        "The most file descriptors that the process may open.";
    PROCESS_THREADS = "process_threads" []
        "Threads of the process.";
    PROCESS_START = "process_start_time_seconds" []
        "When the process started, as a Unix time.";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let names: HashSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for Metric { name, help, labels } in ALL {
            assert!(name.starts_with("seiketsu_") || name.starts_with("process_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(!name.contains("_ms") && !name.contains("_micros") && !name.contains("_kib"), "{name}");
            assert!(help.ends_with('.'), "{name}");
            assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase())), "{name}");
        }
    }
}
