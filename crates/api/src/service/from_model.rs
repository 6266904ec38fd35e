//! From the model to answers: moby's `serviceFromGRPC`.

use skep_model::container::StringOrList;
use skep_model::service as model;
use skep_model::service::{FailureAction, Mode, PublishMode, ResolutionMode, UpdateOrder, UpdateState};
use skep_model::task as task_model;
use skep_model::task::{MountKind, RestartCondition};

use super::container::{
    ConfigReference, ContainerSpec, DnsConfig, FileTarget, HealthConfig, Mount, MountBind, MountTmpfs, MountVolume,
    SecretReference, VolumeDriver,
};
use super::policy::{
    LogDriver, Placement, PlacementPreference, Platform, ResourceLimit, ResourceRequirements, RestartPolicy,
    SpreadOver, UpdateConfig,
};
use super::privileges;
use super::{
    Endpoint, EndpointSpec, JobStatus, NetworkAttachmentConfig, Nothing, PortConfig, Replicated, ReplicatedJob,
    Service, ServiceMode, ServiceSpec, TaskSpec, UpdateStatus, VirtualIp,
};
use crate::ObjectVersion;
use crate::time::nanos;

impl From<&model::Service> for Service {
    fn from(service: &model::Service) -> Self {
        Self {
            id: service.id.to_string(),
            version: ObjectVersion { index: service.meta.version },
            created_at: service.meta.created_at.into(),
            updated_at: service.meta.updated_at.into(),
            spec: (&service.spec).into(),
            previous_spec: service.previous_spec.as_deref().map(Into::into),
            endpoint: service.endpoint.as_ref().map(Into::into).unwrap_or_default(),
            update_status: service.update_status.as_ref().map(Into::into),
            service_status: None,
            job_status: service.job_status.map(|job| JobStatus {
                job_iteration: crate::JobIteration { index: job.iteration },
                last_execution: job.last_execution.into(),
            }),
        }
    }
}

impl From<&model::UpdateStatus> for UpdateStatus {
    fn from(status: &model::UpdateStatus) -> Self {
        let state = match status.state {
            UpdateState::Updating => "updating",
            UpdateState::Paused => "paused",
            UpdateState::Completed => "completed",
            UpdateState::RollbackStarted => "rollback_started",
            UpdateState::RollbackPaused => "rollback_paused",
            UpdateState::RollbackCompleted => "rollback_completed",
        };
        Self {
            state: state.into(),
            started_at: (!status.started_at.is_zero()).then(|| status.started_at.into()),
            completed_at: status.completed_at.map(Into::into),
            message: status.message.clone(),
        }
    }
}

impl From<&model::Endpoint> for Endpoint {
    fn from(endpoint: &model::Endpoint) -> Self {
        Self {
            spec: (&endpoint.spec).into(),
            ports: endpoint.ports.iter().map(Into::into).collect(),
            virtual_ips: endpoint
                .virtual_ips
                .iter()
                .map(|vip| VirtualIp { network_id: vip.network_id.to_string(), address: vip.address.to_string() })
                .collect(),
        }
    }
}

impl From<&model::EndpointSpec> for EndpointSpec {
    fn from(spec: &model::EndpointSpec) -> Self {
        let mode = match spec.mode {
            ResolutionMode::Vip => "vip",
            ResolutionMode::DnsRoundRobin => "dnsrr",
        };
        Self { mode: mode.into(), ports: spec.ports.iter().map(Into::into).collect() }
    }
}

impl From<&model::PortConfig> for PortConfig {
    fn from(port: &model::PortConfig) -> Self {
        let publish_mode = match port.mode {
            PublishMode::Ingress => "ingress",
            PublishMode::Host => "host",
        };
        Self {
            name: port.name.clone(),
            protocol: port.protocol.as_str().into(),
            target_port: port.target_port.into(),
            published_port: port.published_port.into(),
            publish_mode: publish_mode.into(),
        }
    }
}

