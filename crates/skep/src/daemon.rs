//! `skep daemon`: flags to configurations, rooms wired together, signals to an orderly end.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use ipnet::Ipv4Net;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use skep_engine::{Engine, EngineConfig};
use skep_model::generic::{self, GenericResource};
use skep_net::{AddressPool, Net, NetConfig};
use skep_node::{NetSandboxes, Node, NodeConfig};
use skep_server::{About, Listener, Server, ServerState, TlsFiles};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::DaemonFlags;
use crate::config_file;

const DEFAULT_DATA_ROOT: &str = "/var/lib/skep";
const DEFAULT_EXEC_ROOT: &str = "/run/skep";
const DEFAULT_PID_FILE: &str = "/run/skep.pid";
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// What `docker version` shows as the engine's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The image every node has without a registry.
const BUILTIN_IMAGE: &str = "skep/whoami:latest";
/// Work is short and mostly waiting: more threads would only cost memory.
const WORKER_THREADS: usize = 2;
/// Room for a thousand containers, or ports, that does not have to be made: 64 KiB.
const OPEN_FILES: u64 = 8192;

/// Takes as many open files as the daemon may have, and returns what it was started with. That limit is set for programs that
/// use `select`; containers get it as it was, as from dockerd.
///
/// The kernel's table of open files begins small, and in a process with threads whoever opens the file that makes it grow
/// waits for an RCU grace period, tens of milliseconds: so it grows here, before there are any.
pub(crate) fn take_open_files() -> anyhow::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let last = hard.clamp(1, OPEN_FILES) - 1;
    nix::unistd::close(fcntl(std::io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(i32::try_from(last)?))?)?;
    Ok(soft)
}

pub(crate) fn run(mut flags: DaemonFlags) -> anyhow::Result<ExitCode> {
    start_logging(&flags);
    config_file::merge(&mut flags)?;
    if let Some((flag, reason)) = flags.refused() {
        bail!("{flag}: {reason}");
    }
    for (flag, reason) in flags.without_meaning() {
        tracing::warn!(flag, reason, "this flag has no meaning here and is passed over");
    }
    let settings = Settings::new(flags)?;
    let _pid_file = PidFile::create(&settings.pid_file)?;
    let open_files = take_open_files().context("cannot set how many files may be open")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(settings, open_files))?;
    Ok(ExitCode::SUCCESS)
}

