//! `redis`: the options of limits that replicas share.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::common::units::HumanDuration;
use crate::limit::redis::{
    Address, GivesBack, Mode, OnFailure, Registry, Secret, Settings, SharedLimit, Tls, Topology, Use, Verify,
};
use crate::limit::{Limit, Pauses};

/// Redis's port.
const PORT: u16 = 6379;
/// Sentinel's port.
const SENTINEL_PORT: u16 = 26379;
/// More connections to one server than anybody needs: each carries any number of questions.
const MAX_CONNECTIONS: i64 = 64;
/// The longest that requests may be made to wait for Redis.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a certificate file.
const MAX_PEM: u64 = 1 << 20;

/// Options of `redis`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RedisConfig {
    /// `host:port` of a server; more than one are nodes of a cluster, or sentinels. Default `localhost:6379`.
    pub endpoints: Vec<String>,
    /// Whether the endpoints are nodes of a cluster. Default: when there is more than one.
    pub cluster: Option<bool>,
    /// The endpoints are sentinels, which say who the master is.
    pub sentinel: Option<SentinelConfig>,
    /// TLS to Redis. Default: none.
    pub tls: Option<RedisTlsConfig>,
    /// The ACL user.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// The database. Default 0.
    pub db: Option<i64>,
    /// Connections to a server, each of which carries any number of questions at once. 0, the default, is one.
    pub pool_size: Option<i64>,
    /// Without effect: connections are opened at once and stay open.
    pub min_idle_conns: Option<i64>,
    /// Without effect: there are never more than `poolSize`.
    pub max_active_conns: Option<i64>,
    /// How long an answer may take before the connection is given up; no request waits for that. Default `3s`.
    pub read_timeout: Option<HumanDuration>,
    /// Without effect: what `readTimeout` allows covers both ways.
    pub write_timeout: Option<HumanDuration>,
    /// How long connecting may take; no request waits for it. Default `5s`.
    pub dial_timeout: Option<HumanDuration>,
    /// How long a request waits for Redis before `onFailure` decides. Default `5ms`.
    pub timeout: Option<HumanDuration>,
    /// Whether Redis is asked for each request, or hears of them afterwards. Default `exact`.
    pub mode: Option<RedisMode>,
    /// In `lease` mode, requests of one key that a replica allows before Redis has heard of them. Default: a tenth
    /// of `burst`, at least 1.
    pub lease: Option<i64>,
    /// Who decides while Redis does not. Default `local`.
    pub on_failure: Option<FailurePolicy>,
    /// Replicas of the proxy, among which the limit is shared out while Redis is away. Default 1.
    pub replicas: Option<i64>,
    /// What all keys in Redis begin with. Default `sluicegate`.
    pub key_prefix: Option<String>,
}

/// Sentinels.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct SentinelConfig {
    /// The name of the master that they watch. Required.
    pub master_name: String,
    /// The ACL user of the sentinels.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
}

/// TLS to Redis. Texts are PEM or names of files.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RedisTlsConfig {
    /// Whom to trust. Default: the system's roots.
    pub ca: Option<String>,
    /// The client's certificate.
    pub cert: Option<String>,
    /// Its key.
    pub key: Option<String>,
    /// Takes any certificate, whoever it belongs to: anybody on the way can read and change what is said. Default
    /// `false`.
    pub insecure_skip_verify: bool,
}

/// How Redis is asked.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RedisMode {
    /// Each request is decided by Redis: one round trip, batched with others.
    #[default]
    Exact,
    /// Requests are decided here, and Redis hears of them afterwards: no round trip, and a bounded error.
    Lease,
}

/// Who decides while Redis does not.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FailurePolicy {
    /// Each replica, by its share of the limit.
    #[default]
    Local,
    /// Nobody: all requests pass.
    Open,
    /// Nobody: all requests are refused with 429.
    Closed,
}

