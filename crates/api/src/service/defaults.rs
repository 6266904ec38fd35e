//! `insertDefaults=true`: what swarmkit would use where a spec is silent (swarmkit `api/defaults/service.go`), for clients
//! that show a spec without knowing the defaults.

use super::container::DnsConfig;
use super::policy::{RestartPolicy, UpdateConfig};
use super::{EndpointSpec, Service};

impl Service {
    #[must_use]
    pub fn with_defaults(mut self) -> Self {
        let spec = &mut self.spec;
        if let Some(container) = &mut spec.task_template.container_spec {
            container.stop_grace_period.get_or_insert(10_000_000_000);
            container.dns_config.get_or_insert_with(DnsConfig::default);
        }
        spec.task_template.resources.get_or_insert_default();
        let restart = spec.task_template.restart_policy.get_or_insert_with(|| RestartPolicy {
            condition: "any".into(),
            max_attempts: Some(0),
            ..Default::default()
        });
        restart.delay.get_or_insert(5_000_000_000);
        spec.task_template.placement.get_or_insert_default();
        spec.update_config.get_or_insert_with(update);
        spec.rollback_config.get_or_insert_with(update);
        spec.endpoint_spec.get_or_insert_with(|| EndpointSpec { mode: "vip".into(), ports: Vec::new() });
        self
    }
}

fn update() -> UpdateConfig {
    UpdateConfig {
        parallelism: 1,
        failure_action: "pause".into(),
        monitor: 5_000_000_000,
        order: "stop-first".into(),
        ..Default::default()
    }
}
