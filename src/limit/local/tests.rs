//! Stores beside a model that keeps every admitted request and counts every window anew.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limit::{Part, Window};

const SECOND: Nanos = 1_000_000_000;

fn quota(average: u64, period: Nanos, burst: u64) -> Quota {
    let not_zero = |number| NonZeroU64::new(number).expect("not zero");
    Quota::new(not_zero(average), Duration::from_nanos(period), not_zero(burst)).without_delay()
}

fn limit(quotas: &[Quota]) -> Arc<Limit> {
    Arc::new(Limit::new(quotas.iter().map(|quota| Window { name: "w".into(), quota: *quota })))
}

fn buckets(number: usize) -> Bound {
    Bound::buckets(NonZeroUsize::new(number).expect("not zero"))
}

fn local(quotas: &[Quota], number: usize) -> LocalLimit {
    let bound = buckets(number);
    LocalLimit::new(Arc::new(Store::new(bound)), limit(quotas), bound, 0).expect("few quotas")
}

/// The same store under other quotas, as after a reload.
fn again(before: &LocalLimit, quotas: &[Quota], bound: Bound) -> LocalLimit {
    before.store().begin_generation(before.generation + 1);
    LocalLimit::new(Arc::clone(before.store()), limit(quotas), bound, 0).expect("few quotas")
}

fn key(number: u64) -> LimitKey {
    LimitKey::of(&[Part::Bytes(&number.to_le_bytes())])
}

fn admits(local: &LocalLimit, number: u64, now: Nanos) -> bool {
    local.decide(now, key(number), 1).allowed
}

#[test]
fn keys_have_their_own_buckets() {
    let local = local(&[quota(1, SECOND, 2)], 1_000);
    for number in 0..100 {
        assert!(admits(&local, number, 0));
        assert!(admits(&local, number, 0));
        assert!(!admits(&local, number, 0));
    }
    let counts = local.store().counts();
    assert_eq!((counts.admitted, counts.refused, counts.buckets), (200, 100, 100));
}

#[test]
fn a_million_keys_stay_within_the_bound_and_each_first_request_passes() {
    let local = local(&[quota(1, SECOND, 2)], 1_024);
    for number in 0..1_000_000 {
        assert!(admits(&local, number, number), "{number}");
    }
    let counts = local.store().counts();
    let rounding = (shard_count() * SET_BYTES) as u64;
    assert!(counts.bytes <= buckets(1_024).to_bytes() as u64 + rounding, "{counts:?}");
    assert!(counts.bytes <= 1_024 * BYTES_PER_BUCKET as u64 + 2 * rounding, "{counts:?}");
    assert!(counts.evicted > 900_000, "{counts:?}");
}

#[test]
fn as_many_keys_as_it_is_made_for_fit_without_a_loss_that_counts() {
    for number in [1_000, 65_536, 200_000] {
        let local = local(&[quota(1, 1_000 * SECOND, 1)], number);
        for key in 0..number as u64 {
            assert!(admits(&local, key, 0));
        }
        let counts = local.store().counts();
        assert!(counts.evicted * 50 < number as u64, "{number}: {counts:?}");
        let kept = (0..number as u64).filter(|key| !admits(&local, *key, 1)).count();
        assert!(kept * 100 >= number * 98, "{kept} of {number}");
    }
}

#[test]
fn a_client_cannot_wash_its_debt_away_with_new_keys() {
    let local = local(&[quota(1, SECOND, 5)], 1_024);
    let culprit = u64::MAX;
    while admits(&local, culprit, 0) {}
    for number in 0..3_000 {
        admits(&local, number, 0);
    }
    assert!(local.store().counts().evicted > 1_500);
    assert!(!admits(&local, culprit, 0));
}

#[test]
fn whoever_was_pushed_out_by_deeper_debts_gains_one_request_and_no_burst() {
    let local = local(&[quota(1, SECOND, 5)], 1_024);
    let culprit = u64::MAX;
    while admits(&local, culprit, 0) {}
    // Later and just as deep in debt, so theirs is paid later: the culprit goes first.
    for number in 0..20_000 {
        while admits(&local, number, 1) {}
    }
    let gained = (0..10).filter(|_| admits(&local, culprit, 1)).count();
    assert_eq!(gained, 1);
}

