//! What attempts at one endpoint came to, counted by all cores and read by the control plane.
//!
//! Counters only grow (and wrap): a reader keeps what it saw and takes the difference ([`Seen`]). Never: clocks,
//! decisions; those are `crate::endpoint::outlier`'s.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::http::fields::Fields;

/// What one attempt says of the endpoint it was made at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It answered, with a status below 500.
    Answered(Duration),
    /// It answered with 502, 503 or 504.
    GatewayError(Duration),
    /// It answered with another 5xx.
    ServerError(Duration),
    /// No answer came: reset, not HTTP, no head in time.
    NoAnswer,
    /// No answer came, because nobody took the connection. For all else as [`Verdict::NoAnswer`].
    NotConnected,
    /// It answered, and what came of the request is said at the end: by a status of gRPC.
    Opened(Duration),
    /// What [`Verdict::Opened`] left open.
    Closed(CallEnd),
    /// Its answer broke off or was left by the client after the head, which was counted before.
    BrokeOff,
    /// Nothing has come of its answer for a while after the head, which was counted before. It may go on.
    StoodStill,
    /// Nobody waits any more, or whoever was at fault, it was not the endpoint.
    Nothing,
}

/// What a status of gRPC says of the endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallEnd {
    /// It did its work, or what was asked of it was wrong.
    Well,
    /// As a 500.
    ServerError,
    /// As a 503 or 504.
    GatewayError,
}

impl CallEnd {
    /// Reads `grpc-status` from the fields of an answer without content, or from its trailers; `None` when it is not
    /// there. As Envoy's outlier detection has it, but for UNIMPLEMENTED, which is the caller's fault.
    pub fn of(fields: &Fields) -> Option<Self> {
        let status = fields.get("grpc-status")?.to_str().ok().and_then(|status| status.parse::<u32>().ok());
        Some(match status {
            // DEADLINE_EXCEEDED, UNAVAILABLE.
            Some(4 | 14) => Self::GatewayError,
            // UNKNOWN, INTERNAL, DATA_LOSS, and what is no status.
            Some(2 | 13 | 15) | None => Self::ServerError,
            Some(_) => Self::Well,
        })
    }
}

/// What shows that an ejected endpoint may be well again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Proof {
    /// An answer to the copy of a request.
    Answer,
    /// That, or a connection alone: it was ejected because it took none.
    Connection,
}

/// A rehearsal that may begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offer {
    /// How long it may take, in milliseconds.
    pub patience: u32,
    /// What is enough.
    pub proof: Proof,
}

impl Offer {
    fn pack(self) -> u64 {
        u64::from(self.patience) << 1 | u64::from(self.proof == Proof::Connection)
    }

    /// 0 is none: without patience there is nothing to offer.
    fn unpack(packed: u64) -> Option<Self> {
        let proof = if packed & 1 == 1 { Proof::Connection } else { Proof::Answer };
        // Of 33 bits.
        Some(Self { patience: (packed >> 1) as u32, proof }).filter(|offer| offer.patience > 0)
    }
}

/// On a cache line of its own, beside the load: an attempt writes both.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Tally {
    /// Attempts that were begun.
    started: AtomicU32,
    /// Attempts that ended without an answer.
    unanswered: AtomicU32,
    /// Answers, and how long they took: their number in the upper [`COUNT_BITS`] bits, the sum of their latencies as
    /// [`log_micros`] in the others. One addition counts both.
    answers: AtomicU64,
    server_errors: AtomicU32,
    no_answers: AtomicU32,
    broken_off: AtomicU32,
    stood_still: AtomicU32,
    /// Answers that stood still since the last one that came whole.
    still_run: AtomicU32,
    /// Active checks that passed.
    checks_passed: AtomicU32,
    /// Requests that may be given to it while it is on trial.
    trials: AtomicU32,
    /// The rehearsal that may begin, packed; 0 while none may.
    rehearsal: AtomicU64,
    /// Rehearsals: their number in the upper half; in the lower what the last one took in milliseconds and one more, or
    /// 0 if it failed.
    rehearsed: AtomicU64,
    /// Of the attempts without an answer, the last one had no connection.
    unconnected: AtomicBool,
    /// Failures in a row. All are zero while the endpoint is well, so that a good answer reads one number.
    runs: AtomicU64,
}

