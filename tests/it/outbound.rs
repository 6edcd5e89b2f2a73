//! `outboundLimit` of several replicas: together they keep to one partner's quota, in one queue, and obey what it says to
//! any of them, whatever Redis does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{Client, Origin, Proxy, RedisServer, eventually, origin, proxy};

/// A partner's quota.
#[derive(Clone, Copy)]
struct Rate {
    average: u64,
    burst: u64,
}

impl Rate {
    /// `burst + rate * time`, and what else may pass.
    fn most(self, time: Duration, more: u64) -> u64 {
        self.burst + more + (self.average as f64 * time.as_secs_f64()).ceil() as u64
    }

    fn keys(self, more: &str) -> String {
        format!("average: {}, burst: {}, {more}", self.average, self.burst)
    }
}

/// A pod or partner that notes when it was asked.
struct Partner {
    origin: Origin,
    asked: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Partner {
    fn start() -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&asked);
        let origin = origin()
            .otherwise(move |request, peer| {
                let target = request.head.start_line.split(' ').nth(1).unwrap_or_default().to_owned();
                notes.lock().expect("no panic").push((Instant::now(), target));
                peer.respond("200 OK", &[], "well");
            })
            .start();
        Self { origin, asked }
    }

    fn count(&self) -> u64 {
        self.asked.lock().expect("no panic").len() as u64
    }

    /// At no time more had come than the quota allows since the beginning; the demand is above it all the while, so
    /// that what is too much anywhere would be too much from there on.
    #[track_caller]
    fn assert_paced(&self, rate: Rate, since: Instant, more: u64) {
        for (index, (at, _)) in self.asked.lock().expect("no panic").iter().enumerate() {
            let (count, time) = (index as u64 + 1, *at - since);
            assert!(count <= rate.most(time, more), "{count} requests in {time:?}");
        }
    }
}

fn document(servers: &[&Origin], limit: &str) -> String {
    let urls: Vec<_> = servers.iter().map(|server| format!("{{ url: \"{}\" }}", server.url())).collect();
    format!(
        r#"
http:
  routers: {{ all: {{ rule: "Host(`a.test`)", service: partner }} }}
  services: {{ partner: {{ loadBalancer: {{ servers: [{}], outboundLimit: {{ {limit} }} }} }} }}
"#,
        urls.join(", ")
    )
}

fn at(server: &RedisServer, more: &str) -> String {
    format!("redis: {{ endpoints: ['{}'], {more} }}", server.address())
}

/// A proxy whose Redis is known to answer.
fn replica(servers: &[&Origin], limit: &str) -> Proxy {
    let proxy = proxy().config(&document(servers, limit)).start();
    await_redis(&proxy, 1.0);
    proxy
}

/// The sum of a metric's samples that have this label.
fn figure(proxy: &Proxy, name: &str, label: &str) -> Option<f64> {
    let page = Client::connect(proxy.admin(), "admin").get("/metrics").expect(200).text();
    let lines = page.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    let values: Vec<f64> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

fn await_redis(proxy: &Proxy, up: f64) {
    eventually(&format!("redis is up: {up}"), || figure(proxy, "sluicegate_redis_up", "") == Some(up));
}

fn decided(proxy: &Proxy, decision: &str) -> f64 {
    let label = format!("decision=\"{decision}\"");
    figure(proxy, "sluicegate_outbound_limit_decisions_total", &label).unwrap_or(0.0)
}

/// The text of the one bucket there is. It changes whenever a token is taken.
fn bucket(server: &RedisServer) -> Option<String> {
    let key = server.keys().into_iter().find(|key| key.contains("outbound/"))?;
    redis::cmd("GET").arg(key).query(&mut server.connect()).ok()
}

/// Sends a request and waits until its turn is known to Redis.
fn queue(server: &RedisServer, proxy: &Proxy, target: &str) -> Client {
    let before = bucket(server);
    let mut client = proxy.client("a.test");
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
    eventually("it has a turn", || bucket(server) != before);
    client
}

/// The `Retry-After` of a refusal.
#[track_caller]
fn refused(proxy: &Proxy) -> u64 {
    let answer = proxy.client("a.test").get("/").expect(503);
    answer.header("Retry-After").expect("Retry-After").parse().expect("seconds")
}

/// Asks all replicas as fast as they answer, three clients each, until `during` is over. Gives the answers that were
/// neither 200 nor 429.
fn flood(replicas: &[&Proxy], during: impl FnOnce()) -> Vec<u16> {
    let (others, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for replica in replicas.iter().chain(replicas).chain(replicas) {
            let (others, stop) = (&others, &stop);
            let mut client = replica.client("a.test");
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    match client.get("/").status {
                        200 => {}
                        // Refusals cost the machine's time and show nothing.
                        429 => std::thread::sleep(Duration::from_millis(5)),
                        other => others.lock().expect("no panic").push(other),
                    }
                }
            });
        }
        // A test that fails in here must not leave the threads running.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
        stop.store(true, Ordering::SeqCst);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    others.into_inner().expect("no panic")
}

