//! From a request to the model: moby's `serviceSpecToGRPC`, and a refusal for what is not served.

use skep_model::container::HealthConfig;
use skep_model::service as model;
use skep_model::service::{FailureAction, Mode, Protocol, PublishMode, ResolutionMode, UpdateOrder};
use skep_model::task as task_model;
use skep_model::task::{MountKind, RestartCondition};

use super::container::{ConfigReference, ContainerSpec, FileTarget, Mount, MountBind, SecretReference};
use super::policy::{LogDriver, Placement, ResourceLimit, ResourceRequirements, RestartPolicy, UpdateConfig};
use super::privileges;
use super::{EndpointSpec, NetworkAttachmentConfig, PortConfig, ServiceMode, ServiceSpec, TaskSpec};
use crate::ConvertError;
use crate::time::duration;

type Result<T> = std::result::Result<T, ConvertError>;

/// The only drivers whose logs this engine writes.
const LOG_DRIVERS: [&str; 5] = ["json-file", "local", "syslog", "journald", "none"];

impl TryFrom<ServiceSpec> for model::ServiceSpec {
    type Error = ConvertError;

    fn try_from(spec: ServiceSpec) -> Result<Self> {
        Ok(Self {
            name: spec.name,
            labels: spec.labels,
            mode: mode(&spec.mode)?,
            task: task(spec.task_template)?,
            update: spec.update_config.map(|c| update(&c)).transpose()?,
            rollback: spec.rollback_config.map(|c| update(&c)).transpose()?,
            endpoint: spec.endpoint_spec.map(endpoint).transpose()?,
            networks: spec.networks.into_iter().map(network).collect(),
        })
    }
}

fn mode(mode: &ServiceMode) -> Result<Mode> {
    let given =
        [mode.replicated.is_some(), mode.global.is_some(), mode.replicated_job.is_some(), mode.global_job.is_some()];
    if given.iter().filter(|g| **g).count() > 1 {
        return ConvertError::invalid("must specify only one service mode");
    }
    if let Some(job) = &mode.replicated_job {
        let max_concurrent = job.max_concurrent.unwrap_or(1);
        let total_completions = job.total_completions.unwrap_or(max_concurrent);
        return Ok(Mode::ReplicatedJob { max_concurrent, total_completions });
    }
    if mode.global_job.is_some() {
        return Ok(Mode::GlobalJob);
    }
    if mode.global.is_some() {
        return Ok(Mode::Global);
    }
    Ok(Mode::Replicated { replicas: mode.replicated.as_ref().and_then(|r| r.replicas).unwrap_or(1) })
}

fn task(spec: TaskSpec) -> Result<task_model::TaskSpec> {
    if spec.plugin_spec.is_some() || spec.runtime == "plugin" {
        return ConvertError::unserved("a service of runtime plugin");
    }
    if spec.network_attachment_spec.is_some() || spec.runtime == "attachment" {
        return ConvertError::unserved("a service of runtime attachment");
    }
    if !matches!(spec.runtime.as_str(), "" | "container") {
        return ConvertError::invalid(format!("unsupported runtime: {:?}", spec.runtime));
    }
    let Some(container_spec) = spec.container_spec else {
        return ConvertError::invalid("invalid service spec: TaskTemplate.ContainerSpec is required");
    };
    Ok(task_model::TaskSpec {
        container: container(container_spec)?,
        resources: spec.resources.map(resources).transpose()?,
        restart: spec.restart_policy.map(|r| restart(&r)).transpose()?,
        placement: spec.placement.map(placement),
        networks: spec.networks.into_iter().map(network).collect(),
        log_driver: spec.log_driver.map(log_driver).transpose()?,
        force_update: spec.force_update,
    })
}

fn network(config: NetworkAttachmentConfig) -> model::NetworkAttachmentConfig {
    model::NetworkAttachmentConfig {
        target: config.target,
        aliases: config.aliases,
        driver_options: config.driver_opts,
    }
}

