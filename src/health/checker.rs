//! The tasks that check a service's endpoints for as long as the service is configured.
//!
//! One task a service follows its list of endpoints; one task an endpoint checks it, so that a slow one
//! holds up nobody. They run on the control plane's runtime. Never: the data path.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::common::names::ServiceName;
use crate::endpoint::health::{CheckResult, Status};
use crate::endpoint::live::LiveEndpoints;
use crate::endpoint::{Endpoint, EndpointId};
use crate::health::HealthSettings;
use crate::health::probe::{ProbeError, probe};

/// Shortest time between two checks of an endpoint, whatever the settings say.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Each interval is longer by a random part of up to a tenth, so that the checks of many endpoints, and
/// of many proxies that were started together, spread out.
const JITTER: u32 = 10;

/// Starts checks.
#[derive(Debug)]
pub struct Checker;

/// A service's running checks, which end when it is dropped.
#[derive(Debug)]
pub struct CheckerHandle {
    settings: HealthSettings,
    _task: Task,
}

impl Checker {
    /// Checks all endpoints of a service, and those that come later, until the handle is dropped.
    ///
    /// An endpoint that is new to the checker is checked for the first time after one whole interval
    /// (the one that fits its status). Changes are published through `endpoints`, which must hold a set
    /// that was built with `Watch::Checked`, and logged.
    pub fn start(
        runtime: &Handle,
        service: ServiceName,
        endpoints: Arc<LiveEndpoints>,
        settings: HealthSettings,
    ) -> CheckerHandle {
        let service = Arc::new(Service { name: service, endpoints, settings: settings.clone() });
        CheckerHandle { settings, _task: Task(runtime.spawn(follow(service)).abort_handle()) }
    }
}

impl CheckerHandle {
    /// What it was started with: a reload with the same settings keeps it.
    pub fn settings(&self) -> &HealthSettings {
        &self.settings
    }
}

/// A task that ends when it is dropped.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Service {
    name: ServiceName,
    endpoints: Arc<LiveEndpoints>,
    settings: HealthSettings,
}

/// Keeps one task for each endpoint of the newest set.
async fn follow(service: Arc<Service>) {
    let mut tasks: HashMap<EndpointId, Task> = HashMap::new();
    loop {
        // Before the set is read: a change in between is seen on the next round.
        let changed = service.endpoints.live().changed();
        let set = service.endpoints.load();
        tasks.retain(|id, _| set.member(*id).is_some());
        for member in set.members() {
            tasks.entry(member.endpoint.id()).or_insert_with(|| {
                let check = check(Arc::clone(&service), Arc::clone(&member.endpoint), member.health.status());
                Task(tokio::spawn(check).abort_handle())
            });
        }
        drop(set);
        changed.await;
    }
}

/// Checks one endpoint for ever.
async fn check(service: Arc<Service>, endpoint: Arc<Endpoint>, mut status: Status) {
    let settings = &service.settings;
    let mut last = Instant::now();
    // One that gets no requests until it is checked need not wait for that.
    let mut at_once = status == Status::Down;
    loop {
        let interval = match status {
            Status::Up => settings.interval,
            Status::Down => settings.unhealthy_interval,
        };
        // From start to start, and never two at a time: a slow check delays the next one.
        if !std::mem::take(&mut at_once) {
            let jittered = jittered(interval, RandomState::new().hash_one(endpoint.id()));
            tokio::time::sleep_until(last + jittered).await;
        }
        last = Instant::now();
        let result = probe(&endpoint, settings).await;
        status = service.take(&endpoint, result).unwrap_or(status);
    }
}

impl Service {
    /// Publishes what a check found, and gives the status that the endpoint then has.
    fn take(&self, endpoint: &Endpoint, result: Result<(), ProbeError>) -> Option<Status> {
        let outcome = match result {
            Ok(()) => {
                endpoint.tally().check_passed();
                CheckResult::Pass
            }
            Err(_) => CheckResult::Fail,
        };
        let thresholds = self.settings.thresholds;
        if let Some(change) = self.endpoints.report(endpoint.id(), outcome, thresholds) {
            let (service, url, available) = (&self.name, endpoint.url().as_str(), change.available);
            match result {
                Ok(()) => info!(%service, url, available, "endpoint is up"),
                Err(reason) => warn!(%service, url, %reason, available, "endpoint is down"),
            }
        }
        self.endpoints.load().member(endpoint.id()).map(|member| member.health.status())
    }
}

