//! `docker start`: root, sandbox, volumes, spec, then the supervisor; everything undone if a step fails.

mod secrets;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_model::sandbox::{EndpointRequest, NetworkMode, PublishRequest, Sandbox, SandboxRequest};
use skep_model::service::Protocol;

use super::{Engine, blocking};
use crate::container::*;
use crate::error::{EngineError, Result};
use crate::rootfs::{self, RootDir};
use crate::spec::mounts::SpecMount;
use crate::spec::user::ResolvedUser;
use crate::spec::{self, Namespace, SpecInput, devices};
use crate::supervisor::client::Launched;
use crate::supervisor::protocol::{Launch, Security};
use crate::volume::Populate;

impl Engine {
    pub async fn start(&self, key: &str) -> Result<()> {
        let container = self.find(key)?;
        let _operation = container.operation.lock().await;
        container.update(|r| {
            r.manually_stopped = false;
            r.restart_count = 0;
        })?;
        self.start_locked(&container).await
    }

    /// The caller holds the container's operation lock.
    pub(super) async fn start_locked(&self, container: &Arc<Container>) -> Result<()> {
        let record = container.record();
        match record.state.status {
            Status::Running => {
                return Err(EngineError::NotModified(format!("container {} is already started", record.id)));
            }
            Status::Paused => {
                return Err(EngineError::Conflict("cannot start a paused container, try unpause instead".to_owned()));
            }
            Status::Removing | Status::Dead => {
                return Err(EngineError::Conflict("container is marked for removal and cannot be started".to_owned()));
            }
            Status::Created | Status::Exited | Status::Restarting => {}
        }
        container.cancel_token();
        match self.try_start(container, &record).await {
            Ok(launched) => self.begin_run(container, launched).await,
            Err(error) => {
                self.clean_up(container).await;
                let exit_code = match &error {
                    EngineError::StartFailed { exit_code, .. } => *exit_code,
                    _ => 128,
                };
                let _ = container.update(|r| {
                    r.sandbox = None;
                    r.state.error = error.to_string();
                    r.state.exit_code = exit_code;
                    if r.state.status == Status::Restarting {
                        r.state.status = Status::Exited;
                    }
                });
                container.hub.end();
                container.live(|life| {
                    life.restarting = false;
                    life.exit_code = exit_code;
                    life.error = error.to_string();
                });
                if record.host_config.auto_remove {
                    self.remove_later(container);
                }
                Err(error)
            }
        }
    }

    async fn try_start(&self, container: &Arc<Container>, record: &Arc<ContainerRecord>) -> Result<Launched> {
        let connection = self.connection()?;
        let image = record.image_id.parse().map_err(|_| EngineError::NoSuchImage(record.image_id.clone()))?;
        let lower = self.inner.images.hold(record.id.as_str(), &image)?;
        let graph = rootfs::graph(&container.dir, lower);
        let leaving = locked(&container.leaving).take();
        if let Some(leaving) = leaving {
            let _ = leaving.await;
        }
        let mounting = {
            let (graph, durability) = (graph.clone(), super::durability(record));
            blocking(move || {
                rootfs::mount(&graph, durability).map_err(EngineError::file("failed to mount", &graph.merged))
            })
        };
        let request = self.sandbox_request(record)?;
        let features = self.inner.features.clone();
        self.inner.tasks.spawn_blocking(move || crate::cgroup::warm_up(&features));
        let (mounted, sandbox) = tokio::join!(mounting, self.inner.sandboxes.setup(&request));
        // Known before anything else may fail, so that the clean-up takes it down; and on disk, so that a daemon that finds
        // the container running after this one died knows its network.
        let sandbox = sandbox?;
        mounted?;
        container.update(|r| r.sandbox = Some(sandbox.clone()))?;
        let mut mounts = Vec::new();
        for mount in &record.mounts {
            mounts.push(self.mount(record, mount, &graph.merged).await?);
        }
        let files = locked(&container.task_files).clone();
        let job = Preparation {
            engine: self.clone(),
            record: Arc::clone(record),
            graph,
            mounts,
            files,
            namespaces: self.namespaces(record, &sandbox)?,
            sandbox,
            seals: connection.seals(),
            sealed: Vec::new(),
        };
        let launch = blocking(move || job.prepare()).await?;
        let log = self.open_log(record, true).await?;
        *locked(&container.log) = log;
        let launched = connection.launch(launch).await;
        // The container has its own copy: a mount table that grows with every container slows down all of them.
        let bundle = self.bundle(&record.id);
        self.inner
            .tasks
            .spawn_blocking(move || BUNDLE_MOUNTS.iter().for_each(|name| rootfs::unmount(&bundle.join(name))));
        match launched? {
            Ok(launched) => Ok(launched),
            Err(failure) => Err(EngineError::StartFailed {
                message: format!(
                    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc \
                     create failed: unable to start container process: {}: unknown",
                    failure.message
                ),
                exit_code: failure.exit_code,
            }),
        }
    }