#[test]
fn keys_without_end_get_no_more_than_the_places_and_the_rate_and_one_request_each() {
    let local = local(&[quota(1, 3_600 * SECOND, 10)], 256);
    // Each new key asks for its whole burst: once all places are in debt, it gets one request.
    let admitted: u64 =
        (0..20_000).map(|number| (0..10).filter(|_| admits(&local, number, 0)).count() as u64).sum();
    let places = local.store().counts().buckets;
    assert!(admitted <= 20_000 + 10 * places, "{admitted}, {places} places");
}

#[test]
fn buckets_that_are_full_again_make_room_without_being_missed() {
    let local = local(&[quota(1, SECOND, 5)], 1_024);
    for round in 0..50 {
        for number in 0..500 {
            assert!(admits(&local, round * 1_000 + number, 2 * SECOND * round));
        }
    }
    let counts = local.store().counts();
    assert_eq!(counts.evicted, 0);
    assert!(counts.buckets <= 1_500, "{counts:?}");
}

#[test]
fn a_lowered_bound_is_reached_by_and_by() {
    let quotas = [quota(1, SECOND, 5)];
    let before = local(&quotas, 8_192);
    for number in 0..4_096 {
        admits(&before, number, 0);
    }
    let after = again(&before, &quotas, buckets(256));
    for number in 4_096..12_000 {
        admits(&after, number, 0);
    }
    let most = buckets(256).to_bytes() + shard_count() * SET_BYTES;
    assert!(after.store().counts().bytes <= most as u64, "{:?}", after.store().counts());
}

#[test]
fn a_request_that_never_fits_leaves_no_bucket_and_is_told_so() {
    let local = local(&[quota(1, SECOND, 5)], 10);
    let decision = local.decide(0, key(1), 6);
    assert_eq!((decision.allowed, decision.wait, decision.remaining), (false, Decision::NEVER, 5));
    assert_eq!(local.store().counts().buckets, 0);
}

#[test]
fn a_cost_of_nothing_looks_and_takes_nothing() {
    let local = local(&[quota(1, SECOND, 1)], 10);
    assert!(local.decide(0, key(1), 0).allowed);
    assert_eq!(local.store().counts().buckets, 0);
    assert!(admits(&local, 1, 0));
    assert!(local.decide(0, key(1), 0).allowed, "it asks for nothing");
}

#[test]
fn the_tightest_window_decides_and_a_refusal_by_one_costs_none_of_the_others() {
    let local = local(&[quota(2, SECOND, 2), quota(5, 3_600 * SECOND, 5)], 100);
    let decisions: Vec<_> = (0..3).map(|_| local.decide(0, key(1), 1)).collect();
    assert_eq!(decisions[1], Decision { allowed: true, wait: 0, remaining: 0, reset: SECOND, window: 0 });
    assert_eq!((decisions[2].allowed, decisions[2].window, decisions[2].wait), (false, 0, SECOND / 2));
    // The three of the day that are left, at their pace.
    for second in 1..=3 {
        let decision = local.decide(10 * second * SECOND, key(1), 1);
        assert!(decision.allowed, "{second}");
    }
    let refused = local.decide(50 * SECOND, key(1), 1);
    assert_eq!((refused.allowed, refused.window), (false, 1));
    assert_eq!(refused.wait, (720 - 50) * SECOND);
    assert_eq!(refused.remaining, 0);
}

#[test]
fn what_is_given_back_can_be_had_again() {
    let local = local(&[quota(1, SECOND, 2), quota(10, 3_600 * SECOND, 3)], 100);
    let receipts: Vec<_> = (0..2).map(|_| local.take(0, key(1), 1)).collect();
    assert!(receipts.iter().all(|(decision, _)| decision.allowed));
    assert!(!admits(&local, 1, 0));
    local.give_back(0, key(1), &receipts[0].1);
    assert!(admits(&local, 1, 0));
    assert!(!admits(&local, 1, 0));
}

#[test]
fn spent_tokens_stay_spent_under_another_limit() {
    let before = local(&[quota(1, SECOND, 10)], 100);
    for _ in 0..4 {
        assert!(admits(&before, 1, 0));
    }
    let after = again(&before, &[quota(7, 60 * SECOND, 20)], buckets(100));
    assert_eq!((0..100).filter(|_| admits(&after, 1, 0)).count(), 16);
    // Requests that still hold the old snapshot count along.
    assert!(!admits(&before, 1, 0));
}

