//! stop, kill, restart, pause, unpause, rename, update, wait, and the network of a running container.

use std::sync::Arc;
use std::time::Duration;

use skep_model::sandbox::{EndpointInfo, EndpointRequest};

use super::{Engine, blocking};
use crate::container::*;
use crate::error::{EngineError, Result};

/// After SIGKILL a process is gone at once, unless it is stuck in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(10);

impl Engine {
    /// NotModified if it is not running.
    pub async fn stop(&self, key: &str, options: StopOptions) -> Result<()> {
        let container = self.find(key)?;
        if matches!(container.record().state.status, Status::Running | Status::Paused | Status::Restarting) {
            // Not only after the lock: a start by its policy may be under way.
            self.stop_by_user(&container);
        }
        let _operation = container.operation.lock().await;
        let record = container.record();
        if record.state.status == Status::Restarting {
            self.give_up_restart(&container)?;
            return Ok(());
        }
        if !record.state.status.is_alive() {
            return Err(EngineError::NotModified(format!("container {} is already stopped", record.id)));
        }
        self.stop_locked(&container, &options).await?;
        self.emit(&container.record(), "stop", &[]);
        Ok(())
    }

    /// From here on no restart policy starts it again.
    fn stop_by_user(&self, container: &Container) {
        let _ = container.update(|r| r.manually_stopped = true);
    }

    fn give_up_restart(&self, container: &Container) -> Result<()> {
        container.cancel_token();
        container.update(|r| r.state.status = Status::Exited)?;
        container.live(|life| life.restarting = false);
        Ok(())
    }

    /// The caller holds the operation lock.
    pub(super) async fn stop_locked(&self, container: &Arc<Container>, options: &StopOptions) -> Result<()> {
        let record = container.record();
        if record.state.status == Status::Paused {
            self.freeze(container, false).await?;
        }
        let signal = match options.signal.as_deref().filter(|s| !s.is_empty()) {
            Some(text) => parse_signal(text)?,
            None if record.config.stop_signal.is_empty() => libc::SIGTERM,
            None => parse_signal(&record.config.stop_signal)?,
        };
        let seconds = options.timeout_secs.or(record.config.stop_timeout);
        let timeout = match seconds {
            Some(negative) if negative < 0 => None,
            Some(seconds) => Some(Duration::from_secs(seconds.unsigned_abs())),
            None => Some(DEFAULT_STOP_TIMEOUT),
        };
        self.signal(container, signal).await?;
        if self.wait_dead(container, timeout).await {
            return Ok(());
        }
        self.signal(container, libc::SIGKILL).await?;
        if self.wait_dead(container, Some(KILL_WAIT)).await {
            return Ok(());
        }
        Err(EngineError::Internal(format!(
            "cannot stop container: {}: tried to kill container, but did not receive an exit event",
            record.id
        )))
    }

    /// The container is killed once the host has been up for so long (see [`crate::since_boot`]), unless a later lease comes
    /// first; without a daemon as well. It need not have started.
    pub async fn lease(&self, key: &str, until: Duration) -> Result<()> {
        let container = self.find(key)?;
        self.connection()?.lease(container.id.as_str(), until).await
    }

    async fn signal(&self, container: &Container, signal: i32) -> Result<bool> {
        let sent = self.connection()?.signal(container.id.as_str(), "", signal).await?;
        let record = container.record();
        self.emit(&record, "kill", &[("signal", signal.to_string())]);
        Ok(sent)
    }

    async fn wait_dead(&self, container: &Container, timeout: Option<Duration>) -> bool {
        let mut life = container.life.subscribe();
        let dead = life.wait_for(|l| !l.alive || l.removed);
        match timeout {
            Some(timeout) => tokio::time::timeout(timeout, dead).await.is_ok_and(|r| r.is_ok()),
            None => dead.await.is_ok(),
        }
    }

    /// `signal` as a name with or without `SIG`, or a number; empty is KILL.
    pub async fn kill(&self, key: &str, signal: &str) -> Result<()> {
        let container = self.find(key)?;
        let signal = if signal.is_empty() { libc::SIGKILL } else { parse_signal(signal)? };
        let record = container.record();
        if !record.state.status.is_alive() {
            let message = format!("cannot kill container: {key}: container {} is not running", record.id);
            return Err(EngineError::Conflict(message));
        }
        let stop_signal = parse_signal(&record.config.stop_signal).unwrap_or(libc::SIGTERM);
        if signal == libc::SIGKILL || signal == stop_signal {
            self.stop_by_user(&container);
        }
        if signal == libc::SIGKILL && record.state.status == Status::Paused {
            self.freeze(&container, false).await?;
        }
        if !self.signal(&container, signal).await? {
            let message = format!("cannot kill container: {key}: container {} is not running", record.id);
            return Err(EngineError::Conflict(message));
        }
        if signal == libc::SIGKILL {
            // moby waits too, so that a remove right after finds it dead.
            self.wait_dead(&container, Some(KILL_WAIT)).await;
        }
        Ok(())
    }

