//! Durations and sizes as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A length of time in Traefik's notation: Go's (`1m30s`, `250ms`, `1.5h`) or whole seconds (`90`).
///
/// Bounds: 0 to about 292 years, as in Go. Negative values are refused.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct HumanDuration(pub Duration);

/// 2^63 ns, where Go's own durations end. Adding as much to an `Instant` cannot overflow.
const MAX_SECS: u64 = 9_200_000_000;

impl HumanDuration {
    /// Whole seconds, for defaults.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// Milliseconds, for defaults.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// Whole seconds as they were written; the error is for people.
    fn checked_secs(secs: u64) -> Result<Self, String> {
        if secs > MAX_SECS {
            return Err(format!("bad duration \"{secs}\": longer than 292 years"));
        }
        Ok(Self::secs(secs))
    }

    /// The value, or `None` for 0, which turns a limit off.
    pub fn non_zero(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "bad duration {text:?}: expected a number with a unit (ns, us, ms, s, m, h), such as \"1m30s\", or whole seconds"
            )
        };
        let text = text.trim();
        if let Ok(secs) = text.parse::<u64>() {
            return Self::checked_secs(secs);
        }
        if text.starts_with('-') {
            return Err(format!("bad duration {text:?}: it must not be negative"));
        }
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest.is_empty() {
            return Err(bad());
        }
        let mut total = 0.0_f64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let unit = match &rest[..unit_len] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(bad()),
            };
            total += number * unit;
            rest = &rest[unit_len..];
        }
        if total > MAX_SECS as f64 {
            return Err(format!("bad duration {text:?}: longer than 292 years"));
        }
        // Nanoseconds, rounded: 0.3 s must not become 299999999 ns.
        Ok(Self(Duration::from_nanos((total * 1e9).round() as u64)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        match nanos {
            0 => f.write_str("0s"),
            n if n % 3_600_000_000_000 == 0 => write!(f, "{}h", n / 3_600_000_000_000),
            n if n % 60_000_000_000 == 0 => write!(f, "{}m", n / 60_000_000_000),
            n if n % 1_000_000_000 == 0 => write!(f, "{}s", n / 1_000_000_000),
            n if n % 1_000_000 == 0 => write!(f, "{}ms", n / 1_000_000),
            n => write!(f, "{n}ns"),
        }
    }
}

impl serde::Serialize for HumanDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DurationVisitor;
        impl Visitor<'_> for DurationVisitor {
            type Value = HumanDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 250ms, 1m30s, or whole seconds")
            }

            fn visit_u64<E: de::Error>(self, secs: u64) -> Result<HumanDuration, E> {
                HumanDuration::checked_secs(secs).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, secs: i64) -> Result<HumanDuration, E> {
                let secs = u64::try_from(secs).map_err(|_| E::custom("a duration must not be negative"))?;
                self.visit_u64(secs)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<HumanDuration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(DurationVisitor)
    }
}

impl schemars::JsonSchema for HumanDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Go's notation (250ms, 1m30s, 1.5h) or whole seconds",
            "anyOf": [{ "type": "string" }, { "type": "integer", "minimum": 0 }]
        })
    }
}

/// A number of bytes as people write it: with a unit (`512KiB`, `10MB`) or plain (`65536`).
///
/// KB, MB, GB and TB are thousands, KiB, MiB, GiB and TiB are 1024s. Bounds: 0 to 2^64 - 1; whole numbers only.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct HumanBytes(pub u64);

/// Units of sizes, the largest of each kind first.
const SIZE_UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

impl FromStr for HumanBytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "bad size {text:?}: expected a whole number with a unit (KiB, MiB, GiB, TiB, KB, MB, GB, TB), such as \"512KiB\", or bytes"
            )
        };
        let written = text.trim();
        let digits = written.find(|c: char| !c.is_ascii_digit()).unwrap_or(written.len());
        let (number, unit) = written.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let unit = unit.trim();
        let factor = match SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
            Some((_, factor)) => *factor,
            None if unit.is_empty() || unit.eq_ignore_ascii_case("B") => 1,
            None => return Err(bad()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(|| format!("bad size {text:?}: more than 2^64 bytes"))
    }
}

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIZE_UNITS.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl serde::Serialize for HumanBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;
        impl Visitor<'_> for BytesVisitor {
            type Value = HumanBytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 512KiB, 10MB, or bytes")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<HumanBytes, E> {
                Ok(HumanBytes(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<HumanBytes, E> {
                let bytes = u64::try_from(bytes).map_err(|_| E::custom("a size must not be negative"))?;
                self.visit_u64(bytes)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<HumanBytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(BytesVisitor)
    }
}

impl schemars::JsonSchema for HumanBytes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Bytes, with a unit (512KiB, 10MB) or without",
            "anyOf": [{ "type": "string" }, { "type": "integer", "minimum": 0 }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_shown() {
        for (text, bytes, shown) in [
            ("0", 0, "0B"),
            ("65536", 65_536, "64KiB"),
            ("1MiB", 1 << 20, "1MiB"),
            ("10 mb", 10_000_000, "10MB"),
            ("3TiB", 3 << 40, "3TiB"),
            ("1001B", 1_001, "1001B"),
        ] {
            let read = text.parse::<HumanBytes>();
            assert_eq!(read, Ok(HumanBytes(bytes)), "{text}");
            assert_eq!(HumanBytes(bytes).to_string(), shown);
            assert_eq!(shown.parse::<HumanBytes>(), Ok(HumanBytes(bytes)), "{shown}");
        }
        for text in ["", "MiB", "1.5MiB", "-1", "1M", "1 K iB", "99999999999999TiB", "18446744073709551616"] {
            assert!(text.parse::<HumanBytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_read_as_traefik_reads_them() {
        for (text, millis) in
            [("90", 90_000), ("1m30s", 90_000), ("250ms", 250), ("1.5h", 5_400_000), ("0", 0), ("300ms", 300)]
        {
            assert_eq!(
                text.parse::<HumanDuration>().map(|d| d.0),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in ["", "abc", "5x", "-1s", "1m30", "s", "1e9999s", "18446744073709551615", "9300000000s"] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text}");
        }
    }
}
