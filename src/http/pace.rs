//! Bytes of one stream, no faster than a rate: a token bucket that counts in whole numbers, and the body that
//! waits for it.
//!
//! A millisecond at so many bytes a second brings as many thousandths of a byte, so nothing is ever rounded: in
//! no stretch of time pass more bytes than the burst and what the rate brings. Waits are short, however slow the
//! rate, so that nobody takes them for a stream that stands still.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::body::{Body, BodyError};
use super::h1::framing::{Length, Piece};
use crate::common::clock::{self, Millis};
use crate::common::timer::Slot;

/// Units of a byte.
const BYTE: u64 = 1000;

/// A stream that waits does so for what this time brings, rather than for each byte: 20 wake-ups a second.
const STEP: Millis = 50;

/// How fast, and how much at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ByteRate {
    per_second: NonZeroU64,
    burst: NonZeroU64,
}

impl ByteRate {
    /// The slowest, in bytes a second: below it a stream looks like one that stands still.
    pub const SLOWEST: u64 = 1024;
    /// The fastest, and the largest burst: a TiB.
    pub const MOST: u64 = 1 << 40;

    /// `per_second` bytes a second in the long run, and `burst` bytes at once. `None` when the rate is out of
    /// bounds, or the burst is: less than a tenth of a second's bytes would keep the rate from being reached.
    pub fn new(per_second: u64, burst: u64) -> Option<Self> {
        let within = (Self::SLOWEST..=Self::MOST).contains(&per_second);
        let within = within && (per_second.div_ceil(10)..=Self::MOST).contains(&burst);
        within.then_some(Self { per_second: NonZeroU64::new(per_second)?, burst: NonZeroU64::new(burst)? })
    }

    /// Bytes a second.
    pub fn per_second(&self) -> u64 {
        self.per_second.get()
    }

    /// Bytes at once.
    pub fn burst(&self) -> u64 {
        self.burst.get()
    }

    /// What a wait is for: no more than a bucket holds.
    fn step(&self) -> u64 {
        (self.per_second.get() * STEP / 1000).clamp(1, self.burst.get())
    }
}

/// The bucket of one stream. It begins full.
#[derive(Clone, Debug)]
pub struct ByteBucket {
    rate: ByteRate,
    /// Thousandths of a byte.
    level: u64,
    /// When it was that.
    at: Millis,
}

impl ByteBucket {
    /// A full bucket.
    pub fn new(rate: ByteRate, now: Millis) -> Self {
        Self { rate, level: rate.burst() * BYTE, at: now }
    }

    /// Bytes that may pass now. An earlier `now` than before brings nothing.
    pub fn available(&mut self, now: Millis) -> u64 {
        let brought = now.saturating_sub(self.at).saturating_mul(self.rate.per_second());
        self.level = self.level.saturating_add(brought).min(self.rate.burst() * BYTE);
        self.at = self.at.max(now);
        self.level / BYTE
    }

    /// Takes bytes that were available.
    pub fn take(&mut self, bytes: u64) {
        self.level = self.level.saturating_sub(bytes.saturating_mul(BYTE));
    }

    /// When so many bytes will be available, if nothing is taken meanwhile; at most a burst.
    pub fn ready_at(&self, bytes: u64) -> Millis {
        let wanted = bytes.min(self.rate.burst()) * BYTE;
        self.at + wanted.saturating_sub(self.level).div_ceil(self.rate.per_second())
    }
}

/// Figures for operators, of all streams together.
#[derive(Debug, Default)]
pub struct PaceCounts {
    /// Streams that had to wait.
    pub slowed: AtomicU64,
    /// Milliseconds that they waited.
    pub waited: AtomicU64,
}

/// What keeps one stream to its rate.
#[derive(Debug)]
pub struct Pace {
    bucket: ByteBucket,
    slot: Slot,
    /// The wait at hand: since when, until when.
    waits: Option<(Millis, Millis)>,
    waited: Millis,
    slowed: bool,
    counts: Arc<PaceCounts>,
}

impl Pace {
    /// Begins a stream, which wakes by `slot`.
    pub fn new(rate: ByteRate, slot: Slot, counts: Arc<PaceCounts>) -> Self {
        Self {
            bucket: ByteBucket::new(rate, clock::recent()),
            slot,
            waits: None,
            waited: 0,
            slowed: false,
            counts,
        }
    }

    /// How many of `wanted` bytes may pass, at least 1; wakes `cx` when there are some again.
    pub fn poll_allow(&mut self, cx: &mut Context<'_>, wanted: u64) -> Poll<u64> {
        loop {
            let now = match self.waits {
                None => clock::now(),
                Some((since, until)) => {
                    ready!(self.slot.poll_at(cx, until));
                    self.waits = None;
                    let now = clock::now();
                    self.waited += now.saturating_sub(since);
                    now
                }
            };
            let available = self.bucket.available(now);
            let step = wanted.min(self.bucket.rate.step());
            if available >= step {
                return Poll::Ready(available.min(wanted));
            }
            self.waits = Some((now, self.bucket.ready_at(step)));
            self.slowed = true;
        }
    }

    /// So many bytes have passed.
    pub fn spend(&mut self, bytes: u64) {
        self.bucket.take(bytes);
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        if self.slowed {
            self.counts.slowed.fetch_add(1, Ordering::Relaxed);
            self.counts.waited.fetch_add(self.waited, Ordering::Relaxed);
        }
    }
}

