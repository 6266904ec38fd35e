//! `docker exec`: further processes in a running container.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use skep_model::ContainerId;
use tokio::io::Interest;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::{Engine, blocking};
use crate::container::*;
use crate::error::{EngineError, Result};
use crate::rootfs::RootDir;
use crate::spec;
use crate::supervisor::client::Launched;
use crate::supervisor::protocol::Launch;

/// A finished exec may still be asked for its exit code (moby removes them every five minutes).
const KEEP: Duration = Duration::from_secs(300);
/// After the process's end its children may hold the output open: so long they are listened to.
const DRAIN: Duration = Duration::from_secs(1);

/// Output read ahead of a slow client.
const QUEUE: usize = 64;

#[derive(Debug)]
pub(super) struct Exec {
    pub(super) id: String,
    pub(super) container_id: ContainerId,
    config: ExecConfig,
    progress: watch::Sender<Progress>,
    pty: Mutex<Option<Arc<std::os::fd::OwnedFd>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    started: bool,
    pid: i32,
    exit_code: Option<i32>,
}

impl Engine {
    pub async fn exec_create(&self, key: &str, config: ExecConfig) -> Result<String> {
        if config.cmd.is_empty() || config.cmd[0].is_empty() {
            return Err(EngineError::Invalid("No exec command specified".to_owned()));
        }
        let container = self.find(key)?;
        check_running(&container.record())?;
        let bits = super::create::random_bits()?;
        let id = skep_model::id::hex_64(bits);
        let shown = config.cmd.join(" ");
        let exec = Exec {
            id: id.clone(),
            container_id: container.id.clone(),
            config,
            progress: watch::channel(Progress::default()).0,
            pty: Mutex::default(),
        };
        locked(&self.inner.execs).insert(id.clone(), Arc::new(exec));
        self.emit(&container.record(), format!("exec_create: {shown}"), &[("execID", id.clone())]);
        Ok(id)
    }

    fn exec(&self, id: &str) -> Result<Arc<Exec>> {
        locked(&self.inner.execs).get(id).cloned().ok_or_else(|| EngineError::NoSuchExec(id.to_owned()))
    }

    pub fn exec_inspect(&self, exec_id: &str) -> Result<ExecRecord> {
        let exec = self.exec(exec_id)?;
        let progress = *exec.progress.borrow();
        Ok(ExecRecord {
            id: exec.id.clone(),
            container_id: exec.container_id.clone(),
            config: exec.config.clone(),
            running: progress.started && progress.exit_code.is_none(),
            exit_code: progress.exit_code,
            pid: progress.pid,
        })
    }

    /// The output ends after the exit code is known.
    pub async fn exec_start_attached(&self, exec_id: &str) -> Result<Attached> {
        let exec = self.exec(exec_id)?;
        let launched = self.exec_launch(&exec, true).await?;
        self.exec_attach(&exec, launched)
    }

    pub async fn exec_start_detached(&self, exec_id: &str) -> Result<()> {
        let exec = self.exec(exec_id)?;
        let launched = self.exec_launch(&exec, false).await?;
        if exec.config.tty {
            // Someone must read a terminal, or its process would wait.
            let attached = self.exec_attach(&exec, launched)?;
            self.inner.tasks.spawn(attached.output.for_each(|_| std::future::ready(())));
        }
        Ok(())
    }

    pub async fn exec_resize(&self, exec_id: &str, height: u16, width: u16) -> Result<()> {
        let exec = self.exec(exec_id)?;
        // Clients ask for the size while the start is still under way.
        let started = async { exec.progress.subscribe().wait_for(|p| p.started).await.is_ok() };
        if tokio::time::timeout(Duration::from_secs(10), started).await != Ok(true) {
            return Err(EngineError::Conflict(format!("exec {exec_id} is not running")));
        }
        if let Some(pty) = locked(&exec.pty).clone() {
            resize(&*pty, height, width).map_err(|e| EngineError::Internal(format!("failed to resize tty: {e}")))?;
        }
        Ok(())
    }

