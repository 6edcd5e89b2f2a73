//! Cost of one limiter decision, beside governor's: time and allocations, on one thread and on two.
//!
//! `cargo bench --bench limit`. One item is one decision over 10,000 keys in turn.

use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use sluicegate::limit::{Bound, DEFAULT_MAX_KEYS, Limit, LimitKey, LocalLimit, Part, Quota, Store, Window};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

const KEYS: u32 = 10_000;

fn main() {
    divan::main();
}

fn addr(number: u32) -> IpAddr {
    // Spread over the whole address space, in an order that no cache foresees.
    Ipv4Addr::from(number.wrapping_mul(2_654_435_761)).into()
}

fn limit(average: u64, windows: usize, keys: NonZeroUsize) -> LocalLimit {
    let average = NonZeroU64::new(average).expect("not zero");
    let quota = Quota::new(average, Duration::from_secs(1), NonZeroU64::MIN);
    let windows = (0..windows).map(|_| Window { name: "w".into(), quota });
    let bound = Bound::buckets(keys);
    LocalLimit::new(Arc::new(Store::new(bound)), Arc::new(Limit::new(windows)), bound, 0).expect("few quotas")
}

fn all_keys(limit: &LocalLimit, now: u64) {
    for number in 0..KEYS {
        let key = LimitKey::of(&[Part::Addr(addr(number))]);
        black_box(limit.decide(now, key, 1));
    }
}

/// Known keys, each with a token.
#[divan::bench(threads = [1, 2])]
fn admitted(bencher: Bencher<'_, '_>) {
    let limit = limit(u64::MAX / 2, 1, DEFAULT_MAX_KEYS);
    all_keys(&limit, 0);
    bencher.counter(ItemsCount::new(KEYS)).bench(|| all_keys(&limit, 1));
}

/// The same under two windows.
#[divan::bench(threads = [1, 2])]
fn two_windows(bencher: Bencher<'_, '_>) {
    let limit = limit(u64::MAX / 2, 2, DEFAULT_MAX_KEYS);
    all_keys(&limit, 0);
    bencher.counter(ItemsCount::new(KEYS)).bench(|| all_keys(&limit, 1));
}

/// Known keys, none with a token.
#[divan::bench(threads = [1, 2])]
fn refused(bencher: Bencher<'_, '_>) {
    let limit = limit(1, 1, DEFAULT_MAX_KEYS);
    all_keys(&limit, 0);
    bencher.counter(ItemsCount::new(KEYS)).bench(|| all_keys(&limit, 1));
}

/// One key that everybody wants.
#[divan::bench(threads = [1, 2])]
fn one_key(bencher: Bencher<'_, '_>) {
    let limit = limit(u64::MAX / 2, 1, DEFAULT_MAX_KEYS);
    bencher.counter(ItemsCount::new(KEYS)).bench(|| {
        for _ in 0..KEYS {
            let key = LimitKey::of(&[Part::Addr(black_box(addr(1)))]);
            black_box(limit.decide(1, key, 1));
        }
    });
}

/// Known keys among a million, so that each look-up leaves the caches.
#[divan::bench(sample_count = 20)]
fn among_a_million(bencher: Bencher<'_, '_>) {
    let limit = limit(u64::MAX / 2, 1, NonZeroUsize::new(1_000_000).expect("not zero"));
    for number in 0..1_000_000 {
        limit.decide(0, LimitKey::of(&[Part::Addr(addr(number))]), 1);
    }
    let mut next = 0_u32;
    bencher.counter(ItemsCount::new(KEYS)).bench_local(|| {
        for _ in 0..KEYS {
            next = next.wrapping_add(7919) % 1_000_000;
            black_box(limit.decide(1, LimitKey::of(&[Part::Addr(addr(next))]), 1));
        }
    });
}

/// New keys in a table whose every place is in debt: each pushes one out.
#[divan::bench]
fn evicting(bencher: Bencher<'_, '_>) {
    let limit = limit(1, 1, NonZeroUsize::new(8_192).expect("not zero"));
    let mut next = 0_u32;
    bencher.counter(ItemsCount::new(KEYS)).bench_local(|| {
        for _ in 0..KEYS {
            next = next.wrapping_add(1);
            black_box(limit.decide(0, LimitKey::of(&[Part::Addr(addr(next))]), 1));
        }
    });
}

/// The key alone.
#[divan::bench]
fn key(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(KEYS)).bench(|| {
        for number in 0..KEYS {
            black_box(LimitKey::of(&[Part::Addr(addr(number))]));
        }
    });
}

/// governor over the same keys, which reads its clock itself.
#[divan::bench(threads = [1, 2])]
fn governor_admitted(bencher: Bencher<'_, '_>) {
    let quota = governor::Quota::per_second(NonZeroU32::MAX).allow_burst(NonZeroU32::MAX);
    let limiter = governor::RateLimiter::hashmap(quota);
    let all = || {
        for number in 0..KEYS {
            black_box(limiter.check_key(&addr(number)).is_ok());
        }
    };
    all();
    bencher.counter(ItemsCount::new(KEYS)).bench(all);
}
