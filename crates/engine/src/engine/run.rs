//! A container's run, from the moment its process lives to what is done after its end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use skep_model::Timestamp;
use tokio::io::Interest;

use super::{Engine, blocking};
use crate::container::*;
use crate::error::{EngineError, Result};
use crate::logs::{LogWriter, Remote, Spool};
use crate::supervisor::client::{Connection, Launched, ProcessStdio};
use crate::supervisor::protocol::Exit;
use crate::sys::clock;

/// Output may still be in the pipes when the process has ended; a stray child in a shared pid namespace may hold them open.
const DRAIN: Duration = Duration::from_secs(2);
/// moby `restartmanager`: first wait, longest wait, and a run of what length makes it start over.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
const GOOD_RUN: Duration = Duration::from_secs(10);

/// The state of a container whose run begins.
pub(super) fn running(record: &ContainerRecord, pid: i32, started_at: Timestamp) -> ContainerState {
    ContainerState {
        status: Status::Running,
        pid,
        started_at,
        finished_at: record.state.finished_at,
        health: super::health::initial(&record.config),
        ..ContainerState::default()
    }
}

impl Engine {
    pub(super) async fn begin_run(&self, container: &Arc<Container>, launched: Launched) -> Result<()> {
        let now = clock::now();
        let record = container.update(|r| r.state = running(r, launched.pid, now))?;
        self.attach_run(container, launched.stdio);
        container.live(|life| {
            life.alive = true;
            life.restarting = false;
            life.error.clear();
        });
        self.emit(&record, "start", &[]);
        self.watch_run(container)
    }

    /// Waits for the end of the run in a task of its own, and probes its health.
    pub(super) fn watch_run(&self, container: &Arc<Container>) -> Result<()> {
        let connection = self.connection()?;
        let token = container.renew_token();
        self.spawn_health(container, token);
        let (engine, container) = (self.clone(), Arc::clone(container));
        self.inner.tasks.spawn(async move {
            tokio::select! {
                exit = connection.exited(container.id.as_str(), "") => {
                    // An error is a lost connection: the next one tells how the run goes on.
                    if let Ok(exit) = exit {
                        engine.end_run(&container, &connection, exit).await;
                    }
                }
                () = engine.inner.closing.cancelled() => {}
            }
        });
        Ok(())
    }

    /// Starts reading a run's output.
    pub(super) fn attach_run(&self, container: &Arc<Container>, stdio: ProcessStdio) {
        let mut run = RunIo::default();
        if let Some(pty) = stdio.pty {
            let reading = pty.try_clone().and_then(|fd| asynchronous(fd, Interest::READABLE));
            let writing = pty.try_clone().and_then(|fd| asynchronous(fd, Interest::WRITABLE));
            if let Ok(pipe) = reading {
                // A terminal cannot be spliced into a file.
                run.pumps.push(self.spawn_pump(container, pipe, StdStream::Stdout, None));
            }
            match writing {
                Ok(pipe) if container.record().config.open_stdin => {
                    container.stdin.set(StdinState::Open(Arc::new(pipe)))
                }
                _ => container.stdin.set(StdinState::Closed),
            }
            run.pty = Some(Arc::new(pty));
        } else {
            for (fd, stream) in [(stdio.stdout, StdStream::Stdout), (stdio.stderr, StdStream::Stderr)] {
                if let Some(Ok(pipe)) = fd.map(|fd| asynchronous(fd, Interest::READABLE)) {
                    let spool = self.open_spool(container, stream);
                    run.pumps.push(self.spawn_pump(container, pipe, stream, spool));
                }
            }
            match stdio.stdin.map(|fd| asynchronous(fd, Interest::WRITABLE)) {
                Some(Ok(pipe)) => container.stdin.set(StdinState::Open(Arc::new(pipe))),
                _ => container.stdin.set(StdinState::Closed),
            }
        }
        *locked(&container.run) = run;
    }

    /// With `dial`, whom the log goes to must be there now; else he is looked for with the first line.
    pub(super) async fn open_log(&self, record: &ContainerRecord, dial: bool) -> Result<Option<LogWriter>> {
        let Some(settings) = crate::logs::settings(record)? else { return Ok(None) };
        let remote = match settings.remote {
            None => None,
            Some(target) => {
                let failed = |why| EngineError::Internal(format!("failed to initialize logging driver: {why}"));
                let wire = if dial { Some(target.dial().await.map_err(failed)?) } else { None };
                Some(Remote::start(target, wire, &self.inner.tasks, self.inner.closing.clone()))
            }
        };
        let path = &record.log_path;
        let log = match settings.rotation {
            Some(rotation) => LogWriter::open(path, rotation).map_err(EngineError::file("failed to open", path))?,
            None => LogWriter::without_file(path),
        };
        Ok(Some(log.with_attributes(settings.attributes).with_remote(remote)))
    }

