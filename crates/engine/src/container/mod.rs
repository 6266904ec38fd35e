//! What the engine knows about one container, as plain values: what it keeps on disk, and what it tells.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use skep_model::container::{ContainerConfig, HostConfig};
use skep_model::sandbox::{EndpointRequest, Sandbox};
use skep_model::{ContainerId, Timestamp};

/// Everything `docker create` needs.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// Without the slash; `None` invents one.
    pub name: Option<String>,
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    /// Networks besides (or instead of) the one of `host_config.network_mode`.
    pub endpoints: Vec<EndpointRequest>,
    /// Only for tasks of services.
    pub task: Option<TaskExtras>,
    /// `os[/arch[/variant]]`, or empty.
    pub platform: String,
}

/// What a swarm task brings along.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskExtras {
    pub task_id: String,
    /// Secrets and configs, put on a tmpfs of the container; never written to disk.
    #[serde(skip)]
    pub files: Vec<TaskFile>,
}

/// A secret or config as a file in the container.
#[derive(Clone, Debug)]
pub struct TaskFile {
    /// Absolute path in the container.
    pub target: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub data: skep_model::secret::SecretBytes,
}

#[derive(Clone, Debug)]
pub struct Created {
    pub id: ContainerId,
    pub warnings: Vec<String>,
}

/// `State.Status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    #[default]
    Created,
    Running,
    Paused,
    Restarting,
    Removing,
    Exited,
    Dead,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Has a process: running, paused.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub status: Status,
    pub pid: i32,
    pub exit_code: i32,
    pub oom_killed: bool,
    /// Why the last start failed; empty otherwise.
    pub error: String,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub health: Option<Health>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

impl HealthStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    pub status: HealthStatus,
    pub failing_streak: u32,
    /// The last five probes, oldest first.
    pub log: Vec<HealthProbe>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthProbe {
    pub start: Timestamp,
    pub end: Timestamp,
    pub exit_code: i32,
    /// At most 4096 bytes.
    pub output: String,
}

/// A mount as `inspect` shows it under `Mounts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountRecord {
    /// `bind`, `volume`, `tmpfs`.
    pub kind: String,
    /// Of a volume.
    pub name: String,
    /// Path on the host.
    pub source: String,
    pub destination: String,
    pub driver: String,
    /// As given: `z`, `ro`, …
    pub mode: String,
    pub rw: bool,
    pub propagation: String,
    /// An anonymous volume, removed with `rm -v`.
    pub anonymous: bool,
    /// Of a bind: without what is mounted below its source.
    pub non_recursive: bool,
    /// Of a read-only bind: what is mounted below its source stays as it is.
    pub read_only_non_recursive: bool,
    /// Of a volume: the part of it that is mounted.
    pub subpath: String,
}

/// Everything about a container; what is on disk in `containers/<id>/config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: ContainerId,
    /// Without the slash.
    pub name: String,
    pub created_at: Timestamp,
    /// `sha256:…` of the image's configuration.
    pub image_id: String,
    /// With the image's own settings merged in.
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    pub endpoints: Vec<EndpointRequest>,
    pub task: Option<TaskExtras>,
    /// The command and arguments that run.
    pub path: String,
    pub args: Vec<String>,
    pub state: ContainerState,
    pub restart_count: u32,
    /// Stopped by a user: `unless-stopped` does not start it again.
    pub manually_stopped: bool,
    pub mounts: Vec<MountRecord>,
    /// While it runs.
    pub sandbox: Option<Sandbox>,
    pub log_path: PathBuf,
    pub hostname_path: PathBuf,
    pub hosts_path: PathBuf,
    pub resolv_conf_path: PathBuf,
    /// Exec instances known now.
    #[serde(skip)]
    pub exec_ids: Vec<String>,
    /// overlayfs directories, for `GraphDriver`: lower (top first, joined by `:`), upper, merged, work.
    #[serde(skip)]
    pub graph: GraphDirs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphDirs {
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub merged: PathBuf,
}

