//! Limits that replicas share through Redis: together they keep to one limit, and nobody ever sees an error of
//! theirs, whatever Redis does.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::tls::Authority;
use crate::harness::{Origin, Proxy, RedisServer, eventually, origin, proxy, scratch};

/// A limit as the tests write it, and what it must keep to.
#[derive(Clone, Copy)]
struct Rate {
    average: u64,
    burst: u64,
}

fn document(rate: Rate, redis: &str) -> String {
    let Rate { average, burst } = rate;
    format!(
        r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods, middlewares: [limit] }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{origin}}" }}] }} }} }}
  middlewares:
    limit:
      rateLimit:
        average: {average}
        burst: {burst}
        maxDelay: 0
        sourceCriterion: {{ requestHeaderName: X-Key }}
        redis: {{ {redis} }}
"#
    )
}

/// The same in an hour, so that no token comes back while a test takes its time.
fn hourly(rate: Rate, redis: &str) -> String {
    document(rate, redis).replace("maxDelay: 0", "maxDelay: 0\n        period: 1h")
}

/// A proxy whose Redis is known to answer.
fn replica(origin: &Origin, rate: Rate, redis: &str) -> Proxy {
    let proxy = proxy().origin("origin", origin).config(&document(rate, redis)).start();
    await_redis(&proxy, 1.0);
    proxy
}

fn await_redis(proxy: &Proxy, up: f64) {
    eventually(&format!("redis is up: {up}"), || is_up(proxy) == Some(up));
}

fn is_up(proxy: &Proxy) -> Option<f64> {
    figure(proxy, "sluicegate_redis_up")
}

/// The sum of a metric's samples.
fn figure(proxy: &Proxy, name: &str) -> Option<f64> {
    let page = crate::harness::Client::connect(proxy.admin(), "admin").get("/metrics").expect(200).text();
    let lines = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let values: Vec<f64> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// What clients were answered, and when the first and the last of them were.
#[derive(Debug, Default)]
struct Tally {
    allowed: AtomicU64,
    refused: AtomicU64,
    others: Mutex<Vec<u16>>,
    slowest: Mutex<Duration>,
}

impl Tally {
    fn ask(&self, client: &mut crate::harness::Client, key: &str) {
        let began = Instant::now();
        let status = client.get_with("/", &[("X-Key", key)]).status;
        let took = began.elapsed();
        let mut slowest = self.slowest.lock().expect("no panic");
        *slowest = slowest.max(took);
        match status {
            200 => self.allowed.fetch_add(1, Ordering::SeqCst),
            429 => self.refused.fetch_add(1, Ordering::SeqCst),
            other => {
                self.others.lock().expect("no panic").push(other);
                0
            }
        };
    }

    fn allowed(&self) -> u64 {
        self.allowed.load(Ordering::SeqCst)
    }
}

/// Asks all replicas as fast as they answer, until `during` is over. Gives what was answered and the time from
/// before the first request to after the last.
fn flood(replicas: &[&Proxy], during: impl FnOnce(&Tally)) -> (Tally, Duration) {
    let tally = Tally::default();
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for replica in replicas {
            for _ in 0..2 {
                let (tally, stop) = (&tally, &stop);
                let mut client = replica.client("a.test");
                scope.spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        tally.ask(&mut client, "one");
                    }
                });
            }
        }
        // A test that fails in here must not leave the threads running.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(&tally)));
        stop.store(true, Ordering::SeqCst);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    (tally, began.elapsed())
}

fn await_answers(tally: &Tally, more: u64) {
    let count = || tally.allowed() + tally.refused.load(Ordering::SeqCst);
    let goal = count() + more;
    eventually("more answers", || count() >= goal);
}

#[track_caller]
fn assert_no_errors(tally: &Tally) {
    assert!(tally.others.lock().expect("no panic").is_empty(), "{tally:?}");
}

/// `burst + rate * time`, and what else may pass.
fn most(rate: Rate, time: Duration, more: u64) -> u64 {
    rate.burst + more + (rate.average as f64 * time.as_secs_f64()).ceil() as u64
}

#[test]
fn three_replicas_together_keep_to_one_limit() {
    let (server, origin) = (RedisServer::start(), origin().start());
    let rate = Rate { average: 50, burst: 20 };
    let redis = format!("endpoints: ['{}'], timeout: 5s", server.address());
    let replicas = [(); 3].map(|()| replica(&origin, rate, &redis));

    let (tally, time) = flood(&replicas.each_ref(), |tally| {
        eventually("the limit is reached and refilled", || tally.allowed() >= rate.burst + 30);
    });

    assert_no_errors(&tally);
    assert!(tally.allowed() <= most(rate, time, 0), "{tally:?} in {time:?}");
    assert!(tally.refused.load(Ordering::SeqCst) > 0);
}

#[test]
fn three_replicas_with_leases_exceed_the_limit_by_no_more_than_their_leases() {
    let (server, origin) = (RedisServer::start(), origin().start());
    let rate = Rate { average: 50, burst: 30 };
    let redis = format!("endpoints: ['{}'], timeout: 5s, mode: lease, lease: 5", server.address());
    let replicas = [(); 3].map(|()| replica(&origin, rate, &redis));

    let (tally, time) = flood(&replicas.each_ref(), |tally| {
        eventually("the limit is reached and refilled", || tally.allowed() >= rate.burst + 40);
    });

    assert_no_errors(&tally);
    assert!(tally.allowed() <= most(rate, time, 3 * 5), "{tally:?} in {time:?}");
    assert!(figure(&replicas[0], "sluicegate_limiter_shared_total").is_some());
}