impl From<&model::ServiceSpec> for ServiceSpec {
    fn from(spec: &model::ServiceSpec) -> Self {
        Self {
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            task_template: (&spec.task).into(),
            mode: mode(spec.mode),
            update_config: spec.update.as_ref().map(Into::into),
            rollback_config: spec.rollback.as_ref().map(Into::into),
            networks: spec.networks.iter().map(Into::into).collect(),
            endpoint_spec: spec.endpoint.as_ref().map(Into::into),
        }
    }
}

fn mode(mode: Mode) -> ServiceMode {
    let mut out = ServiceMode::default();
    match mode {
        Mode::Replicated { replicas } => out.replicated = Some(Replicated { replicas: Some(replicas) }),
        Mode::Global => out.global = Some(Nothing {}),
        Mode::ReplicatedJob { max_concurrent, total_completions } => {
            out.replicated_job = Some(ReplicatedJob {
                max_concurrent: Some(max_concurrent),
                total_completions: Some(total_completions),
            });
        }
        Mode::GlobalJob => out.global_job = Some(Nothing {}),
    }
    out
}

impl From<&model::UpdateConfig> for UpdateConfig {
    fn from(config: &model::UpdateConfig) -> Self {
        let failure_action = match config.failure_action {
            FailureAction::Pause => "pause",
            FailureAction::Continue => "continue",
            FailureAction::Rollback => "rollback",
        };
        let order = match config.order {
            UpdateOrder::StopFirst => "stop-first",
            UpdateOrder::StartFirst => "start-first",
        };
        Self {
            parallelism: config.parallelism,
            delay: nanos(config.delay),
            failure_action: failure_action.into(),
            monitor: config.monitor.map_or(0, nanos),
            max_failure_ratio: config.max_failure_ratio,
            order: order.into(),
        }
    }
}

impl From<&model::NetworkAttachmentConfig> for NetworkAttachmentConfig {
    fn from(config: &model::NetworkAttachmentConfig) -> Self {
        Self {
            target: config.target.clone(),
            aliases: config.aliases.clone(),
            driver_opts: config.driver_options.clone(),
        }
    }
}

impl From<&task_model::TaskSpec> for TaskSpec {
    fn from(spec: &task_model::TaskSpec) -> Self {
        Self {
            container_spec: Some((&spec.container).into()),
            plugin_spec: None,
            network_attachment_spec: None,
            resources: spec.resources.as_ref().map(|r| ResourceRequirements {
                limits: r.limits.as_ref().map(Into::into),
                reservations: r.reservations.as_ref().map(|reserved| ResourceLimit {
                    generic_resources: r.generic.iter().map(Into::into).collect(),
                    ..reserved.into()
                }),
                swap_bytes: r.swap_bytes,
                memory_swappiness: r.memory_swappiness,
            }),
            restart_policy: spec.restart.as_ref().map(Into::into),
            placement: spec.placement.as_ref().map(Into::into),
            networks: spec.networks.iter().map(Into::into).collect(),
            log_driver: spec
                .log_driver
                .as_ref()
                .map(|d| LogDriver { name: d.name.clone(), options: d.options.clone() }),
            force_update: spec.force_update,
            runtime: "container".into(),
        }
    }
}

impl From<&task_model::Resources> for ResourceLimit {
    fn from(r: &task_model::Resources) -> Self {
        Self { nano_cpus: r.nano_cpus, memory_bytes: r.memory_bytes, pids: r.pids, generic_resources: Vec::new() }
    }
}

impl From<&task_model::RestartPolicy> for RestartPolicy {
    fn from(policy: &task_model::RestartPolicy) -> Self {
        let condition = match policy.condition {
            RestartCondition::None => "none",
            RestartCondition::OnFailure => "on-failure",
            RestartCondition::Any => "any",
        };
        Self {
            condition: condition.into(),
            delay: policy.delay.map(nanos),
            max_attempts: Some(policy.max_attempts),
            window: (!policy.window.is_zero()).then(|| nanos(policy.window)),
        }
    }
}

impl From<&task_model::Placement> for Placement {
    fn from(placement: &task_model::Placement) -> Self {
        Self {
            constraints: placement.constraints.clone(),
            preferences: placement
                .preferences
                .iter()
                .map(|descriptor| PlacementPreference {
                    spread: Some(SpreadOver { spread_descriptor: descriptor.clone() }),
                })
                .collect(),
            max_replicas: placement.max_replicas,
            platforms: placement
                .platforms
                .iter()
                .map(|p| Platform { architecture: p.architecture.clone(), os: p.os.clone() })
                .collect(),
        }
    }
}

