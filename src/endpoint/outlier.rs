//! Which endpoints of a service do worse than their siblings, as a pure decision over what their attempts came to.
//!
//! [`Detector::step`] reads tallies, the newest set and `now`; it says what to do and keeps what it saw.
//! Nothing is ejected for what all endpoints do alike, and never the last one. Never: sockets, clocks, tasks.

use std::collections::HashMap;
use std::fmt;

use crate::common::clock::Millis;
use crate::endpoint::EndpointId;
use crate::endpoint::health::Status;
use crate::endpoint::set::{EndpointSet, Member};
use crate::endpoint::tally::{Delta, Offer, Proof, Runs, Seen, micros_of_log};

/// Where an endpoint stands with those who watch its answers.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Passive {
    /// It gets its share.
    #[default]
    Admitted,
    /// It gets nothing for a while.
    Ejected,
    /// It gets one request at a time until it has shown that it is well.
    OnTrial,
}

/// What makes an endpoint an outlier (`loadBalancer.outlierDetection`, `passiveHealthCheck`). Times in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierSettings {
    /// How far back shares and latencies are looked at.
    pub window: Millis,
    /// Failures within `window` that eject, whatever the siblings do; Traefik's `maxFailedAttempts`. 0 for off.
    pub max_failed_attempts: u32,
    /// 5xx in a row. 0 for off, as for all that follow.
    pub consecutive_5xx: u32,
    /// 502, 503 and 504 in a row.
    pub consecutive_gateway_errors: u32,
    /// Attempts in a row without an answer.
    pub consecutive_local_errors: u32,
    /// Percentage points by which the share of failures is above the siblings'.
    pub failure_share_deviation: u32,
    /// How many times as long as at its siblings an answer usually takes.
    pub latency_factor: u32,
    /// An endpoint that usually answers faster than this is never too slow.
    pub latency_floor: Millis,
    /// No answer for so long while requests wait and the siblings answer.
    pub stall_timeout: Millis,
    /// Requests within `window` below which shares and latencies say nothing.
    pub minimum_requests: u32,
    /// How long an ejected endpoint waits from one rehearsal that failed to the next. 0 for no rehearsals.
    pub rehearsal_interval: Millis,
    /// How long the first ejection takes; the n-th in a row takes n times as long.
    pub base_ejection_time: Millis,
    /// No ejection takes longer.
    pub max_ejection_time: Millis,
    /// Of the endpoints of the service that are up and have a weight. One may always be ejected, never the last.
    pub max_ejection_percent: u32,
}

impl Default for OutlierSettings {
    fn default() -> Self {
        Self {
            window: 10_000,
            max_failed_attempts: 0,
            consecutive_5xx: 5,
            consecutive_gateway_errors: 3,
            consecutive_local_errors: 5,
            failure_share_deviation: 20,
            latency_factor: 10,
            latency_floor: 500,
            stall_timeout: 1_000,
            minimum_requests: 20,
            rehearsal_interval: 1_000,
            base_ejection_time: 10_000,
            max_ejection_time: 300_000,
            max_ejection_percent: 67,
        }
    }
}

/// An ejection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ejection {
    /// Why.
    pub why: Why,
    /// When its trial begins, unless a check or enough rehearsals pass before, or rehearsals go on to fail.
    pub until: Millis,
    /// The how manieth in a row it is.
    pub ejections: u32,
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Why {
    /// So many failures within the window (`passiveHealthCheck`).
    Failures(u32),
    /// So many 5xx in a row.
    ServerErrors(u32),
    /// So many 502, 503 and 504 in a row.
    GatewayErrors(u32),
    /// So many attempts in a row without an answer.
    LocalErrors(u32),
    /// Share of failures, and that of the siblings, in percent.
    FailureShare(u32, u32),
    /// Usual latency, and that of the siblings, in milliseconds.
    Latency(u32, u32),
    /// Milliseconds without an answer.
    Stalled(Millis),
    /// So many answers in a row whose content stood still.
    StalledBodies(u32),
    /// It failed while it was on trial.
    Trial,
}

impl Why {
    /// The word for metrics; a closed set.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self.place()]
    }

    /// Every word there is.
    pub const ALL: [&str; WHYS] = [
        "failures",
        "server_errors",
        "gateway_errors",
        "local_errors",
        "failure_share",
        "latency",
        "stalled",
        "stalled_bodies",
        "trial",
    ];

    /// Its place among [`Why::ALL`].
    pub fn place(self) -> usize {
        match self {
            Self::Failures(_) => 0,
            Self::ServerErrors(_) => 1,
            Self::GatewayErrors(_) => 2,
            Self::LocalErrors(_) => 3,
            Self::FailureShare(..) => 4,
            Self::Latency(..) => 5,
            Self::Stalled(_) => 6,
            Self::StalledBodies(_) => 7,
            Self::Trial => 8,
        }
    }

    /// Whether the endpoint is silent, so that what waits for it waits in vain.
    pub fn is_silence(self) -> bool {
        match self {
            Self::LocalErrors(_) | Self::Stalled(_) | Self::StalledBodies(_) => true,
            Self::Failures(_)
            | Self::ServerErrors(_)
            | Self::GatewayErrors(_)
            | Self::FailureShare(..)
            | Self::Latency(..)
            | Self::Trial => false,
        }
    }
}

/// How many reasons there are.
pub const WHYS: usize = 9;

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failures(count) => write!(f, "{count} failures within the window"),
            Self::ServerErrors(count) => write!(f, "{count} answers in a row with a status of 500 or more"),
            Self::GatewayErrors(count) => write!(f, "{count} answers in a row with 502, 503 or 504"),
            Self::LocalErrors(count) => write!(f, "{count} requests in a row without an answer"),
            Self::FailureShare(own, others) => {
                write!(f, "{own} % of its requests fail, {others} % of its siblings'")
            }
            Self::Latency(own, others) => {
                write!(f, "it usually answers after {own} ms, its siblings after {others} ms")
            }
            Self::Stalled(millis) => write!(f, "no answer for {millis} ms while its siblings answer"),
            Self::StalledBodies(count) => {
                write!(f, "{count} answers in a row whose content stood still")
            }
            Self::Trial => f.write_str("it failed again on trial"),
        }
    }
}