    async fn mount(&self, record: &ContainerRecord, mount: &MountRecord, merged: &Path) -> Result<SpecMount> {
        match mount.kind.as_str() {
            "tmpfs" => Ok(SpecMount::tmpfs(&mount.destination, &mount.mode)),
            "volume" => {
                let copies = !mount.mode.split(',').any(|o| o == "nocopy");
                let populate =
                    copies.then(|| Populate { rootfs: merged.to_owned(), target: PathBuf::from(&mount.destination) });
                let mut source = self.inner.volumes.mount(&mount.name, record.id.as_str(), populate).await?;
                if !mount.subpath.is_empty() {
                    source = self.subpath(record, mount, source).await?;
                }
                Ok(SpecMount::bind(&mount.destination, source, &mount.propagation, !mount.rw))
            }
            _ => {
                if !Path::new(&mount.source).exists() {
                    return Err(EngineError::Invalid(format!(
                        "invalid mount config for type \"bind\": bind source path does not exist: {}",
                        mount.source
                    )));
                }
                let mut bind = SpecMount::bind(&mount.destination, &mount.source, &mount.propagation, !mount.rw);
                if mount.non_recursive {
                    bind = bind.non_recursive();
                }
                if !mount.rw && !mount.read_only_non_recursive {
                    bind = bind.read_only_below();
                }
                Ok(bind)
            }
        }
    }

    /// The part of a volume, bound where no container can change what leads to it.
    async fn subpath(&self, record: &ContainerRecord, mount: &MountRecord, volume: PathBuf) -> Result<PathBuf> {
        let folder = self.bundle(&record.id).join(SUBPATHS);
        let name = mount.destination.replace('/', "_");
        let subpath = mount.subpath.clone();
        blocking(move || {
            let shown = volume.join(&subpath);
            rootfs::mount_subpath(&volume, &subpath, &folder, &name)
                .map_err(EngineError::file("cannot access path", shown))
        })
        .await
    }

    /// What the network side is asked for.
    pub(super) fn sandbox_request(&self, record: &ContainerRecord) -> Result<SandboxRequest> {
        let host = &record.host_config;
        let mut endpoints = record.endpoints.clone();
        let mode = match host.network_mode.as_str() {
            "none" => NetworkMode::None,
            "host" => NetworkMode::Host,
            other => match other.strip_prefix("container:") {
                Some(key) => NetworkMode::Container(self.joined(key)?.id.clone()),
                None => {
                    let name = if other == "default" { "bridge" } else { other };
                    if endpoints.is_empty() && !name.is_empty() {
                        endpoints.push(EndpointRequest { network: name.to_owned(), ..EndpointRequest::default() });
                    }
                    NetworkMode::Private
                }
            },
        };
        Ok(SandboxRequest {
            container_id: record.id.clone(),
            container_name: record.name.clone(),
            hostname: record.config.hostname.clone(),
            domainname: record.config.domainname.clone(),
            mode,
            is_task: record.task.is_some(),
            endpoints,
            publish: publishes(record)?,
            dns: host.dns.clone(),
            dns_search: host.dns_search.clone(),
            dns_options: host.dns_options.clone(),
            extra_hosts: host.extra_hosts.clone(),
        })
    }

    /// The running container another one shares something with.
    fn joined(&self, key: &str) -> Result<Arc<Container>> {
        let other = self.find(key)?;
        if !other.record().state.status.is_alive() {
            return Err(EngineError::Conflict(format!(
                "cannot join namespace of a non running container: {}",
                other.id
            )));
        }
        Ok(other)
    }

    fn namespaces(&self, record: &ContainerRecord, sandbox: &Sandbox) -> Result<Namespaces> {
        let host = &record.host_config;
        let of = |mode: &str, kind: &str| -> Result<Namespace> {
            Ok(match mode {
                "host" => Namespace::Host,
                other => match other.strip_prefix("container:") {
                    Some(key) => {
                        Namespace::Path(format!("/proc/{}/ns/{kind}", self.joined(key)?.record().state.pid).into())
                    }
                    None => Namespace::Private,
                },
            })
        };
        let network = match (&sandbox.netns, host.network_mode.as_str()) {
            (Some(path), _) => Namespace::Path(path.clone()),
            (None, "host") => Namespace::Host,
            (None, mode) => of(mode, "net")?,
        };
        Ok(Namespaces {
            network,
            pid: of(&host.pid_mode, "pid")?,
            ipc: of(&host.ipc_mode, "ipc")?,
            uts: of(
                if host.network_mode == "host" && host.uts_mode.is_empty() { "host" } else { &host.uts_mode },
                "uts",
            )?,
        })
    }
}