/// Failures in a row, of each kind.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Runs {
    /// Statuses 500 to 599.
    pub server_errors: u32,
    /// Statuses 502, 503 and 504.
    pub gateway_errors: u32,
    /// Attempts without an answer.
    pub no_answers: u32,
}

/// What was counted between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Delta {
    /// Attempts that were begun.
    pub started: u32,
    /// Attempts that ended without an answer, for whatever reason.
    pub unanswered: u32,
    /// Heads that came.
    pub answers: u32,
    /// Of them with a status of 500 or more.
    pub server_errors: u32,
    /// Attempts that failed without an answer.
    pub no_answers: u32,
    /// Answers that broke off.
    pub broken_off: u32,
    /// Answers that stood still.
    pub stood_still: u32,
    /// Sum of the binary logarithms of the latencies in microseconds, in 256ths.
    pub log_latency: u64,
}

/// What a reader has seen of a [`Tally`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    started: u32,
    unanswered: u32,
    answers: u64,
    server_errors: u32,
    no_answers: u32,
    broken_off: u32,
    stood_still: u32,
}

impl Tally {
    /// An attempt begins. It must end with [`ended`](Self::ended).
    pub fn begin(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt has ended, or (with [`Verdict::BrokeOff`]) its answer.
    ///
    /// Cost of a good answer: one addition and one load.
    pub fn ended(&self, verdict: Verdict) {
        match verdict {
            Verdict::Answered(latency) => {
                self.answer(latency);
                self.well();
            }
            Verdict::GatewayError(latency) => {
                self.answer(latency);
                self.gateway_error();
            }
            Verdict::ServerError(latency) => {
                self.answer(latency);
                self.server_error();
            }
            Verdict::Opened(latency) => self.answer(latency),
            Verdict::Closed(CallEnd::Well) => self.well(),
            Verdict::Closed(CallEnd::ServerError) => self.server_error(),
            Verdict::Closed(CallEnd::GatewayError) => self.gateway_error(),
            Verdict::NoAnswer | Verdict::NotConnected => {
                self.unconnected.store(verdict == Verdict::NotConnected, Ordering::Relaxed);
                self.unanswered.fetch_add(1, Ordering::Relaxed);
                self.no_answers.fetch_add(1, Ordering::Relaxed);
                self.run(|runs| Runs { no_answers: runs.no_answers + 1, ..runs });
            }
            Verdict::BrokeOff => {
                self.broken_off.fetch_add(1, Ordering::Relaxed);
            }
            Verdict::StoodStill => {
                self.stood_still.fetch_add(1, Ordering::Relaxed);
                self.still_run.fetch_add(1, Ordering::Relaxed);
            }
            Verdict::Nothing => {
                self.unanswered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The content of an answer has come whole. Cost: one load.
    pub fn came_whole(&self) {
        if self.still_run.load(Ordering::Relaxed) != 0 {
            self.still_run.store(0, Ordering::Relaxed);
        }
    }

    /// Answers that stood still since the last one that came whole.
    pub fn still_run(&self) -> u32 {
        self.still_run.load(Ordering::Relaxed)
    }

    fn well(&self) {
        if self.runs.load(Ordering::Relaxed) != 0 {
            self.runs.store(0, Ordering::Relaxed);
        }
    }

    fn server_error(&self) {
        self.server_errors.fetch_add(1, Ordering::Relaxed);
        self.run(|runs| Runs { server_errors: runs.server_errors + 1, gateway_errors: 0, no_answers: 0 });
    }

    fn gateway_error(&self) {
        self.server_errors.fetch_add(1, Ordering::Relaxed);
        self.run(|runs| Runs {
            server_errors: runs.server_errors + 1,
            gateway_errors: runs.gateway_errors + 1,
            no_answers: 0,
        });
    }

    /// Failures in a row until now.
    pub fn runs(&self) -> Runs {
        Runs::unpack(self.runs.load(Ordering::Relaxed))
    }

    /// Ends every row of failures: what counts from here is what comes.
    pub fn forgive(&self) {
        self.runs.store(0, Ordering::Relaxed);
        self.still_run.store(0, Ordering::Relaxed);
        self.unconnected.store(false, Ordering::Relaxed);
    }

    /// Whether the last attempt without an answer had no connection.
    pub fn is_unconnected(&self) -> bool {
        self.unconnected.load(Ordering::Relaxed)
    }

    /// An active check passed.
    pub fn check_passed(&self) {
        self.checks_passed.fetch_add(1, Ordering::Relaxed);
    }

    /// Active checks that passed until now.
    pub fn checks_passed(&self) -> u32 {
        self.checks_passed.load(Ordering::Relaxed)
    }

    /// Lets so many requests come while it is on trial; not more than that, whatever was left.
    pub fn allow_trials(&self, requests: u32) {
        self.trials.store(requests, Ordering::Relaxed);
    }

    /// Whether a request may be given to it while it is on trial.
    pub fn has_trial(&self) -> bool {
        self.trials.load(Ordering::Relaxed) > 0
    }

    /// A request is given to it while it is on trial; `false` when another one was faster.
    pub fn take_trial(&self) -> bool {
        let take = |left: u32| left.checked_sub(1);
        self.trials.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Lets one rehearsal begin, or with `None` none.
    pub fn offer_rehearsal(&self, offer: Option<Offer>) {
        self.rehearsal.store(offer.map_or(0, Offer::pack), Ordering::Relaxed);
    }

    /// The rehearsal that may begin.
    pub fn offered_rehearsal(&self) -> Option<Offer> {
        Offer::unpack(self.rehearsal.load(Ordering::Relaxed))
    }

    /// A rehearsal begins; `None` when none may, or another core was faster.
    pub fn take_rehearsal(&self) -> Option<Offer> {
        Offer::unpack(self.rehearsal.swap(0, Ordering::Relaxed))
    }

    /// A rehearsal has ended: well after so long, or with `None` badly. One at a time.
    pub fn rehearsal_ended(&self, latency: Option<Duration>) {
        let millis = |latency: Duration| u32::try_from(latency.as_millis()).unwrap_or(u32::MAX - 1) + 1;
        let last = u64::from(latency.map_or(0, millis));
        let next = |rehearsed: u64| Some(((rehearsed >> 32).wrapping_add(1) << 32) | last);
        // Always stored, as `next` always gives a value.
        let _ = self.rehearsed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// How many rehearsals have ended until now, and how many milliseconds the last one took if it went well.
    pub fn rehearsed(&self) -> (u32, Option<u32>) {
        let rehearsed = self.rehearsed.load(Ordering::Relaxed);
        ((rehearsed >> 32) as u32, (rehearsed as u32).checked_sub(1))
    }

    fn answer(&self, latency: Duration) {
        self.answers.fetch_add((1 << SUM_BITS) + log_micros(latency), Ordering::Relaxed);
    }

    fn run(&self, next: impl Fn(Runs) -> Runs) {
        let step = |runs| Some(next(Runs::unpack(runs)).pack());
        // Always stored, as `step` always gives a value.
        let _ = self.runs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }
}

impl Seen {
    /// What was counted since the last call, or since the endpoint was made.
    pub fn advance(&mut self, tally: &Tally) -> Delta {
        let now = Self {
            // First, so that an attempt never seems to have ended before it began.
            answers: tally.answers.load(Ordering::Relaxed),
            unanswered: tally.unanswered.load(Ordering::Relaxed),
            server_errors: tally.server_errors.load(Ordering::Relaxed),
            no_answers: tally.no_answers.load(Ordering::Relaxed),
            broken_off: tally.broken_off.load(Ordering::Relaxed),
            stood_still: tally.stood_still.load(Ordering::Relaxed),
            started: tally.started.load(Ordering::Relaxed),
        };
        let answers = now.answers.wrapping_sub(self.answers);
        let delta = Delta {
            started: now.started.wrapping_sub(self.started),
            unanswered: now.unanswered.wrapping_sub(self.unanswered),
            // At most 2^20: it was the upper end of 64 bits.
            answers: (answers >> SUM_BITS) as u32,
            server_errors: now.server_errors.wrapping_sub(self.server_errors),
            no_answers: now.no_answers.wrapping_sub(self.no_answers),
            broken_off: now.broken_off.wrapping_sub(self.broken_off),
            stood_still: now.stood_still.wrapping_sub(self.stood_still),
            log_latency: answers & ((1 << SUM_BITS) - 1),
        };
        *self = now;
        delta
    }
}

impl Runs {
    fn pack(self) -> u64 {
        let capped = |run: u32| u64::from(run.min(RUN_MAX));
        capped(self.server_errors)
            | capped(self.gateway_errors) << RUN_BITS
            | capped(self.no_answers) << (2 * RUN_BITS)
    }

    fn unpack(packed: u64) -> Self {
        let part = |shift: u32| (packed >> shift) as u32 & RUN_MAX;
        Self { server_errors: part(0), gateway_errors: part(RUN_BITS), no_answers: part(2 * RUN_BITS) }
    }
}

/// The binary logarithm of a latency in microseconds, in 256ths; one microsecond or less is 0. Between powers of two
/// a straight line, at most 9 % off.
fn log_micros(latency: Duration) -> u64 {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
    let whole = u64::from(micros.ilog2());
    // The eight bits under the highest one.
    let fraction = if whole >= 8 { micros >> (whole - 8) } else { micros << (8 - whole) } & 0xff;
    whole << 8 | fraction
}

/// The latency in microseconds whose logarithm is `mean` 256ths; the other way of `log_micros`.
pub fn micros_of_log(mean: f64) -> f64 {
    let (whole, fraction) = ((mean / 256.0).floor(), (mean / 256.0).fract());
    whole.exp2() * (1.0 + fraction)
}

/// Of the number of answers between two looks: a million, where looks are at most some seconds apart.
const COUNT_BITS: u32 = 20;
/// Of the sum of their logarithms, each below 2^14: 2^30 of them.
const SUM_BITS: u32 = 64 - COUNT_BITS;
/// Of a row of failures.
const RUN_BITS: u32 = 21;
const RUN_MAX: u32 = (1 << RUN_BITS) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Verdict = Verdict::Answered(Duration::from_micros(1000));

    #[test]
    fn a_reader_sees_what_came_since_its_last_look() {
        let (tally, mut seen) = (Tally::default(), Seen::default());
        for verdict in [
            FAST,
            Verdict::ServerError(Duration::from_micros(4000)),
            Verdict::NoAnswer,
            Verdict::Nothing,
            FAST,
        ] {
            tally.begin();
            tally.ended(verdict);
        }
        tally.ended(Verdict::BrokeOff);
        let delta = seen.advance(&tally);
        assert_eq!((delta.started, delta.unanswered, delta.answers), (5, 2, 3));
        assert_eq!((delta.server_errors, delta.no_answers, delta.broken_off), (1, 1, 1));
        assert_eq!(seen.advance(&tally), Delta::default());
    }

    #[test]
    fn the_mean_of_logarithms_is_the_usual_latency_whatever_a_single_one_took() {
        let (tally, mut seen) = (Tally::default(), Seen::default());
        for _ in 0..19 {
            tally.ended(Verdict::Answered(Duration::from_millis(10)));
        }
        tally.ended(Verdict::Answered(Duration::from_secs(30)));
        let delta = seen.advance(&tally);
        let micros = micros_of_log(delta.log_latency as f64 / f64::from(delta.answers));
        assert!((10_000.0..20_000.0).contains(&micros), "{micros}");
    }

    #[test]
    fn a_row_ends_with_an_answer_of_another_kind() {
        let tally = Tally::default();
        let after = |verdict| {
            tally.ended(verdict);
            let runs = tally.runs();
            (runs.server_errors, runs.gateway_errors, runs.no_answers)
        };
        assert_eq!(after(Verdict::GatewayError(Duration::ZERO)), (1, 1, 0));
        assert_eq!(after(Verdict::NoAnswer), (1, 1, 1));
        assert_eq!(after(Verdict::ServerError(Duration::ZERO)), (2, 0, 0));
        assert_eq!(after(Verdict::Nothing), (2, 0, 0));
        assert_eq!(after(FAST), (0, 0, 0));
    }

    #[test]
    fn a_call_is_judged_by_its_status_at_the_end_and_not_by_its_head() {
        let tally = Tally::default();
        for _ in 0..3 {
            tally.ended(Verdict::Opened(Duration::ZERO));
            tally.ended(Verdict::Closed(CallEnd::GatewayError));
        }
        assert_eq!((tally.runs().gateway_errors, tally.runs().server_errors), (3, 3));
        tally.ended(Verdict::Opened(Duration::ZERO));
        assert_eq!(tally.runs().gateway_errors, 3);
        tally.ended(Verdict::Closed(CallEnd::Well));
        assert_eq!(tally.runs(), Runs::default());
    }

    #[test]
    fn a_rehearsal_is_given_once_and_what_it_came_to_is_counted() {
        let tally = Tally::default();
        assert_eq!((tally.take_rehearsal(), tally.rehearsed()), (None, (0, None)));
        for offer in [
            Offer { patience: 2_000, proof: Proof::Answer },
            Offer { patience: u32::MAX, proof: Proof::Connection },
        ] {
            tally.offer_rehearsal(Some(offer));
            assert_eq!(tally.offered_rehearsal(), Some(offer));
            assert_eq!((tally.take_rehearsal(), tally.take_rehearsal()), (Some(offer), None));
        }
        tally.rehearsal_ended(Some(Duration::ZERO));
        assert_eq!(tally.rehearsed(), (1, Some(0)));
        tally.rehearsal_ended(None);
        assert_eq!(tally.rehearsed(), (2, None));
    }

    #[test]
    fn statuses_of_grpc_that_are_the_callers_fault_say_nothing() {
        let of = |status: &'static str| {
            let value = http::HeaderValue::from_static(status);
            CallEnd::of(&Fields::from_iter([(http::HeaderName::from_static("grpc-status"), value)]))
        };
        assert_eq!(CallEnd::of(&Fields::new()), None);
        for (status, end) in [
            ("0", CallEnd::Well),
            ("5", CallEnd::Well),
            ("12", CallEnd::Well),
            ("2", CallEnd::ServerError),
            ("13", CallEnd::ServerError),
            ("4", CallEnd::GatewayError),
            ("14", CallEnd::GatewayError),
            ("what", CallEnd::ServerError),
        ] {
            assert_eq!(of(status), Some(end), "{status}");
        }
    }

    #[test]
    fn logarithms_go_there_and_back() {
        for micros in [1_u64, 2, 3, 100, 1_000, 4_095, 1_000_000, 60_000_000] {
            let back = micros_of_log(log_micros(Duration::from_micros(micros)) as f64);
            assert!((back / micros as f64 - 1.0).abs() < 0.01, "{micros}: {back}");
        }
    }
}
