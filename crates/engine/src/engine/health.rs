//! Health checks: a command run in the container now and then (moby `daemon/health.go`).

use std::sync::Arc;
use std::time::Duration;

use skep_model::container::{ContainerConfig, HealthConfig};
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::container::*;
use crate::error::{EngineError, Result};
use crate::sys::clock;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
const DEFAULT_START_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_RETRIES: u32 = 3;
/// Kept of a probe's output.
const MAX_OUTPUT: usize = 4096;
/// Probes kept.
const MAX_LOG: usize = 5;

pub(super) fn validate(health: &HealthConfig) -> Result<()> {
    let names = [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ];
    for (name, value) in names {
        if value != 0 && value < 1_000_000 {
            return Err(EngineError::Invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    if health.retries < 0 {
        return Err(EngineError::Invalid("Retries in Healthcheck cannot be negative".to_owned()));
    }
    Ok(())
}

/// The probe of a container, if it has one.
fn command(config: &ContainerConfig) -> Option<Vec<String>> {
    let test = &config.healthcheck.as_ref()?.test;
    match test.first()?.as_str() {
        "CMD" => Some(test[1..].to_vec()),
        "CMD-SHELL" => {
            let mut words = config.shell.clone().unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
            words.extend(test[1..].iter().cloned());
            Some(words)
        }
        _ => None,
    }
}

/// What a started container's health is.
pub(super) fn initial(config: &ContainerConfig) -> Option<Health> {
    command(config).map(|_| Health::default())
}

impl Engine {
    /// Probes until the run is over.
    pub(super) fn spawn_health(&self, container: &Arc<Container>, token: CancellationToken) {
        let record = container.record();
        let (Some(command), Some(config)) = (command(&record.config), record.config.healthcheck.clone()) else {
            return;
        };
        let (engine, container) = (self.clone(), Arc::clone(container));
        let started = record.state.started_at;
        self.inner.tasks.spawn(async move {
            loop {
                let starting = clock::now().since(started) < duration(config.start_period, Duration::ZERO);
                let unproved =
                    container.record().state.health.as_ref().is_none_or(|h| h.status == HealthStatus::Starting);
                let interval = if starting && unproved && config.start_interval > 0 {
                    duration(config.start_interval, DEFAULT_START_INTERVAL)
                } else {
                    duration(config.interval, DEFAULT_INTERVAL)
                };
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = token.cancelled() => return,
                    () = engine.inner.closing.cancelled() => return,
                }
                if container.record().state.status != Status::Running {
                    continue;
                }
                tokio::select! {
                    () = engine.probe_health(&container, &command, &config, started) => {}
                    () = token.cancelled() => return,
                    () = engine.inner.closing.cancelled() => return,
                }
            }
        });
    }

    async fn probe_health(
        &self,
        container: &Arc<Container>,
        command: &[String],
        config: &HealthConfig,
        started: skep_model::Timestamp,
    ) {
        let timeout = duration(config.timeout, DEFAULT_TIMEOUT);
        let start = clock::now();
        let outcome = self.probe(container, command.to_vec(), timeout, MAX_OUTPUT).await;
        let (exit_code, output) = match outcome {
            Ok(outcome) => match outcome.exit_code {
                Some(code) => (code, outcome.output),
                None => (-1, format!("Health check exceeded timeout ({})", seconds(timeout))),
            },
            Err(error) => (-1, error.to_string()),
        };
        let probe = HealthProbe { start, end: clock::now(), exit_code, output };
        let in_start_period = probe.end.since(started) < duration(config.start_period, Duration::ZERO);
        let retries = u32::try_from(config.retries).ok().filter(|n| *n > 0).unwrap_or(DEFAULT_RETRIES);
        let mut changed = None;
        let updated = container.update(|record| {
            let health = record.state.health.get_or_insert_with(Health::default);
            let before = health.status;
            judge(health, probe, in_start_period, retries);
            changed = (health.status != before).then_some(health.status);
        });
        if let (Some(status), Ok(record)) = (changed, updated) {
            self.emit(&record, format!("health_status: {}", status.as_str()), &[]);
            container.live(|_| {});
        }
    }
}

/// A success heals at once; failures count, except while the container is allowed to still be starting.
fn judge(health: &mut Health, probe: HealthProbe, in_start_period: bool, retries: u32) {
    if probe.exit_code == 0 {
        health.failing_streak = 0;
        health.status = HealthStatus::Healthy;
    } else if !(in_start_period && health.status == HealthStatus::Starting) {
        health.failing_streak += 1;
        if health.failing_streak >= retries {
            health.status = HealthStatus::Unhealthy;
        }
    }
    health.log.push(probe);
    if health.log.len() > MAX_LOG {
        health.log.remove(0);
    }
}

fn duration(nanos: i64, default: Duration) -> Duration {
    u64::try_from(nanos).ok().filter(|n| *n > 0).map_or(default, Duration::from_nanos)
}

/// As Go prints a duration of whole or broken seconds.
fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return format!("{}ms", duration.as_millis());
    }
    format!("{}s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_are_unhealthy_and_one_success_heals() {
        let mut health = Health::default();
        let probe = |exit_code| HealthProbe { exit_code, ..HealthProbe::default() };
        judge(&mut health, probe(1), true, 3);
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Starting, 0), "still starting");
        for _ in 0..2 {
            judge(&mut health, probe(1), false, 3);
        }
        assert_eq!(health.status, HealthStatus::Starting);
        judge(&mut health, probe(1), false, 3);
        assert_eq!(health.status, HealthStatus::Unhealthy);
        judge(&mut health, probe(0), false, 3);
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Healthy, 0));
        judge(&mut health, probe(1), true, 3);
        assert_eq!((health.failing_streak, health.log.len()), (1, 5));
    }
}
