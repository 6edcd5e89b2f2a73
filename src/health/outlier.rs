//! The task that watches what endpoints answer: it ejects those that do worse than their siblings, lets them try
//! again, and warms up those that are new or back.
//!
//! One task for all services, on the control plane's runtime. What it decides is the pure `endpoint::outlier`'s;
//! what it changes is published through `endpoint::live`. Never: the data path.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::common::clock::{self, Millis};
use crate::common::names::ServiceName;
use crate::endpoint::EndpointId;
use crate::endpoint::live::LiveEndpoints;
use crate::endpoint::outlier::{Action, Detector, Ejection, OutlierSettings, Passive, WHYS, Why};
use crate::endpoint::set::{EndpointSet, Member, WARM};

/// How often endpoints are looked at. A pod that fails has this long before it is noticed; a look costs some loads
/// for each endpoint.
const LOOK: Duration = Duration::from_millis(100);

/// How many steps a slow start has: each publishes a new set.
const WARM_STEPS: f64 = 20.0;

/// How a new or recovered endpoint gets its share (`loadBalancer.slowStart`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// Until it has the whole. Milliseconds.
    pub duration: Millis,
    /// What it begins with, in percent.
    pub min_percent: u8,
    /// 1 grows in a straight line, more grows faster at first.
    pub aggression: f64,
}

impl SlowStart {
    /// The percentage after `elapsed`, in steps.
    fn warmth(&self, elapsed: Millis) -> u8 {
        if elapsed >= self.duration {
            return WARM;
        }
        let part = (elapsed as f64 / self.duration as f64).powf(1.0 / self.aggression);
        let step = (part * WARM_STEPS).floor() / WARM_STEPS;
        // Below 100, as the part is below 1.
        self.min_percent.max((step * 100.0) as u8).min(WARM - 1)
    }
}

/// How a service's endpoints are watched.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchSettings {
    /// What makes one an outlier; `None` ejects nobody.
    pub outliers: Option<OutlierSettings>,
    /// `None` gives new ones their whole share at once.
    pub slow_start: Option<SlowStart>,
}

/// The services that are watched: the newest document's.
pub type Watched = BTreeMap<ServiceName, (Arc<LiveEndpoints>, WatchSettings)>;

/// Watches all services for as long as it lives.
#[derive(Debug)]
pub struct OutlierWatch {
    watched: Arc<Mutex<Arc<Watched>>>,
    counts: Arc<Ejections>,
}

/// How often endpoints of each service were ejected, by reason as in [`Why::ALL`].
#[derive(Debug, Default)]
pub struct Ejections(Mutex<BTreeMap<ServiceName, Arc<[AtomicU64; WHYS]>>>);

