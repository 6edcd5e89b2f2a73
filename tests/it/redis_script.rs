//! The script that Redis runs, against the arithmetic of memory mode and with its own clock.

use std::cell::{Cell, RefCell};
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sluicegate::limit::redis::{Answer, By, CODE, Kind, Question, Shape, Terms, call, read};
use sluicegate::limit::{Bound, Limit, LimitKey, LocalLimit, Part, Quota, Store, Window};

use crate::harness::RedisServer;

const MICRO: u64 = 1_000;

/// The script with a clock that the test sets: the same but for two lines. Keys live by the real clock, and an hour
/// longer, however slow the machine is.
fn clocked(micros: u64) -> String {
    let (line, life) = ("local clock = redis.call('TIME')", "/ 1000) + 1000");
    assert!(CODE.contains(line) && CODE.contains(life));
    CODE.replace(line, &format!("local clock = {{ {}, {} }}", micros / 1_000_000, micros % 1_000_000))
        .replace(life, "/ 1000) + 3600000")
}

fn ask(connection: &mut redis::Connection, code: &str, questions: &[Question]) -> Vec<Answer> {
    let value: redis::Value = call(By::Code(code), questions.iter()).query(connection).expect("an answer");
    let (_, answers) = read(&value, questions.iter()).expect("the script's own answer");
    answers
}

fn limit(windows: &[(u64, u64, u64)]) -> Arc<Limit> {
    let not_zero = |number| NonZeroU64::new(number).expect("not zero");
    Arc::new(Limit::new(windows.iter().enumerate().map(|(index, (average, micros, burst))| Window {
        name: index.to_string().into(),
        quota: Quota::new(not_zero(*average), Duration::from_micros(*micros), not_zero(*burst)),
    })))
}

fn question(limit: &Limit, name: &str, cost: u64) -> Question {
    let shape = Arc::new(Shape::new("test", name, limit));
    Question { shape, digest: [7; 16], cost, kind: Kind::Ask, pause: 0 }
}

/// Numbers around those people write, in whole microseconds as Redis counts.
fn windows() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    let average = prop_oneof![1..20_u64, 1..5_000_000_u64];
    let period = prop_oneof![Just(1_000_000_u64), Just(60_000_000), 1..100_000_u64, 1..86_400_000_000_u64];
    prop::collection::vec((average, period, 1..20_u64), 1..4)
}

fn steps() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let gap = prop_oneof![3 => Just(0_u64), 3 => 0..100_u64, 2 => 0..300_u64, 1 => 0..5_000_u64];
    prop::collection::vec((gap, prop_oneof![4 => Just(1_u64), 1 => 1..4_u64]), 1..60)
}

/// The same limit in memory.
fn in_memory(limit: &Arc<Limit>) -> LocalLimit {
    let bound = Bound::buckets(NonZeroUsize::new(100).expect("not zero"));
    LocalLimit::new(Arc::new(Store::new(bound)), Arc::clone(limit), bound, 0).expect("few quotas")
}

/// So many hundredths of the time that a token of the first window takes; microseconds.
fn hundredths(windows: &[(u64, u64, u64)], gap: u64) -> u64 {
    let (average, period, _) = windows[0];
    u64::try_from(u128::from(period) * u128::from(gap) / (100 * u128::from(average))).expect("short")
}

