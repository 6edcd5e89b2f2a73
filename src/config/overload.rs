//! `overload` as written: the whole proxy's own limits.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// When the proxy refuses what is newest and cheapest to refuse, so that the rest is served. The admin listener and
/// the proxy's own services are always served.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OverloadConfig {
    /// Client connections at all entry points together. The first request of one beyond is answered with 503, unless
    /// its router has `importance: high`; those far beyond are closed at once. Default 0: no limit.
    pub max_connections: u32,
    /// Resident memory: `512MiB`, `2GB`, or bytes. From 90 % of it requests of low importance and new connections
    /// are answered with 503, from 95 % all but those of high importance. Default `auto`: what the control group
    /// (the container) may have, if it has a limit; 0: no limit.
    pub max_memory: MemoryLimit,
}

/// An amount of memory, or whatever the process may have.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MemoryLimit {
    /// The limit of the control group.
    #[default]
    Auto,
    /// Bytes; 0 for no limit.
    Bytes(u64),
}

impl MemoryLimit {
    fn parse(text: &str) -> Option<Self> {
        const UNITS: [(&str, u64); 9] = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("KB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("Ki", 1 << 10),
            ("Mi", 1 << 20),
            ("Gi", 1 << 30),
        ];
        let text = text.trim();
        if text.eq_ignore_ascii_case("auto") {
            return Some(Self::Auto);
        }
        let found = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
        let (number, unit) = found.unwrap_or((text, 1));
        number.trim().parse::<u64>().ok()?.checked_mul(unit).map(Self::Bytes)
    }

    /// The limit in bytes; 0 for none.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Auto => control_group_limit().unwrap_or(0),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// What the control group may have; version 2, then version 1. A limit of nearly 2^63 is version 1's word for none.
fn control_group_limit() -> Option<u64> {
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    limits.filter_map(|text| text.trim().parse::<u64>().ok()).find(|limit| *limit < 1 << 60)
}

impl Serialize for MemoryLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Bytes(bytes) => serializer.serialize_u64(*bytes),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "bad amount of memory {text:?}: expected auto, bytes, or a number with KiB, MiB or GiB"
            ))
        })
    }
}

impl JsonSchema for MemoryLimit {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MemoryLimit".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "auto, bytes, or a number with KiB, MiB or GiB",
            "anyOf": [{ "type": "string" }, { "type": "integer", "minimum": 0 }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_people_and_kubernetes_write_them() {
        for (text, limit) in [
            ("auto", Some(MemoryLimit::Auto)),
            ("0", Some(MemoryLimit::Bytes(0))),
            ("1048576", Some(MemoryLimit::Bytes(1 << 20))),
            ("512MiB", Some(MemoryLimit::Bytes(512 << 20))),
            ("512Mi", Some(MemoryLimit::Bytes(512 << 20))),
            ("2 GB", Some(MemoryLimit::Bytes(2_000_000_000))),
            ("-1", None),
            ("much", None),
            ("99999999999GiB", None),
        ] {
            assert_eq!(MemoryLimit::parse(text), limit, "{text}");
        }
    }
}
