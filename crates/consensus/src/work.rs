//! Where work that waits for the disk runs: on threads of its own, or, in a simulation, in the caller's.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::disk::Disk;

#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// `None`: on threads.
    inline_over: Option<Arc<dyn Disk>>,
}

impl Work {
    pub(crate) fn of(config: &Config) -> Self {
        Self { inline_over: config.simulation_seed.is_some().then(|| config.disk.clone()) }
    }

    pub(crate) fn is_inline(&self) -> bool {
        self.inline_over.is_some()
    }

    /// The error is a panic's message.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        if !self.is_inline() {
            return tokio::task::spawn_blocking(work).await;
        }
        self.simulated_latency().await;
        Ok(work())
    }

    /// The time a simulated disk takes passes here, before its work is done in no time.
    pub(crate) async fn simulated_latency(&self) {
        let latency = self.inline_over.as_ref().map_or(Duration::ZERO, |disk| disk.latency());
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
    }
}