fn container(spec: ContainerSpec) -> Result<task_model::ContainerSpec> {
    if !matches!(spec.isolation.to_ascii_lowercase().as_str(), "" | "default") {
        return ConvertError::invalid(format!("Unsupported isolation: {:?}", spec.isolation));
    }
    Ok(task_model::ContainerSpec {
        image: spec.image,
        labels: spec.labels,
        command: spec.command.unwrap_or_default().0,
        args: spec.args,
        hostname: spec.hostname,
        env: spec.env,
        dir: spec.dir,
        user: spec.user,
        groups: spec.groups,
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        init: spec.init,
        mounts: spec.mounts.into_iter().map(mount).collect::<Result<_>>()?,
        stop_signal: spec.stop_signal,
        stop_grace_period: spec.stop_grace_period.map(|n| duration(n, "stop-grace-period")).transpose()?,
        healthcheck: spec.healthcheck.map(|h| HealthConfig {
            test: h.test,
            interval: h.interval,
            timeout: h.timeout,
            start_period: h.start_period,
            start_interval: h.start_interval,
            retries: h.retries,
        }),
        hosts: spec.hosts,
        dns: spec.dns_config.map(|d| task_model::DnsConfig {
            nameservers: d.nameservers,
            search: d.search,
            options: d.options,
        }),
        secrets: spec.secrets.into_iter().map(secret).collect::<Result<_>>()?,
        configs: spec.configs.into_iter().map(config).collect::<Result<_>>()?,
        isolation: String::new(),
        sysctls: spec.sysctls,
        capability_add: spec.capability_add,
        capability_drop: spec.capability_drop,
        ulimits: spec.ulimits,
        oom_score_adj: spec.oom_score_adj,
        privileges: spec.privileges.map(privileges::read).transpose()?,
        pull_auth: None,
    })
}

fn mount(mount: Mount) -> Result<task_model::Mount> {
    let kind = match mount.kind.as_str() {
        "bind" => MountKind::Bind,
        "" | "volume" => MountKind::Volume,
        "tmpfs" => MountKind::Tmpfs,
        "npipe" | "cluster" | "image" => return ConvertError::unserved(format!("a mount of type {}", mount.kind)),
        other => return ConvertError::invalid(format!("invalid MountType: {other:?}")),
    };
    Ok(task_model::Mount {
        kind,
        source: mount.source,
        target: mount.target,
        read_only: mount.read_only,
        consistency: mount.consistency,
        bind: mount.bind_options.map(bind).transpose()?.flatten(),
        volume: mount.volume_options.map(|v| task_model::VolumeOptions {
            no_copy: v.no_copy,
            labels: v.labels,
            subpath: v.subpath,
            driver: v.driver_config.map(|d| (d.name, d.options)),
        }),
        tmpfs: mount.tmpfs_options.map(|t| task_model::TmpfsOptions {
            size_bytes: t.size_bytes,
            mode: t.mode,
            options: t.options,
        }),
    })
}

/// swarmkit's propagation is an enumeration whose zero is `rprivate`; options that say nothing are none.
fn bind(options: MountBind) -> Result<Option<task_model::BindOptions>> {
    if options == MountBind::default() {
        return Ok(None);
    }
    let propagation = match options.propagation.to_ascii_lowercase().as_str() {
        "" => "rprivate".to_owned(),
        known @ ("private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave") => known.to_owned(),
        _ => return ConvertError::invalid(format!("invalid MountPropagation: {:?}", options.propagation)),
    };
    Ok(Some(task_model::BindOptions {
        propagation,
        non_recursive: options.non_recursive,
        create_mountpoint: options.create_mountpoint,
        read_only_non_recursive: options.read_only_non_recursive,
        read_only_force_recursive: options.read_only_force_recursive,
    }))
}

fn file(target: FileTarget) -> task_model::FileTarget {
    task_model::FileTarget { name: target.name, uid: target.uid, gid: target.gid, mode: target.mode }
}

fn malformed<T>(text: &str) -> Result<T> {
    ConvertError::invalid(format!("rpc error: code = InvalidArgument desc = {text}"))
}

fn secret(reference: SecretReference) -> Result<task_model::SecretReference> {
    let Some(target) = reference.file else {
        return malformed("malformed secret reference, no target provided");
    };
    let Ok(secret_id) = reference.id.parse() else { return malformed("malformed secret reference") };
    Ok(task_model::SecretReference { secret_id, secret_name: reference.name, file: file(target) })
}

fn config(reference: ConfigReference) -> Result<task_model::ConfigReference> {
    if reference.runtime.is_some() {
        return ConvertError::unserved("a config used by the runtime (credential spec)");
    }
    let Some(target) = reference.file else {
        return malformed("malformed config reference, no target provided");
    };
    let Ok(config_id) = reference.id.parse() else { return malformed("malformed config reference") };
    Ok(task_model::ConfigReference { config_id, config_name: reference.name, file: file(target) })
}