impl From<&task_model::ContainerSpec> for ContainerSpec {
    fn from(spec: &task_model::ContainerSpec) -> Self {
        Self {
            image: spec.image.clone(),
            labels: spec.labels.clone(),
            command: (!spec.command.is_empty()).then(|| StringOrList(spec.command.clone())),
            args: spec.args.clone(),
            hostname: spec.hostname.clone(),
            env: spec.env.clone(),
            dir: spec.dir.clone(),
            user: spec.user.clone(),
            groups: spec.groups.clone(),
            privileges: spec.privileges.as_ref().map(privileges::shown),
            init: spec.init,
            stop_signal: spec.stop_signal.clone(),
            tty: spec.tty,
            open_stdin: spec.open_stdin,
            read_only: spec.read_only,
            mounts: spec.mounts.iter().map(Into::into).collect(),
            stop_grace_period: spec.stop_grace_period.map(nanos),
            healthcheck: spec.healthcheck.as_ref().map(Into::into),
            hosts: spec.hosts.clone(),
            dns_config: spec.dns.as_ref().map(|d| DnsConfig {
                nameservers: d.nameservers.clone(),
                search: d.search.clone(),
                options: d.options.clone(),
            }),
            secrets: spec
                .secrets
                .iter()
                .map(|s| SecretReference {
                    file: Some((&s.file).into()),
                    id: s.secret_id.to_string(),
                    name: s.secret_name.clone(),
                })
                .collect(),
            configs: spec
                .configs
                .iter()
                .map(|c| ConfigReference {
                    file: Some((&c.file).into()),
                    runtime: None,
                    id: c.config_id.to_string(),
                    name: c.config_name.clone(),
                })
                .collect(),
            isolation: "default".into(),
            sysctls: spec.sysctls.clone(),
            capability_add: spec.capability_add.clone(),
            capability_drop: spec.capability_drop.clone(),
            ulimits: spec.ulimits.clone(),
            oom_score_adj: spec.oom_score_adj,
        }
    }
}

impl From<&task_model::FileTarget> for FileTarget {
    fn from(target: &task_model::FileTarget) -> Self {
        Self { name: target.name.clone(), uid: target.uid.clone(), gid: target.gid.clone(), mode: target.mode }
    }
}

impl From<&skep_model::container::HealthConfig> for HealthConfig {
    fn from(h: &skep_model::container::HealthConfig) -> Self {
        Self {
            test: h.test.clone(),
            interval: h.interval,
            timeout: h.timeout,
            start_period: h.start_period,
            start_interval: h.start_interval,
            retries: h.retries,
        }
    }
}

impl From<&task_model::Mount> for Mount {
    fn from(mount: &task_model::Mount) -> Self {
        let kind = match mount.kind {
            MountKind::Bind => "bind",
            MountKind::Volume => "volume",
            MountKind::Tmpfs => "tmpfs",
        };
        Self {
            kind: kind.into(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            read_only: mount.read_only,
            consistency: mount.consistency.clone(),
            bind_options: mount.bind.as_ref().map(|b| MountBind {
                propagation: b.propagation.clone(),
                non_recursive: b.non_recursive,
                create_mountpoint: b.create_mountpoint,
                read_only_non_recursive: b.read_only_non_recursive,
                read_only_force_recursive: b.read_only_force_recursive,
            }),
            volume_options: mount.volume.as_ref().map(|v| MountVolume {
                no_copy: v.no_copy,
                labels: v.labels.clone(),
                subpath: v.subpath.clone(),
                driver_config: v
                    .driver
                    .as_ref()
                    .map(|(name, options)| VolumeDriver { name: name.clone(), options: options.clone() }),
            }),
            image_options: None,
            tmpfs_options: mount.tmpfs.as_ref().map(|t| MountTmpfs {
                size_bytes: t.size_bytes,
                mode: t.mode,
                options: t.options.clone(),
            }),
            cluster_options: None,
        }
    }
}