/// Below a container's bundle, while it starts.
const CGROUP_VIEW: &str = "cgroup";
const SUBPATHS: &str = "subpaths";
const SECRETS: &str = "secrets";
pub(super) const BUNDLE_MOUNTS: [&str; 3] = [CGROUP_VIEW, SUBPATHS, SECRETS];

#[derive(Debug)]
struct Namespaces {
    network: Namespace,
    pid: Namespace,
    ipc: Namespace,
    uts: Namespace,
}

/// Published ports of a container: those bound, and with `-P` every exposed one.
fn publishes(record: &ContainerRecord) -> Result<Vec<PublishRequest>> {
    let host = &record.host_config;
    let mut requests = Vec::new();
    for (port, bindings) in &host.port_bindings {
        for binding in bindings.iter().flatten() {
            let invalid = || EngineError::Invalid(format!("invalid port specification: \"{}\"", binding.host_port));
            let range = match binding.host_port.split_once('-') {
                _ if binding.host_port.is_empty() => (0, 0),
                Some((first, last)) => (first.parse().map_err(|_| invalid())?, last.parse().map_err(|_| invalid())?),
                None => binding.host_port.parse().map(|p| (p, p)).map_err(|_| invalid())?,
            };
            let host_ip = match binding.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| EngineError::Invalid(format!("invalid IP address: {text}")))?),
            };
            let (container_port, protocol) = parse_port(port)?;
            requests.push(PublishRequest { container_port, protocol, host_ip, host_ports: range });
        }
    }
    if host.publish_all_ports {
        for port in record.config.exposed_ports.keys().filter(|p| !host.port_bindings.contains_key(*p)) {
            let (container_port, protocol) = parse_port(port)?;
            requests.push(PublishRequest { container_port, protocol, host_ip: None, host_ports: (0, 0) });
        }
    }
    Ok(requests)
}

/// `80/tcp`.
fn parse_port(text: &str) -> Result<(u16, Protocol)> {
    let invalid = || EngineError::Invalid(format!("invalid containerPort: {text}"));
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Err(invalid()),
    };
    Ok((number.parse().map_err(|_| invalid())?, protocol))
}

/// The part of a start that only reads and writes files, on a blocking thread.
struct Preparation {
    engine: Engine,
    record: Arc<ContainerRecord>,
    graph: GraphDirs,
    mounts: Vec<SpecMount>,
    files: Vec<TaskFile>,
    namespaces: Namespaces,
    sandbox: Sandbox,
    /// Whether the supervisor can seal.
    seals: bool,
    sealed: Vec<String>,
}

impl Preparation {
    fn prepare(mut self) -> Result<Launch> {
        let record = Arc::clone(&self.record);
        let host = &record.host_config;
        let root =
            RootDir::open(&self.graph.merged).map_err(EngineError::file("failed to open", &self.graph.merged))?;
        let user = resolve_user(&root, &record.config.user, &host.group_add)?;
        let working_dir = spec::working_dir(&record.config.working_dir);
        root.create_dir_all(Path::new(working_dir))
            .map_err(EngineError::file("failed to create the working directory", working_dir))?;
        self.network_files()?;
        self.secret_files(&root)?;
        for (destination, options) in &host.tmpfs {
            self.mounts.push(SpecMount::tmpfs(destination, options));
        }
        let mut args = vec![record.path.clone()];
        args.extend(record.args.iter().cloned());
        if host.init == Some(true) {
            let exe = std::fs::canonicalize(&self.engine.inner.config.init_exe)
                .map_err(EngineError::file("failed to find", &self.engine.inner.config.init_exe))?;
            self.mounts.push(SpecMount::bind("/sbin/docker-init", exe, "rprivate", true));
            args.splice(0..0, ["/sbin/docker-init", "init", "--"].map(str::to_owned));
        }
        let env = environment(&record, &user);
        let capabilities = spec::capabilities::resolve(&host.cap_add, &host.cap_drop, host.privileged)?;
        let mut security = self.security(capabilities)?;
        let bundle = self.engine.bundle(&record.id);
        let cgroup_view = self.cgroup_view(&bundle)?;
        let mounts = std::mem::take(&mut self.mounts);
        security.sealed = std::mem::take(&mut self.sealed);
        security.propagation = mounts.iter().filter_map(SpecMount::propagation).collect();
        let engine = self.engine.clone();
        let spec = spec::build(&SpecInput {
            config: &record.config,
            host_config: host,
            features: &engine.inner.features,
            rootfs: &self.graph.merged,
            hostname: &record.config.hostname,
            args,
            env,
            user,
            cgroup: self.engine.cgroup_path(&record.id),
            cgroup_view,
            network: self.namespaces.network.clone(),
            pid: self.namespaces.pid.clone(),
            ipc: self.namespaces.ipc.clone(),
            uts: self.namespaces.uts.clone(),
            mounts,
            devices: self.devices()?,
        });
        let text = serde_json::to_vec(&spec).map_err(|e| EngineError::Internal(format!("runtime spec: {e}")))?;
        std::fs::create_dir_all(&bundle)
            .and_then(|()| std::fs::write(bundle.join("config.json"), text))
            .map_err(EngineError::file("failed to write", &bundle))?;
        let state_root = crate::supervisor::state_root(&self.engine.inner.config.exec_root);
        // Of a run that a crash interrupted; libcontainer refuses a directory that exists.
        let _ = std::fs::remove_dir_all(state_root.join(record.id.as_str()));
        Ok(Launch {
            id: record.id.to_string(),
            bundle: bundle.to_string_lossy().into_owned(),
            state_root: state_root.to_string_lossy().into_owned(),
            tty: record.config.tty,
            stdin: record.config.open_stdin,
            output: true,
            keep: true,
            device_cgroup: self.engine.cgroup(&record.id).v2_directory().to_string_lossy().into_owned(),
            security,
            ..Launch::default()
        })
    }

