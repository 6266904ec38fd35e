//! A task's spec as the engine's container: pure translation, with Docker's names and labels.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use skep_model::container::{
    BindMountOptions, ContainerConfig, ContainerRestartPolicy, DriverConfig, Empty, HostConfig, LogConfig, MountPoint,
    PortBinding, StringOrList, TmpfsMountOptions, VolumeMountOptions,
};
use skep_model::network::{BRIDGE, GWBRIDGE_NETWORK_NAME, HOST, NetworkSpec, mac_of};
use skep_model::path::clean;
use skep_model::reference::Reference;
use skep_model::sandbox::EndpointRequest;
use skep_model::secret::{SecretBytes, TEMPLATING_GOLANG};
use skep_model::service::{PublishMode, ServiceSpec};
use skep_model::task::{
    AppArmor, CredentialSpec, FileTarget, Mount, MountKind, NetworkAttachment, Privileges, Seccomp, Task,
};
use skep_model::{ConfigId, Labels, NetworkId, NodeId, SecretId};

use crate::template::{Context, Payload, expand};

/// What the templates and labels need to know of this host.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    pub node_id: NodeId,
    pub hostname: String,
    pub os: String,
    pub architecture: String,
}

/// What to fetch, and with whose credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequest {
    pub image: String,
    /// The base64 `X-Registry-Auth` that came with the service's spec.
    pub auth: Option<SecretBytes>,
}

/// A file to put into the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMount {
    /// Absolute path in the container.
    pub target: String,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub data: SecretBytes,
}

/// Everything the engine needs to make a task's container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerPlan {
    pub name: String,
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    /// The task's overlays, each with its address; then the bridge by which it reaches the world.
    pub endpoints: Vec<EndpointRequest>,
    pub files: Vec<FileMount>,
}

pub const LABEL_NODE_ID: &str = "com.docker.swarm.node.id";
pub const LABEL_SERVICE_ID: &str = "com.docker.swarm.service.id";
pub const LABEL_SERVICE_NAME: &str = "com.docker.swarm.service.name";
pub const LABEL_TASK: &str = "com.docker.swarm.task";
pub const LABEL_TASK_ID: &str = "com.docker.swarm.task.id";
pub const LABEL_TASK_NAME: &str = "com.docker.swarm.task.name";

pub fn pull(task: &Task) -> PullRequest {
    let container = &task.spec.container;
    PullRequest { image: container.image.clone(), auth: container.pull_auth.clone() }
}

/// The container of a task. `secrets`, `configs` and `networks` are the assignment set's; a secret or config that is missing is
/// an error for the user.
pub fn container(
    task: &Task,
    node: &NodeFacts,
    secrets: &BTreeMap<SecretId, skep_model::secret::Secret>,
    configs: &BTreeMap<ConfigId, skep_model::secret::Config>,
    networks: &BTreeMap<NetworkId, NetworkSpec>,
) -> Result<ContainerPlan, String> {
    task.spec.container.mounts.iter().try_for_each(check_mount)?;
    let context = Context::of(task, node);
    let mut config = config(task, node, &context)?;
    let mut host_config = host_config(task, &context)?;
    publish(task, &mut config, &mut host_config);
    let endpoints = endpoints(task, networks, &mut host_config)?;
    let files = files(task, &context.with(Payload { secrets, configs }))?;
    Ok(ContainerPlan { name: task.name(), config, host_config, endpoints, files })
}

fn config(task: &Task, node: &NodeFacts, context: &Context<'_>) -> Result<ContainerConfig, String> {
    let spec = &task.spec.container;
    let list = |words: &[String]| (!words.is_empty()).then(|| StringOrList(words.to_vec()));
    Ok(ContainerConfig {
        hostname: hostname(&spec.hostname, context)?,
        user: spec.user.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        env: environment(task, node, context)?,
        cmd: list(&spec.args),
        entrypoint: list(&spec.command),
        healthcheck: spec.healthcheck.clone(),
        image: spec.image.clone(),
        working_dir: spec.dir.clone(),
        labels: labels(task, node),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: spec.stop_grace_period.map(|d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)),
        ..ContainerConfig::default()
    })
}

/// The image inside skep, whose server says which task and node it is.
const BUILTIN_IMAGE: &str = "skep/whoami";

/// The spec's own, with templates filled in. The built-in image is told who it is; no other image gets a variable that its
/// spec does not name.
fn environment(task: &Task, node: &NodeFacts, context: &Context<'_>) -> Result<Vec<String>, String> {
    let image = task.spec.container.image.parse::<Reference>();
    let mut env = Vec::new();
    if image.is_ok_and(|image| image.familiar_name() == BUILTIN_IMAGE) {
        env.push(format!("SKEP_TASK_NAME={}", task.name()));
        env.push(format!("SKEP_NODE={}", node.hostname));
    }
    env.extend(filled_in(&task.spec.container.env, context)?);
    env.extend(skep_model::generic::environment(&task.generic));
    Ok(env)
}