    async fn exec_launch(&self, exec: &Arc<Exec>, attached: bool) -> Result<Launched> {
        let container = self.find(exec.container_id.as_str())?;
        let record = container.record();
        check_running(&record)?;
        let fresh = exec.progress.send_if_modified(|p| !std::mem::replace(&mut p.started, true));
        if !fresh {
            return Err(EngineError::Conflict(format!("exec command {} has already run", exec.id)));
        }
        let connection = self.connection()?;
        let (engine, job) = (self.clone(), Arc::clone(exec));
        let mut launch = blocking(move || engine.exec_prepare(&job, &record)).await?;
        launch.output = attached && !exec.config.tty;
        launch.stdin = attached && exec.config.attach_stdin && !exec.config.tty;
        let process_file = launch.process.clone();
        let answer = connection.launch(launch).await;
        let _ = std::fs::remove_file(process_file);
        let record = container.record();
        let shown = exec.config.cmd.join(" ");
        let failed = |exit_code: i32| {
            exec.progress.send_modify(|p| p.exit_code = Some(exit_code));
            self.forget_later(&exec.id);
        };
        let launched = match answer {
            Ok(Ok(launched)) => launched,
            Ok(Err(failure)) => {
                failed(failure.exit_code);
                return Err(EngineError::StartFailed {
                    message: format!(
                        "OCI runtime exec failed: exec failed: unable to start container process: {}: unknown",
                        failure.message
                    ),
                    exit_code: failure.exit_code,
                });
            }
            Err(error) => {
                failed(128);
                return Err(error);
            }
        };
        exec.progress.send_modify(|p| p.pid = launched.pid);
        self.emit(&record, format!("exec_start: {shown}"), &[("execID", exec.id.clone())]);
        let (engine, job) = (self.clone(), Arc::clone(exec));
        self.inner.tasks.spawn(async move {
            tokio::select! {
                exit = connection.exited(job.container_id.as_str(), &job.id) => {
                    engine.exec_ended(&job, exit.map_or(255, |e| e.code));
                }
                () = engine.inner.closing.cancelled() => {}
            }
        });
        Ok(launched)
    }

    fn exec_ended(&self, exec: &Arc<Exec>, exit_code: i32) {
        let first = exec.progress.send_if_modified(|p| p.exit_code.replace(exit_code).is_none());
        if !first {
            return;
        }
        if let Ok(container) = self.find(exec.container_id.as_str()) {
            let extra = [("execID", exec.id.clone()), ("exitCode", exit_code.to_string())];
            self.emit(&container.record(), "exec_die", &extra);
        }
        self.forget_later(&exec.id);
    }

    fn forget_later(&self, id: &str) {
        let (engine, id) = (self.clone(), id.to_owned());
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(KEEP) => {}
                () = engine.inner.closing.cancelled() => {}
            }
            locked(&engine.inner.execs).remove(&id);
        });
    }

    /// The container is gone, and with it what ran in it.
    pub(super) fn end_execs(&self, container: &ContainerId) {
        let execs: Vec<_> =
            locked(&self.inner.execs).values().filter(|e| &e.container_id == container).cloned().collect();
        for exec in execs {
            if exec.progress.borrow().started {
                self.exec_ended(&exec, 137);
            }
        }
    }

    fn exec_prepare(&self, exec: &Exec, record: &ContainerRecord) -> Result<Launch> {
        let config = &exec.config;
        let host = &record.host_config;
        let merged = Path::new("/proc").join(record.state.pid.to_string()).join("root");
        let root = RootDir::open(&merged).map_err(|_| EngineError::NotRunning(record.id.to_string()))?;
        let user_text = if config.user.is_empty() { &record.config.user } else { &config.user };
        let user = super::start::resolve_user(&root, user_text, &host.group_add)?;
        let mut env = super::start::environment(record, &user);
        if config.tty && !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
        for variable in &config.env {
            env.retain(|e| name(e) != name(variable));
            if variable.contains('=') {
                env.push(variable.clone());
            }
        }
        let asked = if config.working_dir.is_empty() { &record.config.working_dir } else { &config.working_dir };
        let process = spec::process(&spec::Process {
            args: &config.cmd,
            env: &env,
            cwd: spec::working_dir(asked),
            user: &user,
            tty: config.tty,
            console_size: config.console_size.unwrap_or_default(),
            oom_score_adj: host.oom_score_adj,
        });
        let privileged = host.privileged || config.privileged;
        let capabilities = spec::capabilities::resolve(&host.cap_add, &host.cap_drop, privileged)?;
        let bundle = self.bundle(&record.id);
        let path = bundle.join(format!("exec-{}.json", exec.id));
        let text = serde_json::to_vec(&process).map_err(|e| EngineError::Internal(format!("process spec: {e}")))?;
        std::fs::write(&path, text).map_err(EngineError::file("failed to write", &path))?;
        Ok(Launch {
            id: record.id.to_string(),
            exec: exec.id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            state_root: crate::supervisor::state_root(&self.inner.config.exec_root).to_string_lossy().into_owned(),
            process: path.to_string_lossy().into_owned(),
            tty: config.tty,
            security: super::security::security(self, host, capabilities, privileged)?,
            ..Launch::default()
        })
    }

    fn exec_attach(&self, exec: &Arc<Exec>, launched: Launched) -> Result<Attached> {
        let failed = |e: std::io::Error| EngineError::Internal(format!("exec stdio: {e}"));
        let stdio = launched.stdio;
        let tty = exec.config.tty;
        let mut sources = Vec::new();
        let mut stdin = None;
        if let Some(pty) = stdio.pty {
            sources.push((
                asynchronous(pty.try_clone().map_err(failed)?, Interest::READABLE).map_err(failed)?,
                StdStream::Stdout,
            ));
            if exec.config.attach_stdin {
                let pipe = asynchronous(pty.try_clone().map_err(failed)?, Interest::WRITABLE).map_err(failed)?;
                stdin = Some(StdinWriter::own(Arc::new(pipe)));
            }
            *locked(&exec.pty) = Some(Arc::new(pty));
        }
        for (fd, stream) in [(stdio.stdout, StdStream::Stdout), (stdio.stderr, StdStream::Stderr)] {
            if let Some(fd) = fd {
                sources.push((asynchronous(fd, Interest::READABLE).map_err(failed)?, stream));
            }
        }
        if let Some(fd) = stdio.stdin {
            stdin = Some(StdinWriter::own(Arc::new(asynchronous(fd, Interest::WRITABLE).map_err(failed)?)));
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut progress = exec.progress.subscribe();
        let exec = Arc::clone(exec);
        let closing = self.inner.closing.clone();
        self.inner.tasks.spawn(async move {
            let wanted = |stream| match stream {
                StdStream::Stderr => exec.config.attach_stderr,
                StdStream::Stdin | StdStream::Stdout => exec.config.attach_stdout || exec.config.tty,
            };
            let read_all = futures_util::future::join_all(sources.iter().map(|(pipe, stream)| {
                let (sender, show) = (sender.clone(), wanted(*stream));
                async move {
                    while let Some(data) = read_chunk(pipe, bytes::Bytes::copy_from_slice).await {
                        // A client that went away does not stop the process.
                        if show {
                            let _ = sender.send(Ok(OutputChunk { stream: *stream, data })).await;
                        }
                    }
                }
            }));
            let over = async {
                let _ = progress.wait_for(|p| p.exit_code.is_some()).await;
            };
            tokio::pin!(read_all, over);
            tokio::select! {
                _ = &mut read_all => over.await,
                () = &mut over => {
                    let _ = tokio::time::timeout(DRAIN, read_all).await;
                }
                () = closing.cancelled() => {}
            }
            *locked(&exec.pty) = None;
        });
        Ok(Attached { tty, stdin, output: ReceiverStream::new(receiver).boxed() })
    }
}