#[test]
fn three_replicas_hold_one_partners_quota_together() {
    let (server, partner) = (RedisServer::start(), Partner::start());
    let rate = Rate { average: 40, burst: 5 };
    // Nine clients, and all of them may wait.
    let limit = rate.keys(&format!("maxWait: 5s, maxQueue: 9, status: 429, {}", at(&server, "timeout: 5s")));
    let replicas = [(); 3].map(|()| replica(&[&partner.origin], &limit));

    let since = Instant::now();
    let others = flood(&replicas.each_ref(), || {
        eventually("the quota is spent and refilled", || partner.count() >= 60);
    });

    assert_eq!(others, [0_u16; 0]);
    partner.assert_paced(rate, since, 0);
    assert!(replicas.iter().all(|replica| decided(replica, "delayed") > 0.0), "all of them wait");
    assert!(replicas.iter().all(|replica| decided(replica, "refused") == 0.0), "and none is refused");
    let keys = server.keys();
    let key = keys.iter().find(|key| key.contains("partner")).expect("a key");
    assert!(key.starts_with("sluicegate:outbound/partner:{") && key.ends_with("}:outbound"), "{key}");
    let limits = replicas[0].admin_get("/api/limits").expect(200).json();
    let asked = &limits[0]["decidedBy"]["redis"];
    assert!(asked.as_u64().is_some_and(|asked| asked > 0), "{limits}");
}

#[test]
fn with_leases_replicas_exceed_a_partners_quota_by_no_more_than_these() {
    let (server, partner) = (RedisServer::start(), Partner::start());
    let rate = Rate { average: 40, burst: 5 };
    let redis = at(&server, "timeout: 5s, mode: lease, lease: 3");
    let limit = rate.keys(&format!("maxWait: 5s, maxQueue: 6, status: 429, {redis}"));
    let replicas = [(); 3].map(|()| replica(&[&partner.origin], &limit));

    let since = Instant::now();
    let others = flood(&replicas.each_ref(), || {
        eventually("the quota is spent and refilled", || partner.count() >= 60);
    });

    assert_eq!(others, [0_u16; 0]);
    partner.assert_paced(rate, since, 3 * 3);
    let leased = figure(&replicas[0], "sluicegate_limiter_shared_total", "by=\"lease\"");
    assert!(leased.is_some_and(|leased| leased > 0.0), "{leased:?}");
}