fn filled_in(env: &[String], context: &Context<'_>) -> Result<Vec<String>, String> {
    let said = |line: &str, why: String| format!("expanding env failed: expanding env {line:?}: {why}");
    env.iter().map(|line| expand(line, context).map_err(|why| said(line, why))).collect()
}

fn hostname(text: &str, context: &Context<'_>) -> Result<String, String> {
    expand(text, context).map_err(|why| format!("expanding hostname failed: {why}"))
}

/// Whether the templates of a service's spec can be filled in, tried with a node and a task that are not there (swarmkit
/// `validateContainerSpec`). The error is for the user.
pub fn check_templates(spec: &ServiceSpec) -> Result<(), String> {
    let node = NodeFacts {
        node_id: NodeId::from_bits(0),
        hostname: "nodeHostname".into(),
        os: "os".into(),
        architecture: "architecture".into(),
    };
    let container = &spec.task.container;
    let context = Context::trial(spec, &node);
    container.mounts.iter().try_for_each(|mount| mount_point(mount, &context).map(drop))?;
    filled_in(&container.env, &context)?;
    hostname(&container.hostname, &context).map(drop)
}

fn labels(task: &Task, node: &NodeFacts) -> Labels {
    let mut labels = task.spec.container.labels.clone();
    // Docker's own come last: nobody may pass for another task.
    labels.extend([
        (LABEL_NODE_ID.into(), node.node_id.to_string()),
        (LABEL_SERVICE_ID.into(), task.service_id.to_string()),
        (LABEL_SERVICE_NAME.into(), task.service_name.clone()),
        (LABEL_TASK.into(), String::new()),
        (LABEL_TASK_ID.into(), task.id.to_string()),
        (LABEL_TASK_NAME.into(), task.name()),
    ]);
    labels
}

fn host_config(task: &Task, context: &Context<'_>) -> Result<HostConfig, String> {
    let spec = &task.spec.container;
    let resources = task.spec.resources.clone().unwrap_or_default();
    let mut host = HostConfig {
        restart_policy: ContainerRestartPolicy { name: "no".into(), maximum_retry_count: 0 },
        mounts: spec.mounts.iter().map(|mount| mount_point(mount, context)).collect::<Result<_, _>>()?,
        cap_add: spec.capability_add.clone(),
        cap_drop: spec.capability_drop.clone(),
        extra_hosts: extra_hosts(&spec.hosts),
        group_add: spec.groups.clone(),
        readonly_rootfs: spec.read_only,
        init: spec.init,
        isolation: spec.isolation.clone(),
        sysctls: spec.sysctls.clone(),
        ulimits: spec.ulimits.clone(),
        oom_score_adj: spec.oom_score_adj,
        security_opt: spec.privileges.as_ref().map(security_options).unwrap_or_default(),
        memory_swappiness: resources.memory_swappiness,
        ..HostConfig::default()
    };
    if let Some(dns) = &spec.dns {
        host.dns.clone_from(&dns.nameservers);
        host.dns_search.clone_from(&dns.search);
        host.dns_options.clone_from(&dns.options);
    }
    if let Some(driver) = &task.spec.log_driver {
        host.log_config = LogConfig { driver: driver.name.clone(), config: driver.options.clone() };
    }
    if let Some(limits) = resources.limits {
        host.memory = limits.memory_bytes;
        host.nano_cpus = limits.nano_cpus;
        host.pids_limit = (limits.pids > 0).then_some(limits.pids);
    }
    // What is reserved is counted by the scheduler, and nothing the kernel is told.
    // The engine's number is of memory and swap together.
    host.memory_swap = match resources.swap_bytes {
        None => 0,
        Some(-1) => -1,
        Some(swap) => host.memory.saturating_add(swap),
    };
    Ok(host)
}

