//! Cost of one limiter decision, beside governor's: time and allocations, on one thread and on two.
//!
//! `cargo bench --bench limit`. One item is one decision over 10,000 keys in turn.

use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use sluicegate::limit::{DEFAULT_MAX_KEYS, LimitKey, Part, Quota, Store};

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

fn quota(average: u64) -> Quota {
    Quota::new(NonZeroU64::new(average).expect("not zero"), Duration::from_secs(1), NonZeroU64::MIN)
}

fn all_keys(store: &Store, quota: &Quota, now: u64) {
    for number in 0..KEYS {
        let key = LimitKey::of(&[Part::Addr(addr(number))]);
        black_box(store.admit(key, quota, 1, DEFAULT_MAX_KEYS, now));
    }
}

/// Known keys, each with a token.
#[divan::bench(threads = [1, 2])]
fn admitted(bencher: Bencher<'_, '_>) {
    let (store, quota) = (Store::new(), quota(u64::MAX / 2));
    all_keys(&store, &quota, 0);
    bencher.counter(ItemsCount::new(KEYS)).bench(|| all_keys(&store, &quota, 1));
}

/// Known keys, none with a token.
#[divan::bench(threads = [1, 2])]
fn refused(bencher: Bencher<'_, '_>) {
    let (store, quota) = (Store::new(), quota(1));
    all_keys(&store, &quota, 0);
    bencher.counter(ItemsCount::new(KEYS)).bench(|| all_keys(&store, &quota, 1));
}

/// One key that everybody wants.
#[divan::bench(threads = [1, 2])]
fn one_key(bencher: Bencher<'_, '_>) {
    let (store, quota) = (Store::new(), quota(u64::MAX / 2));
    bencher.counter(ItemsCount::new(KEYS)).bench(|| {
        for _ in 0..KEYS {
            let key = LimitKey::of(&[Part::Addr(black_box(addr(1)))]);
            black_box(store.admit(key, &quota, 1, DEFAULT_MAX_KEYS, 1));
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