impl Ejections {
    fn count(&self, service: &ServiceName, why: Why) {
        let mut services = self.0.lock();
        if let Some(count) = services.entry(service.clone()).or_default().get(why.place()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Service, reason, and how often; only what has happened.
    pub fn all(&self) -> Vec<(ServiceName, &'static str, u64)> {
        let services = self.0.lock();
        let counts = services.iter().flat_map(|(name, counts)| {
            let named = Why::ALL.iter().zip(counts.iter());
            named.map(move |(why, count)| (name.clone(), *why, count.load(Ordering::Relaxed)))
        });
        counts.filter(|(_, _, count)| *count > 0).collect()
    }
}

impl OutlierWatch {
    /// Begins to watch; nothing yet. Ends when it is dropped.
    pub fn start(runtime: &Handle) -> Self {
        let watched: Arc<Mutex<Arc<Watched>>> = Arc::default();
        let counts = Arc::new(Ejections::default());
        let (weak, its_counts) = (Arc::downgrade(&watched), Arc::clone(&counts));
        runtime.spawn(async move {
            let mut services = BTreeMap::new();
            let mut looks = tokio::time::interval(LOOK);
            looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                let Some(watched) = weak.upgrade() else { return };
                let newest = Arc::clone(&watched.lock());
                look(&newest, &mut services, &its_counts, clock::now());
            }
        });
        Self { watched, counts }
    }

    /// Watches these services from now on; what is known of those that stay is kept.
    pub fn set(&self, watched: Watched) {
        *self.watched.lock() = Arc::new(watched);
    }

    /// What it has done.
    pub fn counts(&self) -> Arc<Ejections> {
        Arc::clone(&self.counts)
    }
}

/// What is remembered of one service.
#[derive(Debug, Default)]
struct State {
    detector: Detector,
    warming: BTreeMap<EndpointId, Millis>,
}

fn look(watched: &Watched, states: &mut BTreeMap<ServiceName, State>, counts: &Ejections, now: Millis) {
    states.retain(|name, _| watched.contains_key(name));
    for (name, (endpoints, settings)) in watched {
        let state = states.entry(name.clone()).or_default();
        let set = endpoints.load();
        match &settings.outliers {
            Some(outliers) => eject(name, endpoints, &set, outliers, state, counts, now),
            None => admit_all(endpoints, &set),
        }
        warm_up(endpoints, settings.slow_start, state, now);
    }
}

fn eject(
    service: &ServiceName,
    endpoints: &LiveEndpoints,
    set: &EndpointSet,
    settings: &OutlierSettings,
    state: &mut State,
    counts: &Ejections,
    now: Millis,
) {
    for (id, action) in state.detector.step(set, settings, now) {
        let passive = match action {
            Action::Eject(_) => Passive::Ejected,
            Action::Try => Passive::OnTrial,
            Action::Admit => Passive::Admitted,
        };
        // The newest set decides, which may be another than the one that was looked at.
        let Some(set) = endpoints.set_passive(id, passive, settings.max_ejection_percent) else { continue };
        let Some(member) = set.member(id) else { continue };
        tell(service, &set, member, action, settings, state, counts, now);
    }
}

#[expect(clippy::too_many_arguments, reason = "one step of the loop above, and of nothing else")]
fn tell(
    service: &ServiceName,
    set: &EndpointSet,
    member: &Member,
    action: Action,
    settings: &OutlierSettings,
    state: &mut State,
    counts: &Ejections,
    now: Millis,
) {
    let (url, available) = (member.endpoint.url().as_str(), set.available());
    match action {
        Action::Eject(why) => {
            let (millis, ejections) = state.detector.ejected(member, why, settings, now);
            let until = now.saturating_add(millis);
            member.endpoint.set_ejection(Some(Ejection { why, until, ejections }));
            counts.count(service, why);
            let seconds = millis as f64 / 1000.0;
            warn!(%service, url, reason = %why, seconds, ejections, available, "endpoint ejected");
        }
        Action::Try => {
            state.detector.let_in(member, now);
            info!(%service, url, available, "endpoint on trial after its ejection");
        }
        Action::Admit => {
            state.detector.let_in(member, now);
            member.endpoint.set_ejection(None);
            info!(%service, url, available, "endpoint is back after its ejection");
        }
    }
}

/// Nobody watches any more: what was ejected would never come back.
fn admit_all(endpoints: &LiveEndpoints, set: &EndpointSet) {
    for member in set.members().iter().filter(|member| member.passive != Passive::Admitted) {
        endpoints.set_passive(member.endpoint.id(), Passive::Admitted, 0);
        member.endpoint.set_ejection(None);
    }
}

fn warm_up(endpoints: &LiveEndpoints, slow_start: Option<SlowStart>, state: &mut State, now: Millis) {
    let set = endpoints.load();
    let State { warming, .. } = state;
    // One that is down or ejected begins when it is back.
    let cold = |member: &&Member| member.warmth < WARM && member.is_well();
    warming.retain(|id, _| set.member(*id).is_some_and(|member| cold(&member)));
    for member in set.members().iter().filter(cold) {
        let id = member.endpoint.id();
        let since = *warming.entry(id).or_insert(now);
        let warmth = slow_start.map_or(WARM, |slow_start| slow_start.warmth(now - since));
        if warmth != member.warmth {
            endpoints.set_warmth(id, warmth);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::PathUse;
    use crate::endpoint::set::{Care, ServerSpec, Watch};
    use crate::endpoint::tally::Verdict;
    use crate::endpoint::url::ServerUrl;

    fn servers(count: usize) -> Vec<ServerSpec> {
        let server = |index| ServerSpec {
            url: ServerUrl::parse(&format!("http://s{index}.test")).expect("a good url"),
            weight: 1,
            path_use: PathUse::Ignored,
            tier: crate::endpoint::set::Tier::Near,
        };
        (0..count).map(server).collect()
    }

    fn watched(settings: WatchSettings, care: Care) -> (Arc<LiveEndpoints>, Watched) {
        let endpoints = Arc::new(LiveEndpoints::new(EndpointSet::build(&servers(2), None, care)));
        let service = (ServiceName::new("pods"), (Arc::clone(&endpoints), settings));
        (endpoints, BTreeMap::from([service]))
    }

    #[test]
    fn an_ejected_endpoint_gets_nothing_is_counted_and_is_let_in_when_nobody_watches_any_more() {
        let outliers = Some(OutlierSettings::default());
        let (endpoints, watched) =
            watched(WatchSettings { outliers, slow_start: None }, Watch::Unchecked.into());
        let (mut states, counts) = (BTreeMap::new(), Ejections::default());
        look(&watched, &mut states, &counts, 1_000);
        let tally = |index: usize| Arc::clone(&endpoints.load().members()[index].endpoint);
        for _ in 0..5 {
            tally(0).tally().begin();
            tally(0).tally().ended(Verdict::NoAnswer);
        }
        look(&watched, &mut states, &counts, 1_100);
        assert_eq!(endpoints.load().available(), 1);
        assert_eq!(counts.all(), [(ServiceName::new("pods"), "local_errors", 1)]);
        let off = watched
            .into_iter()
            .map(|(name, (endpoints, settings))| {
                (name, (endpoints, WatchSettings { outliers: None, ..settings }))
            })
            .collect();
        look(&off, &mut states, &counts, 1_200);
        assert_eq!(endpoints.load().available(), 2);
    }

    #[test]
    fn a_new_endpoint_warms_up_in_steps_until_it_has_its_whole_share() {
        let slow_start = SlowStart { duration: 10_000, min_percent: 10, aggression: 1.0 };
        let settings = WatchSettings { outliers: None, slow_start: Some(slow_start) };
        let care = Care { first_warmth: 10, ..Care::from(Watch::Unchecked) };
        let (endpoints, watched) = watched(settings, care);
        endpoints.rebuild(&servers(3), care);
        let (mut states, counts) = (BTreeMap::new(), Ejections::default());
        let mut weights = Vec::new();
        for now in [0, 1_000, 2_500, 5_000, 9_999, 10_000] {
            look(&watched, &mut states, &counts, now);
            weights.push(endpoints.load().members().iter().map(|member| member.weight).collect::<Vec<_>>());
        }
        let expected =
            [[100, 100, 10], [100, 100, 10], [100, 100, 25], [100, 100, 50], [100, 100, 95], [1, 1, 1]];
        assert_eq!(weights, expected);
    }
}
