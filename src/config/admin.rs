//! `admin`, `api` and `ping` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::entry_point::ListenAddress;

/// The listener for operators: probes, metrics, API.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdminConfig {
    /// Where to listen: `[host]:port`. Default `127.0.0.1:9180`; `""` turns it off.
    #[serde(deserialize_with = "address_or_off", serialize_with = "write_address")]
    #[schemars(with = "String")]
    pub address: Option<ListenAddress>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { address: Some(ListenAddress { ip: Some([127, 0, 0, 1].into()), port: 9180 }) }
    }
}

/// The read-only API; absent means as `admin` has it.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ApiConfig {
    /// Path that everything of it stands under. Default `/`.
    pub base_path: String,
    /// Opens it on the entry point `traefik` (`:8080` unless configured), without protection. Default false.
    pub insecure: bool,
    /// Shows the dashboard; there is none yet. Default true.
    pub dashboard: bool,
    /// Title of the dashboard; there is none yet. Default none.
    pub dashboard_name: Option<String>,
    /// Adds `/debug` paths; there are none yet. Default false.
    pub debug: bool,
    /// Leaves a link out of Traefik's dashboard; Sluicegate has none. Default false.
    pub disable_dashboard_ad: bool,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            base_path: "/".to_owned(),
            insecure: false,
            dashboard: true,
            dashboard_name: None,
            debug: false,
            disable_dashboard_ad: false,
        }
    }
}

/// Traefik's `/ping`; absent means on the admin listener alone.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PingConfig {
    /// Entry point that `/ping` is at, beside the admin listener. Default `traefik`, which is made at `:8080` unless
    /// it is configured.
    pub entry_point: String,
    /// Makes no route; a router names the service `ping@internal` instead. Default false.
    pub manual_routing: bool,
    /// Status while shutting down. Default 503.
    pub terminating_status_code: u16,
}

impl Default for PingConfig {
    fn default() -> Self {
        Self { entry_point: "traefik".to_owned(), manual_routing: false, terminating_status_code: 503 }
    }
}

fn address_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ListenAddress>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.trim() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

fn write_address<S: serde::Serializer>(
    address: &Option<ListenAddress>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => address.serialize(serializer),
        None => serializer.serialize_str(""),
    }
}
