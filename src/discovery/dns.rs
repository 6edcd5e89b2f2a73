//! Names among the servers of a service, looked up again and again: each of their addresses is an endpoint.
//!
//! A headless Service of Kubernetes is such a name: it stands for the pods that are ready. The resolver is the
//! system's (`/etc/hosts`, `resolv.conf`). Where a look-up fails or finds nothing, what was known stays: pods that
//! are gone are found out by requests and checks, and a resolver that is away must not take down what works.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::common::names::ServiceName;
use crate::endpoint::live::LiveEndpoints;

/// Most addresses taken of one name: more than a service has pods, and few enough to look at for each change.
const MAX_ADDRESSES: usize = 1_000;

/// Which names of a service are looked up, and how often.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DnsSettings {
    /// Without ports, each once.
    pub names: Vec<String>,
    /// Between two look-ups.
    pub interval: Duration,
}

/// How many look-ups of each service found something, and how many did not.
#[derive(Debug, Default)]
pub struct LookUps(Mutex<BTreeMap<ServiceName, [u64; 2]>>);

impl LookUps {
    fn count(&self, service: &ServiceName, found: bool) {
        self.0.lock().entry(service.clone()).or_default()[usize::from(!found)] += 1;
    }

    /// Service, outcome, and how often.
    pub fn all(&self) -> Vec<(ServiceName, &'static str, u64)> {
        let services = self.0.lock();
        let counts = services.iter().flat_map(|(name, [found, failed])| {
            [(name.clone(), "found", *found), (name.clone(), "failed", *failed)]
        });
        counts.collect()
    }
}

/// What all look-ups share.
#[derive(Clone)]
pub struct LookUpContext {
    /// Told of each look-up.
    pub counts: Arc<LookUps>,
    /// Called when endpoints came or went: with its first addresses a name itself goes.
    pub changed: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for LookUpContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LookUpContext").field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// A service's running look-ups, which end when it is dropped.
#[derive(Debug)]
pub struct DnsDiscovery {
    settings: DnsSettings,
    _tasks: JoinSet<()>,
}

impl DnsDiscovery {
    /// Looks names up until it is dropped, the first time at once. What is found is published through `endpoints`,
    /// of which names must be [discovered](LiveEndpoints::discover), and logged.
    pub fn start(
        runtime: &Handle,
        service: &ServiceName,
        endpoints: &Arc<LiveEndpoints>,
        settings: DnsSettings,
        context: &LookUpContext,
    ) -> Self {
        let mut tasks = JoinSet::new();
        for host in &settings.names {
            let name = Name {
                service: service.clone(),
                host: host.clone(),
                endpoints: Arc::clone(endpoints),
                context: context.clone(),
            };
            tasks.spawn_on(name.follow(settings.interval, look_up), runtime);
        }
        Self { settings, _tasks: tasks }
    }

    /// What it was started with: a reload with the same settings keeps it.
    pub fn settings(&self) -> &DnsSettings {
        &self.settings
    }
}

struct Name {
    service: ServiceName,
    host: String,
    endpoints: Arc<LiveEndpoints>,
    context: LookUpContext,
}

impl Name {
    async fn follow<R: Future<Output = io::Result<Vec<IpAddr>>>>(
        self,
        interval: Duration,
        look_up: impl Fn(String) -> R,
    ) {
        let (service, host) = (&self.service, &self.host);
        let mut failing = false;
        loop {
            let found = look_up(host.clone()).await.and_then(preferred);
            self.context.counts.count(service, found.is_ok());
            match found {
                Ok(addresses) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!(%service, host, "name is found again");
                    }
                    if let Some((came, went)) = self.endpoints.found(host, addresses) {
                        tracing::info!(%service, host, came, went, "addresses of a name changed");
                        (self.context.changed)();
                    }
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%service, host, %error, "name is not found, what was known of it stays");
                }
                Err(_) => {}
            }
            tokio::time::sleep(interval).await;
        }
    }
}

async fn look_up(host: String) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
}

/// Those of IPv4 where there are any, because a pod with one of each is still one pod.
fn preferred(mut addresses: Vec<IpAddr>) -> io::Result<Vec<IpAddr>> {
    if addresses.iter().any(IpAddr::is_ipv4) {
        addresses.retain(IpAddr::is_ipv4);
    }
    addresses.truncate(MAX_ADDRESSES);
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::endpoint::PathUse;
    use crate::endpoint::set::{EndpointSet, ServerSpec, Tier, Watch};
    use crate::endpoint::url::ServerUrl;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn shown(endpoints: &LiveEndpoints) -> Vec<String> {
        let set = endpoints.load();
        set.members().iter().map(|member| member.endpoint.url().as_str().to_owned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_follow_what_a_name_stands_for_and_stay_while_nobody_knows() {
        let spec = ServerSpec {
            url: ServerUrl::parse("http://pods.test:8080").expect("a url"),
            weight: 1,
            path_use: PathUse::Ignored,
            tier: Tier::Near,
        };
        let endpoints = Arc::new(LiveEndpoints::new(EndpointSet::build(
            std::slice::from_ref(&spec),
            None,
            Watch::Unchecked,
        )));
        endpoints.discover(true);
        endpoints.rebuild(std::slice::from_ref(&spec), Watch::Unchecked);
        let answer = Arc::new(Mutex::new(Ok(vec![ip(1), ip(2), "fd00::1".parse().expect("an address")])));
        let says = Arc::clone(&answer);
        let counts = Arc::new(LookUps::default());
        let changes = Arc::new(AtomicUsize::new(0));
        let times = Arc::clone(&changes);
        let name = Name {
            service: ServiceName::new("pods"),
            host: "pods.test".to_owned(),
            endpoints: Arc::clone(&endpoints),
            context: LookUpContext {
                counts: Arc::clone(&counts),
                changed: Arc::new(move || _ = times.fetch_add(1, Ordering::Relaxed)),
            },
        };
        let task = tokio::spawn(name.follow(Duration::from_secs(5), move |host| {
            assert_eq!(host, "pods.test");
            let says: Result<Vec<IpAddr>, io::ErrorKind> = says.lock().clone();
            std::future::ready(says.map_err(io::Error::from))
        }));
        let wait = |seconds| tokio::time::sleep(Duration::from_secs(seconds));

        tokio::task::yield_now().await;
        assert_eq!(shown(&endpoints), ["http://10.0.0.1:8080", "http://10.0.0.2:8080"], "at once");
        *answer.lock() = Ok(vec![ip(3), ip(2)]);
        wait(4).await;
        assert_eq!(shown(&endpoints)[0], "http://10.0.0.1:8080", "not yet");
        wait(2).await;
        assert_eq!(shown(&endpoints), ["http://10.0.0.2:8080", "http://10.0.0.3:8080"]);
        for nothing in [Err(io::ErrorKind::TimedOut), Ok(Vec::new())] {
            *answer.lock() = nothing;
            wait(5).await;
            assert_eq!(shown(&endpoints).len(), 2, "what was known stays");
        }
        *answer.lock() = Ok(vec!["fd00::1".parse().expect("an address")]);
        wait(5).await;
        assert_eq!(shown(&endpoints), ["http://[fd00::1]:8080"], "when there is no other");
        assert_eq!(changes.load(Ordering::Relaxed), 3);
        let name = ServiceName::new("pods");
        assert_eq!(counts.all(), [(name.clone(), "found", 3), (name, "failed", 2)]);
        task.abort();
    }
}