/// What to do with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Take it out, unless too many are; then tell [`Detector::ejected`].
    Eject(Why),
    /// Its time is over, or a check passed: let it try.
    Try,
    /// It is well again.
    Admit,
}

/// What is remembered of a service's endpoints between two looks.
#[derive(Debug, Default)]
pub struct Detector {
    trackers: HashMap<EndpointId, Tracker>,
}

#[derive(Debug, Default)]
struct Tracker {
    seen: Seen,
    checks_seen: u32,
    /// This half of the window, and the one before.
    halves: [Sums; 2],
    half_began: Millis,
    /// Attempts under way.
    awaiting: u32,
    /// Attempts begun since the last answer.
    asked: u32,
    /// Since when it has owed an answer and given none.
    owing_since: Option<Millis>,
    /// Since when it has owed as many answers as make silence mean something.
    silent_since: Option<Millis>,
    /// When one of its siblings was last known to do better than to owe answers.
    siblings_well: Option<Millis>,
    /// All siblings are silent, too: its own silence means nothing until that is over.
    outage: bool,
    /// Ejections in a row.
    ejections: u32,
    /// When the last one began.
    ejected_at: Millis,
    rehearsals: Rehearsals,
    /// How long the last one took, and when it ends.
    pause: Millis,
    until: Millis,
    /// Since when it has been admitted.
    clean_since: Millis,
    /// While on trial.
    trial: Sums,
    /// When the last answer of the trial came, while its content may still be on the way.
    answered: Option<Millis>,
}

/// Copies of requests that an endpoint gets while it is ejected.
#[derive(Debug)]
struct Rehearsals {
    wanted: bool,
    proof: Proof,
    /// How many had ended at the last look.
    seen: u32,
    /// How many in a row went well.
    passes: u32,
    /// When the next may begin.
    next: Millis,
    /// When the one that may begin, or has begun, is given up.
    lost_at: Option<Millis>,
    /// When the last one failed, unless one went well since.
    failed_at: Option<Millis>,
}

impl Default for Rehearsals {
    fn default() -> Self {
        let (passes, seen, next) = (0, 0, 0);
        Self { wanted: false, proof: Proof::Answer, seen, passes, next, lost_at: None, failed_at: None }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    requests: u32,
    failures: u32,
    /// Of the failures, answers that stood still.
    still: u32,
    answers: u32,
    log_latency: u64,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.still += other.still;
        self.answers += other.answers;
        self.log_latency += other.log_latency;
    }

    fn of(delta: &Delta) -> Self {
        Self {
            requests: delta.answers.saturating_add(delta.no_answers),
            failures: delta.server_errors + delta.no_answers + delta.broken_off + delta.stood_still,
            still: delta.stood_still,
            answers: delta.answers,
            log_latency: delta.log_latency,
        }
    }

    /// At most 1, although an answer that breaks off late counts in another window than it began in.
    fn failure_share(self) -> f64 {
        (f64::from(self.failures) / f64::from(self.requests.max(1))).min(1.0)
    }

    /// Milliseconds, once there was an answer.
    fn latency(self) -> Option<f64> {
        let mean = self.log_latency as f64 / f64::from(self.answers);
        (self.answers > 0).then(|| micros_of_log(mean) / 1000.0)
    }

    /// By how many standard deviations its failures exceed what it would have if it were like `others`.
    fn excess(self, others: Self) -> f64 {
        if self.requests == 0 || others.requests == 0 {
            return 0.0;
        }
        let (own, other) = (f64::from(self.requests), f64::from(others.requests));
        let pooled = (self.failure_share() * own + others.failure_share() * other) / (own + other);
        let deviation = (pooled * (1.0 - pooled) * (1.0 / own + 1.0 / other)).sqrt();
        if deviation == 0.0 { 0.0 } else { (self.failure_share() - others.failure_share()) / deviation }
    }
}

impl Detector {
    /// Takes what has happened since the last step into account. Some steps a second.
    ///
    /// Cost: in proportion to the endpoints of the set.
    pub fn step(
        &mut self,
        set: &EndpointSet,
        settings: &OutlierSettings,
        now: Millis,
    ) -> Vec<(EndpointId, Action)> {
        self.trackers.retain(|id, _| set.member(*id).is_some());
        let mut whole = Sums::default();
        for member in set.members() {
            let tracker = self.trackers.entry(member.endpoint.id()).or_insert_with(|| Tracker {
                half_began: now,
                clean_since: now,
                ..Tracker::default()
            });
            tracker.look(member, settings, now);
            if takes_part(member) {
                whole.add(tracker.window());
            }
        }
        self.compare(set, settings, whole, now);
        let mut actions = Vec::new();
        for member in set.members() {
            let id = member.endpoint.id();
            let Some(tracker) = self.trackers.get_mut(&id) else { continue };
            let others = if takes_part(member) { whole.without(tracker.window()) } else { whole };
            if member.passive == Passive::Ejected {
                tracker.rehearse(member, settings, others, now);
            }
            let action = match member.passive {
                Passive::Admitted => tracker.judge(member, settings, others).map(Action::Eject),
                Passive::Ejected => tracker.may_try(member, others, now).then_some(Action::Try),
                Passive::OnTrial => tracker.judge_trial(settings, others),
            };
            actions.extend(action.map(|action| (id, action)));
        }
        actions
    }