#[test]
fn with_leases_a_request_needs_no_word_from_redis() {
    let (server, origin) = (RedisServer::start(), origin().start());
    let rate = Rate { average: 1, burst: 1_000 };
    let redis = format!("endpoints: ['{}'], timeout: 5s, mode: lease, lease: 100", server.address());
    let proxy = replica(&origin, rate, &redis);
    let mut client = proxy.client("a.test");
    server.pause();

    // Longer than the time allowed for an answer, were there one to be waited for.
    for _ in 0..50 {
        let began = Instant::now();
        client.get_with("/", &[("X-Key", "a")]).expect(200);
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    server.resume();
    let spent = || {
        let keys = server.keys();
        let key = keys.iter().find(|key| key.contains("limit"))?;
        let text: String = redis::cmd("GET").arg(key).query(&mut server.connect()).ok()?;
        let numbers: Vec<u64> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
        Some(numbers[1] / numbers[2])
    };
    eventually("redis has heard of them", || spent().is_some_and(|spent| spent >= 40));
}

#[test]
fn while_redis_is_killed_paused_and_restarted_replicas_keep_to_their_shares_and_nobody_sees_an_error() {
    let (mut server, origin) = (RedisServer::start(), origin().start());
    let rate = Rate { average: 60, burst: 30 };
    let redis = format!("endpoints: ['{}'], timeout: 200ms, replicas: 3", server.address());
    let replicas = [(); 3].map(|()| replica(&origin, rate, &redis));
    let all = |up| replicas.iter().for_each(|replica| await_redis(replica, up));

    let (tally, time) = flood(&replicas.each_ref(), |tally| {
        await_answers(tally, 50);
        server.pause();
        all(0.0);
        await_answers(tally, 200);
        server.resume();
        all(1.0);
        await_answers(tally, 100);
        server.kill();
        all(0.0);
        await_answers(tally, 200);
        server.restart();
        all(1.0);
        await_answers(tally, 100);
    });

    assert_no_errors(&tally);
    // Two outages: Redis's bucket, which is empty and so full once more after the restart, and the shares, which
    // are a third of the burst each and are filled at a third of the rate.
    let shares = rate.burst + (rate.average as f64 * time.as_secs_f64()).ceil() as u64;
    assert!(tally.allowed() <= most(rate, time, rate.burst + shares), "{tally:?} in {time:?}");
}

/// A client that is always below the limit, even were each of its requests counted twice: as one is of which Redis
/// heard too late to answer in time.
struct Modest {
    rate: f64,
    size: f64,
    left: f64,
    since: Instant,
}

impl Modest {
    /// An eighth of the limit, and never more than three at once.
    fn new(rate: Rate) -> Self {
        Self { rate: rate.average as f64 / 8.0, size: 3.0, left: 3.0, since: Instant::now() }
    }

    /// Whether it may ask. Tokens count as taken when the answer has come, so no earlier than the proxy took them.
    fn may_ask(&mut self) -> bool {
        let now = Instant::now();
        self.left = self.size.min(self.left + self.rate * (now - self.since).as_secs_f64());
        self.since = now;
        self.left >= 1.0
    }

    fn has_asked(&mut self) {
        // What time brought during the request comes on top only from here on.
        self.since = Instant::now();
        self.left -= 1.0;
    }
}

/// What becomes of Redis, and how it comes back.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Paused,
    Killed,
    KilledWhilePaused,
}

impl Fault {
    fn begin(self, server: &mut RedisServer) {
        if let Self::Paused | Self::KilledWhilePaused = self {
            server.pause();
        }
        if let Self::Killed = self {
            server.kill();
        }
    }

    fn end(self, server: &mut RedisServer) {
        match self {
            Self::Paused => server.resume(),
            Self::Killed | Self::KilledWhilePaused => server.restart(),
        }
    }
}

/// The sum of the samples of a metric that have this label.
fn labelled(replicas: &[&Proxy], name: &str, label: &str) -> u64 {
    let of = |proxy: &&Proxy| {
        let page = crate::harness::Client::connect(proxy.admin(), "admin").get("/metrics").expect(200).text();
        let lines =
            page.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    };
    replicas.iter().map(of).sum()
}