    fn open_spool(&self, container: &Container, stream: StdStream) -> Option<Spool> {
        let name = if stream == StdStream::Stderr { "stderr.spool" } else { "stdout.spool" };
        let path = self.bundle(&container.id).join(name);
        let mut log = locked(&container.log);
        let opened = Spool::open(&path, stream, log.as_mut()?, clock::now());
        opened
            .inspect_err(|error| tracing::warn!(container.id = %container.id, %error, "output goes by way of memory"))
            .ok()
    }

    fn spawn_pump(
        &self,
        container: &Arc<Container>,
        pipe: tokio::io::unix::AsyncFd<OwnedFd>,
        stream: StdStream,
        mut spool: Option<Spool>,
    ) -> tokio::task::JoinHandle<()> {
        let container = Arc::clone(container);
        let closing = self.inner.closing.clone();
        self.inner.tasks.spawn(async move {
            let backlog = locked(&container.log).as_ref().and_then(LogWriter::backlog);
            let pump = async {
                while let Some(copy) = take_output(&pipe, |fd| log_output(&container, stream, spool.as_mut(), fd)).await
                {
                    if let Some(data) = copy {
                        container.hub.publish(stream, data).await;
                    }
                    if let Some(backlog) = &backlog {
                        backlog.room().await;
                    }
                }
                if let Some(log) = &mut *locked(&container.log) {
                    let _ = log.finish(stream, clock::now());
                }
                container.log_grown.send_modify(|n| *n += 1);
            };
            tokio::select! {
                () = pump => {}
                () = closing.cancelled() => {}
            }
        })
    }

    /// The process is gone.
    pub(super) async fn end_run(&self, container: &Arc<Container>, connection: &Connection, exit: Exit) {
        container.cancel_token();
        container.stdin.set(StdinState::Closed);
        if container.record().host_config.pid_mode == "host" {
            let cgroup = self.cgroup(&container.id);
            kill_all(cgroup).await;
        }
        let pumps = std::mem::take(&mut locked(&container.run).pumps);
        let drained = async {
            for pump in pumps {
                let _ = pump.await;
            }
        };
        let _ = tokio::time::timeout(DRAIN, drained).await;
        *locked(&container.run) = RunIo::default();
        *locked(&container.log) = None;
        let oom = self.cgroup(&container.id).oom_kills() > 0;
        if oom {
            self.emit(&container.record(), "oom", &[]);
        }
        self.clean_up(container).await;
        self.end_execs(&container.id);
        let again = self.settle(container, exit, oom);
        // Only now: were we killed before this, the next daemon would be told of the end again.
        let _ = connection.forget(container.id.as_str(), "").await;
        container.stdin.set(StdinState::Waiting);
        container.hub.end();
        container.live(|life| {
            life.alive = false;
            life.restarting = again.is_some();
            life.exits += 1;
            life.exit_code = exit.code;
        });
        match again {
            Some(wait) if self.inner.settled.load(Ordering::Acquire) => self.restart_after(container, wait),
            // Left as "restarting", which the end of the opening looks for.
            Some(_) => {}
            None if container.record().host_config.auto_remove && !self.inner.closing.is_cancelled() => {
                self.remove_later(container);
            }
            None => {}
        }
    }

    /// Writes the end down and decides whether the policy starts it again, and after how long.
    fn settle(&self, container: &Container, exit: Exit, oom: bool) -> Option<Duration> {
        let before = container.record();
        let ran = skep_model::Timestamp(exit.at).since(before.state.started_at);
        let again = wants_restart(&before, exit.code, false) && !self.inner.closing.is_cancelled();
        let count = if ran >= GOOD_RUN { 0 } else { before.restart_count };
        let wait = FIRST_BACKOFF.saturating_mul(1 << count.min(20)).min(LONGEST_BACKOFF);
        let updated = container.update(|r| {
            r.sandbox = None;
            r.state.status = if again { Status::Restarting } else { Status::Exited };
            r.state.pid = 0;
            r.state.exit_code = exit.code;
            r.state.oom_killed = oom;
            r.state.finished_at = skep_model::Timestamp(exit.at);
            if again {
                r.restart_count += 1;
            }
        });
        if let Err(error) = updated {
            tracing::warn!(container.id = %container.id, %error, "the end of a container could not be written down");
        }
        let duration = ran.as_secs().to_string();
        let extra = [("exitCode", exit.code.to_string()), ("execDuration", duration)];
        self.emit(&container.record(), "die", &extra);
        again.then_some(wait)
    }

