//! What a forked helper does: one call of libcontainer, its result sent back as one packet, then gone.
//!
//! A process of its own, because libcontainer changes directory, makes the process undumpable, writes its oom score and may
//! panic; and because it clones with `CLONE_PARENT`, the container's init becomes the *supervisor's* child.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use serde::{Deserialize, Serialize};

use super::executor::{ExecFailure, SkepExecutor};
use super::packet;
use super::protocol::Launch;

/// The child's ends of its stdio.
#[derive(Debug, Default)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// With the pty master beside it if a tty was asked for.
    Started {
        pid: i32,
    },
    Failed(ExecFailure),
}

/// Never returns to the caller's code: sends the outcome, and the caller ends the process.
pub(crate) fn run(launch: &Launch, stdio: ChildStdio, result: OwnedFd) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let work = std::panic::AssertUnwindSafe(|| perform(launch, stdio));
    let (outcome, pty) = match std::panic::catch_unwind(work) {
        Ok(Ok((pid, pty))) => (Outcome::Started { pid }, pty),
        Ok(Err(failure)) => (Outcome::Failed(failure), None),
        Err(_) => (
            Outcome::Failed(ExecFailure { message: "the container runtime panicked".to_owned(), exit_code: 128 }),
            None,
        ),
    };
    if let Ok(text) = serde_json::to_vec(&outcome) {
        let fds: Vec<_> = pty.iter().map(AsFd::as_fd).collect();
        let _ = packet::send(&result, &text, &fds);
    }
}

type Started = (i32, Option<OwnedFd>);

fn perform(launch: &Launch, stdio: ChildStdio) -> Result<Started, ExecFailure> {
    let filter = match launch.security.seccomp.as_str() {
        "" => Vec::new(),
        path => std::fs::read(path).map_err(|e| failure(format!("seccomp filter {path}: {e}")))?,
    };
    let (report_read, report_write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failure(e.to_string()))?;
    let executor = SkepExecutor {
        security: launch.security.clone(),
        filter: Arc::new(filter),
        report: Arc::new(std::fs::File::from(report_write)),
    };
    let console =
        launch.tty.then(|| Console::listen(launch)).transpose().map_err(|e| failure(format!("console: {e}")))?;
    let root = Path::new(&launch.state_root);
    let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let or_null = |fd: Option<OwnedFd>| fd.map_or_else(null, Ok).map_err(|e| failure(format!("/dev/null: {e}")));
    let mut builder = ContainerBuilder::new(launch.id.clone(), SyscallType::default())
        .with_root_path(root)
        .map_err(|e| failure(chain(&e)))?
        .with_executor(executor.clone())
        .with_console_socket(console.as_ref().map(|c| c.path.clone()));
    if !launch.tty {
        builder = builder
            .with_stdin(or_null(stdio.stdin)?)
            .with_stdout(or_null(stdio.stdout)?)
            .with_stderr(or_null(stdio.stderr)?);
    }
    let built = if launch.exec.is_empty() {
        start_init(builder, launch)
    } else {
        builder
            .as_tenant()
            .with_detach(true)
            .with_process(Some(&launch.process))
            .as_sibling(true)
            .build()
            .map(|pid| pid.as_raw())
            .map_err(|e| chain(&e))
    };
    drop(executor);
    let report = read_report(report_read);
    // The executor's own report is more exact than what libcontainer makes of a child that ended.
    if let Some(failed) = report {
        return Err(failed);
    }
    let pid = built.map_err(failure)?;
    let pty = console.map(Console::receive).transpose().map_err(|e| failure(format!("console: {e}")))?;
    Ok((pid, pty))
}

fn start_init(builder: ContainerBuilder, launch: &Launch) -> Result<i32, String> {
    let mut container: Container =
        builder.as_init(&launch.bundle).with_systemd(false).as_sibling(true).build().map_err(|e| chain(&e))?;
    if !launch.device_cgroup.is_empty()
        && let Err(error) = limit_devices(launch, container.pid().map(|pid| pid.as_raw()))
    {
        // It waits for its start, and would for ever.
        if let Some(pid) = container.pid() {
            let _ = crate::sys::process::kill(pid.as_raw(), libc::SIGKILL);
        }
        let _ = container.delete(true);
        return Err(format!("failed to limit access to devices in {}: {error}", launch.device_cgroup));
    }
    container.start().map_err(|e| chain(&e))?;
    container.pid().map(|pid| pid.as_raw()).ok_or_else(|| "the container has no process".to_owned())
}

/// On cgroup v2 libcontainer leaves the device rules to a C library, which we do not link. The group exists and the command
/// does not run yet; what is attached stays for every exec, and ends with the group.
fn limit_devices(launch: &Launch, init: Option<i32>) -> std::io::Result<()> {
    let text = std::fs::read(Path::new(&launch.bundle).join("config.json"))?;
    let spec: oci_spec::runtime::Spec = serde_json::from_slice(&text)?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let Some(program) = crate::spec::device_program::assemble(rules) else { return Ok(()) };
    let group = Path::new(&launch.device_cgroup);
    // A program on a group that the container is not in would protect nothing.
    let members = std::fs::read_to_string(group.join("cgroup.procs"))?;
    if !members.lines().any(|line| line.parse().ok() == init && init.is_some()) {
        return Err(std::io::Error::other("the container is not in this control group"));
    }
    // Kernels before 5.11 count programs as locked memory. Only this helper's limit: the container exists already.
    let _ = crate::sys::process::set_rlimit(libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY);
    crate::sys::device_filter::attach(std::fs::File::open(group)?.as_fd(), &program)
}

/// End of file, and nothing read, means that the command runs.
fn read_report(pipe: OwnedFd) -> Option<ExecFailure> {
    let mut text = Vec::new();
    std::fs::File::from(pipe).read_to_end(&mut text).ok()?;
    if text.is_empty() {
        return None;
    }
    Some(serde_json::from_slice(&text).unwrap_or_else(|_| failure("the command could not be started".to_owned())))
}

fn failure(message: String) -> ExecFailure {
    ExecFailure { message, exit_code: 128 }
}

/// An error with its sources: libcontainer's own texts are terse.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// Where libcontainer sends the pty master of a tty.
struct Console {
    listener: UnixListener,
    path: std::path::PathBuf,
}

impl Console {
    fn listen(launch: &Launch) -> std::io::Result<Self> {
        // Beside the state directories, with a short name: a Unix socket path has 108 bytes.
        let path = Path::new(&launch.state_root).join(format!("tty-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    fn receive(self) -> std::io::Result<OwnedFd> {
        let received = self.listener.accept().and_then(|(socket, _)| {
            socket.set_nonblocking(false)?;
            let mut buffer = [0; 4096];
            packet::receive(&socket, &mut buffer)
        });
        let _ = std::fs::remove_file(&self.path);
        received?
            .and_then(|(_, fds)| fds.into_iter().next())
            .ok_or_else(|| std::io::Error::other("no terminal was sent"))
    }
}
