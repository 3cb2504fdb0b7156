//! `/metrics`: the counters' cells and the supervisor's numbers, encoded by prometheus-client at the moment of the scrape.

use crate::control::status::{DataPlaneStatus, SupervisorStatus};
use crate::telemetry::counters::Cells;

/// What one scrape shows.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Index = worker.
    pub workers: Vec<Cells>,
    /// The data plane's half.
    pub data_plane: DataPlaneStatus,
    /// The supervisor's half; its metrics are left out when it does not answer.
    pub supervisor: Option<SupervisorStatus>,
}

/// Encodes a scrape in the OpenMetrics text format.
#[must_use]
pub fn encode(_scrape: Scrape) -> String {
    unimplemented!()
}