#[test]
fn with_leases_replicas_keep_to_the_bound_while_redis_is_killed_paused_and_restarted() {
    const REPLICAS: u64 = 3;
    const LEASE: u64 = 5;
    // Two threads for each replica: of so many requests it may be heard after a phase that they were allowed in it.
    const UNDER_WAY: u64 = 2 * REPLICAS;
    let (mut server, origin) = (RedisServer::start(), origin().start());
    let rate = Rate { average: 60, burst: 30 };
    let redis = format!(
        "endpoints: ['{}'], timeout: 200ms, mode: lease, lease: {LEASE}, replicas: {REPLICAS}",
        server.address()
    );
    let replicas = [(); REPLICAS as usize].map(|()| replica(&origin, rate, &redis));
    let all = replicas.each_ref();
    let await_all = |up| all.iter().for_each(|replica| await_redis(replica, up));
    // Requests that Redis was asked about in vain, while it did not count as away yet.
    let in_vain = || {
        let by = |by| labelled(&all, "sluicegate_limiter_shared_total", &format!("by=\"{by}\""));
        by("late") + by("failed") + by("crowded")
    };
    let outages = || labelled(&all, "sluicegate_redis_outages_total", "");
    let leased = || labelled(&all, "sluicegate_limiter_shared_total", "by=\"lease\"");
    let (modest, stop) = (Tally::default(), AtomicBool::new(false));
    let faults = [Fault::Paused, Fault::Killed, Fault::KilledWhilePaused];

    let (tally, time, noticing) = std::thread::scope(|scope| {
        for client in 0..2 {
            let (modest, stop) = (&modest, &stop);
            let mut clients = all.map(|replica| replica.client("a.test"));
            scope.spawn(move || {
                let (key, mut pace) = (format!("modest-{client}"), Modest::new(rate));
                for turn in (0..all.len()).cycle() {
                    while !pace.may_ask() {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    modest.ask(&mut clients[turn], &key);
                    pace.has_asked();
                }
            });
        }
        let mut noticing = Duration::ZERO;
        let flooded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            flood(&all, |tally| {
                // What passes in a phase, and what may at most.
                let phase = |what: &str, most_at_once: u64| {
                    let (vain, before) = (in_vain(), outages());
                    // Nothing comes between the clock and the figures that the time is for.
                    let (began, allowed) = (Instant::now(), tally.allowed());
                    await_answers(tally, 300);
                    let (passed, time) = (tally.allowed() - allowed, began.elapsed());
                    let extra = most_at_once - rate.burst + UNDER_WAY + in_vain() - vain;
                    if outages() == before {
                        assert!(passed <= most(rate, time, extra), "{what}: {passed} passed in {time:?}");
                    }
                };
                phase("at first", rate.burst + REPLICAS * LEASE);
                for fault in faults {
                    fault.begin(&mut server);
                    await_all(0.0);
                    phase(&format!("{fault:?}"), REPLICAS * (rate.burst / REPLICAS));
                    let decided = leased();
                    let began = Instant::now();
                    fault.end(&mut server);
                    await_all(1.0);
                    noticing += began.elapsed();
                    phase(&format!("after {fault:?}"), rate.burst + REPLICAS * LEASE);
                    assert!(leased() > decided, "leases decide again after {fault:?}");
                }
            })
        }));
        stop.store(true, Ordering::SeqCst);
        let (tally, time) = flooded.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (tally, time, noticing)
    });

    assert_no_errors(&tally);
    assert_no_errors(&modest);
    assert_eq!(modest.refused.load(Ordering::SeqCst), 0, "below the limit: {modest:?}");
    assert!(modest.allowed() > rate.burst, "{modest:?}");
    let (away, outages) = (faults.len() as u64, outages());
    // Where the machine was so slow that Redis counted as away once more, the shares were filled meanwhile too.
    let twice = if outages == away * REPLICAS { noticing } else { time };
    let shares =
        outages * (rate.burst / REPLICAS) + (rate.average as f64 * twice.as_secs_f64()).ceil() as u64;
    let leases = (REPLICAS + outages) * LEASE;
    let bound = most(rate, time, away * rate.burst + shares + leases + in_vain());
    assert!(tally.allowed() <= bound, "{tally:?} in {time:?}: more than {bound}");
}

#[test]
fn while_redis_is_away_all_replicas_together_keep_to_the_limit() {
    let (mut server, origin) = (RedisServer::start(), origin().start());
    let rate = Rate { average: 60, burst: 30 };
    let redis = format!("endpoints: ['{}'], replicas: 3", server.address());
    let replicas = [(); 3].map(|()| replica(&origin, rate, &redis));
    server.kill();
    replicas.iter().for_each(|replica| await_redis(replica, 0.0));

    let (tally, time) = flood(&replicas.each_ref(), |tally| {
        eventually("the shares are spent and refilled", || tally.allowed() >= rate.burst + 20);
    });

    assert_no_errors(&tally);
    assert!(tally.allowed() <= most(rate, time, 0), "{tally:?} in {time:?}");
}

#[test]
fn what_was_allowed_while_redis_was_away_is_told_when_it_is_back() {
    let (mut server, origin) = (RedisServer::start(), origin().start());
    let rate = Rate { average: 1, burst: 1_000 };
    let proxy = replica(&origin, rate, &format!("endpoints: ['{}']", server.address()));
    server.kill();
    await_redis(&proxy, 0.0);
    let mut client = proxy.client("a.test");
    for _ in 0..20 {
        client.get_with("/", &[("X-Key", "a")]).expect(200);
    }

    server.restart();
    await_redis(&proxy, 1.0);

    eventually("redis has the debt", || server.keys().iter().any(|key| key.contains("limit")));
}

#[test]
fn a_redis_that_hangs_is_waited_for_no_longer_than_is_allowed_and_then_not_at_all() {
    let (server, origin) = (RedisServer::start(), origin().start());
    let rate = Rate { average: 1_000, burst: 1_000 };
    let proxy = replica(&origin, rate, &format!("endpoints: ['{}'], timeout: 300ms", server.address()));
    let mut client = proxy.client("a.test");
    server.pause();

    // Five late answers in a row, and Redis counts as away; the first of them may be the task's own.
    for _ in 0..5 {
        client.get_with("/", &[("X-Key", "a")]).expect(200);
    }
    await_redis(&proxy, 0.0);
    let late = figure(&proxy, "sluicegate_redis_calls_total");
    for _ in 0..100 {
        client.get_with("/", &[("X-Key", "a")]).expect(200);
    }
    let after = figure(&proxy, "sluicegate_redis_calls_total");
    assert!(after.unwrap_or(0.0) <= late.unwrap_or(0.0) + 5.0, "nobody is asked: {late:?} {after:?}");

    server.resume();
    await_redis(&proxy, 1.0);
}