#[test]
fn those_who_wait_at_several_replicas_are_one_queue_in_the_order_in_which_they_came() {
    let (server, partner) = (RedisServer::start(), Partner::start());
    let limit = format!("average: 1, period: 600ms, maxWait: 1m, {}", at(&server, "timeout: 5s"));
    let replicas = [(); 3].map(|()| replica(&[&partner.origin], &limit));
    let began = Instant::now();

    let waiting: Vec<_> =
        (0..6).map(|turn| queue(&server, &replicas[turn % 3], &format!("/{turn}"))).collect();
    for mut client in waiting {
        client.response().expect(200);
    }

    let asked = partner.asked.lock().expect("no panic");
    let order: Vec<_> = asked.iter().map(|(_, target)| target.as_str()).collect();
    assert_eq!(order, ["/0", "/1", "/2", "/3", "/4", "/5"]);
    let last = asked[5].0 - began;
    assert!(last >= Duration::from_millis(5 * 600), "{last:?}");
}

#[test]
fn no_more_wait_at_all_replicas_together_than_may() {
    let (server, partner) = (RedisServer::start(), Partner::start());
    let limit = format!("average: 1, period: 1h, maxWait: 100h, maxQueue: 3, {}", at(&server, "timeout: 5s"));
    let replicas = [(); 3].map(|()| replica(&[&partner.origin], &limit));

    replicas[0].client("a.test").get("/").expect(200);
    let _waiting = replicas.each_ref().map(|replica| queue(&server, replica, "/"));

    for replica in &replicas {
        let wait = refused(replica);
        assert!((4 * 3_600 - 60..=4 * 3_600).contains(&wait), "{wait} until there is a turn");
    }
    assert_eq!(partner.count(), 1);
}

#[test]
fn each_server_has_a_pace_that_all_replicas_know_by_its_url() {
    let (server, one, two) = (RedisServer::start(), Partner::start(), Partner::start());
    let limit = format!("average: 1, period: 1h, scope: server, maxWait: 0, {}", at(&server, "timeout: 5s"));
    let replicas = [(); 2].map(|()| replica(&[&one.origin, &two.origin], &limit));

    replicas[0].client("a.test").get("/").expect(200);
    let mut client = replicas[1].client("a.test");
    let mut statuses = [(); 3].map(|()| client.get("/").status);
    statuses.sort_unstable();

    assert_eq!(statuses, [200, 503, 503]);
    assert_eq!((one.count(), two.count()), (1, 1));
    assert_eq!(server.keys().iter().filter(|key| key.contains("outbound/partner")).count(), 2);
}

/// A partner that asks for a pause when it is asked for `/busy`.
fn busy(fields: &'static [(&'static str, &'static str)]) -> Origin {
    origin()
        .always("well")
        .on("/busy", move |_, peer| peer.respond("429 Too Many Requests", fields, "later"))
        .start()
}

const THOUSAND_SECONDS: &[(&str, &str)] = &[("Retry-After", "1000")];

#[test]
fn what_a_partner_says_to_one_replica_all_of_them_obey() {
    for mode in ["mode: exact", "mode: lease, lease: 2"] {
        let (server, partner) = (RedisServer::start(), busy(THOUSAND_SECONDS));
        let redis = at(&server, &format!("timeout: 5s, {mode}"));
        let limit = format!("average: 1000, burst: 1000, maxPause: 1h, {redis}");
        let replicas = [(); 3].map(|()| replica(&[&partner], &limit));
        replicas.iter().for_each(|replica| drop(replica.client("a.test").get("/").expect(200)));

        replicas[0].client("a.test").get("/busy").expect(429);

        let wait = refused(&replicas[0]);
        assert!((900..=1_001).contains(&wait), "at once: {wait}");
        for replica in &replicas {
            eventually("it has heard of the pause", || replica.client("a.test").get("/").status == 503);
            let (hits, wait) = (partner.hits(), refused(replica));
            assert!((900..=1_001).contains(&wait), "{wait}");
            assert_eq!(partner.hits(), hits, "{mode}");
        }
    }
}