impl RedisConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(&self, max_keys: NonZeroUsize, at: &ConfigPath, problems: &mut Problems) -> Option<Redis> {
        let before = problems.len();
        let topology = self.topology(at, problems);
        let endpoints = self.endpoints(&topology, at, problems);
        let tls = self.tls.as_ref().map(|tls| tls.compile(&at.key("tls"), problems));
        let db = self.number("db", self.db, (0, 1 << 16), at, problems).unwrap_or(0);
        if topology == Topology::Cluster && db != 0 {
            problems.error(&at.key("db"), "a cluster has no databases but 0");
        }
        let pool = self.number("poolSize", self.pool_size, (0, MAX_CONNECTIONS), at, problems).unwrap_or(0);
        let replicas = self.number("replicas", self.replicas, (1, 1 << 20), at, problems).unwrap_or(1);
        let lease = self.number("lease", self.lease, (1, i64::MAX), at, problems);
        let time =
            |key: &str, value: Option<HumanDuration>, default: HumanDuration, problems: &mut Problems| {
                let value = value.unwrap_or(default).0;
                if value.is_zero() {
                    problems.error(&at.key(key), format!("{key} must not be 0"));
                }
                value
            };
        let timeout = time("timeout", self.timeout, HumanDuration::millis(5), problems);
        if timeout > MAX_TIMEOUT {
            let problem = Problem::error(&at.key("timeout"), "requests would wait for more than 10 s");
            problems.push(problem.hint("a few milliseconds are usual"));
        }
        let read_timeout = time("readTimeout", self.read_timeout, HumanDuration::secs(3), problems);
        let dial_timeout = time("dialTimeout", self.dial_timeout, HumanDuration::secs(5), problems);
        let prefix = self.key_prefix.clone().unwrap_or_else(|| "sluicegate".to_owned());
        if prefix.is_empty() || prefix.len() > 128 || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem = Problem::error(&at.key("keyPrefix"), "bad key prefix");
            problems.push(problem.hint("1 to 128 printable ASCII characters without spaces"));
        }
        if problems.errors_since(before) {
            return None;
        }
        let settings = Settings {
            endpoints,
            topology,
            username: self.username.clone().unwrap_or_default(),
            password: Secret::new(self.password.as_deref().unwrap_or_default()),
            db: i64::try_from(db).unwrap_or(0),
            tls,
            connections: usize::try_from(pool).unwrap_or(1).max(1),
            dial_timeout,
            read_timeout: read_timeout.max(timeout),
            timeout,
            prefix,
        };
        let on_failure = match self.on_failure.unwrap_or_default() {
            FailurePolicy::Local => OnFailure::Local,
            FailurePolicy::Open => OnFailure::Open,
            FailurePolicy::Closed => OnFailure::Closed,
        };
        let replicas = NonZeroU64::new(replicas).unwrap_or(NonZeroU64::MIN);
        let mode = self.mode.unwrap_or_default();
        Some(Redis { settings, mode, lease, on_failure, replicas, max_keys })
    }

    fn topology(&self, at: &ConfigPath, problems: &mut Problems) -> Topology {
        let Some(sentinel) = &self.sentinel else {
            let cluster = self.cluster.unwrap_or(self.endpoints.len() > 1);
            if !cluster && self.endpoints.len() > 1 {
                let problem = Problem::error(&at.key("endpoints"), "more than one server, and no cluster");
                problems.push(problem.hint("keep one of them, or write sentinel"));
            }
            return if cluster { Topology::Cluster } else { Topology::Single };
        };
        if self.cluster == Some(true) {
            problems.error(&at.key("cluster"), "it is either a cluster or sentinels");
        }
        if sentinel.master_name.is_empty() {
            let problem = Problem::error(&at.key("sentinel").key("masterName"), "masterName is missing");
            problems.push(problem.hint("the name after `sentinel monitor` in the sentinels' configuration"));
        }
        Topology::Sentinel {
            master: sentinel.master_name.clone(),
            username: sentinel.username.clone().unwrap_or_default(),
            password: Secret::new(sentinel.password.as_deref().unwrap_or_default()),
        }
    }

    fn endpoints(&self, topology: &Topology, at: &ConfigPath, problems: &mut Problems) -> Vec<Address> {
        let port = if matches!(topology, Topology::Sentinel { .. }) { SENTINEL_PORT } else { PORT };
        if self.endpoints.is_empty() {
            return vec![Address { host: "localhost".to_owned(), port }];
        }
        let mut read = Vec::with_capacity(self.endpoints.len());
        for (index, text) in self.endpoints.iter().enumerate() {
            match Address::parse(text, port) {
                Some(address) => read.push(address),
                // What was written may hold a password.
                None => {
                    let problem = Problem::error(&at.key("endpoints").index(index), "bad endpoint");
                    problems
                        .push(problem.hint(
                            "write host:port; user, password, database and TLS have keys of their own",
                        ));
                }
            }
        }
        read
    }

    fn number(
        &self,
        key: &str,
        value: Option<i64>,
        (least, most): (i64, i64),
        at: &ConfigPath,
        problems: &mut Problems,
    ) -> Option<u64> {
        let value = value?;
        if (least..=most).contains(&value) {
            return u64::try_from(value).ok();
        }
        let text = if value < least { format!("at least {least}") } else { format!("at most {most}") };
        problems.error(&at.key(key), format!("{key} must be {text}"));
        None
    }
}

