//! `providers` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::units::HumanDuration;

/// Where dynamic configuration comes from, beside the main file.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProvidersConfig {
    /// Traefik's shortest time between two reloads. Read and not used: changes are applied at once, as soon as the
    /// files are quiet, because a reload drops nothing. Default 2s.
    pub providers_throttle_duration: HumanDuration,
    /// Files with `http` blocks.
    pub file: Option<FileProviderConfig>,
}

impl Default for ProvidersConfig {
    fn default() -> Self {
        Self { providers_throttle_duration: HumanDuration::secs(2), file: None }
    }
}

/// Files with dynamic configuration; relative paths start at the main file's directory.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FileProviderConfig {
    /// One file. Default none.
    pub filename: Option<String>,
    /// Every `.yml` and `.yaml` file in this directory and those below. Default none.
    pub directory: Option<String>,
    /// Reloads when one changes. Default true.
    pub watch: bool,
}

impl Default for FileProviderConfig {
    fn default() -> Self {
        Self { filename: None, directory: None, watch: true }
    }
}