#[test]
fn a_full_redis_and_one_that_may_only_be_read_count_as_away_until_they_are_mended() {
    let (server, origin) = (RedisServer::start(), origin().start());
    let rate = Rate { average: 10_000, burst: 10_000 };
    let proxy = replica(&origin, rate, &format!("endpoints: ['{}'], timeout: 5s", server.address()));
    let mut client = proxy.client("a.test");
    let mut spoil = |spoilt: &[&str], mended: &[&str], trouble: &str| {
        server.command(spoilt);
        eventually("redis is found out", || {
            client.get_with("/", &[("X-Key", "a")]).expect(200);
            is_up(&proxy) == Some(0.0)
        });
        let api =
            crate::harness::Client::connect(proxy.admin(), "admin").get("/api/redis").expect(200).text();
        assert!(api.contains(trouble), "{api}");
        server.command(mended);
        await_redis(&proxy, 1.0);
    };

    spoil(&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"], "OOM");
    spoil(&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"], "READONLY");
}

#[test]
fn the_log_says_what_stands_in_the_way_now_and_how_to_mend_it() {
    // It said what the outage began with, such as a broken connection, and nothing of what then kept Redis away.
    let (server, origin) = (RedisServer::start(), origin().start());
    let redis = format!("endpoints: ['{}'], timeout: 5s", server.address());
    let proxy = replica(&origin, Rate { average: 1, burst: 1 }, &redis);
    let said = |words: &str| {
        eventually(words, || proxy.log_lines().iter().any(|line| format!("{line:?}").contains(words)));
    };

    let mut operator = server.connect();
    let mut command = |words: &[&str]| {
        let done: redis::RedisResult<redis::Value> =
            redis::cmd(words[0]).arg(&words[1..]).query(&mut operator);
        done.expect("an operator's command");
    };
    command(&["CONFIG", "SET", "requirepass", "correct-horse-battery"]);
    command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    said("it asks for a password: write redis.password");
    command(&["CONFIG", "SET", "requirepass", ""]);
    await_redis(&proxy, 1.0);
    command(&["ACL", "SETUSER", "default", "-set"]);
    said("the user needs ~sluicegate:* +@connection +evalsha +eval +get +set +time)");
    command(&["ACL", "SETUSER", "default", "+set"]);
    await_redis(&proxy, 1.0);
    command(&["REPLICAOF", "127.0.0.1", "1"]);
    said("READONLY You can't write against a read only replica (this is a replica: write the master");
}

#[test]
fn a_server_that_talks_nonsense_counts_as_away() {
    let origin = origin().start();
    for nonsense in [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "+OK\r\n",
        "*3\r\n:1\r\n$-1\r\n+x\r\n",
        ":18446744073709551616\r\n",
    ] {
        let server = Nonsense::start(nonsense);
        let rate = Rate { average: 1, burst: 1 };
        let redis = format!("endpoints: ['{}'], dialTimeout: 1s, readTimeout: 1s", server.address);
        let proxy = proxy().origin("origin", &origin).config(&document(rate, &redis)).start();
        let mut client = proxy.client("a.test");
        client.get_with("/", &[("X-Key", "a")]).expect(200);
        client.get_with("/", &[("X-Key", "a")]).expect(429);
        eventually("somebody has connected", || server.connections.load(Ordering::SeqCst) > 0);
        assert_eq!(is_up(&proxy), Some(0.0), "{nonsense:?}");
    }
}

#[test]
fn the_policy_says_who_decides_without_redis() {
    let origin = origin().start();
    let rate = Rate { average: 1, burst: 1 };
    for (policy, statuses) in
        [("open", [200, 200, 200]), ("closed", [429, 429, 429]), ("local", [200, 429, 429])]
    {
        let redis = format!("endpoints: ['127.0.0.1:1'], onFailure: {policy}");
        let proxy = proxy().origin("origin", &origin).config(&document(rate, &redis)).start();
        let mut client = proxy.client("a.test");
        let got = [(); 3].map(|()| client.get_with("/", &[("X-Key", "a")]).status);
        assert_eq!(got, statuses, "{policy}");
    }
}

/// Only failed logins count: `/fail` is answered with 401, all else with 200.
fn logins(origin: &Origin, redis: &str) -> Proxy {
    let text = hourly(Rate { average: 1, burst: 4 }, redis);
    let text = text.replace("maxDelay: 0", "maxDelay: 0\n        countStatus: ['401']");
    proxy().origin("origin", origin).config(&text).start()
}

fn door() -> Origin {
    origin().on("/fail", |_, peer| peer.respond("401 Unauthorized", &[], "no")).start()
}

/// Tokens that the one bucket of a server is lacking, rounded up.
fn spent(server: &RedisServer) -> u64 {
    let keys = server.keys();
    let Some(key) = keys.iter().find(|key| key.contains("limit")) else { return 0 };
    let text: Option<String> = redis::cmd("GET").arg(key).query(&mut server.connect()).expect("a text");
    let numbers: Vec<u64> =
        text.unwrap_or_default().split(' ').filter_map(|number| number.parse().ok()).collect();
    if let [_, spent, token, _] = numbers[..] { spent.div_ceil(token) } else { 0 }
}

#[test]
fn only_failed_logins_count_whichever_replica_they_come_to() {
    let (server, origin) = (RedisServer::start(), door());
    let redis = format!("endpoints: ['{}'], timeout: 5s", server.address());
    let replicas = [(); 2].map(|()| logins(&origin, &redis));
    replicas.iter().for_each(|replica| await_redis(replica, 1.0));
    let mut clients = replicas.each_ref().map(|replica| replica.client("a.test"));
    let mut ask = |replica: usize, target: &str| clients[replica].get_with(target, &[("X-Key", "a")]).status;

    for round in 0..10 {
        assert_eq!(ask(round % 2, "/"), 200, "{round}");
        eventually("it is given back", || spent(&server) == 0);
    }
    for round in 0..4 {
        assert_eq!(ask(round % 2, "/fail"), 401, "{round}");
    }
    assert_eq!([ask(0, "/"), ask(1, "/")], [429, 429], "whoever has used them up is refused anywhere");
    assert_eq!(spent(&server), 4);
}

#[test]
fn with_leases_too_only_failed_logins_count_and_redis_hears_of_no_others() {
    let (server, origin) = (RedisServer::start(), door());
    let redis = format!("endpoints: ['{}'], timeout: 5s, mode: lease, lease: 2", server.address());
    let replicas = [(); 2].map(|()| logins(&origin, &redis));
    replicas.iter().for_each(|replica| await_redis(replica, 1.0));
    let mut clients = replicas.each_ref().map(|replica| replica.client("a.test"));
    let mut ask = |replica: usize, target: &str| clients[replica].get_with(target, &[("X-Key", "a")]).status;

    for round in 0..40 {
        assert_eq!(ask(round % 2, "/"), 200, "{round}");
    }
    assert_eq!(spent(&server), 0, "what does not count is given back before anybody hears of it");
    for round in 0..4_u64 {
        assert_eq!(ask(usize::from(round % 2 == 1), "/fail"), 401, "{round}");
        eventually("redis has heard of it", || spent(&server) == round + 1);
    }
    // Redis knows a moment before the replica has its word.
    eventually("it has heard that they are used up", || ask(1, "/") == 429);
    eventually("the other one hears it with its next failure", || ask(0, "/fail") == 429);
    assert!(spent(&server) <= 4 + 2 * 2, "{}", spent(&server));
}

#[test]
fn a_flood_of_failed_logins_exceeds_the_limit_by_no_more_than_the_leases() {
    let (server, origin) = (RedisServer::start(), door());
    let redis = format!("endpoints: ['{}'], timeout: 5s, mode: lease, lease: 2", server.address());
    let replicas = [(); 3].map(|()| logins(&origin, &redis));
    replicas.iter().for_each(|replica| await_redis(replica, 1.0));
    let failed = AtomicU64::new(0);

    std::thread::scope(|scope| {
        for replica in replicas.iter().chain(&replicas) {
            let failed = &failed;
            let mut client = replica.client("a.test");
            scope.spawn(move || {
                for round in 0..100 {
                    let target = if round % 3 == 0 { "/" } else { "/fail" };
                    let status = client.get_with(target, &[("X-Key", "a")]).status;
                    failed.fetch_add(u64::from(status == 401), Ordering::SeqCst);
                    assert!([200, 401, 429].contains(&status), "{status}");
                }
            });
        }
    });

    // One an hour and four at once, and the leases of three replicas.
    let failed = failed.into_inner();
    assert!((4..=4 + 1 + 3 * 2).contains(&failed), "{failed}");
}

#[test]
fn a_request_that_is_never_answered_counts_also_when_a_lease_holds_its_token() {
    let server = RedisServer::start();
    let (asked, hears) = std::sync::mpsc::channel();
    let origin = origin()
        .on("/never", move |_, peer| {
            // The test is over when nobody hears it.
            let _ = asked.send(());
            peer.hang();
        })
        .start();
    let redis = format!("endpoints: ['{}'], timeout: 5s, mode: lease, lease: 2", server.address());
    let proxy = logins(&origin, &redis);
    await_redis(&proxy, 1.0);
    let mut client = proxy.client("a.test");
    client.send("GET /never HTTP/1.1\r\nHost: a.test\r\nX-Key: a\r\n\r\n");
    hears.recv_timeout(Duration::from_secs(20)).expect("the pod is asked");
    assert_eq!(spent(&server), 0);

    drop(client);

    eventually("it counts", || spent(&server) == 1);
}

#[test]
fn without_redis_only_failed_logins_count_against_the_share() {
    let (mut server, origin) = (RedisServer::start(), door());
    let proxy = logins(&origin, &format!("endpoints: ['{}'], replicas: 2", server.address()));
    await_redis(&proxy, 1.0);
    server.kill();
    await_redis(&proxy, 0.0);
    let mut client = proxy.client("a.test");
    let mut ask = |target: &str| client.get_with(target, &[("X-Key", "a")]).status;

    assert_eq!([(); 10].map(|()| ask("/")), [200; 10]);
    assert_eq!([ask("/fail"), ask("/fail"), ask("/fail")], [401, 401, 429]);

    let fallback = "sluicegate_limiter_decisions_total{middleware=\"limit\",decision=\"fallback\"}";
    assert_eq!(proxy.metric(fallback), 12.0, "what went on by the word of onFailure");
    let refused = "sluicegate_limiter_decisions_total{middleware=\"limit\",decision=\"refused\"}";
    assert_eq!(proxy.metric(refused), 1.0);
}

#[test]
fn a_flood_that_redis_has_refused_does_not_reach_it() {
    let (server, origin) = (RedisServer::start(), origin().start());
    let proxy = replica(
        &origin,
        Rate { average: 1, burst: 1 },
        &format!("endpoints: ['{}'], timeout: 5s", server.address()),
    );
    let mut client = proxy.client("a.test");
    client.get_with("/", &[("X-Key", "a")]).expect(200);

    for _ in 0..200 {
        client.get_with("/", &[("X-Key", "a")]);
    }

    let calls = || -> u64 {
        let info: String =
            redis::cmd("INFO").arg("commandstats").query(&mut server.connect()).expect("a text");
        let line =
            info.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default().to_owned();
        line.split([':', '=', ',']).nth(2).and_then(|calls| calls.parse().ok()).unwrap_or(0)
    };
    assert!(calls() < 100, "{} calls for 201 requests", calls());
}

#[test]
fn redis_holds_no_address_and_no_key_of_a_client() {
    let (server, origin) = (RedisServer::start(), origin().start());
    for mode in ["exact", "lease"] {
        let redis =
            format!("endpoints: ['{}'], timeout: 5s, mode: {mode}, keyPrefix: {mode}", server.address());
        let text = hourly(Rate { average: 1, burst: 20 }, &redis).replace(
            "sourceCriterion: { requestHeaderName: X-Key }",
            "key: [{ ipStrategy: {} }, { requestHeaderName: X-Key }, { cookie: session }]",
        );
        let proxy = proxy().origin("origin", &origin).config(&text).start();
        await_redis(&proxy, 1.0);
        proxy
            .client("a.test")
            .get_with("/", &[("X-Key", "secret-of-alice"), ("Cookie", "session=hers-alone")])
            .expect(200);
        let of_it = |key: &&String| key.starts_with(mode) && key.contains("limit");
        eventually("redis has heard of it", || server.keys().iter().any(|key| of_it(&key)));

        let keys = server.keys();
        let key = keys.iter().find(of_it).expect("it was there");
        let value: String = redis::cmd("GET").arg(key).query(&mut server.connect()).expect("a text");
        for text in [key, &value] {
            for secret in ["127.0.0.1", "secret-of-alice", "hers-alone"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
        // Nothing but a name, half of a hash and the window, and four numbers; and it does not stay for ever.
        let hash = key.split(['{', '}']).nth(1).expect("a hash tag");
        assert_eq!(*key, format!("{mode}:rateLimit/limit:{{{hash}}}:default"));
        assert!(hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hash}");
        let numbers: Vec<u64> = value.split(' ').map(|number| number.parse().expect("a number")).collect();
        assert_eq!(numbers.len(), 4);
        let life: i64 = redis::cmd("PTTL").arg(key).query(&mut server.connect()).expect("a number");
        assert!((1..=20 * 3_600_000 + 2_000).contains(&life), "{life}");
    }
}

#[test]
fn routers_share_what_is_in_redis_unless_each_is_to_have_its_own() {
    let origin = origin().start();
    for (scope, second) in [("", 429), ("scope: router", 200)] {
        let server = RedisServer::start();
        let redis = format!("endpoints: ['{}'], timeout: 5s", server.address());
        let routers = r#"
  routers:
    shop: { rule: "PathPrefix(`/shop`)", service: pods, middlewares: [limit] }
    help: { rule: "PathPrefix(`/help`)", service: pods, middlewares: [limit] }
"#;
        let text = hourly(Rate { average: 1, burst: 1 }, &redis)
            .replace("maxDelay: 0", &format!("maxDelay: 0\n        {scope}"));
        let from = text.find("\n  routers:").expect("the document's own");
        let to = text.find("  services:").expect("the document's own");
        let text = format!("{}{routers}{}", &text[..from], &text[to..]);
        let proxy = proxy().origin("origin", &origin).config(&text).start();
        await_redis(&proxy, 1.0);
        let mut client = proxy.client("a.test");
        let mut ask = |target: &str| client.get_with(target, &[("X-Key", "a")]).status;
        assert_eq!([ask("/shop"), ask("/shop"), ask("/help")], [200, 429, second], "{scope:?}");
    }
}

#[test]
fn a_reload_keeps_connections_and_takes_new_settings() {
    let (first, second, origin) = (RedisServer::start(), RedisServer::start(), origin().start());
    let rate = Rate { average: 1, burst: 2 };
    let proxy = replica(&origin, rate, &format!("endpoints: ['{}'], timeout: 5s", first.address()));
    let mut client = proxy.client("a.test");
    client.get_with("/", &[("X-Key", "a")]).expect(200);

    proxy.reload(&document(rate, &format!("endpoints: ['{}'], timeout: 5s", second.address())));
    await_redis(&proxy, 1.0);

    eventually("the other one is asked", || {
        client.get_with("/", &[("X-Key", "b")]);
        second.keys().iter().any(|key| key.contains("limit"))
    });
}

#[test]
fn passwords_are_shown_nowhere() {
    const PASSWORD: &str = "correct-horse-battery";
    // What the documentation says that it needs, and nothing else.
    let acl = "+@connection +evalsha +eval +get +set +time";
    let user = format!("--user edge on >{PASSWORD} ~sluicegate:* {acl}");
    let arguments: Vec<&str> = user.split(' ').collect();
    let (server, origin) = (RedisServer::with(&arguments), origin().start());
    let rate = Rate { average: 1, burst: 1 };
    let redis =
        format!("endpoints: ['{}'], username: edge, password: {PASSWORD}, timeout: 5s", server.address());
    let proxy = replica(&origin, rate, &redis);
    let mut client = proxy.client("a.test");
    client.get_with("/", &[("X-Key", "a")]).expect(200);
    client.get_with("/", &[("X-Key", "a")]).expect(429);

    // A wrong one is as secret as the right one.
    proxy.reload(&document(rate, &redis.replace(PASSWORD, "wrong-horse-battery")));
    await_redis(&proxy, 0.0);

    let mut admin = crate::harness::Client::connect(proxy.admin(), "admin");
    let mut shown: Vec<String> = ["/api/redis", "/api/rawdata", "/api/http/middlewares", "/metrics"]
        .iter()
        .map(|path| admin.get(path).expect(200).text())
        .collect();
    assert!(shown[0].contains("WRONGPASS") || shown[0].contains("uthentication"), "{}", shown[0]);
    shown.extend(proxy.log_lines().iter().map(|line| format!("{line:?}")));
    for text in shown {
        assert!(!text.contains("horse-battery"), "{text}");
    }
}

#[test]
fn tls_to_redis_trusts_the_ca_that_is_given_and_no_other() {
    let dir = scratch();
    let issue = |name: &str| {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        (cert.pem(), key.serialize_pem())
    };
    let (cert, key) = issue("redis");
    let (other, _) = issue("other");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a writable directory");
        path.to_str().expect("a plain path").to_owned()
    };
    let (cert, key, other) = (file("cert.pem", &cert), file("key.pem", &key), file("other.pem", &other));
    let server = RedisServer::with_tls(&[
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &cert,
        "--tls-auth-clients",
        "no",
    ]);
    let (origin, rate) = (origin().start(), Rate { average: 1, burst: 1 });
    let with = |tls: &str| {
        let redis = format!("endpoints: ['localhost:{}'], timeout: 5s, tls: {{ {tls} }}", server.port());
        proxy().origin("origin", &origin).config(&hourly(rate, &redis)).start()
    };

    let trusting = with(&format!("ca: '{cert}'"));
    await_redis(&trusting, 1.0);
    trusting.client("a.test").get_with("/", &[("X-Key", "a")]).expect(200);
    trusting.client("a.test").get_with("/", &[("X-Key", "a")]).expect(429);

    let wary = with(&format!("ca: '{other}'"));
    wary.await_log("redis is away");
    assert_eq!(is_up(&wary), Some(0.0));

    let careless = with("insecureSkipVerify: true");
    await_redis(&careless, 1.0);
    careless.client("a.test").get_with("/", &[("X-Key", "a")]).expect(429);
}

#[test]
fn a_redis_that_asks_for_certificates_gets_the_one_that_is_written() {
    let dir = scratch();
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["localhost"]).write(dir.path(), "redis");
    let (own_cert, own_key) = authority.issue(&["edge"]).write(dir.path(), "edge");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).expect("a writable directory");
    let [cert, key, own_cert, own_key, ca] =
        [&cert, &key, &own_cert, &own_key, &ca].map(|path| path.to_str().expect("a plain path"));
    let server = RedisServer::with_tls(&[
        "--tls-cert-file",
        cert,
        "--tls-key-file",
        key,
        "--tls-ca-cert-file",
        ca,
        "--tls-auth-clients",
        "yes",
    ]);
    let (origin, rate) = (origin().start(), Rate { average: 1, burst: 1 });
    let with = |tls: &str| {
        let redis = format!("endpoints: ['localhost:{}'], timeout: 5s, tls: {{ {tls} }}", server.port());
        proxy().origin("origin", &origin).config(&hourly(rate, &redis)).start()
    };

    let shown = with(&format!("ca: '{ca}', cert: '{own_cert}', key: '{own_key}'"));
    await_redis(&shown, 1.0);
    shown.client("a.test").get_with("/", &[("X-Key", "a")]).expect(200);
    shown.client("a.test").get_with("/", &[("X-Key", "a")]).expect(429);

    let nameless = with(&format!("ca: '{ca}'"));
    nameless.await_log("redis is away");
    nameless.client("a.test").get_with("/", &[("X-Key", "a")]).expect(200);
}

/// A node of a cluster that does not exist yet.
fn cluster_node() -> RedisServer {
    RedisServer::with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"])
}

/// Makes these the masters of a cluster.
fn make_cluster(nodes: &[RedisServer]) {
    for (index, node) in nodes.iter().enumerate() {
        let (first, last) = (index * 5_462, ((index + 1) * 5_462).min(16_384) - 1);
        node.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
        if index > 0 {
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
            node.command(&["CLUSTER", "MEET", "127.0.0.1", &nodes[0].port().to_string()]);
        }
    }
    for node in nodes {
        eventually("the cluster is whole", || {
            let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut node.connect()).expect("a text");
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        });
    }
}