/// `redis`, compiled.
#[derive(Debug)]
pub struct Redis {
    settings: Settings,
    mode: RedisMode,
    lease: Option<u64>,
    on_failure: OnFailure,
    replicas: NonZeroU64,
    max_keys: NonZeroUsize,
}

impl Redis {
    /// Puts the buckets of a limit there, with what upstreams asked for.
    pub fn bind(
        &self,
        name: &str,
        limit: Arc<Limit>,
        gives_back: GivesBack,
        pauses: Arc<Pauses>,
        registry: &mut Registry,
    ) -> SharedLimit {
        let units = limit.windows().iter().map(|window| (&window.name, window.quota));
        let views = registry.views(name, &format!("{:?}", units.collect::<Vec<_>>()));
        let how = self.how(&limit, gives_back);
        SharedLimit::new(registry.backend(&self.settings), name, limit, views, pauses, how)
    }

    fn how(&self, limit: &Limit, gives_back: GivesBack) -> Use {
        let burst = limit.windows().iter().map(|window| window.quota.burst()).min();
        let lease = self.lease.unwrap_or(burst.unwrap_or(1) / 10);
        let mode = match self.mode {
            RedisMode::Exact => Mode::Exact,
            RedisMode::Lease => Mode::Lease(NonZeroU64::new(lease).unwrap_or(NonZeroU64::MIN)),
        };
        let (on_failure, replicas, max_keys) = (self.on_failure, self.replicas, self.max_keys);
        Use { mode, on_failure, replicas, max_keys, gives_back }
    }
}

impl RedisTlsConfig {
    fn compile(&self, at: &ConfigPath, problems: &mut Problems) -> Tls {
        let mut read = |key: &str, text: &Option<String>| {
            let text = text.as_deref().filter(|text| !text.is_empty());
            (text.is_some(), text.and_then(|text| pem(text, &at.key(key), problems)))
        };
        let (_, ca) = read("ca", &self.ca);
        let (has_cert, cert) = read("cert", &self.cert);
        let (has_key, key) = read("key", &self.key);
        let verify = if self.insecure_skip_verify { Verify::No } else { Verify::Yes };
        if self.insecure_skip_verify && ca.is_some() {
            let problem = Problem::error(&at.key("insecureSkipVerify"), "with it nobody looks at ca");
            problems.push(problem.hint("leave out one of them: insecureSkipVerify, rather"));
        }
        if has_cert != has_key {
            problems.error(at, "cert and key belong together");
        }
        let client = cert.zip(key).map(|(cert, key)| (cert, Secret::new(&key)));
        Tls { ca, client, verify }
    }
}