pub(super) fn check_running(record: &ContainerRecord) -> Result<()> {
    match record.state.status {
        Status::Running => Ok(()),
        Status::Paused => {
            Err(EngineError::Conflict(format!("Container {} is paused, unpause the container before exec", record.id)))
        }
        Status::Restarting => Err(EngineError::Conflict(format!(
            "Container {} is restarting, wait until the container is running",
            record.id
        ))),
        _ => Err(EngineError::NotRunning(record.id.to_string())),
    }
}

/// What a health check needs of an exec: run, wait at most so long, the first bytes of its output.
pub(super) struct ProbeOutcome {
    pub(super) exit_code: Option<i32>,
    pub(super) output: String,
}

impl Engine {
    /// Runs a command in a container and collects its output; killed if it takes longer than `timeout`.
    pub(super) async fn probe(
        &self,
        container: &Container,
        cmd: Vec<String>,
        timeout: Duration,
        max_output: usize,
    ) -> Result<ProbeOutcome> {
        let config = ExecConfig { cmd, attach_stdout: true, attach_stderr: true, ..ExecConfig::default() };
        let id = self.exec_create(container.id.as_str(), config).await?;
        let mut attached = self.exec_start_attached(&id).await?;
        let mut output = Vec::new();
        let collect = async {
            while let Some(chunk) = attached.output.next().await {
                let data = chunk.map(|c| c.data).unwrap_or_default();
                output.extend_from_slice(&data[..data.len().min(max_output.saturating_sub(output.len()))]);
            }
        };
        let in_time = tokio::time::timeout(timeout, collect).await.is_ok();
        if !in_time && let Ok(connection) = self.connection() {
            let _ = connection.signal(container.id.as_str(), &id, libc::SIGKILL).await;
        }
        let exit_code = if in_time { self.exec_inspect(&id)?.exit_code } else { None };
        locked(&self.inner.execs).remove(&id);
        Ok(ProbeOutcome { exit_code, output: String::from_utf8_lossy(&output).into_owned() })
    }
}
