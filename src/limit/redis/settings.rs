//! How a Redis is reached and how it is used; the same settings share their connections.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A text that is never shown.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Keeps a text.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text, for whoever needs it to speak with Redis.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { "REDACTED" })
    }
}

/// Who is asked for what, in a set-up of several servers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Topology {
    /// One server.
    Single,
    /// The endpoints are nodes of a cluster.
    Cluster,
    /// The endpoints are sentinels.
    Sentinel {
        /// The name of the master that they watch.
        master: String,
        /// Of the sentinels.
        username: String,
        /// Of the sentinels.
        password: Secret,
    },
}

impl Topology {
    /// The word for operators.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Cluster => "cluster",
            Self::Sentinel { .. } => "sentinel",
        }
    }
}

/// TLS to Redis; texts are PEM.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tls {
    /// Whom to trust; the system's roots if there is none.
    pub ca: Option<Arc<str>>,
    /// The client's certificate and its key.
    pub client: Option<(Arc<str>, Secret)>,
    /// Whether Redis has to show whose it is.
    pub verify: Verify,
}

/// Whether a certificate is looked at.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Verify {
    /// It is, with its name.
    #[default]
    Yes,
    /// Any will do: anybody on the way can read and change what is said.
    No,
}

/// A host with its port.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Address {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// Parses `host`, `host:port`, `[::1]:port`; without a port it is `default`.
    pub fn parse(text: &str, default: u16) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
            }
            None => match text.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => return None,
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = port.map_or(Some(default), |port| port.parse().ok().filter(|port| *port != 0))?;
        let plain = !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':'));
        plain.then(|| Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Everything that a connection depends on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// Servers, nodes or sentinels.
    pub endpoints: Vec<Address>,
    /// What they are.
    pub topology: Topology,
    /// The ACL user; empty for the default one.
    pub username: String,
    /// Of the user; empty for none.
    pub password: Secret,
    /// The database.
    pub db: i64,
    /// TLS, if any.
    pub tls: Option<Tls>,
    /// Connections, at least 1. Each carries any number of questions at once.
    pub connections: usize,
    /// For a connection to be made and to be ready.
    pub dial_timeout: Duration,
    /// For an answer, before the connection is given up.
    pub read_timeout: Duration,
    /// For an answer, before requests are decided without it.
    pub timeout: Duration,
    /// What the keys begin with.
    pub prefix: String,
}

impl Settings {
    /// How it is called in metrics, logs and the API: without user and password.
    pub fn label(&self) -> String {
        let endpoints: Vec<_> = self.endpoints.iter().map(Address::to_string).collect();
        let endpoints = endpoints.join(",");
        match (&self.topology, self.db) {
            (Topology::Sentinel { master, .. }, 0) => format!("{endpoints}/{master}"),
            (Topology::Sentinel { master, .. }, db) => format!("{endpoints}/{master}/{db}"),
            (Topology::Single | Topology::Cluster, 0) => endpoints,
            (Topology::Single | Topology::Cluster, db) => format!("{endpoints}/{db}"),
        }
    }
}

#[cfg(test)]
impl Settings {
    /// A Redis that nobody connects to.
    pub(crate) fn of_a_test() -> Self {
        Self {
            endpoints: vec![Address { host: "redis.test".to_owned(), port: 6379 }],
            topology: Topology::Single,
            username: String::new(),
            password: Secret::new(""),
            db: 0,
            tls: None,
            connections: 1,
            dial_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_secs(1),
            timeout: Duration::from_millis(5),
            prefix: "sluicegate".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_port() {
        let read = |text| Address::parse(text, 6379).map(|address| address.to_string());
        assert_eq!(read("localhost").as_deref(), Some("localhost:6379"));
        assert_eq!(read("redis.prod:7000").as_deref(), Some("redis.prod:7000"));
        assert_eq!(read("10.0.0.1:1").as_deref(), Some("10.0.0.1:1"));
        assert_eq!(read("[::1]:7000").as_deref(), Some("[::1]:7000"));
        assert_eq!(read("[::1]").as_deref(), Some("[::1]:6379"));
        for text in
            ["", ":1", "a:", "a:0", "a:x", "a:70000", "::1", "redis://a:1", "user:pw@a:1", "a b", "[::1"]
        {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn no_secret_is_ever_shown() {
        let secret = Secret::new("hunter2");
        let sentinel =
            Topology::Sentinel { master: "m".to_owned(), username: String::new(), password: secret.clone() };
        let settings = Settings {
            topology: sentinel,
            username: "ann".to_owned(),
            password: secret.clone(),
            db: 3,
            tls: Some(Tls { client: Some(("cert".into(), secret)), ..Tls::default() }),
            ..Settings::of_a_test()
        };
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert_eq!(settings.label(), "redis.test:6379/m/3");
    }
}
