//! Connections to Redis, whatever stands there: one server, a cluster, or the master that sentinels name.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, TlsMode, Value,
};

use super::settings::{Address, Settings, Tls, Topology, Verify};

/// Open connections, each of which carries any number of calls at once.
#[derive(Debug)]
pub(super) enum Link {
    /// To one server.
    Single { connections: Vec<MultiplexedConnection>, next: AtomicUsize },
    /// To the nodes of a cluster.
    Cluster(Box<Nodes>),
}

/// Connections to the nodes of a cluster.
pub(super) struct Nodes(ClusterConnection);

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nodes")
    }
}

/// One of a link's connections, for one call.
pub(super) enum Line {
    /// To one server.
    Single(MultiplexedConnection),
    /// To whichever node has the keys.
    Cluster(Box<ClusterConnection>),
}

impl Link {
    /// Connects; no longer than `dialTimeout` for each step.
    pub(super) async fn open(settings: &Settings) -> RedisResult<Self> {
        match &settings.topology {
            Topology::Single => {
                let address = settings.endpoints.first().ok_or_else(|| config_error("no endpoint"))?;
                Self::single(&client(settings, address)?, settings).await
            }
            Topology::Cluster => Self::cluster(settings).await,
            Topology::Sentinel { master, username, password } => {
                let mut builder = SentinelClientBuilder::new(
                    settings.endpoints.iter().map(|address| connection_addr(settings, address)),
                    master,
                    SentinelServerType::Master,
                )?
                .set_client_to_redis_db(settings.db);
                if !settings.username.is_empty() {
                    builder = builder.set_client_to_redis_username(&settings.username);
                }
                if !settings.password.is_empty() {
                    builder = builder.set_client_to_redis_password(settings.password.reveal());
                }
                if !username.is_empty() {
                    builder = builder.set_client_to_sentinel_username(username);
                }
                if !password.is_empty() {
                    builder = builder.set_client_to_sentinel_password(password.reveal());
                }
                if let Some(tls) = &settings.tls {
                    let mode = tls_mode(tls);
                    builder =
                        builder.set_client_to_redis_tls_mode(mode).set_client_to_sentinel_tls_mode(mode);
                    builder = builder
                        .set_client_to_redis_certificates(certificates(settings))
                        .set_client_to_sentinel_certificates(certificates(settings));
                }
                let client = builder.build()?.async_get_client().await?;
                Self::single(&client, settings).await
            }
        }
    }

    async fn single(client: &Client, settings: &Settings) -> RedisResult<Self> {
        let mut connections = Vec::with_capacity(settings.connections);
        for _ in 0..settings.connections {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(settings.dial_timeout))
                .set_response_timeout(Some(settings.read_timeout));
            connections.push(client.get_multiplexed_async_connection_with_config(&config).await?);
        }
        Ok(Self::Single { connections, next: AtomicUsize::new(0) })
    }

    async fn cluster(settings: &Settings) -> RedisResult<Self> {
        let nodes = settings.endpoints.iter().map(|address| info(settings, address));
        let mut builder: ClusterClientBuilder =
            ClusterClient::builder(nodes.collect::<RedisResult<Vec<_>>>()?)
                .connection_timeout(settings.dial_timeout)
                .response_timeout(settings.read_timeout)
                .overall_response_timeout(Some(settings.read_timeout))
                // What moves is found at once or decided without.
                .retries(2)
                .min_retry_wait(1)
                .max_retry_wait(20);
        if !settings.username.is_empty() {
            builder = builder.username(&settings.username);
        }
        if !settings.password.is_empty() {
            builder = builder.password(settings.password.reveal());
        }
        if let Some(tls) = &settings.tls {
            builder = builder.tls(tls_mode(tls));
            if tls.ca.is_some() || tls.client.is_some() {
                builder = builder.certs(certificates(settings));
            }
        }
        let connection = builder.build()?.get_async_connection().await?;
        Ok(Self::Cluster(Box::new(Nodes(connection))))
    }

    /// Whether a call may hold questions of several clients.
    pub(super) fn mixes(&self) -> bool {
        matches!(self, Self::Single { .. })
    }

    /// A connection for one call.
    pub(super) fn line(&self) -> Line {
        match self {
            Self::Single { connections, next } => {
                let index = next.fetch_add(1, Ordering::Relaxed) % connections.len().max(1);
                Line::Single(connections[index].clone())
            }
            Self::Cluster(nodes) => Line::Cluster(Box::new(nodes.0.clone())),
        }
    }
}

impl Line {
    /// Makes a call, no longer than `patience`.
    pub(super) async fn call(&mut self, cmd: &Cmd, patience: Duration) -> RedisResult<Value> {
        let answer = async {
            match self {
                Self::Single(connection) => cmd.query_async::<Value>(connection).await,
                Self::Cluster(connection) => cmd.query_async::<Value>(&mut **connection).await,
            }
        };
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }
}

fn config_error(what: &'static str) -> RedisError {
    (redis::ErrorKind::InvalidClientConfig, what).into()
}

fn tls_mode(tls: &Tls) -> TlsMode {
    match tls.verify {
        Verify::Yes => TlsMode::Secure,
        Verify::No => TlsMode::Insecure,
    }
}

fn connection_addr(settings: &Settings, address: &Address) -> ConnectionAddr {
    let (host, port) = (address.host.clone(), address.port);
    match &settings.tls {
        Some(tls) => {
            let insecure = tls.verify == Verify::No;
            ConnectionAddr::TcpTls { host, port, insecure, tls_params: None }
        }
        None => ConnectionAddr::Tcp(host, port),
    }
}

fn info(settings: &Settings, address: &Address) -> RedisResult<ConnectionInfo> {
    let mut user = RedisConnectionInfo::default()
        .set_db(settings.db)
        .set_lib_name("sluicegate", env!("CARGO_PKG_VERSION"));
    if !settings.username.is_empty() {
        user = user.set_username(&settings.username);
    }
    if !settings.password.is_empty() {
        user = user.set_password(settings.password.reveal());
    }
    Ok(connection_addr(settings, address).into_connection_info()?.set_redis_settings(user))
}

fn client(settings: &Settings, address: &Address) -> RedisResult<Client> {
    let info = info(settings, address)?;
    match &settings.tls {
        Some(tls) if tls.ca.is_some() || tls.client.is_some() => {
            Client::build_with_tls(info, certificates(settings))
        }
        Some(_) | None => Client::open(info),
    }
}

fn certificates(settings: &Settings) -> TlsCertificates {
    let tls = settings.tls.as_ref();
    TlsCertificates {
        client_tls: tls.and_then(|tls| tls.client.as_ref()).map(|(cert, key)| ClientTlsConfig {
            client_cert: cert.as_bytes().to_vec(),
            client_key: key.reveal().as_bytes().to_vec(),
        }),
        root_cert: tls.and_then(|tls| tls.ca.as_ref()).map(|ca| ca.as_bytes().to_vec()),
    }
}
