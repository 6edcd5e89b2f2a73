//! Every metric, declared once.

/// What a metric's figures mean to Prometheus.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only grows, until the process ends.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric: `sluicegate_<what>_<unit>[_total]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Metric {
    /// As it stands on the page.
    pub name: &'static str,
    /// What its figures mean.
    pub kind: Kind,
    /// One sentence for people.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($const:ident = $kind:ident $name:literal $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $const: Metric = Metric { name: $name, kind: Kind::$kind, help: $help };
        )+

        /// Every metric the proxy can show.
        pub const ALL: &[Metric] = &[$($const,)+];
    };
}

metrics! {
    // --- exchanges ---------------------------------------------------------------------------
    ENTRYPOINT_REQUESTS = Counter "sluicegate_entrypoint_requests_total" "Exchanges that ended, by entry point, status, method and protocol.";
    ENTRYPOINT_DURATION = Histogram "sluicegate_entrypoint_request_duration_seconds" "From the first byte of the request head to the last byte of the response, by entry point.";
    ENTRYPOINT_BYTES_IN = Counter "sluicegate_entrypoint_requests_bytes_total" "Bytes of request bodies, by entry point.";
    ENTRYPOINT_BYTES_OUT = Counter "sluicegate_entrypoint_responses_bytes_total" "Bytes of response bodies, by entry point.";
    ROUTER_REQUESTS = Counter "sluicegate_router_requests_total" "Exchanges that ended, by router, status, method and protocol.";
    ROUTER_DURATION = Histogram "sluicegate_router_request_duration_seconds" "From the first byte of the request head to the last byte of the response, by router.";
    ROUTER_BYTES_IN = Counter "sluicegate_router_requests_bytes_total" "Bytes of request bodies, by router.";
    ROUTER_BYTES_OUT = Counter "sluicegate_router_responses_bytes_total" "Bytes of response bodies, by router.";
    SERVICE_REQUESTS = Counter "sluicegate_service_requests_total" "Exchanges that ended, by service, status, method and protocol.";
    SERVICE_DURATION = Histogram "sluicegate_service_request_duration_seconds" "From the first byte of the request head to the last byte of the response, by service.";
    SERVICE_BYTES_IN = Counter "sluicegate_service_requests_bytes_total" "Bytes of request bodies, by service.";
    SERVICE_BYTES_OUT = Counter "sluicegate_service_responses_bytes_total" "Bytes of response bodies, by service.";
    REFUSALS = Counter "sluicegate_refusals_total" "Answers of the proxy's own and exchanges that it cut, by reason and by who has to mend it.";
    TIMEOUTS = Counter "sluicegate_timeouts_total" "Deadlines that fired, by kind, whether or not another attempt followed.";
    // --- connections -------------------------------------------------------------------------
    CONNECTIONS_ACCEPTED = Counter "sluicegate_connections_accepted_total" "Client connections that came in, by entry point.";
    CONNECTIONS_CLOSED = Counter "sluicegate_connections_closed_total" "Client connections that ended, by entry point and reason.";
    CONNECTIONS_REFUSED = Counter "sluicegate_connections_refused_total" "Client connections that were closed as they came in, by entry point and the limit they were over.";
    CONNECTIONS_OPEN = Gauge "sluicegate_connections_open" "Client connections now, by entry point.";
    // --- TLS ---------------------------------------------------------------------------------
    TLS_HANDSHAKES = Counter "sluicegate_tls_handshakes_total" "TLS handshakes of clients that ended, by entry point and outcome.";
    TLS_HANDSHAKING = Gauge "sluicegate_tls_handshakes_in_progress" "TLS handshakes of clients now, by entry point.";
    TLS_CERTS_NOT_AFTER = Gauge "sluicegate_tls_certs_not_after" "When a certificate in use expires, in seconds since 1970.";
    TLS_CERTS_STALE = Gauge "sluicegate_tls_certs_stale" "Certificates and files of authorities that hold something that cannot be used, so that what was loaded before stays in use.";
    HTTP2_FLOODS = Counter "sluicegate_http2_floods_total" "Connections of HTTP/2 that were ended because they went over a bound, by entry point and kind.";
    HTTP2_RESETS = Counter "sluicegate_http2_resets_sent_total" "Streams of HTTP/2 that the proxy reset, by entry point and code.";
    // --- upstream ----------------------------------------------------------------------------
    UPSTREAM_CONNECTS = Counter "sluicegate_upstream_connects_total" "How attempts came by their upstream connection, by service.";
    UPSTREAM_IDLE = Gauge "sluicegate_upstream_idle_connections" "Upstream connections that wait in the pools, by service.";
    RETRIES = Counter "sluicegate_service_retries_total" "Attempts beyond the first, by service and what made them necessary.";
    RETRY_BUDGET_EXHAUSTED = Counter "sluicegate_retry_budget_exhausted_total" "Retries that were not made because the budget was spent, by service.";
    NON_IDEMPOTENT_LOST = Counter "sluicegate_non_idempotent_lost_total" "Written requests that lost their connection and could not be repeated safely, by service.";
    HEDGES = Counter "sluicegate_service_hedges_total" "Second tries that were sent beside the first, by service and by which was answered first.";
    ADAPTIVE_LIMIT = Gauge "sluicegate_service_adaptive_limit" "Requests that adaptive concurrency lets be under way, by service.";
    QUEUE_WAITING = Gauge "sluicegate_service_queue_waiting" "Requests that wait for a place, by service; services with limits only.";
    QUEUE_UNDER_WAY = Gauge "sluicegate_service_queue_requests" "Requests under way that hold a place, by service; services with limits only.";
    QUEUE_CONNECTIONS = Gauge "sluicegate_service_queue_connections" "Upstream connections that hold a place, by service; services with limits on connections only.";
    QUEUE_WAITED = Counter "sluicegate_service_queue_waited_total" "Requests that waited and got a place, by service.";
    QUEUE_WAIT_SECONDS = Counter "sluicegate_service_queue_wait_seconds_total" "How long requests waited that got a place, together, by service.";
    QUEUE_REFUSED = Counter "sluicegate_service_queue_refused_total" "Requests that got no place, by service and reason: the queue was full, the wait too long, or one that matters more came.";
    ENDPOINT_UP = Gauge "sluicegate_service_endpoint_up" "Whether an endpoint takes requests (1) or not (0).";
    STICKY = Counter "sluicegate_sticky_requests_total" "Requests of sticky services, by service and what became of the cookie.";
    HASH_MISSES = Counter "sluicegate_hash_misses_total" "Requests that were not given to the endpoint that their key belongs to, by service and why.";
    SPILLS = Counter "sluicegate_spilled_attempts_total" "Attempts at endpoints of other zones and at backups, by service and which.";
    FAILOVERS = Counter "sluicegate_failovers_total" "Requests that the fallback of a failover service got, by service and why.";
    MIRRORED = Counter "sluicegate_mirrored_requests_total" "Copies of requests, by the service that they were for and what became of them.";
    REHEARSALS = Counter "sluicegate_service_rehearsals_total" "Copies of requests for endpoints that are ejected, and what became of them.";
    DNS_LOOKUPS = Counter "sluicegate_dns_lookups_total" "Look-ups of names among a service's servers, by service and whether they found an address.";
    ENDPOINT_EJECTIONS = Counter "sluicegate_service_endpoint_ejections_total" "Endpoints taken out because of what they answered, by service and reason.";
    ENDPOINTS_EJECTED = Gauge "sluicegate_service_endpoints_ejected" "Endpoints that are out now because of what they answered, by service.";
    SERVICE_PANIC = Gauge "sluicegate_service_panic" "Whether so few endpoints of a service are well that all are used (1) or not (0).";
    // --- policy ------------------------------------------------------------------------------
    LIMIT_DECISIONS = Counter "sluicegate_limiter_decisions_total" "What the limiters said, by middleware.";
    CIRCUIT_STATE = Gauge "sluicegate_circuit_breaker_state" "Whether a circuit is closed (0), open (1) or half-open (2), by middleware and router.";
    CIRCUIT_OPENED = Counter "sluicegate_circuit_breaker_opened_total" "How often a circuit opened, by middleware and router.";
    CIRCUIT_REFUSED = Counter "sluicegate_circuit_breaker_refused_total" "Requests that an open or half-open circuit refused, by middleware and router.";
    OVERLOAD_LEVEL = Gauge "sluicegate_overload_level" "How scarce memory is: 0 not, 1 requests of low importance are refused, 2 all but those of high importance.";
    OVERLOAD_REFUSED = Counter "sluicegate_overload_refused_total" "What the whole proxy's own limits refused: requests for want of memory, connections that were told so, and connections that were closed.";
    OUTBOUND_DECISIONS = Counter "sluicegate_outbound_limit_decisions_total" "What the limits on requests to services said, by service.";
    OUTBOUND_PAUSES = Counter "sluicegate_outbound_limit_pauses_total" "Pauses that upstreams asked for with 429 or Retry-After, by service.";
    BANDWIDTH_SLOWED = Counter "sluicegate_bandwidth_slowed_total" "Bodies and tunnels that had to wait for their bandwidth, by middleware and direction; counted when they end.";
    BANDWIDTH_WAITED = Counter "sluicegate_bandwidth_wait_seconds_total" "How long bodies and tunnels waited for their bandwidth, together, by middleware and direction; counted when they end.";
    LIMIT_BUCKETS = Gauge "sluicegate_limiter_buckets" "Buckets of rate limits held in memory, by limit.";
    LIMIT_BYTES = Gauge "sluicegate_limiter_bytes" "Memory of the tables that hold buckets of rate limits, by limit.";
    LIMIT_EVICTED = Counter "sluicegate_limiter_evicted_total" "Buckets that were pushed out while requests were still owed to them, by limit; more than a few mean that its bound is too small.";
    LIMIT_SHARED = Counter "sluicegate_limiter_shared_total" "Decisions of limits that replicas share, by limit and by who decided: redis, this replica within its lease or because redis had just refused (known), or onFailure because redis was away, late, failed or crowded.";
    LIMIT_VIEWS = Gauge "sluicegate_limiter_views" "Keys of shared limits that this replica knows something of, by limit.";
    REDIS_UP = Gauge "sluicegate_redis_up" "Whether a redis is asked (1) or counts as away (0).";
    REDIS_OUTAGES = Counter "sluicegate_redis_outages_total" "How often a redis was found to be away.";
    REDIS_CALLS = Counter "sluicegate_redis_calls_total" "Calls to a redis, by whether they were answered in time, late, or failed; a late one may fail as well.";
    REDIS_QUESTIONS = Counter "sluicegate_redis_questions_total" "Questions in calls that were answered in time.";
    REDIS_SECONDS = Counter "sluicegate_redis_call_seconds_total" "What calls took that were answered in time, in seconds.";
    // --- configuration -----------------------------------------------------------------------
    CONFIG_RELOADS = Counter "sluicegate_config_reloads_total" "Documents read, by whether they were accepted; a file of a provider that is refused alone counts once as refused.";
    CONFIG_LAST_SUCCESS = Gauge "sluicegate_config_last_reload_success_timestamp_seconds" "When a document was last accepted, in seconds since 1970.";
    CONFIG_LAST_OK = Gauge "sluicegate_config_last_reload_successful" "Whether the newest document, with each of its files as it stands, is in use (1) or something of it was refused (0).";
    CONFIG_GENERATION = Gauge "sluicegate_config_generation" "Number of the running configuration; grows by one with each accepted document.";
    CONFIG_INFO = Gauge "sluicegate_config_info" "Always 1; the label is the hash of the running configuration.";
    CONFIG_DISABLED_ITEMS = Gauge "sluicegate_config_disabled_items" "Items left out of the running configuration because of their problems.";
    // --- the proxy itself --------------------------------------------------------------------
    ACCESS_LOG_LINES = Counter "sluicegate_access_log_lines_total" "Lines of the access log, by whether they were written, dropped from a full queue, or lost to a failed write.";
    BUILD_INFO = Gauge "sluicegate_build_info" "Always 1; the label is the version.";
    CORES = Gauge "sluicegate_cores" "Data plane cores.";
    PROCESS_CPU = Counter "process_cpu_seconds_total" "User and system time spent, in seconds.";
    PROCESS_RSS = Gauge "process_resident_memory_bytes" "Resident memory in bytes.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" "Virtual memory in bytes.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" "Open file descriptors.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" "File descriptors that may be open.";
    PROCESS_THREADS = Gauge "process_threads" "Threads.";
    PROCESS_START = Gauge "process_start_time_seconds" "When the process began, in seconds since 1970.";
    // --- Traefik's names, on request ---------------------------------------------------------
    TRAEFIK_ENTRYPOINT_REQUESTS = Counter "traefik_entrypoint_requests_total" "As sluicegate_entrypoint_requests_total.";
    TRAEFIK_ENTRYPOINT_DURATION = Histogram "traefik_entrypoint_request_duration_seconds" "As sluicegate_entrypoint_request_duration_seconds.";
    TRAEFIK_ENTRYPOINT_BYTES_IN = Counter "traefik_entrypoint_requests_bytes_total" "As sluicegate_entrypoint_requests_bytes_total.";
    TRAEFIK_ENTRYPOINT_BYTES_OUT = Counter "traefik_entrypoint_responses_bytes_total" "As sluicegate_entrypoint_responses_bytes_total.";
    TRAEFIK_ROUTER_REQUESTS = Counter "traefik_router_requests_total" "As sluicegate_router_requests_total.";
    TRAEFIK_ROUTER_DURATION = Histogram "traefik_router_request_duration_seconds" "As sluicegate_router_request_duration_seconds.";
    TRAEFIK_ROUTER_BYTES_IN = Counter "traefik_router_requests_bytes_total" "As sluicegate_router_requests_bytes_total.";
    TRAEFIK_ROUTER_BYTES_OUT = Counter "traefik_router_responses_bytes_total" "As sluicegate_router_responses_bytes_total.";
    TRAEFIK_SERVICE_REQUESTS = Counter "traefik_service_requests_total" "As sluicegate_service_requests_total.";
    TRAEFIK_SERVICE_DURATION = Histogram "traefik_service_request_duration_seconds" "As sluicegate_service_request_duration_seconds.";
    TRAEFIK_SERVICE_BYTES_IN = Counter "traefik_service_requests_bytes_total" "As sluicegate_service_requests_bytes_total.";
    TRAEFIK_SERVICE_BYTES_OUT = Counter "traefik_service_responses_bytes_total" "As sluicegate_service_responses_bytes_total.";
    TRAEFIK_OPEN_CONNECTIONS = Gauge "traefik_open_connections" "As sluicegate_connections_open.";
    TRAEFIK_TLS_CERTS = Gauge "traefik_tls_certs_not_after" "As sluicegate_tls_certs_not_after.";
    TRAEFIK_RETRIES = Counter "traefik_service_retries_total" "As sluicegate_service_retries_total, without the reason.";
    TRAEFIK_SERVER_UP = Gauge "traefik_service_server_up" "As sluicegate_service_endpoint_up.";
    TRAEFIK_CONFIG_RELOADS = Counter "traefik_config_reloads_total" "Documents accepted.";
    TRAEFIK_CONFIG_LAST_SUCCESS = Gauge "traefik_config_last_reload_success" "As sluicegate_config_last_reload_success_timestamp_seconds.";
}