#[test]
fn a_pause_that_redis_cannot_be_told_of_is_kept_and_told_when_it_is_back() {
    let (mut server, partner) = (RedisServer::start(), busy(THOUSAND_SECONDS));
    let limit = format!("average: 1000, burst: 1000, maxPause: 1h, {}", at(&server, "replicas: 2"));
    let replicas = [(); 2].map(|()| replica(&[&partner], &limit));
    server.kill();
    replicas.iter().for_each(|replica| await_redis(replica, 0.0));

    replicas[0].client("a.test").get("/busy").expect(429);

    let wait = refused(&replicas[0]);
    assert!((900..=1_001).contains(&wait), "{wait}");
    replicas[1].client("a.test").get("/").expect(200);
    // Twice, the second time with nothing of what it knew.
    for _ in 0..2 {
        server.restart();
        replicas.iter().for_each(|replica| await_redis(replica, 1.0));
        eventually("the other one has heard of it", || replicas[1].client("a.test").get("/").status == 503);
        server.kill();
        replicas.iter().for_each(|replica| await_redis(replica, 0.0));
        assert!(refused(&replicas[0]) >= 900);
    }
}

#[test]
fn a_pause_is_obeyed_also_where_everything_is_allowed_without_redis() {
    let partner = busy(THOUSAND_SECONDS);
    let limit =
        "average: 1, maxWait: 0, maxPause: 1h, redis: { endpoints: ['127.0.0.1:1'], onFailure: open }";
    let proxy = proxy().config(&document(&[&partner], limit)).start();
    let mut client = proxy.client("a.test");
    assert_eq!([(); 3].map(|()| client.get("/").status), [200; 3]);
    client.get("/busy").expect(429);

    let wait = refused(&proxy);

    assert!((900..=1_001).contains(&wait), "{wait}");
}

/// A partner whose answer to `/first` is 429, and comes when it is told to.
fn held(release: Receiver<()>) -> Origin {
    let release = Mutex::new(release);
    origin()
        .always("well")
        .on("/first", move |_, peer| {
            // The test is over when nobody tells it.
            let _ = release.lock().expect("no panic").recv_timeout(Duration::from_secs(60));
            peer.respond("429 Too Many Requests", &[("Retry-After", "3000")], "later");
        })
        .start()
}

#[test]
fn those_who_have_a_turn_at_the_replica_that_learns_of_a_pause_look_again() {
    let server = RedisServer::start();
    let (release, released): (Sender<()>, _) = channel();
    let partner = held(released);
    let redis = at(&server, "timeout: 5s");
    let limit = format!("average: 1, period: 3s, maxWait: 1m, maxPause: 1h, {redis}");
    let proxy = replica(&[&partner], &limit);
    let mut first = queue(&server, &proxy, "/first");
    eventually("the partner is asked", || partner.hits() == 1);
    let mut second = queue(&server, &proxy, "/second");

    release.send(()).expect("the partner waits for it");
    first.response().expect(429);

    let refused = second.response().expect(503);
    let wait: u64 = refused.header("Retry-After").expect("Retry-After").parse().expect("seconds");
    assert!((2_900..=3_003).contains(&wait), "{wait}");
    assert_eq!(partner.hits(), 1);
}

#[test]
fn a_pause_outlasts_reloads_into_redis_with_another_quota_and_back() {
    let (server, partner) = (RedisServer::start(), busy(THOUSAND_SECONDS));
    let memory = "average: 1000, burst: 1000, maxPause: 1h";
    let shared = format!("average: 100, burst: 50, maxPause: 1h, {}", at(&server, "timeout: 5s"));
    let changed = format!("average: 7, burst: 3, maxPause: 1h, {}", at(&server, "timeout: 5s"));
    let first = proxy().config(&document(&[&partner], memory)).start();
    let other = replica(&[&partner], &shared);
    first.client("a.test").get("/busy").expect(429);

    for limit in [&shared, &changed] {
        first.reload(&document(&[&partner], limit));
        await_redis(&first, 1.0);
        assert!(refused(&first) >= 900, "{limit}");
        eventually("the other one has heard of it", || other.client("a.test").get("/").status == 503);
        // Neither quota makes the other one forget it.
        for _ in 0..3 {
            assert!(refused(&first) >= 900 && refused(&other) >= 900, "{limit}");
        }
    }
    first.reload(&document(&[&partner], memory));
    assert!(refused(&first) >= 900);
}