#[test]
fn numbers_of_quotas_are_used_again_and_no_debt_is_forgiven() {
    let first = local(&[quota(1, 3_600 * SECOND, 1_000)], 100);
    for _ in 0..999 {
        assert!(admits(&first, 1, 0));
    }
    let store = Arc::clone(first.store());
    drop(first);
    for round in 0..1_000 {
        let bound = buckets(100);
        let next = LocalLimit::new(
            Arc::clone(&store),
            limit(&[quota(1, (3_600 + round) * SECOND, 1_000)]),
            bound,
            0,
        );
        let next = next.expect("one in use at a time");
        if round == 999 {
            assert!(admits(&next, 1, 0));
            assert!(!admits(&next, 1, 0));
        }
    }
}

#[test]
fn more_quotas_at_once_than_a_store_can_tell_apart_are_refused() {
    let bound = buckets(100);
    let store = Arc::new(Store::new(bound));
    let limits: Vec<_> = (1..=300)
        .map_while(|average| {
            LocalLimit::new(Arc::clone(&store), limit(&[quota(average, SECOND, 1)]), bound, 0)
        })
        .collect();
    assert_eq!(limits.len(), MAX_QUOTAS);
    drop(limits);
    assert!(LocalLimit::new(store, limit(&[quota(999, SECOND, 1)]), bound, 0).is_some());
}