    pub(super) fn restart_after(&self, container: &Arc<Container>, wait: Duration) {
        let token = container.renew_token();
        let (engine, container) = (self.clone(), Arc::clone(container));
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = token.cancelled() => return,
                () = engine.inner.closing.cancelled() => return,
            }
            let _operation = container.operation.lock().await;
            if container.record().state.status != Status::Restarting {
                return;
            }
            if let Err(error) = engine.start_locked(&container).await {
                tracing::warn!(container.id = %container.id, %error, "restart failed");
            }
        });
    }

    /// Takes away everything of a run that is outside the process: each step goes on if another fails.
    pub(super) async fn clean_up(&self, container: &Arc<Container>) {
        let record = container.record();
        for mount in record.mounts.iter().filter(|m| m.kind == "volume") {
            if let Err(error) = self.inner.volumes.unmount(&mount.name, record.id.as_str()).await {
                tracing::debug!(%error, volume = mount.name, "volume not unmounted");
            }
        }
        let merged = container.dir.join("merged");
        let bundle = self.bundle(&record.id);
        let state = crate::supervisor::state_root(&self.inner.config.exec_root).join(record.id.as_str());
        let cgroup = self.cgroup(&record.id);
        let local = blocking(move || {
            let root = crate::rootfs::detach(&merged);
            super::start::BUNDLE_MOUNTS.iter().for_each(|name| crate::rootfs::unmount(&bundle.join(name)));
            let _ = std::fs::remove_dir_all(bundle);
            let _ = std::fs::remove_dir_all(state);
            cgroup.remove();
            Ok(root)
        });
        let (root, sandbox) = tokio::join!(local, self.inner.sandboxes.teardown(&record.id));
        if let Ok(Some(root)) = root {
            *locked(&container.leaving) = Some(self.inner.tasks.spawn_blocking(move || drop(root)));
        }
        if let Err(error) = sandbox {
            tracing::warn!(container.id = %record.id, %error, "sandbox not torn down");
        }
    }
}

pub(super) async fn kill_all(cgroup: crate::cgroup::Cgroup) {
    let _ = blocking(move || {
        cgroup.kill_all();
        Ok(())
    })
    .await;
}

/// Writes output to the log, and copies it if someone is attached. The inner `None` is "nobody is", the outer one the end.
fn log_output(
    container: &Container,
    stream: StdStream,
    spool: Option<&mut Spool>,
    fd: &OwnedFd,
) -> std::io::Result<Option<Option<bytes::Bytes>>> {
    let copy = |data: &[u8]| (!container.hub.is_empty()).then(|| bytes::Bytes::copy_from_slice(data));
    let taken = match (&mut *locked(&container.log), spool) {
        (Some(log), Some(spool)) => spool.take(fd, log, clock::now(), copy),
        (Some(log), None) => read_into(fd, |data| {
            if let Err(error) = log.write(stream, data, clock::now()) {
                tracing::warn!(container.id = %container.id, %error, "container log not written");
            }
            copy(data)
        }),
        (None, _) => read_into(fd, copy),
    };
    if matches!(taken, Ok(Some(_))) {
        container.log_grown.send_modify(|n| *n += 1);
    }
    taken
}

/// moby `restartmanager.ShouldRestart`; `at_start` is the start of the daemon.
pub(super) fn wants_restart(record: &ContainerRecord, exit_code: i32, at_start: bool) -> bool {
    let policy = &record.host_config.restart_policy;
    match policy.name.as_str() {
        "always" => at_start || !record.manually_stopped,
        "unless-stopped" => !record.manually_stopped,
        "on-failure" => {
            let left = policy.maximum_retry_count == 0 || i64::from(record.restart_count) < policy.maximum_retry_count;
            exit_code != 0 && left && !record.manually_stopped
        }
        _ => false,
    }
}