fn jittered(interval: Duration, random: u64) -> Duration {
    let interval = interval.max(MIN_INTERVAL);
    // A fraction of 2^32, of a tenth.
    let part = f64::from((random >> 32) as u32) / 4_294_967_296.0;
    interval + (interval / JITTER).mul_f64(part)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::uri::PathAndQuery;
    use http::{HeaderValue, Method};
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::endpoint::PathUse;
    use crate::endpoint::set::{EndpointSet, ServerSpec, Tier, Watch};
    use crate::endpoint::url::ServerUrl;
    use crate::health::{ExpectedStatus, Redirects};

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    const BROKEN: &str = "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n";
    const MOVED: &str = "HTTP/1.1 302 Found\r\nlocation: /moved\r\ncontent-length: 0\r\n\r\n";
    /// Takes the request and says nothing.
    const HANG: &str = "";

    /// A pod that answers every request with the same bytes, until told otherwise.
    struct Pod {
        url: String,
        answer: Arc<Mutex<&'static str>>,
        requests: Arc<Mutex<Vec<String>>>,
        connections: Arc<AtomicUsize>,
    }

    impl Pod {
        async fn start(answer: &'static str) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let url = format!("http://{}", listener.local_addr().expect("bound"));
            let pod = Self {
                url,
                answer: Arc::new(Mutex::new(answer)),
                requests: Arc::default(),
                connections: Arc::default(),
            };
            let (answer, requests, connections) =
                (pod.answer.clone(), pod.requests.clone(), pod.connections.clone());
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    connections.fetch_add(1, Ordering::SeqCst);
                    let (answer, requests) = (answer.clone(), requests.clone());
                    tokio::spawn(async move {
                        let mut request = Vec::new();
                        while !request.ends_with(b"\r\n\r\n") {
                            match stream.read_buf(&mut request).await {
                                Ok(0) | Err(_) => return,
                                Ok(_) => {}
                            }
                        }
                        requests.lock().push(String::from_utf8_lossy(&request).into_owned());
                        let answer = *answer.lock();
                        let _ = stream.write_all(answer.as_bytes()).await;
                        if answer == HANG {
                            let _ = stream.read_buf(&mut request).await;
                        }
                    });
                }
            });
            pod
        }

        fn endpoint(&self) -> Arc<Endpoint> {
            Endpoint::new(ServerUrl::parse(&self.url).expect("a good url"), PathUse::Ignored)
        }

        fn last_request(&self) -> String {
            self.requests.lock().last().cloned().unwrap_or_default()
        }
    }

    fn settings() -> HealthSettings {
        HealthSettings {
            interval: Duration::from_millis(30),
            unhealthy_interval: Duration::from_millis(30),
            ..HealthSettings::new(PathAndQuery::from_static("/health?deep=1"))
        }
    }

    fn servers(urls: &[&str]) -> Vec<ServerSpec> {
        let server = |url: &&str| ServerSpec {
            url: ServerUrl::parse(url).expect("a good url"),
            weight: 1,
            path_use: PathUse::Ignored,
            tier: Tier::Near,
        };
        urls.iter().map(server).collect()
    }

    fn endpoints(urls: &[&str]) -> Arc<LiveEndpoints> {
        Arc::new(LiveEndpoints::new(EndpointSet::build(&servers(urls), None, Watch::Checked)))
    }

    fn start(endpoints: &Arc<LiveEndpoints>, settings: HealthSettings) -> CheckerHandle {
        Checker::start(&Handle::current(), ServiceName::new("pods"), endpoints.clone(), settings)
    }

    async fn until_available(endpoints: &LiveEndpoints, count: usize) {
        let reached = async {
            loop {
                let changed = endpoints.live().changed();
                if endpoints.load().available() == count {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached).await.expect("the status changes in time");
    }

    async fn until_connections(pod: &Pod, count: usize) {
        let reached = async {
            while pod.connections.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached).await.expect("checks go on");
    }

    #[tokio::test]
    async fn a_pod_that_answers_500_goes_down_and_comes_up_again() {
        let pod = Pod::start(BROKEN).await;
        let endpoints = endpoints(&[&pod.url]);
        let _checker = start(&endpoints, settings());
        assert_eq!(endpoints.load().available(), 1, "up until checked");
        until_available(&endpoints, 0).await;
        *pod.answer.lock() = OK;
        until_available(&endpoints, 1).await;
    }

    /// Lines of a log, kept.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn each_change_is_logged_once_with_its_reason_and_without_secrets() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let pod = Pod::start(BROKEN).await;
        let endpoints = endpoints(&[&pod.url]);
        let mut settings = settings();
        settings.headers.insert("authorization", HeaderValue::from_static("Bearer hunter2"));
        let _checker = start(&endpoints, settings);
        until_connections(&pod, 4).await;
        *pod.answer.lock() = OK;
        until_available(&endpoints, 1).await;
        // Logged right after the change is published.
        let so_far = pod.connections.load(Ordering::SeqCst);
        until_connections(&pod, so_far + 1).await;

        let log = String::from_utf8(log.0.lock().clone()).expect("text");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("endpoint is")).collect();
        let [down, up] = lines[..] else { panic!("{log}") };
        for part in ["WARN", "down", "service=pods", &pod.url, "reason=status 500, expected 200 to 399"] {
            assert!(down.contains(part), "{part}: {down}");
        }
        assert!(up.contains("INFO") && up.contains("endpoint is up") && up.contains(&pod.url), "{up}");
        assert!(!log.contains("hunter2"), "{log}");
    }

    #[tokio::test]
    async fn a_pod_that_refuses_goes_down_alone() {
        let pod = Pod::start(OK).await;
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", closed.local_addr().expect("bound"));
        drop(closed);
        let endpoints = endpoints(&[&pod.url, &url]);
        let _checker = start(&endpoints, settings());
        until_available(&endpoints, 1).await;
        assert!(endpoints.load().members()[0].is_available());
    }

    #[tokio::test]
    async fn a_pod_that_hangs_goes_down_after_the_timeout() {
        let pod = Pod::start(HANG).await;
        let endpoints = endpoints(&[&pod.url]);
        let timeout = Duration::from_millis(50);
        let _checker = start(&endpoints, HealthSettings { timeout, ..settings() });
        until_available(&endpoints, 0).await;
        let error = probe(&pod.endpoint(), &HealthSettings { timeout, ..settings() }).await;
        assert!(matches!(error, Err(ProbeError::Timeout(after)) if after == timeout), "{error:?}");
    }

    #[tokio::test]
    async fn a_pod_that_talks_nonsense_or_says_nothing_is_not_well() {
        for answer in ["SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP/1.1 200", "\r\n"] {
            let pod = Pod::start(answer).await;
            let result = probe(&pod.endpoint(), &settings()).await;
            assert!(matches!(result, Err(ProbeError::Http(_))), "{answer:?}: {result:?}");
        }
    }

    #[tokio::test]
    async fn a_head_without_end_is_not_read_without_end() {
        let mut head = String::from("HTTP/1.1 200 OK\r\n");
        while head.len() < 4 * 1024 * 1024 {
            head.push_str("x-filler: 0123456789012345678901234567890123456789\r\n");
        }
        let pod = Pod::start(head.leak()).await;
        assert!(matches!(probe(&pod.endpoint(), &settings()).await, Err(ProbeError::Http(_))));
    }

    #[tokio::test]
    async fn the_first_check_comes_after_one_whole_interval() {
        let pod = Pod::start(BROKEN).await;
        let endpoints = endpoints(&[&pod.url]);
        let interval = Duration::from_millis(150);
        let started = Instant::now();
        let _checker = start(&endpoints, HealthSettings { interval, ..settings() });
        until_available(&endpoints, 0).await;
        assert!(started.elapsed() >= interval);
    }

    #[tokio::test]
    async fn the_request_has_the_settings_method_path_and_fields() {
        let pod = Pod::start(OK).await;
        let mut settings = settings();
        probe(&pod.endpoint(), &settings).await.expect("well");
        let request = pod.last_request();
        assert!(request.starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{request}");
        assert!(
            request.contains(&format!("host: {}\r\n", pod.url.trim_start_matches("http://"))),
            "{request}"
        );

        settings.method = Method::HEAD;
        settings.hostname = Some(HeaderValue::from_static("www.test"));
        settings.headers.insert("x-check", HeaderValue::from_static("1"));
        settings.headers.insert("host", HeaderValue::from_static("ignored.test"));
        probe(&pod.endpoint(), &settings).await.expect("well");
        let request = pod.last_request();
        assert!(request.starts_with("HEAD /health?deep=1 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("host: www.test\r\n") && request.contains("x-check: 1\r\n"), "{request}");
        assert!(!request.contains("ignored.test"), "{request}");
    }

    #[tokio::test]
    async fn another_port_is_asked_there_and_named_in_host() {
        let pod = Pod::start(OK).await;
        let port = pod.endpoint().url().port();
        // Nobody listens on port 1.
        let url = ServerUrl::parse("http://127.0.0.1:1").expect("a good url");
        let endpoint = Endpoint::new(url, PathUse::Ignored);
        probe(&endpoint, &HealthSettings { port: Some(port), ..settings() }).await.expect("well");
        assert!(
            pod.last_request().contains(&format!("host: 127.0.0.1:{port}\r\n")),
            "{}",
            pod.last_request()
        );
    }

    #[tokio::test]
    async fn redirects_are_followed_unless_they_are_to_be_the_answer() {
        let pod = Pod::start(MOVED).await;
        let exactly = |code| ExpectedStatus::OneOf([(code, code)].into());
        // A redirect to itself for ever.
        let endless = probe(&pod.endpoint(), &settings()).await;
        assert!(matches!(endless, Err(ProbeError::TooManyRedirects)), "{endless:?}");
        assert!(pod.last_request().starts_with("GET /moved HTTP/1.1\r\n"), "{}", pod.last_request());
        assert_eq!(pod.connections.load(Ordering::SeqCst), 11);

        let answer = HealthSettings { redirects: Redirects::Answer, ..settings() };
        probe(&pod.endpoint(), &answer).await.expect("302 is between 200 and 399");
        let strict = HealthSettings { expected: exactly(200), ..answer };
        let status = probe(&pod.endpoint(), &strict).await;
        assert!(matches!(status, Err(ProbeError::Status { status, .. }) if status == 302), "{status:?}");
    }

    #[tokio::test]
    async fn a_redirect_to_another_host_is_the_answer() {
        let other = Pod::start(OK).await;
        let location = format!("HTTP/1.1 302 Found\r\nlocation: {}/\r\ncontent-length: 0\r\n\r\n", other.url);
        let pod = Pod::start(location.leak()).await;
        probe(&pod.endpoint(), &settings()).await.expect("302 is between 200 and 399");
        assert_eq!(other.connections.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn health_and_checks_survive_a_rebuild_and_new_endpoints_are_checked_too() {
        let (sick, well, new) = (Pod::start(BROKEN).await, Pod::start(OK).await, Pod::start(BROKEN).await);
        let endpoints = endpoints(&[&sick.url, &well.url]);
        let _checker = start(&endpoints, settings());
        until_available(&endpoints, 1).await;

        let set = endpoints.rebuild(&servers(&[&sick.url, &well.url, &new.url]), Watch::Checked);
        assert!(!set.members()[0].is_available(), "still down right after");
        until_available(&endpoints, 1).await;
        assert!(endpoints.load().members()[1].is_available());

        *sick.answer.lock() = OK;
        *new.answer.lock() = OK;
        until_available(&endpoints, 3).await;
    }

    #[tokio::test]
    async fn an_endpoint_that_left_and_a_dropped_checker_ask_no_more() {
        let (left, stays) = (Pod::start(OK).await, Pod::start(OK).await);
        let endpoints = endpoints(&[&left.url, &stays.url]);
        let checker = start(&endpoints, settings());
        until_connections(&left, 1).await;
        endpoints.rebuild(&servers(&[&stays.url]), Watch::Checked);
        // One may have been under way.
        let before = left.connections.load(Ordering::SeqCst);
        let so_far = stays.connections.load(Ordering::SeqCst);
        until_connections(&stays, so_far + 5).await;
        assert!(left.connections.load(Ordering::SeqCst) <= before + 1);

        drop(checker);
        let other = endpoints_of(&left);
        let _other = start(&other, settings());
        let before = stays.connections.load(Ordering::SeqCst);
        let so_far = left.connections.load(Ordering::SeqCst);
        until_connections(&left, so_far + 5).await;
        assert!(stays.connections.load(Ordering::SeqCst) <= before + 1);
    }

    fn endpoints_of(pod: &Pod) -> Arc<LiveEndpoints> {
        endpoints(&[&pod.url])
    }

    #[test]
    fn jitter_adds_up_to_a_tenth_and_takes_nothing() {
        let interval = Duration::from_secs(10);
        assert_eq!(jittered(interval, 0), interval);
        let longest = jittered(interval, u64::MAX);
        assert!(longest > interval && longest <= Duration::from_secs(11), "{longest:?}");
        assert_eq!(jittered(Duration::ZERO, 0), MIN_INTERVAL);
    }
}