#[test]
fn a_cluster_is_asked_where_the_keys_are() {
    let nodes: Vec<_> = (0..3).map(|_| cluster_node()).collect();
    make_cluster(&nodes);
    let origin = origin().start();
    let endpoints: Vec<String> = nodes.iter().map(|node| format!("'{}'", node.address())).collect();
    let redis = format!("endpoints: [{}], timeout: 5s", endpoints.join(", "));
    let rate = Rate { average: 1, burst: 2 };
    let replicas = [(); 2].map(|()| replica(&origin, rate, &redis));

    for number in 0..20 {
        let key = number.to_string();
        let mut clients = replicas.each_ref().map(|replica| replica.client("a.test"));
        clients[0].get_with("/", &[("X-Key", &key)]).expect(200);
        clients[1].get_with("/", &[("X-Key", &key)]).expect(200);
    }

    for node in &nodes {
        assert!(node.keys().iter().any(|key| key.contains("limit")), "every node has some of them");
    }
}

#[test]
fn a_cluster_that_loses_a_master_fails_over_and_the_limit_goes_on() {
    let mut masters: Vec<_> = (0..3).map(|_| cluster_node()).collect();
    make_cluster(&masters);
    let successor = cluster_node();
    successor.command(&["CLUSTER", "MEET", "127.0.0.1", &masters[0].port().to_string()]);
    let id: String = redis::cmd("CLUSTER").arg("MYID").query(&mut masters[0].connect()).expect("an id");
    eventually("it may become a replica of the first", || {
        let replicate = redis::cmd("CLUSTER").arg("REPLICATE").arg(&id).to_owned();
        replicate.query::<()>(&mut successor.connect()).is_ok()
    });
    eventually("it is in step", || {
        let mut info = redis::cmd("INFO");
        let info: String = info.arg("replication").query(&mut successor.connect()).expect("a text");
        info.contains("master_link_status:up")
    });
    for node in &masters {
        eventually("everybody knows it", || {
            let nodes: String =
                redis::cmd("CLUSTER").arg("NODES").query(&mut node.connect()).expect("a text");
            nodes.lines().any(|line| line.contains("slave") && line.contains(&id))
        });
    }
    let (origin, rate) = (origin().start(), Rate { average: 1, burst: 2 });
    let endpoints: Vec<String> = masters.iter().map(|node| format!("'{}'", node.address())).collect();
    let redis = format!("endpoints: [{}], timeout: 2s, readTimeout: 2s", endpoints.join(", "));
    let proxy = proxy().origin("origin", &origin).config(&hourly(rate, &redis)).start();
    await_redis(&proxy, 1.0);
    let mut client = proxy.client("a.test");
    let mut ask = |key: &str| client.get_with("/", &[("X-Key", key)]).status;
    // A key of which the first master has the bucket, both tokens spent.
    let spent = (0..100).map(|number| format!("before-{number}")).find(|key| {
        let known = masters[0].keys().len();
        assert_eq!([ask(key), ask(key)], [200, 200]);
        masters[0].keys().len() > known
    });
    let spent = spent.expect("a third of them are there");
    eventually("the replica has it", || successor.keys().len() == masters[0].keys().len());

    masters.remove(0).kill();

    eventually("the replica is promoted and asked", || {
        // Whatever becomes of the cluster, no user sees an error of it.
        assert!([200, 429].contains(&ask("meanwhile")));
        let role: Vec<redis::Value> = redis::cmd("ROLE").query(&mut successor.connect()).expect("its role");
        let master = role.first() == Some(&redis::Value::BulkString(b"master".to_vec()));
        master && is_up(&proxy) == Some(1.0)
    });
    eventually("it decides about new keys", || {
        let known = successor.keys().len();
        (0..20).for_each(|number| assert!([200, 429].contains(&ask(&format!("after-{number}")))));
        successor.keys().len() > known && is_up(&proxy) == Some(1.0)
    });
    assert_eq!(ask(&spent), 429, "what was spent before is spent");
}