#[test]
fn redis_decides_exactly_as_memory_does() {
    let server = RedisServer::start();
    let connection = RefCell::new(server.connect());
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    let run = Cell::new(0);
    let key = LimitKey::of(&[Part::Bytes(b"a")]);
    let result = runner.run(&(windows(), steps()), |(windows, steps)| {
        run.set(run.get() + 1);
        let limit = limit(&windows);
        let memory = in_memory(&limit);
        let mut now = 1_000_000_000_000_u64;
        for (gap, cost) in steps {
            now += hundredths(&windows, gap);
            if limit.never(cost).is_some() {
                continue;
            }
            let ours = memory.decide(now * MICRO, key, cost);
            let theirs = &ask(
                &mut connection.borrow_mut(),
                &clocked(now),
                &[question(&limit, &run.get().to_string(), cost)],
            )[0];
            prop_assert_eq!(theirs.taken, ours.allowed, "at {} for {}", now, cost);
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// What is given back in between: which of what was taken, if any.
fn steps_to_and_fro() -> impl Strategy<Value = Vec<(u64, u64, Option<usize>)>> {
    let gap = prop_oneof![3 => Just(0_u64), 3 => 0..100_u64, 1 => 0..300_u64];
    let back = prop_oneof![Just(None), (0..100_usize).prop_map(Some)];
    prop::collection::vec((gap, 1..4_u64, back), 1..60)
}

#[test]
fn what_is_given_back_is_given_back_exactly_as_in_memory() {
    let server = RedisServer::start();
    let connection = RefCell::new(server.connect());
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    let run = Cell::new(0);
    let key = LimitKey::of(&[Part::Bytes(b"a")]);
    let result = runner.run(&(windows(), steps_to_and_fro()), |(windows, steps)| {
        run.set(run.get() + 1);
        let limit = limit(&windows);
        let memory = in_memory(&limit);
        let mut now = 1_000_000_000_000_u64;
        let mut taken = Vec::new();
        let one = |now: u64, question: Question| {
            ask(&mut connection.borrow_mut(), &clocked(now), &[question]).remove(0)
        };
        for (gap, cost, back) in steps {
            now += hundredths(&windows, gap);
            let mut question = question(&limit, &run.get().to_string(), cost);
            match back {
                Some(which) if !taken.is_empty() => {
                    let which = which % taken.len();
                    let (receipt, cost, since, spent) = taken.swap_remove(which);
                    memory.give_back(now * MICRO, key, &receipt);
                    question.cost = cost;
                    question.kind = Kind::Back { since, spent };
                    one(now, question);
                }
                _ if limit.never(cost).is_some() => {}
                _ => {
                    let (ours, receipt) = memory.take(now * MICRO, key, cost);
                    let theirs = one(now, question);
                    prop_assert_eq!(theirs.taken, ours.allowed, "at {} for {}", now, cost);
                    if theirs.taken {
                        taken.push((receipt, cost, now, theirs.spent));
                    }
                }
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_refusal_by_one_window_takes_nothing_from_the_others() {
    let server = RedisServer::start();
    let mut connection = server.connect();
    let limit = limit(&[(1, 1_000_000, 5), (1, 60_000_000, 1)]);
    let question = question(&limit, "m", 1);

    let answers = ask(&mut connection, CODE, &[question.clone(), question.clone(), question]);

    let taken: Vec<_> = answers.iter().map(|answer| answer.taken).collect();
    assert_eq!(taken, [true, false, false]);
    let token = Terms::of(&limit.windows()[0].quota);
    assert_eq!(answers[2].spent[0], answers[0].spent[0], "{token:?}");
}

#[test]
fn keys_live_until_their_bucket_is_full_again() {
    let server = RedisServer::start();
    let mut connection = server.connect();
    let limit = limit(&[(1, 60_000_000, 10)]);
    ask(&mut connection, CODE, &[question(&limit, "m", 3)]);

    let keys = server.keys();
    assert_eq!(keys, [format!("test:m:{{{}}}:0", "07".repeat(16))]);
    let life: u64 = redis::cmd("PTTL").arg(&keys[0]).query(&mut connection).expect("a number");
    assert!((170_000..=181_000).contains(&life), "{life} ms for three tokens of a minute");
}

#[test]
fn what_is_given_away_already_is_counted_beyond_the_bucket_and_paid_back() {
    let server = RedisServer::start();
    let mut connection = server.connect();
    let limit = limit(&[(1, 1_000_000, 2)]);
    let mut owed = question(&limit, "m", 5);
    owed.kind = Kind::Owed;
    assert!(ask(&mut connection, &clocked(1_000_000), &[owed])[0].taken);

    let one = [question(&limit, "m", 1)];
    assert!(!ask(&mut connection, &clocked(1_000_000), &one)[0].taken);
    assert!(!ask(&mut connection, &clocked(4_400_000), &one)[0].taken, "3 tokens too many, and one to take");
    assert!(ask(&mut connection, &clocked(5_000_000), &one)[0].taken);
}

#[test]
fn a_changed_limit_converts_what_is_there() {
    let server = RedisServer::start();
    let mut connection = server.connect();
    let now = clocked(1_000_000);
    let ten = limit(&[(1, 1_000_000, 10)]);
    assert!(ask(&mut connection, &now, &[question(&ten, "m", 4)])[0].taken);
    let mut left = |limit: &Limit, most: u64| {
        let one = question(limit, "m", 1);
        (0..most).take_while(|_| ask(&mut connection, &now, std::slice::from_ref(&one))[0].taken).count()
    };

    assert_eq!(left(&limit(&[(7, 60_000_000, 10)]), 20), 6, "another rate: four are spent");
    assert_eq!(left(&limit(&[(1, 1_000_000, 20)]), 30), 10, "a larger bucket");
    assert_eq!(left(&limit(&[(1, 1_000_000, 3)]), 30), 0, "a smaller one is empty");
}

#[test]
fn a_clock_that_is_set_back_refills_nothing_and_holds_nobody_up_for_long() {
    let server = RedisServer::start();
    let mut connection = server.connect();
    let one = [question(&limit(&[(1, 1_000_000, 1)]), "m", 1)];
    assert!(ask(&mut connection, &clocked(100_000_000), &one)[0].taken);

    assert!(!ask(&mut connection, &clocked(99_500_000), &one)[0].taken);
    // An hour back: from there on a second is a second again.
    assert!(!ask(&mut connection, &clocked(10_000_000), &one)[0].taken);
    assert!(ask(&mut connection, &clocked(11_000_000), &one)[0].taken);
}

#[test]
fn what_somebody_else_has_put_at_a_key_is_replaced() {
    let server = RedisServer::start();
    let mut connection = server.connect();
    let limit = limit(&[(1, 60_000_000, 1)]);
    ask(&mut connection, CODE, &[question(&limit, "m", 1)]);
    let key = server.keys().remove(0);
    for words in [vec!["SET", &key, "nonsense"], vec!["SET", &key, "-1 1e999 x"], vec!["LPUSH", &key, "a"]] {
        server.command(&["DEL", &key]);
        server.command(&words);
        let answers = ask(&mut connection, CODE, &[question(&limit, "m", 1), question(&limit, "m", 1)]);
        assert_eq!([answers[0].taken, answers[1].taken], [true, false], "{words:?}");
    }
}

#[test]
fn the_time_is_redis_own() {
    let server = RedisServer::start();
    let mut connection = server.connect();
    let questions = [question(&limit(&[(1, 1_000_000, 1)]), "m", 1)];
    let value: redis::Value =
        call(By::Code(CODE), questions.iter()).query(&mut connection).expect("an answer");
    let (micros, _) = read(&value, questions.iter()).expect("the script's own answer");
    let (secs, _): (u64, u64) = redis::cmd("TIME").query(&mut connection).expect("a time");
    assert!(secs.abs_diff(micros / 1_000_000) <= 1);
}

/// Now and then somebody asks for a pause: alone, or together with a request.
fn steps_and_pauses() -> impl Strategy<Value = Vec<(u64, Option<u64>, bool)>> {
    let gap = prop_oneof![3 => Just(0_u64), 3 => 0..100_u64, 1 => 0..2_000_u64];
    let pause = prop_oneof![3 => Just(None), 1 => (1..1_500_u64).prop_map(Some)];
    prop::collection::vec((gap, pause, any::<bool>()), 1..60)
}

#[test]
fn a_pause_empties_the_queue_of_redis_exactly_as_that_in_memory() {
    let server = RedisServer::start();
    let connection = RefCell::new(server.connect());
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    let run = Cell::new(0);
    let key = LimitKey::of(&[Part::Bytes(b"a")]);
    let result = runner.run(&(windows(), 0..6_u64, steps_and_pauses()), |(windows, queue, steps)| {
        run.set(run.get() + 1);
        let longest = Duration::from_micros(hundredths(&windows, 10_000).max(1));
        let queueing = limit(&windows)
            .windows()
            .iter()
            .map(|window| Window { quota: window.quota.queueing(longest, queue), ..window.clone() })
            .collect::<Vec<_>>();
        let limit = Arc::new(Limit::new(queueing));
        let memory = in_memory(&limit);
        let name = run.get().to_string();
        let mut now = 1_000_000_000_000_u64;
        let one = |now: u64, question: Question| {
            ask(&mut connection.borrow_mut(), &clocked(now), &[question]).remove(0)
        };
        for (gap, pause, alone) in steps {
            now += hundredths(&windows, gap);
            // Longer ones are cut for limits in odd numbers.
            let pause = pause.map_or(0, |pause| hundredths(&windows, pause).min(500_000_000));
            let mut question = Question { pause, ..question(&limit, &name, 1) };
            if pause > 0 {
                memory.drain(now * MICRO, key, (now + pause) * MICRO);
            }
            if pause > 0 && alone {
                (question.cost, question.kind) = (0, Kind::Owed);
                one(now, question);
                continue;
            }
            let ours = memory.decide(now * MICRO, key, 1);
            let theirs = one(now, question);
            prop_assert_eq!(theirs.taken, ours.allowed, "at {} after a pause of {}", now, pause);
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_pause_never_ends_a_longer_one_and_lives_as_long_as_it_lasts() {
    let server = RedisServer::start();
    let mut connection = server.connect();
    let limit = limit(&[(1, 1_000_000, 2)]);
    let pause = |name, micros| Question { pause: micros, kind: Kind::Owed, ..question(&limit, name, 0) };
    ask(&mut connection, CODE, &[pause("real", 60_000_000), pause("real", 5_000_000)]);
    let life: u64 = redis::cmd("PTTL").arg(&server.keys()[0]).query(&mut connection).expect("a number");
    assert!((53_000..=63_000).contains(&life), "{life} ms for a minute's pause and two tokens");

    ask(&mut connection, &clocked(1_000_000), &[pause("m", 60_000_000), pause("m", 5_000_000)]);
    let one = [question(&limit, "m", 1)];
    // Half a token may be lacking.
    assert!(!ask(&mut connection, &clocked(61_400_000), &one)[0].taken, "no token before the pause is over");
    assert!(ask(&mut connection, &clocked(61_500_000), &one)[0].taken);
}

#[test]
fn a_pause_outlasts_a_changed_limit_and_a_clock_that_is_set_back() {
    let server = RedisServer::start();
    let mut connection = server.connect();
    let limits = [limit(&[(1, 1_000_000, 5)]), limit(&[(7, 60_000_000, 2)]), limit(&[(1000, 1_000_000, 1)])];
    let pause = Question { pause: 60_000_000, kind: Kind::Owed, ..question(&limits[0], "m", 0) };
    ask(&mut connection, &clocked(1_000_000_000), &[pause]);
    let mut passes =
        |limit: &Limit, now| ask(&mut connection, &clocked(now), &[question(limit, "m", 1)])[0].taken;

    for limit in limits.iter().chain(&limits) {
        assert!(!passes(limit, 1_059_000_000), "{limit:?}");
    }
    // Set back, and from there on it lasts as long as it had to.
    assert!(!passes(&limits[2], 500_000_000));
    assert!(!passes(&limits[2], 559_000_000));
    assert!(passes(&limits[2], 561_000_000));
}

#[test]
fn a_pause_of_ten_years_is_a_number_that_redis_counts_exactly() {
    let server = RedisServer::start();
    let mut connection = server.connect();
    for windows in [[(1_000_003, 1_000_000, 5)], [(999_999_937, 86_399_999_999, 123_456)]] {
        let limit = limit(&windows);
        let ten_years = 10 * 366 * 86_400 * 1_000_000;
        let paused = Question { pause: ten_years, ..question(&limit, "m", 1) };
        let answers = ask(&mut connection, CODE, &[paused.clone(), paused, question(&limit, "m", 1)]);
        assert!(answers.iter().all(|answer| !answer.taken && answer.spent[0] < 1 << 53), "{answers:?}");
        assert!(answers[2].spent[0] > 0);
        server.command(&["FLUSHALL"]);
    }
}