    /// An endpoint was ejected as [`Action::Eject`] asked. Gives for how long, and the how manieth in a row it is.
    pub fn ejected(
        &mut self,
        member: &Member,
        why: Why,
        settings: &OutlierSettings,
        now: Millis,
    ) -> (Millis, u32) {
        let tracker = self.trackers.entry(member.endpoint.id()).or_default();
        tracker.ejections = tracker.ejections.saturating_add(1);
        let time = settings.base_ejection_time.saturating_mul(tracker.ejections.into());
        tracker.pause = time.min(settings.max_ejection_time.max(settings.base_ejection_time));
        tracker.until = now.saturating_add(tracker.pause);
        tracker.ejected_at = now;
        tracker.checks_seen = member.endpoint.tally().checks_passed();
        tracker.rehearsals = Rehearsals {
            // `passiveHealthCheck` says itself for how long.
            wanted: match why {
                Why::Failures(_) => false,
                Why::Trial => tracker.rehearsals.wanted,
                _ => settings.rehearsal_interval > 0,
            },
            // When what failed was to connect, connecting is what must go well.
            proof: match why {
                Why::LocalErrors(_) | Why::Stalled(_) | Why::Trial if refuses(member) => Proof::Connection,
                _ => Proof::Answer,
            },
            seen: member.endpoint.tally().rehearsed().0,
            next: now.saturating_add(settings.rehearsal_interval),
            ..Rehearsals::default()
        };
        tracker.clear();
        (tracker.pause, tracker.ejections)
    }

    /// An endpoint is on trial, or admitted, as was asked.
    pub fn let_in(&mut self, member: &Member, now: Millis) {
        let tracker = self.trackers.entry(member.endpoint.id()).or_default();
        tracker.clear();
        tracker.clean_since = now;
        tracker.half_began = now;
        member.endpoint.tally().forgive();
        member.endpoint.tally().offer_rehearsal(None);
        member.endpoint.tally().allow_trials(1);
    }

    /// Tells each endpoint how its siblings fare: its silence means something only while they answer.
    fn compare(&mut self, set: &EndpointSet, settings: &OutlierSettings, whole: Sums, now: Millis) {
        let well =
            |id: EndpointId| self.trackers.get(&id).map_or(0, |tracker| tracker.owing_since.unwrap_or(now));
        // Whoever does best, and who does best beside that one.
        let (mut best, mut second) = (None, None);
        for member in set.members().iter().filter(|member| takes_part(member)) {
            let candidate = Some((well(member.endpoint.id()), member.endpoint.id()));
            if candidate > best {
                (best, second) = (candidate, best);
            } else if candidate > second {
                second = candidate;
            }
        }
        for member in set.members() {
            let id = member.endpoint.id();
            let Some(tracker) = self.trackers.get_mut(&id) else { continue };
            let sibling = if best.is_some_and(|(_, best)| best == id) { second } else { best };
            let others = if takes_part(member) { whole.without(tracker.window()) } else { whole };
            tracker.compare(member, sibling.map(|(since, _)| since), others.patience(settings), now);
        }
    }
}

/// Whether what it did last was to take no connection.
fn refuses(member: &Member) -> bool {
    let tally = member.endpoint.tally();
    tally.is_unconnected() && tally.runs().no_answers > 0
}

/// Whether an endpoint is one of those that others are compared with.
fn takes_part(member: &Member) -> bool {
    member.passive == Passive::Admitted && member.health.status() == Status::Up && member.weight > 0
}

impl Sums {
    /// For how long an answer may be awaited before that says something: these are the siblings'.
    fn patience(self, settings: &OutlierSettings) -> Millis {
        let usual = self.latency().map_or(0, |usual| (usual * STALL_FACTOR) as Millis);
        let least = if settings.stall_timeout == 0 { QUIET } else { settings.stall_timeout };
        usual.max(least)
    }

    /// The same, if only contents that stand still were failures.
    fn stills(self) -> Self {
        Self { failures: self.still, ..self }
    }

    fn without(self, part: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(part.requests),
            failures: self.failures.saturating_sub(part.failures),
            still: self.still.saturating_sub(part.still),
            answers: self.answers.saturating_sub(part.answers),
            log_latency: self.log_latency.saturating_sub(part.log_latency),
        }
    }
}

impl Tracker {
    /// Counts what came since the last look.
    fn look(&mut self, member: &Member, settings: &OutlierSettings, now: Millis) {
        let delta = self.seen.advance(member.endpoint.tally());
        let half = (settings.window / 2).max(1);
        if now >= self.half_began + half {
            let stale = now >= self.half_began + 2 * half;
            self.halves = [Sums::default(), if stale { Sums::default() } else { self.halves[0] }];
            self.half_began = now;
        }
        let sums = Sums::of(&delta);
        self.halves[0].add(sums);
        self.trial.add(sums);
        if delta.answers > 0 {
            self.answered = Some(now);
        }
        // The content of an answer counts, too: it has come whole, or goes on although it takes long.
        let over = |answered: Millis| {
            member.endpoint.in_flight() == 0 || now >= answered + settings.stall_timeout.max(QUIET) + SETTLED
        };
        let is_over = self.answered.is_some_and(over);
        if is_over {
            self.answered = None;
        }
        self.awaiting = (self.awaiting + delta.started).saturating_sub(delta.answers + delta.unanswered);
        match self.awaiting {
            0 => self.owing_since = None,
            _ if delta.answers > 0 => self.owing_since = Some(now),
            _ => _ = self.owing_since.get_or_insert(now),
        }
        if delta.answers > 0 {
            self.asked = 0;
            self.silent_since = None;
        } else {
            self.asked = self.asked.saturating_add(delta.started);
        }
        let waits_in_vain = match member.passive {
            Passive::Admitted | Passive::Ejected => self.asked.max(self.awaiting) >= STALL_REQUESTS,
            // What it was asked before is not its trial.
            Passive::OnTrial => self.asked > 0,
        };
        if waits_in_vain {
            self.silent_since.get_or_insert(now);
        }
        if member.passive == Passive::OnTrial && (is_over || delta.unanswered > 0) {
            member.endpoint.tally().allow_trials(1);
        }
        // Each good stretch as long as the last ejection takes one off the row.
        let stretch = self.pause.max(settings.window);
        if member.passive == Passive::Admitted && self.ejections > 0 && now >= self.clean_since + stretch {
            self.ejections -= 1;
            self.clean_since = now;
        }
    }