#[test]
fn while_redis_is_killed_paused_and_restarted_the_shares_are_kept_and_nobody_sees_an_error() {
    const QUEUE: u64 = 6;
    let (mut server, partner) = (RedisServer::start(), Partner::start());
    let rate = Rate { average: 60, burst: 30 };
    let redis = at(&server, "timeout: 200ms, replicas: 3");
    let limit = rate.keys(&format!("maxWait: 5s, maxQueue: {QUEUE}, status: 429, {redis}"));
    let replicas = [(); 3].map(|()| replica(&[&partner.origin], &limit));
    let all = replicas.each_ref();
    let await_all = |up| all.iter().for_each(|replica| await_redis(replica, up));
    let more = |count: u64| {
        let goal = partner.count() + count;
        eventually("more is sent", || partner.count() >= goal);
    };
    let shared = |by: &str| -> f64 {
        let by = format!("by=\"{by}\"");
        let of = |replica: &&Proxy| figure(replica, "sluicegate_limiter_shared_total", &by);
        all.iter().filter_map(of).sum()
    };

    let since = Instant::now();
    let others = flood(&all, || {
        more(40);
        server.pause();
        await_all(0.0);
        more(40);
        server.resume();
        await_all(1.0);
        let asked = shared("redis");
        more(40);
        assert!(shared("redis") > asked, "it is asked again");
        server.kill();
        await_all(0.0);
        more(40);
        server.restart();
        await_all(1.0);
        more(40);
    });
    let time = since.elapsed();

    assert_eq!(others, [0_u16; 0], "nobody sees an error of Redis's");
    // Redis's bucket, which is full once more after the restart; those who had turns by the one before; and the
    // shares, which are a third of the burst each and are filled at a third of the rate.
    let in_vain = (shared("late") + shared("failed") + shared("crowded")) as u64;
    let shares = 2 * rate.burst + (rate.average as f64 * time.as_secs_f64()).ceil() as u64;
    let most = rate.most(time, rate.burst + QUEUE + shares + in_vain);
    assert!(partner.count() <= most, "{} in {time:?}: more than {most}", partner.count());
    assert!(
        all.iter().all(|replica| decided(replica, "fallback") > 0.0),
        "what is sent without Redis is seen"
    );
}

#[test]
fn while_redis_is_away_all_replicas_together_keep_to_the_quota() {
    let (mut server, partner) = (RedisServer::start(), Partner::start());
    let rate = Rate { average: 60, burst: 30 };
    let limit = rate.keys(&format!("maxWait: 5s, maxQueue: 6, status: 429, {}", at(&server, "replicas: 3")));
    let replicas = [(); 3].map(|()| replica(&[&partner.origin], &limit));
    server.kill();
    replicas.iter().for_each(|replica| await_redis(replica, 0.0));

    let since = Instant::now();
    let others = flood(&replicas.each_ref(), || {
        eventually("the shares are spent and refilled", || partner.count() >= 60);
    });

    assert_eq!(others, [0_u16; 0]);
    partner.assert_paced(rate, since, 0);
}

#[test]
fn the_policy_says_who_decides_what_goes_out_without_redis() {
    for (policy, statuses, fallback) in
        [("open", [200, 200, 200], 3.0), ("closed", [503, 503, 503], 0.0), ("local", [200, 503, 503], 1.0)]
    {
        let partner = Partner::start();
        let redis = format!("redis: {{ endpoints: ['127.0.0.1:1'], onFailure: {policy} }}");
        let limit = format!("average: 1, period: 1h, maxWait: 0, {redis}");
        let proxy = proxy().config(&document(&[&partner.origin], &limit)).start();
        let mut client = proxy.client("a.test");

        assert_eq!([(); 3].map(|()| client.get("/").status), statuses, "{policy}");

        assert_eq!(decided(&proxy, "fallback"), fallback, "{policy}");
    }
}

