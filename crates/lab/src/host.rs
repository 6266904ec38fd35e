//! What runs as pid 1 of a lab host: it arranges the mount namespace, starts the daemon, starts it again when it dies, and
//! reaps whatever the host's processes leave behind. Its end is the end of the host.
//!
//! This is the body of the hidden `skep lab-host` command, a process of one thread.

use std::fs::OpenOptions;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname, setsid};
use serde::{Deserialize, Serialize};

use crate::{LabError, Result, file, sys};

/// All that the host process needs to know; passed as JSON in its only argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostSpec {
    pub hostname: String,
    pub netns: PathBuf,
    /// Becomes `/run`.
    pub run: PathBuf,
    /// Bound over `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`.
    pub hostname_file: PathBuf,
    pub hosts_file: PathBuf,
    pub resolv_conf: PathBuf,
    pub pid_file: PathBuf,
    pub log_file: PathBuf,
    /// The daemon's program and arguments.
    pub daemon: Vec<String>,
}

fn step(what: &str) -> impl FnOnce(Errno) -> LabError + '_ {
    move |e| LabError::Io { what: format!("lab host: {what}"), source: e.into() }
}

/// Makes the host and returns when its pid 1 has been forked and its pid written down.
pub fn launch(spec: &HostSpec) -> Result<()> {
    setsid().map_err(step("setsid"))?;
    let netns = std::fs::File::open(&spec.netns).map_err(file("cannot open", &spec.netns))?;
    setns(&netns, CloneFlags::CLONE_NEWNET).map_err(step("enter the network namespace"))?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWPID).map_err(step("unshare"))?;
    let child =
        sys::fork_into(|| run(spec)).map_err(|source| LabError::Io { what: "lab host: fork".into(), source })?;
    let half = spec.pid_file.with_extension("new");
    std::fs::write(&half, child.to_string()).map_err(file("cannot write", &half))?;
    std::fs::rename(&half, &spec.pid_file).map_err(file("cannot write", &spec.pid_file))
}

fn bind(from: &Path, to: &str) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).map_err(step(to))
}

fn arrange(spec: &HostSpec) -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(step("private mounts"))?;
    sethostname(&spec.hostname).map_err(step("sethostname"))?;
    bind(&spec.run, "/run")?;
    bind(&spec.hostname_file, "/etc/hostname")?;
    bind(&spec.hosts_file, "/etc/hosts")?;
    bind(&spec.resolv_conf, "/etc/resolv.conf")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).map_err(step("/proc"))?;
    // /sys shows the network devices of the namespace it was mounted from; the cgroup trees are carried over.
    let cgroups = spec.run.join(".cgroup");
    std::fs::create_dir_all(&cgroups).map_err(file("cannot make", &cgroups))?;
    bind(Path::new("/sys/fs/cgroup"), &cgroups.to_string_lossy())?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, None::<&str>).map_err(step("/sys"))?;
    mount(Some(&cgroups), "/sys/fs/cgroup", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(step("/sys/fs/cgroup"))?;
    let _ = std::fs::remove_dir(&cgroups);
    Ok(())
}

fn start_daemon(spec: &HostSpec) -> Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&spec.log_file)
        .map_err(file("cannot open", &spec.log_file))?;
    let log_too = log.try_clone().map_err(file("cannot open", &spec.log_file))?;
    Command::new(&spec.daemon[0])
        .args(&spec.daemon[1..])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .process_group(0)
        .spawn()
        .map_err(file("cannot start", Path::new(&spec.daemon[0])))
}

/// A daemon that died is started again after this long, as systemd's `Restart=always` would; one that was stopped (exit code
/// 0) stays stopped.
const RESTART_DELAY: Duration = Duration::from_millis(100);

fn run(spec: &HostSpec) -> ! {
    let fail = |error: LabError| -> ! {
        tracing::error!(%error, "host did not start");
        let _ = std::fs::write(&spec.log_file, format!("{error}\n"));
        std::process::exit(1);
    };
    if let Err(error) = arrange(spec) {
        fail(error);
    }
    let mut daemon = match start_daemon(spec) {
        Ok(child) => Some(Pid::from_raw(child.id().cast_signed())),
        Err(error) => fail(error),
    };
    let mut restart_at: Option<Instant> = None;
    loop {
        // Without children there is nothing to wait for; the host stays up, as a real one would.
        let status = match waitpid(None, restart_at.map(|_| nix::sys::wait::WaitPidFlag::WNOHANG)) {
            Ok(status) => status,
            Err(_) => WaitStatus::StillAlive,
        };
        if let (Some(pid), true) = (status.pid(), status.pid() == daemon) {
            let _ = pid;
            let stopped = matches!(status, WaitStatus::Exited(_, 0));
            daemon = None;
            restart_at = (!stopped).then(|| Instant::now() + RESTART_DELAY);
        }
        match restart_at {
            Some(at) if Instant::now() >= at => {
                restart_at = None;
                daemon = start_daemon(spec).ok().map(|child| Pid::from_raw(child.id().cast_signed()));
            }
            _ if status == WaitStatus::StillAlive => std::thread::sleep(Duration::from_millis(20)),
            _ => {}
        }
    }
}

/// Runs a command on the host whose pid 1 is `init_pid`, with this terminal, and returns its exit code.
pub(crate) fn exec(init_pid: i32, command: &[String]) -> Result<i32> {
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    sys::enter(init_pid, &kinds).map_err(|source| LabError::Io { what: "cannot enter the host".into(), source })?;
    // The new PID namespace is for children: the command is one.
    let status = Command::new(&command[0])
        .args(&command[1..])
        .env("DOCKER_HOST", "unix:///run/docker.sock")
        .env_remove("DOCKER_CONTEXT")
        .status()
        .map_err(file("cannot run", Path::new(&command[0])))?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}