    /// `siblings_well`: when one of them was last known to do better than to owe answers; `None` without siblings.
    fn compare(&mut self, member: &Member, siblings_well: Option<Millis>, patience: Millis, now: Millis) {
        let outage = siblings_well.is_some_and(|at| now >= at.saturating_add(patience));
        if self.outage && !outage {
            // They answer again: whether it does, too, is to be seen from here on.
            self.silent_since = None;
            self.asked = 0;
            if member.passive == Passive::OnTrial {
                member.endpoint.tally().allow_trials(1);
            }
        }
        self.outage = outage;
        self.siblings_well = siblings_well.filter(|_| !outage);
    }

    fn window(&self) -> Sums {
        let mut sums = self.halves[0];
        sums.add(self.halves[1]);
        sums
    }

    fn clear(&mut self) {
        self.halves = [Sums::default(); 2];
        self.trial = Sums::default();
        self.answered = None;
        self.asked = 0;
        self.silent_since = None;
    }

    /// Whether one that is admitted should not be.
    fn judge(&self, member: &Member, settings: &OutlierSettings, others: Sums) -> Option<Why> {
        if !takes_part(member) {
            return None;
        }
        let own = self.window();
        let reaches = |value: u32, limit: u32| limit > 0 && value >= limit;
        // Traefik does not know of contents that stand still, which is not always a fault.
        let failures = own.failures.saturating_sub(own.still);
        if reaches(failures, settings.max_failed_attempts) {
            return Some(Why::Failures(failures));
        }
        let Runs { server_errors, gateway_errors, no_answers } = member.endpoint.tally().runs();
        if reaches(no_answers, settings.consecutive_local_errors) && others.failure_share() <= 0.5 {
            return Some(Why::LocalErrors(no_answers));
        }
        if let Some(silence) = self.stalled(settings, others) {
            return Some(Why::Stalled(silence));
        }
        let still = member.endpoint.tally().still_run();
        if settings.stall_timeout > 0
            && still >= STILL_RUN
            && own.stills().excess(others.stills()) >= RUN_EXCESS
        {
            return Some(Why::StalledBodies(still));
        }
        let excess = own.excess(others);
        if excess >= RUN_EXCESS && reaches(gateway_errors, settings.consecutive_gateway_errors) {
            return Some(Why::GatewayErrors(gateway_errors));
        }
        if excess >= RUN_EXCESS && reaches(server_errors, settings.consecutive_5xx) {
            return Some(Why::ServerErrors(server_errors));
        }
        let enough = |sums: Sums| sums.requests >= settings.minimum_requests.max(1);
        let percent = |sums: Sums| (sums.failure_share() * 100.0) as u32;
        let deviation = settings.failure_share_deviation;
        if deviation > 0
            && enough(own)
            && enough(others)
            && excess >= SHARE_EXCESS
            && (own.failure_share() - others.failure_share()) * 100.0 >= f64::from(deviation)
        {
            return Some(Why::FailureShare(percent(own), percent(others)));
        }
        if enough(own) && enough(others) {
            return too_slow(own, others, settings, f64::from(settings.latency_factor));
        }
        None
    }

    /// What becomes of one on trial.
    fn judge_trial(&self, settings: &OutlierSettings, others: Sums) -> Option<Action> {
        let trial = self.trial;
        let alike = others.failure_share() > 0.5;
        if trial.failures > 0 && !alike {
            return Some(Action::Eject(Why::Trial));
        }
        if let Some(silence) = self.stalled(settings, others) {
            return Some(Action::Eject(Why::Stalled(silence)));
        }
        if trial.answers < TRIAL_PASSES || self.answered.is_some() {
            return None;
        }
        // Half of what ejects: what is on the edge would come and go.
        match too_slow(trial, others, settings, f64::from(settings.latency_factor) / 2.0) {
            Some(why) => Some(Action::Eject(why)),
            None => Some(Action::Admit),
        }
    }

    /// For how long it has owed an answer while its siblings answered.
    fn stalled(&self, settings: &OutlierSettings, others: Sums) -> Option<Millis> {
        if settings.stall_timeout == 0 {
            return None;
        }
        // Only while the siblings are known to answer: when all are silent, none of them is to blame.
        let silence = self.siblings_well?.saturating_sub(self.silent_since?);
        // Where an answer usually takes long, so may this one.
        let usual = others.latency()? * STALL_FACTOR;
        let good = others.answers.saturating_sub(others.failures);
        let stalled = silence >= settings.stall_timeout && silence as f64 >= usual && good >= STALL_REQUESTS;
        stalled.then_some(silence)
    }

    /// Whether one that is ejected may try: it has rehearsed well; its time is over, and rehearsals do not say that it is
    /// as it was; or, the first time, a check has passed since. Not again later, since a check may well pass where
    /// requests fail.
    fn may_try(&self, member: &Member, others: Sums, now: Millis) -> bool {
        let checked = member.endpoint.tally().checks_passed() != self.checks_seen;
        let Rehearsals { passes, failed_at, .. } = self.rehearsals;
        // Twice as many each time: what fails now and then would come and go.
        let rehearsed = passes >= REHEARSALS << self.ejections.saturating_sub(1).min(REHEARSAL_DOUBLINGS);
        let alike = others.failure_share() > 0.5;
        let fails = failed_at.is_some_and(|at| now < at.saturating_add(REHEARSAL_COUNTS)) && !alike;
        rehearsed || (now >= self.until && !fails) || (checked && self.ejections <= 1)
    }