#[test]
fn threads_together_get_the_burst_and_what_time_brings() {
    const REQUESTS: u64 = 50_000;
    let local = local(&[quota(1_000_000, SECOND, 100)], 1_024);
    let (clock, admitted) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..REQUESTS {
                    // A token takes 1,000 ns: ten times as many ask as may pass.
                    let now = clock.fetch_add(100, Ordering::Relaxed);
                    if admits(&local, 7, now) {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (admitted, time) = (admitted.into_inner(), clock.into_inner());
    let most = 100 + time / 1_000;
    assert!(admitted <= most, "{admitted} of at most {most}");
    // Clocks that were read early and used late may cost a token here and there, not more.
    assert!(admitted + 4 >= most - 1, "{admitted} of {most}: somebody below the limit was refused");
    let counts = local.store().counts();
    assert_eq!((counts.admitted, counts.admitted + counts.refused), (admitted, 4 * REQUESTS));
}

#[test]
fn cores_that_change_over_one_after_the_other_forgive_a_debt_once() {
    let old = local(&[quota(1, SECOND, 50)], 100);
    let new = again(&old, &[quota(1, SECOND, 20)], buckets(100));
    // A core that has not heard of the new limit yet, and one that has, in turns.
    let turns = (0..1_000).map(|turn| if turn % 2 == 0 { &old } else { &new });
    assert!(turns.filter(|local| admits(local, 1, 0)).count() <= 50);
    // Back to what was: the limit of now decides, whatever the numbers were before.
    let back = again(&new, &[quota(1, SECOND, 50)], buckets(100));
    assert!(!admits(&new, 1, 0));
    assert_eq!((0..100).filter(|_| admits(&back, 1, 0)).count(), 30);
    assert!(!admits(&new, 1, 0), "and those that are behind follow it");
}

#[test]
fn threads_that_reload_in_the_middle_never_give_more_than_the_larger_limit() {
    const REQUESTS: u64 = 20_000;
    let quotas = [quota(1_000_000, SECOND, 50), quota(300_000, SECOND, 20)];
    let first = local(&quotas[..1], 1_024);
    let older = again(&first, &quotas[..1], buckets(512));
    let newer = again(&older, &quotas[1..], buckets(2_048));
    let limits = [older, newer];
    let (clock, admitted) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for request in 0..REQUESTS {
                    let now = clock.fetch_add(100, Ordering::Relaxed);
                    // Cores change over one after the other, to and fro.
                    if admits(&limits[(request / 1_000) as usize % 2], 7, now) {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (admitted, time) = (admitted.into_inner(), clock.into_inner());
    assert!(admitted <= 50 + time / 1_000, "{admitted} in {time}");
    assert!(admitted > 0);
}

/// What happens next to a store.
#[derive(Clone, Debug)]
enum Step {
    /// A request of this key, after a gap in hundredths of a token's time; the clock may step back.
    Ask { key: u64, gap: u64, back: u64, cost: u64 },
    /// The request of this turn, of those that are not answered yet, turns out not to count.
    GiveBack(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gap = prop_oneof![4 => Just(0), 3 => 0..100_u64, 2 => 0..300_u64, 1 => 0..5_000_u64];
    let back = prop_oneof![9 => Just(0), 1 => 0..500_u64];
    let ask = (0..4_u64, gap, back, prop_oneof![8 => Just(1), 1 => 0..5_u64])
        .prop_map(|(key, gap, back, cost)| Step::Ask { key, gap, back, cost });
    prop::collection::vec(prop_oneof![9 => ask, 1 => (0..8_usize).prop_map(Step::GiveBack)], 1..150)
}

fn quotas() -> impl Strategy<Value = (u64, u64, u64)> {
    let average = prop_oneof![1..20_u64, 1..5_000_000_u64];
    let period = prop_oneof![Just(SECOND), Just(60 * SECOND), 1..100_000_u64, 1..86_400 * SECOND];
    (average, period, 1..20_u64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The model: whole numbers, every admitted request by its time, every window counted anew.
    #[test]
    fn decisions_are_those_of_a_model_that_counts_every_window(
        (a1, p1, b1) in quotas(), (a2, p2, b2) in quotas(), steps in steps(),
    ) {
        let local = local(&[quota(a1, p1, b1), quota(a2, p2, b2)], 1_000);
        let windows = [(i128::from(a1), i128::from(p1), i128::from(b1)), (i128::from(a2), i128::from(p2), i128::from(b2))];
        let mut admitted = BTreeMap::<u64, Vec<(i128, i128)>>::new();
        let mut latest = 0_u64;
        for step in steps {
            // Nothing is given back in this one: the model would have to know what time brought back.
            let Step::Ask { key: number, gap, back, cost } = step else { continue };
            let token = p1 / a1;
            latest = latest.saturating_add(u64::try_from(u128::from(token) * u128::from(gap) / 100).expect("short"));
            let now = latest.saturating_sub(u64::try_from(u128::from(token) * u128::from(back) / 100).expect("short"));
            let past = admitted.entry(number).or_default();
            let now = now.min(latest);
            let lacking = windows.map(|(a, p, b)| {
                // In the order in which they came, whatever their clocks said: each stretch that ends now owes
                // what it was admitted, less what time has brought since its start.
                let mut owed = 0_i128;
                let mut sum = 0_i128;
                for (at, cost) in past.iter().rev() {
                    sum += cost * p;
                    owed = owed.max(sum - a * (i128::from(now) - at));
                }
                owed.max(0) + i128::from(cost) * p - b * p
            });
            let decision = local.decide(now, key(number), cost);
            let fits = i128::from(cost) <= windows[0].2 && i128::from(cost) <= windows[1].2;
            prop_assert_eq!(decision.allowed, fits && lacking.iter().all(|lacking| *lacking <= 0), "at {}", now);
            if decision.allowed {
                // A cost of nothing leaves no trace.
                if cost > 0 {
                    past.push((i128::from(now), i128::from(cost)));
                }
            } else if fits {
                let wait = i128::from(decision.wait);
                let needed = windows.iter().zip(lacking).map(|((a, _, _), lacking)| (lacking + a - 1).div_euclid(*a));
                prop_assert_eq!(Some(wait), needed.max(), "at {}", now);
            }
        }
    }

    /// With receipts given back at any time, those that were kept obey every window.
    #[test]
    fn what_counts_in_the_end_is_never_more_than_burst_and_rate(
        (a, p, b) in quotas(), steps in steps(),
    ) {
        let local = local(&[quota(a, p, b)], 1_000);
        let mut kept = BTreeMap::<u64, Vec<(u64, u64)>>::new();
        let mut open: Vec<(u64, u64, u64, Taken)> = Vec::new();
        let mut now = 0_u64;
        for step in steps {
            match step {
                Step::Ask { key: number, gap, cost, .. } => {
                    let gap = u128::from(p / a) * u128::from(gap) / 100;
                    now = now.saturating_add(u64::try_from(gap).expect("short"));
                    let (decision, taken) = local.take(now, key(number), cost);
                    if decision.allowed {
                        open.push((number, now, cost, taken));
                    }
                }
                Step::GiveBack(index) if !open.is_empty() => {
                    let (number, _, _, taken) = open.swap_remove(index % open.len());
                    local.give_back(now, key(number), &taken);
                }
                Step::GiveBack(_) => {}
            }
        }
        for (number, at, cost, _) in open {
            kept.entry(number).or_default().push((at, cost));
        }
        for requests in kept.values_mut() {
            requests.sort_unstable();
            for (first, (start, _)) in requests.iter().enumerate() {
                let mut sum = 0;
                for (end, cost) in &requests[first..] {
                    sum += i128::from(*cost) * i128::from(p);
                    let most = i128::from(b) * i128::from(p) + i128::from(a) * i128::from(end - start);
                    prop_assert!(sum <= most, "between {} and {}", start, end);
                }
            }
        }
    }
}
