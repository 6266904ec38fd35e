//! How long a container takes, for `cargo xtask bench`.

use std::time::{Duration, Instant};

use skep_model::container::{ContainerConfig, HostConfig, StringOrList};

use crate::container::{CreateRequest, RemoveOptions, TaskExtras, WaitCondition};
use crate::{Engine, Result};

/// One container's life, phase by phase.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cycle {
    pub create: Duration,
    pub start: Duration,
    /// From the start's return to the end of `true`.
    pub wait: Duration,
    pub remove: Duration,
}

impl Cycle {
    pub fn total(&self) -> Duration {
        self.create + self.start + self.wait + self.remove
    }
}

/// Creates, starts, awaits and removes so many containers of `image`, one after the other, as a swarm task's are.
pub async fn cycles(engine: &Engine, image: &str, command: &[&str], rounds: usize) -> Result<Vec<Cycle>> {
    let mut cycles = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let config = ContainerConfig {
            image: image.to_owned(),
            cmd: Some(StringOrList(command.iter().map(|w| (*w).to_owned()).collect())),
            ..ContainerConfig::default()
        };
        let host_config = HostConfig { network_mode: "none".to_owned(), ..HostConfig::default() };
        let mut cycle = Cycle::default();
        let mut clock = Instant::now();
        let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed();
        let task = Some(TaskExtras::default());
        let id = engine
            .create(CreateRequest { config, host_config, task, ..CreateRequest::default() })
            .await?
            .id
            .to_string();
        cycle.create = lap();
        engine.start(&id).await?;
        cycle.start = lap();
        engine.wait(&id, WaitCondition::NotRunning).await?;
        cycle.wait = lap();
        engine.remove(&id, RemoveOptions::default()).await?;
        cycle.remove = lap();
        cycles.push(cycle);
    }
    Ok(cycles)
}

/// The middle one of some durations.
pub fn median(durations: impl Iterator<Item = Duration>) -> Duration {
    let mut sorted: Vec<Duration> = durations.collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