#[test]
fn sentinels_say_who_the_master_is() {
    let master = RedisServer::start();
    let replica_of_it = RedisServer::with(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
    let dir = scratch();
    let config = dir.path().join("sentinel.conf");
    std::fs::write(
        &config,
        format!(
            "sentinel monitor edge 127.0.0.1 {} 1\nsentinel down-after-milliseconds edge 500\nsentinel failover-timeout edge 2000\n",
            master.port()
        ),
    )
    .expect("a writable directory");
    // A sentinel looks for replicas at once and then only every ten seconds.
    eventually("the replica is in step", || {
        let info: String =
            redis::cmd("INFO").arg("replication").query(&mut master.connect()).expect("a text");
        info.contains("state=online")
    });
    let sentinel = RedisServer::sentinel(&config);
    let origin = origin().start();
    let redis = format!(
        "endpoints: ['{}'], sentinel: {{ masterName: edge }}, timeout: 5s, replicas: 1",
        sentinel.address()
    );
    let rate = Rate { average: 1, burst: 10 };
    eventually("the sentinel knows the replica", || {
        let text = format!("{:?}", sentinel.command(&["SENTINEL", "REPLICAS", "edge"]));
        text.contains(&replica_of_it.port().to_string()) && !text.contains("disconnected")
    });
    let proxy = replica(&origin, rate, &redis);
    let mut client = proxy.client("a.test");
    client.get_with("/", &[("X-Key", "a")]).expect(200);
    assert!(master.keys().iter().any(|key| key.contains("limit")));

    drop(master);
    await_redis(&proxy, 0.0);
    client.get_with("/", &[("X-Key", "a")]).expect(200);

    eventually("the other one is master and is asked", || {
        client.get_with("/", &[("X-Key", "b")]);
        is_up(&proxy) == Some(1.0)
    });
    eventually("its keys", || replica_of_it.keys().iter().any(|key| key.contains("limit")));
}

/// Takes connections and answers whatever it is sent with the same bytes.
struct Nonsense {
    address: String,
    connections: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Nonsense {
    fn start(answer: &'static str) -> Self {
        use std::io::{Read, Write};
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let connections = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (count, stopped) = (Arc::clone(&connections), Arc::clone(&stop));
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).is_ok_and(|count| count > 0) {
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, connections, stop }
    }
}

impl Drop for Nonsense {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
    }
}