/// What one stream of bytes has to wait for: every limit of its chain. Nothing, mostly.
#[derive(Debug, Default)]
pub struct Paces(Vec<Pace>);

impl Paces {
    /// Adds a limit.
    pub fn push(&mut self, pace: Pace) {
        self.0.push(pace);
    }

    /// How many of `wanted` bytes all of them let pass, at least 1.
    pub fn allow(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        let mut allowed = wanted;
        for pace in &mut self.0 {
            let more = ready!(pace.poll_allow(cx, allowed as u64));
            allowed = usize::try_from(more).unwrap_or(usize::MAX);
        }
        Poll::Ready(allowed)
    }

    /// So many bytes have passed.
    pub fn spend(&mut self, bytes: u64) {
        for pace in &mut self.0 {
            pace.spend(bytes);
        }
    }
}

/// A body that passes no faster than a rate.
#[derive(Debug)]
pub struct Paced {
    inner: Body,
    length: Length,
    /// What has come and may not pass yet: part of one piece.
    held: Bytes,
    pace: Pace,
}

impl Paced {
    /// Holds `inner` to a rate.
    pub fn body(inner: Body, pace: Pace) -> Body {
        let length = inner.length();
        Body::Paced(Box::new(Self { inner, length, held: Bytes::new(), pace }))
    }

    /// How it was announced.
    pub fn length(&self) -> Length {
        self.length
    }

    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        if self.held.is_empty() {
            match ready!(self.inner.poll_piece(cx)) {
                Some(Ok(Piece::Data(data))) => self.held = data,
                // Trailer fields and the end are not counted.
                other => return Poll::Ready(other),
            }
        }
        let Poll::Ready(allowed) = self.pace.poll_allow(cx, self.held.len() as u64) else {
            self.inner.poll_background(cx);
            return Poll::Pending;
        };
        self.pace.spend(allowed);
        let most = usize::try_from(allowed).unwrap_or(usize::MAX).min(self.held.len());
        Poll::Ready(Some(Ok(Piece::Data(self.held.split_to(most)))))
    }

    /// See [`Body::poll_background`].
    pub fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.inner.poll_background(cx);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::common::timer::Timers;

    fn rate(per_second: u64, burst: u64) -> ByteRate {
        ByteRate::new(per_second, burst).expect("within bounds")
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_what_the_rate_brings_and_never_less(
            per_second in ByteRate::SLOWEST..1 << 34,
            tenths in 1_u64..40,
            steps in prop::collection::vec((0_u64..3_000, 0_u64..1 << 36), 1..60),
        ) {
            let burst = per_second.div_ceil(10) * tenths;
            let mut bucket = ByteBucket::new(rate(per_second, burst), 0);
            // What passed, and when: any window of it is looked at.
            let (mut now, mut passed) = (0, Vec::new());
            for (pause, wanted) in steps {
                now += pause;
                let allowed = bucket.available(now).min(wanted);
                bucket.take(allowed);
                passed.push((now, allowed));
                for from in 0..passed.len() {
                    let sum: u64 = passed[from..].iter().map(|(_, bytes)| bytes).sum();
                    let most = burst + ((now - passed[from].0) * per_second).div_ceil(1000);
                    prop_assert!(sum <= most, "{sum} of {most}");
                }
                if allowed < wanted {
                    // What is refused is there when it is said to be.
                    let one = bucket.ready_at(1);
                    prop_assert!(bucket.clone().available(one) >= 1);
                    prop_assert!(one <= now || bucket.clone().available(one - 1) < 1);
                }
            }
        }
    }

    #[test]
    fn a_clock_that_goes_back_brings_nothing() {
        let mut bucket = ByteBucket::new(rate(10_000, 1_000), 100);
        let all = bucket.available(100);
        bucket.take(all);
        assert_eq!(bucket.available(50), 0);
        assert_eq!(bucket.available(100), 0);
        assert_eq!(bucket.available(101), 10);
    }

    #[test]
    fn rates_that_cannot_be_kept_are_none() {
        for (per_second, burst) in
            [(0, 1), (1023, 1023), (10_000, 999), (ByteRate::MOST + 1, ByteRate::MOST), (1024, u64::MAX)]
        {
            assert_eq!(ByteRate::new(per_second, burst), None, "{per_second} {burst}");
        }
        assert!(ByteRate::new(ByteRate::SLOWEST, 103).is_some());
        assert!(ByteRate::new(ByteRate::MOST, ByteRate::MOST).is_some());
    }

    #[test]
    fn a_body_passes_its_burst_at_once_and_then_waits() {
        let timers = Timers::new();
        let counts = Arc::new(PaceCounts::default());
        let pace = Pace::new(rate(10_000, 1_000), timers.slot(), Arc::clone(&counts));
        let mut body = Paced::body(Body::after(Bytes::from(vec![1; 1_500]), Body::full("end")), pace);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(Some(Ok(Piece::Data(first)))) = body.poll_piece(&mut cx) else { panic!("data") };
        assert!((1_000..1_500).contains(&first.len()), "{}", first.len());
        assert!(body.poll_piece(&mut cx).is_pending());
        drop(body);
        assert_eq!(counts.slowed.load(Ordering::Relaxed), 1);
    }
}