    fn security(&self, capabilities: u64) -> Result<Security> {
        super::security::security(
            &self.engine,
            &self.record.host_config,
            capabilities,
            self.record.host_config.privileged,
        )
    }

    fn cgroup_view(&self, bundle: &Path) -> Result<Option<PathBuf>> {
        let cgroup = self.engine.cgroup(&self.record.id);
        if cgroup.is_v2() {
            return Ok(None);
        }
        let view = bundle.join(CGROUP_VIEW);
        cgroup
            .mount_view(&view, self.record.host_config.privileged)
            .map_err(EngineError::file("failed to mount the cgroup view", &view))?;
        Ok(Some(view))
    }

    fn devices(&self) -> Result<Vec<devices::Device>> {
        let host = &self.record.host_config;
        let mut found = if host.privileged { devices::of_host() } else { Vec::new() };
        for mapping in &host.devices {
            for device in devices::mapped(mapping)? {
                found.retain(|d| d.path != device.path);
                found.push(device);
            }
        }
        Ok(found)
    }

    /// `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`: files of the engine's, bound in unless the user brings own ones.
    fn network_files(&mut self) -> Result<()> {
        let record = &self.record;
        let files = [
            (&record.hostname_path, format!("{}\n", record.config.hostname), "/etc/hostname"),
            (&record.hosts_path, self.sandbox.hosts_file.clone(), "/etc/hosts"),
            (&record.resolv_conf_path, self.sandbox.resolv_conf.clone(), "/etc/resolv.conf"),
        ];
        for (path, text, target) in files {
            // In place: a container that joins this one's network binds the same file.
            std::fs::write(path, text).map_err(EngineError::file("failed to write", path))?;
            if !self.mounts.iter().any(|m| m.destination == Path::new(target)) {
                self.mounts.push(SpecMount::bind(target, path, "rprivate", record.host_config.readonly_rootfs));
            }
        }
        Ok(())
    }
}

pub(super) fn resolve_user(root: &RootDir, user: &str, groups: &[String]) -> Result<ResolvedUser> {
    spec::user::resolve(user, groups, &root.read("/etc/passwd"), &root.read("/etc/group"))
}

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// PATH, HOSTNAME, TERM and HOME as Docker sets them, then the container's own.
pub(super) fn environment(record: &ContainerRecord, user: &ResolvedUser) -> Vec<String> {
    let own = &record.config.env;
    let has = |name: &str| own.iter().any(|e| e.split('=').next() == Some(name));
    let mut env = Vec::new();
    if !has("PATH") {
        env.push(DEFAULT_PATH.to_owned());
    }
    if !has("HOSTNAME") {
        env.push(format!("HOSTNAME={}", record.config.hostname));
    }
    if record.config.tty && !has("TERM") {
        env.push("TERM=xterm".to_owned());
    }
    // `NAME` alone takes a variable away.
    env.extend(own.iter().filter(|e| e.contains('=')).cloned());
    if !has("HOME") {
        env.push(format!("HOME={}", user.home));
    }
    env
}