/// As moby's executor words them for its engine.
fn security_options(privileges: &Privileges) -> Vec<String> {
    let mut options = Vec::new();
    match &privileges.credential_spec {
        Some(CredentialSpec::Config(id)) => options.push(format!("credentialspec=config://{id}")),
        Some(CredentialSpec::File(path)) => options.push(format!("credentialspec=file://{path}")),
        Some(CredentialSpec::Registry(key)) => options.push(format!("credentialspec=registry://{key}")),
        None => {}
    }
    if let Some(selinux) = &privileges.selinux {
        if selinux.disable {
            options.push("label=disable".into());
        }
        let parts =
            [("user", &selinux.user), ("role", &selinux.role), ("type", &selinux.kind), ("level", &selinux.level)];
        options.extend(parts.iter().filter(|(_, v)| !v.is_empty()).map(|(key, value)| format!("label={key}:{value}")));
    }
    match &privileges.seccomp {
        Some(Seccomp::Unconfined) => options.push("seccomp=unconfined".into()),
        Some(Seccomp::Custom(profile)) => options.push(format!("seccomp={profile}")),
        Some(Seccomp::Default) | None => {}
    }
    if privileges.apparmor == Some(AppArmor::Disabled) {
        options.push("apparmor=unconfined".into());
    }
    if privileges.no_new_privileges {
        options.push("no-new-privileges=true".into());
    }
    options
}

/// `address name [name…]` as in /etc/hosts becomes `name:address` for each name.
fn extra_hosts(lines: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        if let Some(address) = words.next() {
            out.extend(words.map(|name| format!("{name}:{address}")));
        }
    }
    out
}

fn mount_point(mount: &Mount, context: &Context<'_>) -> Result<MountPoint, String> {
    let expand = |text: &str| expand(text, context).map_err(|why| format!("expanding mounts failed: {why}"));
    let expand_all = |map: &BTreeMap<String, String>| {
        map.iter().map(|(key, value)| Ok((key.clone(), expand(value)?))).collect::<Result<BTreeMap<_, _>, String>>()
    };
    let volume_options = match &mount.volume {
        Some(volume) => Some(VolumeMountOptions {
            no_copy: volume.no_copy,
            labels: expand_all(&volume.labels)?,
            subpath: volume.subpath.clone(),
            driver_config: match &volume.driver {
                Some((name, options)) => Some(DriverConfig { name: expand(name)?, options: expand_all(options)? }),
                None => None,
            },
        }),
        None => None,
    };
    let kind = match mount.kind {
        MountKind::Bind => "bind",
        MountKind::Volume => "volume",
        MountKind::Tmpfs => "tmpfs",
    };
    Ok(MountPoint {
        kind: kind.into(),
        source: expand(&mount.source)?,
        target: expand(&mount.target)?,
        read_only: mount.read_only,
        consistency: mount.consistency.clone(),
        bind_options: mount.bind.as_ref().map(|bind| BindMountOptions {
            propagation: bind.propagation.clone(),
            non_recursive: bind.non_recursive,
            create_mountpoint: bind.create_mountpoint,
            read_only_non_recursive: bind.read_only_non_recursive,
            read_only_force_recursive: bind.read_only_force_recursive,
        }),
        volume_options,
        tmpfs_options: mount.tmpfs.as_ref().map(|tmpfs| TmpfsMountOptions {
            size_bytes: tmpfs.size_bytes,
            mode: tmpfs.mode,
            options: tmpfs.options.clone(),
        }),
    })
}

/// What a container of a service may mount, before templates are filled in (moby `executor/container/validate.go`).
fn check_mount(mount: &Mount) -> Result<(), String> {
    let (source, target) = (&mount.source, &mount.target);
    if !target.starts_with('/') {
        return Err(format!("invalid mount target, must be an absolute path: {target}"));
    }
    match mount.kind {
        MountKind::Bind if !source.starts_with('/') => {
            Err(format!("invalid bind mount source, must be an absolute path: {source}"))
        }
        MountKind::Volume if source.starts_with('/') => {
            Err(format!("invalid volume mount source, must not be an absolute path: {source}"))
        }
        MountKind::Tmpfs if !source.is_empty() => Err("invalid tmpfs source, source must be empty".into()),
        MountKind::Bind | MountKind::Volume | MountKind::Tmpfs => Ok(()),
    }
}

/// Host-mode ports are published by the container itself; ingress ports by the mesh.
fn publish(task: &Task, config: &mut ContainerConfig, host: &mut HostConfig) {
    for port in &task.ports {
        let key = format!("{}/{}", port.target_port, port.protocol);
        config.exposed_ports.insert(key.clone(), Empty {});
        if port.mode == PublishMode::Host {
            let host_port = if port.published_port == 0 { String::new() } else { port.published_port.to_string() };
            let binding = PortBinding { host_ip: String::new(), host_port };
            host.port_bindings.entry(key).or_default().get_or_insert_default().push(binding);
        }
    }
}