    pub async fn restart(&self, key: &str, options: StopOptions) -> Result<()> {
        let container = self.find(key)?;
        let _operation = container.operation.lock().await;
        if container.record().state.status.is_alive() {
            // Its own policy must not start it in between.
            self.stop_by_user(&container);
            self.stop_locked(&container, &options).await?;
        }
        container.update(|r| {
            r.manually_stopped = false;
            r.restart_count = 0;
        })?;
        self.start_locked(&container).await?;
        self.emit(&container.record(), "restart", &[]);
        Ok(())
    }

    pub async fn pause(&self, key: &str) -> Result<()> {
        let container = self.find(key)?;
        let _operation = container.operation.lock().await;
        let record = container.record();
        match record.state.status {
            Status::Running => {}
            Status::Paused => return Err(EngineError::Conflict(format!("container {} is already paused", record.id))),
            Status::Restarting => {
                return Err(EngineError::Conflict(format!(
                    "container {} is restarting, wait until the container is running",
                    record.id
                )));
            }
            _ => return Err(EngineError::NotRunning(record.id.to_string())),
        }
        self.freeze(&container, true).await?;
        self.emit(&container.record(), "pause", &[]);
        Ok(())
    }

    pub async fn unpause(&self, key: &str) -> Result<()> {
        let container = self.find(key)?;
        let _operation = container.operation.lock().await;
        if container.record().state.status != Status::Paused {
            return Err(EngineError::Conflict(format!("container {} is not paused", container.id)));
        }
        self.freeze(&container, false).await?;
        self.emit(&container.record(), "unpause", &[]);
        Ok(())
    }

    async fn freeze(&self, container: &Container, frozen: bool) -> Result<()> {
        let cgroup = self.cgroup(&container.id);
        let verb = if frozen { "pause" } else { "unpause" };
        blocking(move || {
            cgroup.freeze(frozen).map_err(|e| EngineError::Internal(format!("cannot {verb} container: {e}")))
        })
        .await?;
        container.update(|r| r.state.status = if frozen { Status::Paused } else { Status::Running })?;
        Ok(())
    }