    /// Looks at what its last rehearsal came to, and lets the next one begin when it is time.
    fn rehearse(&mut self, member: &Member, settings: &OutlierSettings, others: Sums, now: Millis) {
        let tally = member.endpoint.tally();
        let rehearsals = &mut self.rehearsals;
        if !rehearsals.wanted {
            return;
        }
        let (seen, took) = tally.rehearsed();
        // As on trial, half of what ejects.
        let factor = f64::from(settings.latency_factor) / 2.0;
        let slow =
            |took: u32| others.latency().is_some_and(|others| slower(took.into(), others, settings, factor));
        let passed = took.is_some_and(|took| !slow(took));
        if seen != rehearsals.seen && passed {
            rehearsals.passes += 1;
            rehearsals.failed_at = None;
            // What has come back too early once must be well for longer.
            rehearsals.next = if self.ejections > 1 { now.saturating_add(STEADY) } else { now };
        } else if seen != rehearsals.seen {
            rehearsals.passes = 0;
            rehearsals.failed_at = Some(now);
            // The longer it has been broken, the less often it is asked.
            let pause = (now.saturating_sub(self.ejected_at) / 10)
                .clamp(settings.rehearsal_interval, settings.rehearsal_interval * REHEARSAL_REST);
            rehearsals.next = now.saturating_add(pause);
        }
        if seen != rehearsals.seen || rehearsals.lost_at.is_some_and(|at| now >= at) {
            rehearsals.seen = seen;
            rehearsals.lost_at = None;
        }
        if rehearsals.lost_at.is_none() && now >= rehearsals.next {
            let patience = others.patience(settings).min(LONGEST_REHEARSAL);
            rehearsals.lost_at = Some(now.saturating_add(2 * LONGEST_REHEARSAL));
            let patience = u32::try_from(patience).unwrap_or(u32::MAX);
            tally.offer_rehearsal(Some(Offer { patience, proof: rehearsals.proof }));
        }
    }
}

fn too_slow(own: Sums, others: Sums, settings: &OutlierSettings, factor: f64) -> Option<Why> {
    let (own, others) = (own.latency()?, others.latency()?);
    slower(own, others, settings, factor).then_some(Why::Latency(own as u32, others as u32))
}

/// Latencies in milliseconds.
fn slower(own: f64, others: f64, settings: &OutlierSettings, factor: f64) -> bool {
    settings.latency_factor > 0 && own >= settings.latency_floor as f64 && own >= others * factor.max(1.0)
}