/// Without networks of its own a task is on the host's `bridge`, as a container of `docker run` is. One on overlays that has
/// no other way out also gets the gateway bridge, by which it reaches the world and publishes host ports.
fn endpoints(
    task: &Task,
    networks: &BTreeMap<NetworkId, NetworkSpec>,
    host: &mut HostConfig,
) -> Result<Vec<EndpointRequest>, String> {
    let named = |name: &str| task.spec.networks.iter().any(|n| n.target == name);
    let mut out: Vec<EndpointRequest> = task.networks.iter().map(|attachment| overlay(task, attachment)).collect();
    let mut leads_out = false;
    for asked in &task.spec.networks {
        let Ok(id) = asked.target.parse::<NetworkId>() else { continue };
        let Some(spec) = networks.get(&id).filter(|spec| spec.is_node_local()) else { continue };
        leads_out |= !spec.internal;
        out.push(EndpointRequest {
            network: id.to_string(),
            // Whatever leads to the service comes with the plan: it may be elsewhere, too.
            driver_options: asked.driver_options.clone(),
            made_from: Some(Box::new(spec.on_host())),
            ..EndpointRequest::default()
        });
    }
    if named(HOST) {
        host.network_mode = HOST.to_owned();
        // In moby's words: it finds out when it makes such a container.
        return match (task.networks.is_empty(), out.is_empty()) {
            (_, true) => Ok(out),
            (false, _) => Err("container cannot be disconnected from host network or connected to host network".into()),
            (true, _) => {
                Err("container sharing network namespace with another container or host cannot be connected to any \
                              other network"
                    .into())
            }
        };
    }
    let Some(first) = out.first().map(|endpoint| endpoint.network.clone()) else {
        host.network_mode = BRIDGE.to_owned();
        return Ok(out);
    };
    let name = networks.iter().find(|(id, _)| id.as_str() == first).map(|(_, spec)| spec.name.clone());
    host.network_mode = name.unwrap_or(first);
    let way_out = if named(BRIDGE) { BRIDGE } else { GWBRIDGE_NETWORK_NAME };
    if named(BRIDGE) || !leads_out {
        out.push(EndpointRequest { network: way_out.into(), ..EndpointRequest::default() });
    }
    Ok(out)
}

fn overlay(task: &Task, attachment: &NetworkAttachment) -> EndpointRequest {
    let address: Ipv4Addr = attachment.address.addr();
    let mut aliases = attachment.aliases.clone();
    aliases.push(task.service_name.clone());
    aliases.dedup();
    EndpointRequest {
        network: attachment.network_id.to_string(),
        aliases,
        address: Some(address),
        mac: Some(mac_of(address)),
        ..EndpointRequest::default()
    }
}

fn files(task: &Task, context: &Context<'_>) -> Result<Vec<FileMount>, String> {
    let Some(Payload { secrets, configs }) = context.payload else { return Ok(Vec::new()) };
    let container = &task.spec.container;
    let mut out = Vec::new();
    for reference in &container.secrets {
        let (name, file) = (&reference.secret_name, &reference.file);
        let secret = secrets.get(&reference.secret_id).ok_or_else(|| format!("secret {name} not found"))?;
        let data = payload("secret", name, &secret.data, secret.templating.as_deref(), context)?;
        out.push(file_mount("/run/secrets", file, name, data)?);
    }
    for reference in &container.configs {
        let (name, file) = (&reference.config_name, &reference.file);
        let config = configs.get(&reference.config_id).ok_or_else(|| format!("config {name} not found"))?;
        let data = payload("config", name, &config.data, config.templating.as_deref(), context)?;
        out.push(file_mount("", file, name, data)?);
    }
    Ok(out)
}

/// The bytes of a secret or config for this task.
fn payload(
    kind: &str,
    name: &str,
    data: &SecretBytes,
    templating: Option<&str>,
    context: &Context<'_>,
) -> Result<SecretBytes, String> {
    let failed = |why: &str| format!("failed to expand templated {kind} {name}: {why}");
    match templating {
        None => Ok(data.clone()),
        Some(TEMPLATING_GOLANG) => {
            let text = std::str::from_utf8(&data.0).map_err(|_| failed("it is not text"))?;
            expand(text, context).map(|text| SecretBytes(text.into_bytes())).map_err(|why| failed(&why))
        }
        Some(_) => Err(failed("unrecognized template type")),
    }
}

fn file_mount(folder: &str, target: &FileTarget, name: &str, data: SecretBytes) -> Result<FileMount, String> {
    let named = if target.name.is_empty() { name } else { &*target.name };
    let path = clean(&if named.starts_with('/') { named.to_owned() } else { format!("{folder}/{named}") });
    let number = |text: &str| match text {
        "" => Ok(0),
        digits => digits.parse().map_err(|_| format!("invalid owner {digits:?} of {name}")),
    };
    Ok(FileMount {
        target: path,
        uid: number(&target.uid)?,
        gid: number(&target.gid)?,
        mode: target.mode & 0o7777,
        data,
    })
}

#[cfg(test)]
pub(crate) mod tests;