fn limit(limit: &ResourceLimit) -> task_model::Resources {
    task_model::Resources { nano_cpus: limit.nano_cpus, memory_bytes: limit.memory_bytes, pids: limit.pids }
}

fn resources(requirements: ResourceRequirements) -> Result<task_model::ResourceRequirements> {
    Ok(task_model::ResourceRequirements {
        limits: requirements.limits.as_ref().map(limit),
        reservations: requirements.reservations.as_ref().map(limit),
        // Limits have none, as in moby.
        generic: requirements
            .reservations
            .into_iter()
            .flat_map(|r| r.generic_resources)
            .map(TryInto::try_into)
            .collect::<Result<_>>()?,
        swap_bytes: requirements.swap_bytes,
        memory_swappiness: requirements.memory_swappiness,
    })
}

fn restart(policy: &RestartPolicy) -> Result<task_model::RestartPolicy> {
    Ok(task_model::RestartPolicy {
        condition: match policy.condition.as_str() {
            "none" => RestartCondition::None,
            "on-failure" => RestartCondition::OnFailure,
            "" | "any" => RestartCondition::Any,
            other => return ConvertError::invalid(format!("invalid RestartCondition: {other:?}")),
        },
        delay: policy.delay.map(|n| duration(n, "restart-delay")).transpose()?,
        max_attempts: policy.max_attempts.unwrap_or(0),
        window: duration(policy.window.unwrap_or(0), "restart-window")?,
    })
}

fn placement(placement: Placement) -> task_model::Placement {
    task_model::Placement {
        constraints: placement.constraints,
        preferences: placement.preferences.into_iter().filter_map(|p| p.spread).map(|s| s.spread_descriptor).collect(),
        max_replicas: placement.max_replicas,
        platforms: placement
            .platforms
            .into_iter()
            .map(|p| task_model::Platform { architecture: p.architecture, os: p.os })
            .collect(),
    }
}

fn log_driver(driver: LogDriver) -> Result<task_model::LogDriver> {
    if !driver.name.is_empty() && !LOG_DRIVERS.contains(&driver.name.as_str()) {
        return ConvertError::unserved(format!(
            "log driver {:?} (json-file, local, syslog, journald and none are)",
            driver.name
        ));
    }
    Ok(task_model::LogDriver { name: driver.name, options: driver.options })
}

fn update(config: &UpdateConfig) -> Result<model::UpdateConfig> {
    Ok(model::UpdateConfig {
        parallelism: config.parallelism,
        delay: duration(config.delay, "update-delay")?,
        failure_action: match config.failure_action.as_str() {
            "" | "pause" => FailureAction::Pause,
            "continue" => FailureAction::Continue,
            "rollback" => FailureAction::Rollback,
            other => return ConvertError::invalid(format!("unrecognized update failure action {other}")),
        },
        monitor: if config.monitor == 0 { None } else { Some(duration(config.monitor, "update-monitor")?) },
        max_failure_ratio: config.max_failure_ratio,
        order: match config.order.as_str() {
            "" | "stop-first" => UpdateOrder::StopFirst,
            "start-first" => UpdateOrder::StartFirst,
            other => return ConvertError::invalid(format!("unrecognized update order {other}")),
        },
    })
}

fn endpoint(spec: EndpointSpec) -> Result<model::EndpointSpec> {
    Ok(model::EndpointSpec {
        mode: match spec.mode.as_str() {
            "" | "vip" => ResolutionMode::Vip,
            "dnsrr" => ResolutionMode::DnsRoundRobin,
            other => return ConvertError::invalid(format!("invalid resolution mode: {other:?}")),
        },
        ports: spec.ports.into_iter().map(port).collect::<Result<_>>()?,
    })
}

fn port(port: PortConfig) -> Result<model::PortConfig> {
    let number = |n: u32| {
        u16::try_from(n)
            .map_err(|_| ConvertError::Invalid(format!("EndpointSpec: invalid port {n}: must be at most 65535")))
    };
    Ok(model::PortConfig {
        name: port.name,
        protocol: match port.protocol.as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => return ConvertError::unserved("publishing a port of protocol sctp"),
            other => return ConvertError::invalid(format!("invalid PortConfig protocol: {other:?}")),
        },
        target_port: number(port.target_port)?,
        published_port: number(port.published_port)?,
        mode: match port.publish_mode.as_str() {
            "" | "ingress" => PublishMode::Ingress,
            "host" => PublishMode::Host,
            other => return ConvertError::invalid(format!("invalid PublishMode: {other:?}")),
        },
    })
}
