//! `bandwidth`: so many bytes a second of each stream, both ways.
//!
//! Not a middleware of Traefik's. It neither delays a head nor refuses anything: bodies, and what flows after a
//! switch of protocols, pass no faster than they may.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::common::units::HumanBytes;
use crate::http::pace::{ByteRate, PaceCounts};

use super::CompileContext;

/// Options of `bandwidth`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct BandwidthConfig {
    /// Bytes a second to the client, of each answer. 1KiB to 1TiB. Default: no limit.
    pub download: Option<HumanBytes>,
    /// Bytes a second from the client, of each request. 1KiB to 1TiB. Default: no limit.
    pub upload: Option<HumanBytes>,
    /// Bytes that pass at once, each way: at the start, and after a pause. At least a tenth of a second's, which
    /// is the default.
    pub burst: Option<HumanBytes>,
}

impl BandwidthConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(
        &self,
        name: &MiddlewareName,
        at: &ConfigPath,
        cx: &mut CompileContext<'_>,
    ) -> Option<Bandwidth> {
        let before = cx.problems.len();
        if self.download.is_none() && self.upload.is_none() {
            let problem = Problem::error(at, "bandwidth limits neither download nor upload");
            cx.problems.push(problem.hint("write download: 1MiB, upload: 1MiB, or both"));
        }
        let download = self.rate("download", self.download, at, cx.problems);
        let upload = self.rate("upload", self.upload, at, cx.problems);
        if cx.problems.errors_since(before) {
            return None;
        }
        let mut counts = |direction| {
            cx.stores
                .keep(&format!("bandwidth/{name}/{direction}"), || BandwidthCounts {
                    name: name.clone(),
                    direction,
                    counts: Arc::default(),
                })
                .counts
                .clone()
        };
        Some(Bandwidth {
            download: download.map(|rate| Lane { rate, counts: counts("download") }),
            upload: upload.map(|rate| Lane { rate, counts: counts("upload") }),
        })
    }

    fn rate(
        &self,
        key: &str,
        written: Option<HumanBytes>,
        at: &ConfigPath,
        problems: &mut Problems,
    ) -> Option<ByteRate> {
        let per_second = written?.0;
        if !(ByteRate::SLOWEST..=ByteRate::MOST).contains(&per_second) {
            let problem = format!("{key} must be 1KiB to 1TiB a second, not {}", HumanBytes(per_second));
            problems.push(Problem::error(&at.key(key), problem).hint(format!("write {key}: 1MiB")));
            return None;
        }
        let least = per_second.div_ceil(10);
        let burst = self.burst.map_or(least, |burst| burst.0);
        let rate = ByteRate::new(per_second, burst);
        if rate.is_none() {
            let problem = format!("with a burst of {} the rate of {key} is never reached", HumanBytes(burst));
            let problem = match burst > ByteRate::MOST {
                true => Problem::error(&at.key("burst"), "burst must be at most 1TiB"),
                false => Problem::error(&at.key("burst"), problem),
            };
            problems.push(problem.hint(format!("write burst: {least} or more, a tenth of a second's bytes")));
        }
        rate
    }
}

/// What the streams of a middleware have waited, one way.
#[derive(Debug)]
pub struct BandwidthCounts {
    /// Of the middleware.
    pub name: MiddlewareName,
    /// `download` or `upload`.
    pub direction: &'static str,
    /// The figures.
    pub counts: Arc<PaceCounts>,
}

/// `bandwidth`, compiled.
#[derive(Clone, Debug)]
pub struct Bandwidth {
    /// To the client.
    pub download: Option<Lane>,
    /// From the client.
    pub upload: Option<Lane>,
}

/// One way.
#[derive(Clone, Debug)]
pub struct Lane {
    /// How fast.
    pub rate: ByteRate,
    /// Where its streams are counted.
    pub counts: Arc<PaceCounts>,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, burst) = (HumanBytes(self.rate.per_second()), HumanBytes(self.rate.burst()));
        write!(f, "{rate} a second of each stream, {burst} at once")
    }
}

#[cfg(test)]
mod tests {
    use crate::middleware::Edit;
    use crate::middleware::testing::{edit, problems};

    #[test]
    fn the_burst_is_a_tenth_of_a_second_unless_written() {
        let of = |options: &str| match edit("bandwidth", options) {
            Edit::Bandwidth(link) => [&link.download, &link.upload]
                .map(|lane| lane.as_ref().map(|lane| (lane.rate.per_second(), lane.rate.burst()))),
            other => panic!("{other:?}"),
        };
        assert_eq!(of("{download: 1MB}"), [Some((1_000_000, 100_000)), None]);
        assert_eq!(of("{upload: 1025}"), [None, Some((1_025, 103))]);
        assert_eq!(
            of("{download: 10KiB, upload: 20KiB, burst: 1MiB}"),
            [Some((10_240, 1 << 20)), Some((20_480, 1 << 20))]
        );
    }

    #[test]
    fn bad_values_are_named_by_their_key() {
        for (options, path) in [
            ("{}", "bandwidth"),
            ("{burst: 1MiB}", "bandwidth"),
            ("{download: 0}", "bandwidth.download"),
            ("{download: 1023}", "bandwidth.download"),
            ("{upload: 2TiB}", "bandwidth.upload"),
            ("{download: 1MiB, burst: 1KiB}", "bandwidth.burst"),
            ("{download: 1MiB, burst: 2TiB}", "bandwidth.burst"),
        ] {
            assert_eq!(problems("bandwidth", options).errors(), [path], "{options}");
        }
    }
}
