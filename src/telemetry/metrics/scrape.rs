//! Adding up the cores' cells and writing the page.

use crate::telemetry::metrics::Metrics;
use crate::telemetry::metrics::page::Page;

impl Metrics {
    /// Writes the whole page; for the control plane, as its cost grows with the number of series.
    pub fn render(&self) -> String {
        let page = Page::default();
        page.finish()
    }
}