/// PEM as it is written, or from a file.
fn pem(text: &str, at: &ConfigPath, problems: &mut Problems) -> Option<Arc<str>> {
    let text = if text.contains("-----BEGIN") {
        text.to_owned()
    } else {
        let path = Path::new(text);
        let read = std::fs::metadata(path).and_then(|file| {
            if file.len() > MAX_PEM {
                return Err(std::io::Error::other("larger than 1 MiB"));
            }
            std::fs::read_to_string(path)
        });
        match read {
            Ok(read) => read,
            Err(error) => {
                problems.error(at, format!("{} cannot be read: {error}", path.display()));
                return None;
            }
        }
    };
    if text.contains("-----BEGIN") {
        return Some(text.into());
    }
    problems.error(at, "this is no PEM");
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{Quota, Window};

    fn compile(text: &str) -> Result<(Settings, Use), Vec<String>> {
        let config: RedisConfig = serde_yaml::from_str(text).expect("the test's own YAML");
        let mut problems = Problems::new();
        let keys = NonZeroUsize::new(100).expect("not zero");
        let compiled = config.compile(keys, &ConfigPath::of(&["redis"]), &mut problems);
        let paths: Vec<String> = problems.iter().map(|problem| problem.path.to_string()).collect();
        let not_zero = |number| NonZeroU64::new(number).expect("not zero");
        let quota = Quota::new(not_zero(1), Duration::from_secs(1), not_zero(50));
        let limit = Limit::new([Window { name: "default".into(), quota }]);
        compiled.map(|redis| (redis.settings.clone(), redis.how(&limit, GivesBack::No))).ok_or(paths)
    }

    #[test]
    fn without_a_word_it_is_localhost_asked_exactly_and_decided_here_when_away() {
        let (settings, how) = compile("{}").expect("no problem");
        assert_eq!(settings.label(), "localhost:6379");
        assert_eq!((settings.topology, settings.tls), (Topology::Single, None));
        assert_eq!((settings.timeout, settings.connections), (Duration::from_millis(5), 1));
        assert_eq!((how.mode, how.on_failure, how.replicas.get()), (Mode::Exact, OnFailure::Local, 1));
    }

    #[test]
    fn several_endpoints_are_a_cluster_unless_they_are_sentinels() {
        let topology = |text| compile(text).expect("no problem").0;
        assert_eq!(topology("{endpoints: [a, b]}").topology, Topology::Cluster);
        assert_eq!(topology("{endpoints: [a], cluster: true}").topology, Topology::Cluster);
        let sentinels = topology("{endpoints: [a, 'b:1'], sentinel: {masterName: m}}");
        assert_eq!(sentinels.label(), "a:26379,b:1/m");
    }

    #[test]
    fn a_lease_is_a_tenth_of_the_burst() {
        let mode = |text| compile(text).expect("no problem").1.mode;
        let lease = |tokens| Mode::Lease(NonZeroU64::new(tokens).expect("not zero"));
        assert_eq!(mode("{mode: lease}"), lease(5));
        assert_eq!(mode("{mode: lease, lease: 7}"), lease(7));
    }

    #[test]
    fn bad_values_are_named_by_their_key() {
        for (text, path) in [
            ("{endpoints: ['redis://ann:secret@a:1']}", "redis.endpoints[0]"),
            ("{endpoints: [a, b], cluster: false}", "redis.endpoints"),
            ("{endpoints: [a, b], db: 1}", "redis.db"),
            ("{db: -1}", "redis.db"),
            ("{poolSize: 1000}", "redis.poolSize"),
            ("{replicas: 0}", "redis.replicas"),
            ("{mode: lease, lease: 0}", "redis.lease"),
            ("{timeout: 0}", "redis.timeout"),
            ("{timeout: 1m}", "redis.timeout"),
            ("{dialTimeout: 0}", "redis.dialTimeout"),
            ("{keyPrefix: 'a b'}", "redis.keyPrefix"),
            ("{sentinel: {}}", "redis.sentinel.masterName"),
            ("{sentinel: {masterName: m}, cluster: true}", "redis.cluster"),
            ("{tls: {ca: /nowhere/ca.pem}}", "redis.tls.ca"),
            ("{tls: {cert: '-----BEGIN X'}}", "redis.tls"),
            ("{tls: {ca: '-----BEGIN X', insecureSkipVerify: true}}", "redis.tls.insecureSkipVerify"),
        ] {
            assert_eq!(compile(text).err(), Some(vec![path.to_owned()]), "{text}");
        }
    }
}