#[test]
fn a_client_that_goes_away_while_it_waits_leaves_its_turn_unused() {
    const TOKEN: Duration = Duration::from_secs(1);
    let server = RedisServer::start();
    for redis in [String::new(), at(&server, "timeout: 5s")] {
        let partner = Partner::start();
        let limit = format!("average: 1, period: 1s, maxWait: 1m, {redis}");
        let proxy = proxy().config(&document(&[&partner.origin], &limit)).start();
        if !redis.is_empty() {
            await_redis(&proxy, 1.0);
        }
        // In memory the store says who has a turn.
        let turns = AtomicU64::new(0);
        let send = |target: &str| match redis.as_str() {
            "" => {
                let mut client = proxy.client("a.test");
                client.send(format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
                let turns = turns.fetch_add(1, Ordering::SeqCst) + 1;
                eventually("it has a turn", || {
                    let limits = proxy.admin_get("/api/limits").expect(200).json();
                    let count = |key: &str| limits[0][key].as_u64().unwrap_or(0);
                    count("admitted") + count("delayed") == turns
                });
                client
            }
            _ => queue(&server, &proxy, target),
        };

        let began = Instant::now();
        send("/first").response().expect(200);
        send("/gone").reset();
        send("/next").response().expect(200);

        let asked = partner.asked.lock().expect("no panic");
        let order: Vec<_> = asked.iter().map(|(_, target)| target.as_str()).collect();
        assert_eq!(order, ["/first", "/next"]);
        let time = asked[1].0 - began;
        assert!(time >= 2 * TOKEN, "it waits for its own turn: {time:?}");
    }
}

#[test]
fn a_service_and_a_middleware_that_name_the_same_redis_share_its_connections() {
    let (server, partner) = (RedisServer::start(), Partner::start());
    let redis = at(&server, "timeout: 5s");
    let both = document(&[&partner.origin], &format!("average: 1, period: 1h, maxWait: 0, {redis}"))
        .replace("service: partner }", "service: partner, middlewares: [limit] }")
        + &format!(
            "  middlewares: {{ limit: {{ rateLimit: {{ average: 1, period: 1h, burst: 2, {redis} }} }} }}\n"
        );
    let proxy = proxy().config(&both).start();
    await_redis(&proxy, 1.0);
    let mut client = proxy.client("a.test");

    assert_eq!([(); 3].map(|()| client.get("/").status), [200, 503, 429]);

    let known = proxy.admin_get("/api/redis").expect(200).json();
    assert_eq!(known.as_array().map(Vec::len), Some(1), "{known}");
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut server.connect()).expect("a list");
    assert_eq!(clients.lines().filter(|line| line.contains("cmd=evalsha")).count(), 1, "{clients}");
}

#[test]
fn passwords_of_what_goes_out_are_shown_nowhere() {
    const PASSWORD: &str = "correct-horse-battery";
    let partner = Partner::start();
    let limit = format!("average: 1, redis: {{ endpoints: ['127.0.0.1:1'], password: {PASSWORD} }}");
    let proxy = proxy().config(&document(&[&partner.origin], &limit)).start();
    proxy.client("a.test").get("/").expect(200);

    let mut shown: Vec<String> = ["/api/redis", "/api/rawdata", "/api/http/services", "/metrics"]
        .iter()
        .map(|path| proxy.admin_get(path).expect(200).text())
        .collect();
    assert!(shown[1].contains("outboundLimit"), "{}", shown[1]);
    shown.extend(proxy.log_lines().iter().map(|line| format!("{line:?}")));
    for text in shown {
        assert!(!text.contains(PASSWORD), "{text}");
    }
}