    pub async fn rename(&self, key: &str, name: &str) -> Result<()> {
        if name.is_empty() {
            return Err(EngineError::Invalid("Neither old nor new names may be empty".to_owned()));
        }
        let container = self.find(key)?;
        let _operation = container.operation.lock().await;
        let old = container.name();
        self.change_name(&container, name)?;
        self.emit(&container.record(), "rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    }

    /// Changes the restart policy and limits; a running container's limits at once.
    pub async fn update(&self, key: &str, request: UpdateRequest) -> Result<Vec<String>> {
        let container = self.find(key)?;
        let _operation = container.operation.lock().await;
        let asked = &request.host_config;
        let mut host = container.record().host_config.clone();
        let set = |mine: &mut i64, theirs: i64| {
            if theirs != 0 {
                *mine = theirs;
            }
        };
        set(&mut host.memory, asked.memory);
        set(&mut host.memory_swap, asked.memory_swap);
        set(&mut host.memory_reservation, asked.memory_reservation);
        set(&mut host.nano_cpus, asked.nano_cpus);
        set(&mut host.cpu_shares, asked.cpu_shares);
        set(&mut host.cpu_period, asked.cpu_period);
        set(&mut host.cpu_quota, asked.cpu_quota);
        if !asked.cpuset_cpus.is_empty() {
            host.cpuset_cpus.clone_from(&asked.cpuset_cpus);
        }
        if !asked.cpuset_mems.is_empty() {
            host.cpuset_mems.clone_from(&asked.cpuset_mems);
        }
        if asked.pids_limit.is_some() {
            host.pids_limit = asked.pids_limit;
        }
        if let Some(policy) = &request.restart_policy {
            host.restart_policy = policy.clone();
        }
        crate::spec::limits::validate(&host)?;
        if container.record().state.status.is_alive() {
            let (cgroup, limits) = (self.cgroup(&container.id), host.clone());
            let features = self.inner.features.clone();
            blocking(move || crate::spec::limits::apply(&cgroup, &limits, &features)).await?;
        }
        container.update(|r| r.host_config = host)?;
        self.emit(&container.record(), "update", &[]);
        Ok(Vec::new())
    }

    pub async fn wait(&self, key: &str, condition: WaitCondition) -> Result<WaitOutcome> {
        let container = self.find(key)?;
        let mut life = container.life.subscribe();
        let before = life.borrow().exits;
        let over = |l: &Life| {
            l.removed
                || match condition {
                    WaitCondition::NotRunning => !l.alive && !l.restarting,
                    WaitCondition::NextExit => l.exits > before || (!l.alive && !l.error.is_empty()),
                    WaitCondition::Removed => false,
                }
        };
        let outcome = match life.wait_for(over).await {
            Ok(life) => WaitOutcome { exit_code: life.exit_code, error: life.error.clone() },
            Err(_) => WaitOutcome::default(),
        };
        Ok(outcome)
    }

    /// Connects a container to a network: at once if it runs, else when it starts.
    pub async fn connect(&self, key: &str, request: EndpointRequest) -> Result<()> {
        let container = self.find(key)?;
        let _operation = container.operation.lock().await;
        let record = container.record();
        if matches!(record.host_config.network_mode.as_str(), "host" | "none")
            || record.host_config.network_mode.starts_with("container:")
        {
            let mode = &record.host_config.network_mode;
            return Err(EngineError::Forbidden(format!(
                "container sharing network namespace with another container or host cannot be connected to any other network (network mode {mode})"
            )));
        }
        let info = if record.state.status.is_alive() {
            Some(self.inner.sandboxes.connect(&record.id, &request).await?)
        } else {
            None
        };
        container.update(|r| {
            if r.endpoints.is_empty() {
                // The one its mode stands for stays.
                let name = if r.host_config.network_mode == "default" { "bridge" } else { &r.host_config.network_mode };
                r.endpoints.push(EndpointRequest { network: name.to_owned(), ..EndpointRequest::default() });
            }
            r.endpoints.retain(|e| e.network != request.network);
            r.endpoints.push(request);
            if let (Some(sandbox), Some(info)) = (&mut r.sandbox, info) {
                sandbox.endpoints.push(info);
            }
        })?;
        Ok(())
    }

    pub async fn disconnect(&self, key: &str, network: &str, force: bool) -> Result<()> {
        let container = self.find(key)?;
        let _operation = container.operation.lock().await;
        if container.record().state.status.is_alive() {
            self.inner.sandboxes.disconnect(&container.id, network, force).await?;
        }
        container.update(|r| {
            let mut gone = vec![network.to_owned()];
            if let Some(sandbox) = &mut r.sandbox {
                let (ended, left) = std::mem::take(&mut sandbox.endpoints)
                    .into_iter()
                    .partition(|e| e.network_name == network || e.network_id.as_str() == network);
                sandbox.endpoints = left;
                // However it was named when it was connected.
                let ended: Vec<EndpointInfo> = ended;
                gone.extend(ended.into_iter().flat_map(|e| [e.network_name, e.network_id.to_string()]));
            }
            r.endpoints.retain(|e| !gone.contains(&e.network));
        })?;
        Ok(())
    }

    /// Stops every container (dockerd's shutdown without `live-restore`); policies start them again with the next daemon.
    pub async fn stop_all(&self, timeout_secs: i64) {
        let mut stopping = tokio::task::JoinSet::new();
        // From here on nothing is restarted.
        for container in self.containers() {
            if container.record().state.status == Status::Restarting {
                container.cancel_token();
            }
            if !container.record().state.status.is_alive() {
                continue;
            }
            let engine = self.clone();
            stopping.spawn(async move {
                let _operation = container.operation.lock().await;
                let before = container.record().manually_stopped;
                let _ = container.update(|r| r.manually_stopped = true);
                let options = StopOptions {
                    timeout_secs: container.record().config.stop_timeout.or(Some(timeout_secs)),
                    signal: None,
                };
                if let Err(error) = engine.stop_locked(&container, &options).await {
                    tracing::warn!(container.id = %container.id, %error, "container not stopped");
                }
                let _ = container.update(|r| r.manually_stopped = before);
            });
        }
        while stopping.join_next().await.is_some() {}
    }

    /// Stops serving: containers live on under the supervisor, which ends by itself if there are none.
    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        let connection = self.inner.connection.write().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let idle = !self.containers().iter().any(|c| c.record().state.status.is_alive());
        if let (Some(connection), true) = (connection, idle) {
            connection.quit().await;
            let (features, parent) = (self.inner.features.clone(), self.cgroup_parent().to_owned());
            let _ = blocking::<()>(move || {
                crate::cgroup::remove_parent(&features, &parent);
                Ok(())
            })
            .await;
        }
    }
}

/// moby `signal.ParseSignal`.
pub(super) fn parse_signal(text: &str) -> Result<i32> {
    let invalid = || EngineError::Invalid(format!("Invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(invalid()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let plus: i32 = if rest.is_empty() {
            0
        } else {
            rest.strip_prefix('+').and_then(|n| n.parse().ok()).ok_or_else(invalid)?
        };
        return if plus <= 30 { Ok(34 + plus) } else { Err(invalid()) };
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let minus: i32 = if rest.is_empty() {
            0
        } else {
            rest.strip_prefix('-').and_then(|n| n.parse().ok()).ok_or_else(invalid)?
        };
        return if minus <= 30 { Ok(64 - minus) } else { Err(invalid()) };
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().map(|s| s as i32).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in
            [("TERM", 15), ("SIGKILL", 9), ("sighup", 1), ("12", 12), ("RTMIN+3", 37), ("SIGRTMAX", 64)]
        {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        assert_eq!(parse_signal("FOO").unwrap_err().to_string(), "Invalid signal: FOO");
        assert!(parse_signal("0").is_err() && parse_signal("65").is_err());
    }
}