/// `--debug` or `--log-level` for our own rooms; `SKEP_LOG` overrides all, in tracing's filter language.
fn start_logging(flags: &DaemonFlags) {
    let level = match flags.log_level.as_deref() {
        _ if flags.debug => "debug",
        Some("debug") => "debug",
        Some("warn") => "warn",
        Some("error" | "fatal") => "error",
        _ => "info",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("SKEP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("{level},openraft=warn,h2=warn,hyper=warn,tonic=warn,libcontainer=warn,libcgroups=warn,netlink_packet_route=error,netlink_proto=error")));
    let colour = nix::unistd::isatty(std::io::stderr().as_fd()).unwrap_or(false);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
}

/// The flags, understood.
struct Settings {
    flags: DaemonFlags,
    data_root: PathBuf,
    exec_root: PathBuf,
    pid_file: PathBuf,
    hosts: Vec<String>,
    pools: Vec<AddressPool>,
    bip: Option<Ipv4Net>,
    labels: BTreeMap<String, String>,
    generic_resources: Vec<GenericResource>,
    tls: Option<TlsFiles>,
}

impl Settings {
    fn new(flags: DaemonFlags) -> anyhow::Result<Self> {
        let path = |given: &Option<PathBuf>, default: &str| given.clone().unwrap_or_else(|| default.into());
        let hosts = if flags.host.is_empty() { vec![DEFAULT_HOST.to_owned()] } else { flags.host.clone() };
        let pools = flags.default_address_pool.iter().map(|text| address_pool(text)).collect::<anyhow::Result<_>>()?;
        let bip = flags.bip.as_deref().map(|b| b.parse().with_context(|| format!("invalid --bip {b}"))).transpose()?;
        let mut labels = BTreeMap::new();
        for label in &flags.label {
            let Some((key, value)) = label.split_once('=') else {
                bail!("bad attribute format: {label}");
            };
            labels.insert(key.to_owned(), value.to_owned());
        }
        let generic_resources = generic::parse(&flags.node_generic_resource).map_err(anyhow::Error::msg)?;
        let tls = if flags.tls || flags.tlsverify {
            let (Some(certificate), Some(key)) = (flags.tlscert.clone(), flags.tlskey.clone()) else {
                bail!("TLS needs --tlscert and --tlskey");
            };
            if flags.tlsverify && flags.tlscacert.is_none() {
                bail!("--tlsverify needs --tlscacert");
            }
            Some(TlsFiles { certificate, key, client_ca: flags.tlscacert.clone().filter(|_| flags.tlsverify) })
        } else {
            None
        };
        Ok(Self {
            data_root: path(&flags.data_root, DEFAULT_DATA_ROOT),
            exec_root: path(&flags.exec_root, DEFAULT_EXEC_ROOT),
            pid_file: path(&flags.pidfile, DEFAULT_PID_FILE),
            hosts,
            pools,
            bip,
            labels,
            generic_resources,
            tls,
            flags,
        })
    }

    /// Keeps the kernel names of several daemons on one machine apart: four hex digits of a hash of the exec root.
    fn tag(&self) -> String {
        // FNV-1a: stable across builds, which the standard hasher does not promise.
        let hash = self
            .exec_root
            .to_string_lossy()
            .bytes()
            .fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        format!("{:04x}", (hash ^ (hash >> 16)) & 0xffff)
    }
}

fn address_pool(text: &str) -> anyhow::Result<AddressPool> {
    let mut base = None;
    let mut size = None;
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("base", value)) => base = value.parse().ok(),
            Some(("size", value)) => size = value.parse().ok(),
            _ => {}
        }
    }
    match (base, size) {
        (Some(base), Some(size)) => Ok(AddressPool { base, size }),
        _ => bail!("invalid default address pool {text:?}: base=CIDR,size=N is wanted"),
    }
}

/// Refuses to start beside another daemon with the same file, as dockerd does; removed at the end.
struct PidFile(PathBuf);

impl PidFile {
    fn create(path: &Path) -> anyhow::Result<Self> {
        if let Ok(text) = std::fs::read_to_string(path)
            && let Ok(pid) = text.trim().parse::<i32>()
            && pid != std::process::id().cast_signed()
            && is_daemon(pid)
        {
            bail!("process with PID {pid} is still running: if it is not a skep daemon, delete {}", path.display());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        std::fs::write(path, std::process::id().to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }
}

/// A pid is given to others after a crash: only a process of this program counts.
fn is_daemon(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|b| *b == 0).any(|word| word == b"daemon"))
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn serve(settings: Settings, open_files: u64) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    for folder in [&settings.data_root, &settings.exec_root] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let tag = settings.tag();
    let hostname = nix::unistd::gethostname().context("cannot read the hostname")?.to_string_lossy().into_owned();

    let mut net_config = NetConfig::new(&settings.data_root, &settings.exec_root, &tag, skep_node::answer);
    net_config.default_address_pools = settings.pools.clone();
    net_config.bip = settings.bip;
    let net = Net::open(net_config).await.context("cannot set up the network")?;

