//! The admin endpoints: `/metrics`, `/healthz`, `/readyz` and `/status`, on the control thread. Every connection carries one request and has
//! a deadline; the number of connections is bounded.

use std::pin::Pin;
use std::sync::Arc;

use crate::control::status::{DataPlaneStatus, SupervisorStatus};
use crate::telemetry::counters::Cells;

/// The supervisor's answer, on its way.
pub type SupervisorAnswer<'a> = Pin<Box<dyn Future<Output = Option<SupervisorStatus>> + Send + 'a>>;

/// Where the numbers come from; the data plane implements it.
pub trait Sources: Send + Sync + 'static {
    /// The data plane's half, from memory.
    fn data_plane(&self) -> DataPlaneStatus;

    /// Every worker's cells (`CounterBlock::cells`); index = worker.
    fn counters(&self) -> Vec<Cells>;

    /// Asks the supervisor. `None` when it cannot be asked; the caller sets the deadline.
    fn supervisor(&self) -> SupervisorAnswer<'_>;
}

/// What the handlers share.
#[derive(Clone)]
pub struct AdminState(#[expect(dead_code, reason = "seam")] Arc<dyn Sources>);

impl AdminState {
    /// Over these sources.
    pub fn new(sources: Arc<dyn Sources>) -> Self {
        Self(sources)
    }
}

/// Serves until the future is dropped. Runs on a tokio current_thread runtime with io and time enabled.
pub async fn serve(_listener: std::net::TcpListener, _state: AdminState) -> std::io::Result<()> {
    unimplemented!()
}