impl ContainerRecord {
    pub fn tty(&self) -> bool {
        self.config.tty
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StdStream {
    Stdin,
    Stdout,
    Stderr,
}

/// One line (or a 16 KiB piece of one) of a container's log, newline included.
#[derive(Clone, Debug)]
pub struct LogRecord {
    pub stream: StdStream,
    pub time: Timestamp,
    pub data: Bytes,
    /// What the log's options put beside every line.
    pub attributes: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default)]
pub struct LogsRequest {
    pub stdout: bool,
    pub stderr: bool,
    pub follow: bool,
    /// Last so many lines; `None` is all.
    pub tail: Option<usize>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

pub type LogStream = BoxStream<'static, crate::error::Result<LogRecord>>;

/// Output of an attached container or exec. With a tty everything is `Stdout`.
#[derive(Clone, Debug)]
pub struct OutputChunk {
    pub stream: StdStream,
    pub data: Bytes,
}

pub type OutputStream = BoxStream<'static, crate::error::Result<OutputChunk>>;

#[derive(Clone, Debug, Default)]
pub struct AttachRequest {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// First what the log already has.
    pub logs: bool,
    /// Then what comes.
    pub stream: bool,
}

/// A connection to a process's stdio. The output ends when the process has closed its own.
pub struct Attached {
    pub tty: bool,
    /// Dropping it closes the container's stdin if `stdin_once` is set; of an exec always.
    pub stdin: Option<StdinWriter>,
    pub output: OutputStream,
}

pub use stdio::StdinWriter;

#[derive(Clone, Debug, Default)]
pub struct ExecConfig {
    pub cmd: Vec<String>,
    pub tty: bool,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    pub user: String,
    pub env: Vec<String>,
    pub working_dir: String,
    pub privileged: bool,
    pub detach_keys: String,
    pub console_size: Option<[u16; 2]>,
}

/// An exec instance as `exec inspect` shows it.
#[derive(Clone, Debug)]
pub struct ExecRecord {
    pub id: String,
    pub container_id: ContainerId,
    pub config: ExecConfig,
    pub running: bool,
    pub exit_code: Option<i32>,
    pub pid: i32,
}

/// `ps` of a container's processes.
#[derive(Clone, Debug, Default)]
pub struct Top {
    pub titles: Vec<String>,
    pub processes: Vec<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitCondition {
    #[default]
    NotRunning,
    NextExit,
    Removed,
}

#[derive(Clone, Debug, Default)]
pub struct WaitOutcome {
    pub exit_code: i32,
    pub error: String,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveOptions {
    pub force: bool,
    /// Anonymous volumes too.
    pub volumes: bool,
}

/// Which containers `list` gives.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Stopped ones too.
    pub all: bool,
}

#[derive(Clone, Debug, Default)]
pub struct StopOptions {
    /// `None`: the container's own, else 10 s. Negative: for ever.
    pub timeout_secs: Option<i64>,
    pub signal: Option<String>,
}

/// What `POST /containers/{id}/update` may change.
#[derive(Clone, Debug, Default)]
pub struct UpdateRequest {
    pub host_config: HostConfig,
    pub restart_policy: Option<skep_model::container::ContainerRestartPolicy>,
}

/// One reading of a container's counters.
#[derive(Clone, Debug, Default)]
pub struct StatsSample {
    pub read: Timestamp,
    /// Nanoseconds.
    pub cpu_total: u64,
    pub cpu_kernel: u64,
    pub cpu_user: u64,
    pub cpu_per_core: Vec<u64>,
    /// Nanoseconds of all CPUs of the host, for the percentage.
    pub system_cpu: u64,
    pub online_cpus: u32,
    pub throttled_periods: u64,
    pub throttling_periods: u64,
    pub throttled_time: u64,
    pub memory_usage: u64,
    pub memory_max_usage: u64,
    pub memory_limit: u64,
    pub memory_failcnt: u64,
    pub memory_stats: BTreeMap<String, u64>,
    pub pids_current: u64,
    /// 0 is unlimited.
    pub pids_limit: u64,
    pub blkio: Vec<BlkioEntry>,
    pub networks: BTreeMap<String, NetworkStats>,
    /// cgroup v2 hosts show memory and blkio differently in the API.
    pub cgroup_v2: bool,
}

#[derive(Clone, Debug, Default)]
pub struct BlkioEntry {
    pub major: u64,
    pub minor: u64,
    /// `read`, `write`, …
    pub op: String,
    pub value: u64,
}

#[derive(Clone, Debug, Default)]
pub struct NetworkStats {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// A sample and the one before it (`precpu_stats`); `previous` is `None` for the first.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub id: String,
    pub name: String,
    pub current: StatsSample,
    pub previous: Option<StatsSample>,
}

pub type StatsStream = BoxStream<'static, Stats>;

/// How long `stop` waits before it kills if nothing says otherwise.
pub const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(10);

mod handle;
mod stdio;

pub(crate) use handle::{Container, Life, RunIo, load, locked, save};
pub(crate) use stdio::{Hub, StdinSlot, StdinState, asynchronous, read_chunk, read_into, resize, take_output};