/// One or two may be slow by themselves.
const STALL_REQUESTS: u32 = 3;
/// Silence of less than so many usual latencies of the siblings is none.
const STALL_FACTOR: f64 = 8.0;
/// Answers in a row whose content stands still, before that means anything.
const STILL_RUN: u32 = 5;
/// How long nothing of an answer comes before it stands still: as for `crate::proxy`, which counts them.
pub const QUIET: Millis = 1_000;
/// Until what the data path has seen is counted here.
const SETTLED: Millis = 200;
/// Rehearsals in a row that must go well before the trial of one that was ejected once; twice as many after each more,
/// so many times at most.
const REHEARSALS: u32 = 3;
const REHEARSAL_DOUBLINGS: u32 = 3;
/// Between two rehearsals that go well, of one that was ejected twice in a row or more: its 6 to 24 take 3 to 12 s.
const STEADY: Millis = 500;
/// How long a rehearsal that failed says that the next would, too.
const REHEARSAL_COUNTS: Millis = 15_000;
/// How many intervals there are between two rehearsals at most.
const REHEARSAL_REST: Millis = 5;
/// No rehearsal may take longer.
const LONGEST_REHEARSAL: Millis = 30_000;
/// Good answers in a row that end a trial.
const TRIAL_PASSES: u32 = 3;
/// Standard deviations: for a row of failures, one chance in 700 that it is chance.
const RUN_EXCESS: f64 = 3.0;
/// The same for shares, which are looked at all the time: one in 30,000.
const SHARE_EXCESS: f64 = 4.0;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::endpoint::set::tests::set_of;
    use crate::endpoint::tally::Verdict;

    /// A service whose time goes on by hand.
    struct Service {
        set: EndpointSet,
        detector: Detector,
        settings: OutlierSettings,
        now: Millis,
    }

    impl Service {
        fn new(endpoints: usize) -> Self {
            let mut service = Self {
                set: set_of(&vec![1; endpoints]),
                detector: Detector::default(),
                settings: OutlierSettings::default(),
                now: 1_000,
            };
            service.step(0);
            service
        }

        fn count(&self, index: usize, times: u32, verdict: Verdict) {
            for _ in 0..times {
                self.begin(index, 1);
                self.set.members()[index].endpoint.tally().ended(verdict);
            }
        }

        fn begin(&self, index: usize, times: u32) {
            for _ in 0..times {
                self.set.members()[index].endpoint.tally().begin();
            }
        }

        /// What is done after `millis`, by place in the list.
        fn step(&mut self, millis: Millis) -> Vec<(usize, Action)> {
            self.now += millis;
            let actions = self.detector.step(&self.set, &self.settings, self.now);
            let mut done = Vec::new();
            for (id, action) in actions {
                let passive = match action {
                    Action::Eject(_) => Passive::Ejected,
                    Action::Try => Passive::OnTrial,
                    Action::Admit => Passive::Admitted,
                };
                let Some(set) = self.set.with_passive(id, passive, self.settings.max_ejection_percent) else {
                    continue;
                };
                self.set = set;
                let place = self.set.members().iter().position(|member| member.endpoint.id() == id);
                let place = place.expect("a member");
                let member = self.set.members()[place].clone();
                match action {
                    Action::Eject(why) => {
                        self.detector.ejected(&member, why, &self.settings, self.now);
                    }
                    Action::Try | Action::Admit => self.detector.let_in(&member, self.now),
                }
                done.push((place, action));
            }
            done
        }
    }

    const GOOD: Verdict = Verdict::Answered(Duration::from_millis(5));
    const BAD: Verdict = Verdict::ServerError(Duration::from_millis(5));

    #[test]
    fn one_that_answers_500_while_the_others_do_not_is_ejected() {
        let mut service = Service::new(3);
        service.count(1, 5, BAD);
        service.count(0, 10, GOOD);
        service.count(2, 10, GOOD);
        assert_eq!(service.step(100), [(1, Action::Eject(Why::ServerErrors(5)))]);
        assert_eq!(service.set.available(), 2);
    }

    #[test]
    fn one_whose_answers_stand_still_is_ejected_unless_those_of_the_others_do_too() {
        let mut service = Service::new(3);
        for index in 0..3 {
            service.count(index, 300, GOOD);
        }
        let still = |service: &Service, index: usize, times| {
            for _ in 0..times {
                service.set.members()[index].endpoint.tally().ended(Verdict::StoodStill);
            }
        };
        still(&service, 1, 4);
        assert_eq!(service.step(100), []);
        still(&service, 1, 1);
        assert_eq!(service.step(100), [(1, Action::Eject(Why::StalledBodies(5)))]);

        let mut alike = Service::new(3);
        for index in 0..3 {
            alike.count(index, 300, GOOD);
            still(&alike, index, 200);
        }
        assert_eq!(alike.step(100), []);
    }

    #[test]
    fn a_trial_goes_on_once_the_content_has_come_and_fails_when_it_stands_still() {
        let mut service = Service::new(3);
        for _ in 0..10 {
            service.count(0, 20, GOOD);
            service.count(2, 20, GOOD);
            service.count(1, 3, BAD);
            service.step(100);
        }
        assert_eq!(service.set.members()[1].passive, Passive::Ejected);
        service.step(20_000);
        let endpoint = Arc::clone(&service.set.members()[1].endpoint);
        assert_eq!(service.set.members()[1].passive, Passive::OnTrial);
        service.count(0, 20, GOOD);
        assert!(endpoint.tally().take_trial());
        let flowing = crate::endpoint::InFlight::new(Arc::clone(&endpoint));
        service.count(1, 1, GOOD);
        assert_eq!(service.step(100), []);
        assert!(!endpoint.tally().has_trial(), "its content is on the way");
        drop(flowing);
        assert_eq!(service.step(100), []);
        assert!(endpoint.tally().has_trial());
        endpoint.tally().ended(Verdict::StoodStill);
        assert_eq!(service.step(100), [(1, Action::Eject(Why::Trial))]);
    }

    #[test]
    fn what_all_do_alike_ejects_nobody() {
        let mut service = Service::new(3);
        for _ in 0..50 {
            for index in 0..3 {
                service.count(index, 5, BAD);
            }
            assert_eq!(service.step(100), []);
        }
        for index in 0..3 {
            service.count(index, 20, Verdict::NoAnswer);
            service.begin(index, 20);
        }
        assert_eq!(service.step(100), []);
        assert_eq!(service.step(5_000), []);
    }

    #[test]
    fn a_lone_endpoint_is_never_ejected() {
        let mut service = Service::new(1);
        service.settings.max_failed_attempts = 1;
        service.count(0, 50, BAD);
        service.count(0, 50, Verdict::NoAnswer);
        service.begin(0, 50);
        service.step(100);
        service.step(60_000);
        assert_eq!(service.set.available(), 1);
    }

    #[test]
    fn one_that_says_nothing_while_the_others_answer_is_ejected_after_a_second() {
        let mut service = Service::new(3);
        for tick in 0..30 {
            service.begin(1, 5);
            service.count(0, 5, GOOD);
            service.count(2, 5, GOOD);
            let done = service.step(100);
            if !done.is_empty() {
                assert!(matches!(done[..], [(1, Action::Eject(Why::Stalled(1_000..=1_200)))]), "{done:?}");
                assert!((9..=12).contains(&tick), "{tick}");
                return;
            }
        }
        panic!("still there");
    }

    #[test]
    fn a_few_long_requests_are_no_stall_while_others_are_answered() {
        let mut service = Service::new(2);
        service.begin(0, 10);
        for _ in 0..100 {
            service.count(0, 1, GOOD);
            service.count(1, 1, GOOD);
            assert_eq!(service.step(100), []);
        }
    }

    #[test]
    fn silence_shorter_than_what_the_siblings_usually_take_is_none() {
        let mut service = Service::new(2);
        for _ in 0..20 {
            service.begin(0, 1);
            service.count(1, 1, Verdict::Answered(Duration::from_secs(2)));
            assert_eq!(service.step(500), []);
        }
    }

    #[test]
    fn one_that_is_ten_times_as_slow_is_ejected_but_not_for_a_few_slow_answers() {
        let slow = Verdict::Answered(Duration::from_millis(900));
        let mut service = Service::new(3);
        for index in 0..3 {
            service.count(index, 50, GOOD);
        }
        service.count(1, 3, Verdict::Answered(Duration::from_secs(30)));
        assert_eq!(service.step(100), []);
        service.count(1, 400, slow);
        service.count(2, 400, GOOD);
        let done = service.step(100);
        assert!(matches!(done[..], [(1, Action::Eject(Why::Latency(500..=900, 4..=6)))]), "{done:?}");
    }

    #[test]
    fn a_share_of_failures_far_above_the_siblings_ejects() {
        let mut service = Service::new(3);
        for _ in 0..20 {
            service.count(0, 1, BAD);
            service.count(0, 1, GOOD);
            service.count(1, 2, GOOD);
            service.count(2, 2, GOOD);
        }
        let done = service.step(100);
        assert!(matches!(done[..], [(0, Action::Eject(Why::FailureShare(50, 0)))]), "{done:?}");
    }

    #[test]
    fn traefiks_own_keys_count_failures_within_the_window() {
        let mut service = Service::new(2);
        service.settings.max_failed_attempts = 2;
        service.count(0, 1, BAD);
        assert_eq!(service.step(100), []);
        service.step(30_000);
        service.count(0, 1, BAD);
        assert_eq!(service.step(100), [], "the first one is long gone");
        service.count(0, 1, BAD);
        assert_eq!(service.step(100), [(0, Action::Eject(Why::Failures(2)))]);
    }

    #[test]
    fn after_its_time_it_is_tried_and_each_failure_keeps_it_out_longer() {
        let mut service = Service::new(2);
        service.count(0, 5, Verdict::NoAnswer);
        assert_eq!(service.step(100), [(0, Action::Eject(Why::LocalErrors(5)))]);
        assert_eq!(service.step(9_900), []);
        assert_eq!(service.step(100), [(0, Action::Try)]);
        let tally = || service.set.members()[0].endpoint.tally();
        assert!(tally().take_trial());
        assert!(!tally().take_trial(), "one at a time");
        service.count(0, 1, Verdict::NoAnswer);
        assert_eq!(service.step(100), [(0, Action::Eject(Why::Trial))]);
        assert_eq!(service.step(19_900), []);
        assert_eq!(service.step(100), [(0, Action::Try)]);
        for _ in 0..2 {
            service.count(0, 1, GOOD);
            assert_eq!(service.step(100), []);
        }
        service.count(0, 1, GOOD);
        assert_eq!(service.step(100), [(0, Action::Admit)]);
    }

    /// A rehearsal that was let begin ends.
    fn rehearse(service: &Service, index: usize, latency: Option<Duration>) {
        let tally = service.set.members()[index].endpoint.tally();
        assert!(tally.take_rehearsal().is_some());
        tally.rehearsal_ended(latency);
    }

    const FAST: Option<Duration> = Some(Duration::from_millis(5));

    #[test]
    fn one_that_rehearses_well_is_tried_long_before_its_time_is_over() {
        let mut service = Service::new(2);
        service.count(0, 5, Verdict::NoAnswer);
        assert_eq!(service.step(100), [(0, Action::Eject(Why::LocalErrors(5)))]);
        service.step(900);
        assert!(service.set.members()[0].endpoint.tally().offered_rehearsal().is_none(), "not yet");
        service.step(100);
        rehearse(&service, 0, None);
        service.step(100);
        assert!(service.set.members()[0].endpoint.tally().offered_rehearsal().is_none(), "after a pause");
        assert_eq!(service.step(1_000), []);
        for _ in 0..2 {
            rehearse(&service, 0, FAST);
            assert_eq!(service.step(100), [], "one after the other");
        }
        rehearse(&service, 0, FAST);
        assert_eq!(service.step(100), [(0, Action::Try)]);
    }

    #[test]
    fn one_that_goes_on_to_fail_its_rehearsals_is_not_tried_with_requests_nor_is_its_ejection_longer() {
        let mut service = Service::new(2);
        service.count(0, 5, Verdict::NoAnswer);
        service.step(100);
        let mut asked = 0;
        for _ in 0..600 {
            service.count(1, 2, GOOD);
            assert_eq!(service.step(100), []);
            let tally = service.set.members()[0].endpoint.tally();
            if tally.take_rehearsal().is_some() {
                asked += 1;
                tally.rehearsal_ended(None);
            }
        }
        assert!((12..=30).contains(&asked), "less often as time goes by: {asked} in a minute");
        // It is mended.
        let mut took = 0;
        while service.set.members()[0].passive == Passive::Ejected {
            service.count(1, 2, GOOD);
            service.step(100);
            took += 100;
            let tally = service.set.members()[0].endpoint.tally();
            if tally.take_rehearsal().is_some() {
                tally.rehearsal_ended(FAST);
            }
        }
        assert!(took <= 6_000, "{took}");
    }

    #[test]
    fn each_ejection_in_a_row_asks_for_more_rehearsals() {
        let mut service = Service::new(2);
        let mut needed = Vec::new();
        for _ in 0..5 {
            // On trial or admitted, it fails.
            service.count(0, 5, Verdict::NoAnswer);
            service.step(100);
            assert_eq!(service.set.members()[0].passive, Passive::Ejected);
            service.step(1_000);
            let mut count = 0;
            while service.set.members()[0].passive == Passive::Ejected {
                rehearse(&service, 0, FAST);
                service.step(100);
                count += 1;
                if service.set.members()[0].passive == Passive::Ejected {
                    service.step(STEADY);
                }
            }
            needed.push(count);
        }
        assert_eq!(needed, [3, 6, 12, 24, 24]);
    }

    #[test]
    fn a_rehearsal_that_takes_as_long_as_what_ejected_it_is_none_that_went_well() {
        let slow = Duration::from_millis(900);
        let mut service = Service::new(2);
        service.count(0, 400, GOOD);
        service.count(1, 400, Verdict::Answered(slow));
        assert!(matches!(service.step(100)[..], [(1, Action::Eject(Why::Latency(..)))]));
        for _ in 0..200 {
            service.count(0, 5, GOOD);
            assert_eq!(service.step(100), []);
            let tally = service.set.members()[1].endpoint.tally();
            if tally.take_rehearsal().is_some() {
                tally.rehearsal_ended(Some(slow));
            }
        }
    }

    #[test]
    fn what_traefiks_passive_check_ejects_stays_out_for_as_long_as_it_says() {
        let mut service = Service::new(2);
        service.settings.max_failed_attempts = 1;
        service.count(0, 1, BAD);
        assert_eq!(service.step(100), [(0, Action::Eject(Why::Failures(1)))]);
        for _ in 0..99 {
            assert_eq!(service.step(100), []);
            assert!(service.set.members()[0].endpoint.tally().offered_rehearsal().is_none());
        }
        assert_eq!(service.step(100), [(0, Action::Try)]);
    }

    #[test]
    fn a_connection_is_proof_only_for_what_took_none() {
        for (failure, proof) in
            [(Verdict::NotConnected, Proof::Connection), (Verdict::NoAnswer, Proof::Answer)]
        {
            let mut service = Service::new(2);
            service.count(0, 5, failure);
            service.step(100);
            service.step(1_000);
            let offered = service.set.members()[0].endpoint.tally().offered_rehearsal();
            assert_eq!(offered.map(|offer| offer.proof), Some(proof), "{failure:?}");
        }
        // It takes connections again, and resets them.
        let mut service = Service::new(2);
        service.count(0, 5, Verdict::NotConnected);
        service.step(100);
        service.step(10_000);
        service.count(0, 1, Verdict::NoAnswer);
        assert_eq!(service.step(100), [(0, Action::Eject(Why::Trial))]);
        service.step(1_000);
        let offered = service.set.members()[0].endpoint.tally().offered_rehearsal();
        assert_eq!(offered.map(|offer| offer.proof), Some(Proof::Answer));
    }

    #[test]
    fn a_rehearsal_of_which_nothing_is_heard_is_given_up() {
        let mut service = Service::new(2);
        service.count(0, 5, Verdict::NoAnswer);
        service.step(100);
        service.settings.base_ejection_time = 600_000;
        service.detector.trackers.values_mut().for_each(|tracker| tracker.until = Millis::MAX);
        service.step(1_000);
        let take = |service: &Service| service.set.members()[0].endpoint.tally().take_rehearsal();
        assert!(take(&service).is_some());
        service.step(59_000);
        assert!(take(&service).is_none());
        service.step(2_000);
        assert!(take(&service).is_some());
    }

    #[test]
    fn when_all_hang_at_once_nobody_is_ejected_then_or_when_they_answer_again() {
        // The answers of before the event made the last seconds look as if siblings answered; two of three were
        // ejected, hung in their trials, and came back half a minute after all was well.
        let mut service = Service::new(3);
        for _ in 0..50 {
            (0..3).for_each(|index| service.count(index, 5, GOOD));
            assert_eq!(service.step(100), []);
        }
        for tick in 0..120 {
            // They are asked one after the other.
            (0..3).for_each(|index| service.begin(index, 4 + (tick + index as u32) % 2));
            assert_eq!(service.step(100), [], "{tick}");
        }
        for index in 0..3 {
            // One answers again some looks before the others do.
            for tick in 0..3 {
                (0..=index).for_each(|index| service.count(index, 5, GOOD));
                (index + 1..3).for_each(|index| service.begin(index, 5));
                assert_eq!(service.step(100), [], "{index}, {tick}");
            }
        }
    }

    #[test]
    fn one_that_stays_silent_when_the_others_answer_again_is_ejected() {
        let mut service = Service::new(3);
        for _ in 0..50 {
            (0..3).for_each(|index| service.count(index, 5, GOOD));
            service.step(100);
        }
        for _ in 0..30 {
            (0..3).for_each(|index| service.begin(index, 5));
            assert_eq!(service.step(100), []);
        }
        for tick in 0..30 {
            [0, 2].into_iter().for_each(|index| service.count(index, 5, GOOD));
            service.begin(1, 5);
            let done = service.step(100);
            if !done.is_empty() {
                assert!(matches!(done[..], [(1, Action::Eject(Why::Stalled(_)))]), "{done:?}");
                assert!((9..=13).contains(&tick), "{tick}");
                return;
            }
        }
        panic!("still there");
    }

    #[test]
    fn a_trial_that_was_caught_in_an_outage_begins_anew_when_the_siblings_answer_again() {
        let mut service = Service::new(2);
        service.count(0, 20, GOOD);
        service.count(1, 5, Verdict::NoAnswer);
        service.step(100);
        service.step(10_000);
        assert_eq!(service.set.members()[1].passive, Passive::OnTrial);
        let has_trial = |service: &Service| service.set.members()[1].endpoint.tally().has_trial();
        assert!(service.set.members()[1].endpoint.tally().take_trial());
        service.begin(1, 1);
        for _ in 0..50 {
            service.begin(0, 5);
            assert_eq!(service.step(100), []);
        }
        assert!(!has_trial(&service));
        for _ in 0..5 {
            service.count(0, 50, GOOD);
            assert_eq!(service.step(100), []);
        }
        assert!(has_trial(&service), "what was asked in the outage says nothing");
        for _ in 0..3 {
            service.count(0, 5, GOOD);
            service.count(1, 1, GOOD);
            service.step(2_000);
        }
        assert_eq!(service.set.members()[1].passive, Passive::Admitted);
    }

    #[test]
    fn a_check_that_passes_ends_the_first_ejection_only() {
        let mut service = Service::new(2);
        service.count(0, 5, Verdict::NoAnswer);
        service.step(100);
        service.set.members()[0].endpoint.tally().check_passed();
        assert_eq!(service.step(100), [(0, Action::Try)]);
        service.count(0, 1, Verdict::NoAnswer);
        service.step(100);
        service.set.members()[0].endpoint.tally().check_passed();
        assert_eq!(service.step(100), []);
    }

    #[test]
    fn not_more_than_the_share_is_ejected_and_never_the_last() {
        let mut service = Service::new(2);
        for index in 0..2 {
            service.count(index, 1, GOOD);
        }
        service.settings.max_failed_attempts = 1;
        service.count(0, 1, BAD);
        service.count(1, 1, BAD);
        assert_eq!(service.step(100).len(), 1);
        let mut service = Service::new(10);
        service.settings.max_failed_attempts = 1;
        service.settings.max_ejection_percent = 30;
        for index in 0..10 {
            service.count(index, 1, BAD);
        }
        assert_eq!(service.step(100).len(), 3);
    }
}