    let mut engine_config = EngineConfig::new(&settings.data_root, &settings.exec_root, &tag);
    engine_config.insecure_registries = settings.flags.insecure_registry.clone();
    engine_config.registry_mirrors = settings.flags.registry_mirror.clone();
    if let Some(parent) = &settings.flags.cgroup_parent {
        engine_config.cgroup_parent.clone_from(parent);
    }
    if let Some(driver) = &settings.flags.log_driver {
        engine_config.log_driver.clone_from(driver);
    }
    engine_config.log_options.extend(
        settings.flags.log_opt.iter().filter_map(|o| o.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())),
    );
    let sandboxes = NetSandboxes::new(net);
    engine_config.supervisor_args.extend(["--open-files".to_owned(), open_files.to_string()]);
    let engine = Engine::open(engine_config, Arc::new(sandboxes.clone())).await.context("cannot start the engine")?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    upgrade_supervisor(&engine, &program).await;
    engine.images().ensure_builtin(BUILTIN_IMAGE, &program).await.context("cannot make the built-in image")?;

    let mut node_config = NodeConfig::new(&settings.data_root, &settings.exec_root, &hostname);
    node_config.default_advertise = settings.flags.swarm_default_advertise_addr.clone();
    node_config.labels = settings.labels.clone();
    node_config.generic_resources = settings.generic_resources.clone();
    let node = Node::start(node_config, engine.clone(), sandboxes).await.context("cannot start the node")?;

    let mut listeners = Vec::new();
    for host in &settings.hosts {
        listeners.push(Listener::bind(host, settings.flags.group.as_deref(), settings.tls.as_ref()).await?);
        tracing::info!(host, "API listens");
    }
    let about = About {
        id: engine_id(&settings.data_root)?,
        version: VERSION.to_owned(),
        hostname,
        labels: settings.flags.label.clone(),
        generic_resources: settings.generic_resources.clone(),
        debug: settings.flags.debug,
        live_restore: true,
        data_root: settings.data_root.clone(),
        insecure_registries: settings.flags.insecure_registry.clone(),
        registry_mirrors: settings.flags.registry_mirror.clone(),
        ..About::default()
    };
    let stop = CancellationToken::new();
    let server = tokio::spawn(Server::run(listeners, ServerState::new(node.clone(), about), stop.clone()));
    tracing::info!(version = VERSION, "daemon has started");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; containers go on");
    stop.cancel();
    let _ = server.await;
    node.shutdown().await;
    engine.close().await;
    tracing::info!("stopped");
    Ok(())
}

/// A supervisor that a daemon of an earlier version started becomes this program, with all its containers.
async fn upgrade_supervisor(engine: &Engine, program: &Path) {
    use std::os::unix::fs::MetadataExt;
    let file = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let Some(pid) = engine.supervisor_pid() else { return };
    let running = file(Path::new(&format!("/proc/{pid}/exe")));
    if running.is_none() || running == file(program) {
        return;
    }
    match engine.upgrade_supervisor(program).await {
        Ok(()) => tracing::info!(pid, "the supervisor is of this version now"),
        // The old one serves on; its protocol is checked at every connection.
        Err(error) => tracing::warn!(pid, %error, "the supervisor stays as it was"),
    }
}

/// A name for this engine that survives restarts, made once.
fn engine_id(data_root: &Path) -> anyhow::Result<String> {
    let path = data_root.join("engine-id");
    if let Ok(id) = std::fs::read_to_string(&path) {
        return Ok(id.trim().to_owned());
    }
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot make an engine id")?;
    std::fs::write(&path, &id).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_written_as_dockerd_wants_them() {
        let pool = address_pool("base=10.9.0.0/16,size=24").unwrap();
        assert_eq!((pool.base.to_string().as_str(), pool.size), ("10.9.0.0/16", 24));
        assert!(address_pool("10.9.0.0/16").is_err());
    }

    #[test]
    fn two_exec_roots_have_two_tags() {
        let tag = |root: &str| {
            Settings::new(DaemonFlags { exec_root: Some(root.into()), ..Default::default() }).unwrap().tag()
        };
        assert_eq!(tag("/run/skep").len(), 4);
        assert_ne!(tag("/run/skep"), tag("/run/skep2"));
    }
}
