//! What is refused before it is stored, in Docker's own words (swarmkit `manager/controlapi`, moby `api/server`).

use std::time::Duration;

use crate::Labels;
use crate::constraint::Constraint;
use crate::container::HealthConfig;
use crate::service::{EndpointSpec, Mode, ServiceSpec, UpdateConfig};
use crate::task::{ContainerSpec, CredentialSpec, FileTarget, Resources, RestartPolicy, TaskSpec};
use crate::traffic;

/// A spec that cannot be accepted; the text is for the user, and clients print it as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

fn invalid<T>(text: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(text.into()))
}

/// Names of services, networks and nodes: swarmkit's `^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`.
pub fn name(text: &str) -> Result<(), Invalid> {
    if text.is_empty() {
        return invalid("name must be provided");
    }
    if text.len() > 63 {
        return invalid("name must be 63 characters or fewer");
    }
    let alnum = |b: u8| b.is_ascii_alphanumeric();
    let bytes = text.as_bytes();
    let fine =
        alnum(bytes[0]) && alnum(bytes[bytes.len() - 1]) && bytes.iter().all(|&b| alnum(b) || b == b'-' || b == b'_');
    if fine { Ok(()) } else { invalid("name must be valid as a DNS name component") }
}

/// Names of secrets and configs: 1 to 64 of `[a-zA-Z0-9-_.]`, beginning and ending with a letter or digit.
pub fn blob_name(text: &str) -> Result<(), Invalid> {
    if text.is_empty() {
        return invalid("name must be provided");
    }
    let alnum = |b: &u8| b.is_ascii_alphanumeric();
    let fine = text.len() <= 64
        && text.as_bytes().first().is_some_and(alnum)
        && text.as_bytes().last().is_some_and(alnum)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if fine {
        Ok(())
    } else {
        invalid(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
        )
    }
}

/// The smallest limits the kernel can be asked for (swarmkit `validateResources`).
const MIN_NANO_CPUS: i64 = 1_000_000;
const MIN_MEMORY_BYTES: i64 = 4 * 1024 * 1024;

fn resources(r: &Resources) -> Result<(), Invalid> {
    if r.nano_cpus != 0 && r.nano_cpus < MIN_NANO_CPUS {
        return invalid(format!("invalid cpu value {}: Must be at least 0.001", go_float(r.nano_cpus as f64 / 1e9)));
    }
    if r.memory_bytes != 0 && r.memory_bytes < MIN_MEMORY_BYTES {
        return invalid(format!("invalid memory value {}: Must be at least 4MiB", r.memory_bytes));
    }
    Ok(())
}

/// Go's `%g`: an exponent of two digits where the number is small.
fn go_float(number: f64) -> String {
    if number.abs() >= 1e-4 {
        return number.to_string();
    }
    let text = format!("{number:e}");
    match text.split_once("e-") {
        Some((digits, exponent)) => format!("{digits}e-{exponent:0>2}"),
        None => text,
    }
}

fn restart(_: &RestartPolicy) -> Result<(), Invalid> {
    Ok(()) // durations are unsigned by type; the api layer refuses negative ones
}

/// On a service: its tasks are killed on a host that no manager has answered for so long (a duration as Go writes it), and
/// replaced only once that must have happened. A label, because the stock CLI can set one.
pub const STOP_AFTER_LABEL: &str = "skep.stop-after";
/// Shorter, and the election of a new leader would stop them.
const STOP_AFTER_MIN: Duration = Duration::from_secs(3);
const STOP_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// What [`STOP_AFTER_LABEL`] says, if it is there.
pub fn stop_after(labels: &Labels) -> Result<Option<Duration>, Invalid> {
    let Some(text) = labels.get(STOP_AFTER_LABEL) else { return Ok(None) };
    let nanos = crate::time::parse_go_duration(text).and_then(|nanos| u64::try_from(nanos).ok());
    match nanos.map(Duration::from_nanos) {
        Some(after) if (STOP_AFTER_MIN..=STOP_AFTER_MAX).contains(&after) => Ok(Some(after)),
        Some(_) | None => {
            invalid(format!("label {STOP_AFTER_LABEL}={text}: must be a duration from 3s to 24h, such as 5s or 1m30s"))
        }
    }
}

/// On a service: how long an update waits for a new task to run, before it counts as failed (a duration as Go writes it).
pub const UPDATE_DEADLINE_LABEL: &str = "skep.update-deadline";
/// Longer than any image should take to be pulled.
pub const DEFAULT_UPDATE_DEADLINE: Duration = Duration::from_secs(10 * 60);
const UPDATE_DEADLINE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What [`UPDATE_DEADLINE_LABEL`] says, if it is there.
pub fn update_deadline(labels: &Labels) -> Result<Option<Duration>, Invalid> {
    let Some(text) = labels.get(UPDATE_DEADLINE_LABEL) else { return Ok(None) };
    let nanos = crate::time::parse_go_duration(text).and_then(|nanos| u64::try_from(nanos).ok());
    match nanos.map(Duration::from_nanos) {
        Some(deadline) if (Duration::from_secs(1)..=UPDATE_DEADLINE_MAX).contains(&deadline) => Ok(Some(deadline)),
        Some(_) | None => invalid(format!(
            "label {UPDATE_DEADLINE_LABEL}={text}: must be a duration from 1s to 168h, such as 90s or 1h"
        )),
    }
}

/// Labels of ours that a service can have; a misspelt one must not be one that does nothing.
const SERVICE_LABELS: [&str; 7] = [
    STOP_AFTER_LABEL,
    UPDATE_DEADLINE_LABEL,
    traffic::SOURCE_LABEL,
    traffic::POLICY_LABEL,
    traffic::PROXY_PROTOCOL_LABEL,
    traffic::AFFINITY_LABEL,
    traffic::ALLOW_FROM_LABEL,
];

/// Refuses labels that begin with `skep.` and are not in `known`.
fn known_labels(kind: &str, labels: &Labels, known: &[&str]) -> Result<(), Invalid> {
    let ours = labels.keys().filter(|label| label.starts_with("skep."));
    match ours.map(String::as_str).find(|label| !known.contains(label)) {
        Some(label) => invalid(format!("label {label} is not known: on a {kind} there are {}", known.join(", "))),
        None => Ok(()),
    }
}

/// What can be told of a node's labels.
pub fn node_labels(labels: &Labels) -> Result<(), Invalid> {
    known_labels("node", labels, &[traffic::WEIGHT_LABEL])?;
    traffic::weight(labels).map(drop)
}

fn update(config: &UpdateConfig) -> Result<(), Invalid> {
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return invalid("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1");
    }
    Ok(())
}

fn task(spec: &TaskSpec) -> Result<(), Invalid> {
    if spec.container.image.is_empty() {
        return invalid("ContainerSpec: image reference must be provided");
    }
    if let Err(error) = spec.container.image.parse::<crate::reference::Reference>() {
        let _ = error;
        return invalid(format!("ContainerSpec: {:?} is not a valid repository/tag", spec.container.image));
    }
    if let Some(requirements) = &spec.resources {
        requirements.limits.iter().chain(&requirements.reservations).try_for_each(resources)?;
    }
    spec.restart.iter().try_for_each(restart)?;
    let mut targets = std::collections::BTreeSet::new();
    for mount in &spec.container.mounts {
        if !targets.insert(&mount.target) {
            return invalid(format!("ContainerSpec: duplicate mount point: {}", mount.target));
        }
    }
    let secrets = spec.container.secrets.iter().map(|s| (s.secret_name.as_str(), &s.file));
    references("secret", secrets)?;
    let configs = spec.container.configs.iter().map(|c| (c.config_name.as_str(), &c.file));
    references("config", configs)?;
    privileges(&spec.container)?;
    spec.container.healthcheck.iter().try_for_each(health)
}

/// Files of secrets or configs: each has a name, and no two the same.
fn references<'a>(kind: &str, list: impl Iterator<Item = (&'a str, &'a FileTarget)>) -> Result<(), Invalid> {
    let mut targets = std::collections::BTreeMap::new();
    for (name, file) in list {
        if name.is_empty() {
            return invalid(format!("malformed {kind} reference"));
        }
        if file.name.is_empty() {
            return invalid(format!("malformed file {kind} reference, invalid target file name provided"));
        }
        if let Some(other) = targets.insert(&file.name, name) {
            return invalid(format!(
                "{kind} references '{other}' and '{name}' have a conflicting target: '{}'",
                file.name
            ));
        }
    }
    Ok(())
}

/// A credential spec's config must be among the configs, for the runtime; and no config is, on Linux.
fn privileges(spec: &ContainerSpec) -> Result<(), Invalid> {
    match spec.privileges.as_ref().and_then(|p| p.credential_spec.as_ref()) {
        Some(CredentialSpec::Config(id)) => invalid(format!(
            "CredentialSpec references config '{id}', but that config isn't in config references with RuntimeTarget"
        )),
        Some(CredentialSpec::File(_) | CredentialSpec::Registry(_)) | None => Ok(()),
    }
}

/// A health check's times: nothing, or at least a millisecond.
fn health(config: &HealthConfig) -> Result<(), Invalid> {
    let times = [
        ("Interval", config.interval),
        ("Timeout", config.timeout),
        ("StartPeriod", config.start_period),
        ("StartInterval", config.start_interval),
    ];
    if let Some((name, _)) = times.iter().find(|(_, nanos)| *nanos != 0 && *nanos < 1_000_000) {
        return invalid(format!("ContainerSpec: {name} in HealthConfig cannot be less than 1ms"));
    }
    if config.retries < 0 {
        return invalid("ContainerSpec: Retries in HealthConfig cannot be negative");
    }
    Ok(())
}

fn endpoint(spec: &EndpointSpec) -> Result<(), Invalid> {
    let mut published = std::collections::BTreeSet::new();
    for port in &spec.ports {
        if port.target_port == 0 {
            return invalid("EndpointSpec: invalid target port 0");
        }
        if port.published_port != 0 && !published.insert((port.published_port, port.protocol)) {
            return invalid("EndpointSpec: duplicate published ports provided");
        }
    }
    Ok(())
}

/// Constraints that cannot be read. Apart from [`service`], because Docker answers them with another status.
pub fn constraints(spec: &ServiceSpec) -> Result<(), Invalid> {
    let constraints = spec.task.placement.iter().flat_map(|p| &p.constraints);
    constraints.map(|text| text.parse::<Constraint>()).try_for_each(|parsed| parsed.map(drop).map_err(Invalid))
}

/// Everything about a service spec that can be told without the store.
pub fn service(spec: &ServiceSpec) -> Result<(), Invalid> {
    name(&spec.name)?;
    known_labels("service", &spec.labels, &SERVICE_LABELS)?;
    traffic::check_service(&spec.labels)?;
    stop_after(&spec.labels)?;
    update_deadline(&spec.labels)?;
    task(&spec.task)?;
    let negative = |count: u64| i64::try_from(count).is_err();
    match spec.mode {
        Mode::Replicated { replicas } if negative(replicas) => {
            return invalid("Number of replicas must be non-negative");
        }
        Mode::ReplicatedJob { max_concurrent, .. } if negative(max_concurrent) => {
            return invalid("Maximum concurrent jobs must not be negative");
        }
        Mode::ReplicatedJob { total_completions, .. } if negative(total_completions) => {
            return invalid("Total completed jobs must not be negative");
        }
        Mode::Replicated { .. } | Mode::Global | Mode::ReplicatedJob { .. } | Mode::GlobalJob => {}
    }
    if spec.mode.is_job() && spec.update.is_some() {
        return invalid("Jobs may not have an update config");
    }
    spec.update.iter().chain(&spec.rollback).try_for_each(update)?;
    spec.endpoint.iter().try_for_each(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::PortConfig;

    fn web() -> ServiceSpec {
        let mut spec = ServiceSpec { name: "web".into(), ..Default::default() };
        spec.task.container.image = "nginx".into();
        spec
    }

    #[track_caller]
    fn refused(change: impl Fn(&mut ServiceSpec), text: &str) {
        let mut spec = web();
        change(&mut spec);
        assert_eq!(service(&spec).unwrap_err().to_string(), text);
    }

    #[test]
    fn a_plain_service_is_fine() {
        service(&web()).unwrap();
    }

    #[test]
    fn refusals_use_dockers_words() {
        refused(|s| s.name = "a b".into(), "name must be valid as a DNS name component");
        refused(|s| s.name = "-a".into(), "name must be valid as a DNS name component");
        refused(|s| s.name = "a".repeat(64), "name must be 63 characters or fewer");
        refused(|s| s.task.container.image = String::new(), "ContainerSpec: image reference must be provided");
        refused(|s| s.task.container.image = "A B".into(), "ContainerSpec: \"A B\" is not a valid repository/tag");
        let port = |p| PortConfig { target_port: 80, published_port: p, ..Default::default() };
        refused(
            |s| s.endpoint = Some(EndpointSpec { ports: vec![port(80), port(80)], ..Default::default() }),
            "EndpointSpec: duplicate published ports provided",
        );
        refused(
            |s| {
                s.task.resources = Some(crate::task::ResourceRequirements {
                    limits: Some(Resources { memory_bytes: 1, ..Default::default() }),
                    ..Default::default()
                });
            },
            "invalid memory value 1: Must be at least 4MiB",
        );
    }

    #[test]
    fn a_label_of_ours_that_is_misspelt_is_refused() {
        refused(
            |s| _ = s.labels.insert("skep.network.allow-form".into(), "web".into()),
            "label skep.network.allow-form is not known: on a service there are skep.stop-after, skep.update-deadline, \
             skep.mesh.source, skep.mesh.policy, skep.mesh.proxy-protocol, skep.balance.affinity, skep.network.allow-from",
        );
        refused(
            |s| _ = s.labels.insert("skep.mesh.policy".into(), "global".into()),
            "label skep.mesh.policy=global: must be cluster or local",
        );
        let labels = Labels::from([("skep.weight".to_owned(), "2".to_owned())]);
        assert_eq!(
            node_labels(&labels).unwrap_err().0,
            "label skep.weight is not known: on a node there are skep.balance.weight"
        );
    }

    #[test]
    fn stop_after_is_a_duration_within_reason() {
        let labelled = |text: &str| Labels::from([(STOP_AFTER_LABEL.to_owned(), text.to_owned())]);
        assert_eq!(stop_after(&Labels::new()), Ok(None));
        assert_eq!(stop_after(&labelled("1m30s")), Ok(Some(Duration::from_secs(90))));
        for bad in ["", "5", "2s", "-5s", "25h", "soon"] {
            let text = format!("label skep.stop-after={bad}: must be a duration from 3s to 24h, such as 5s or 1m30s");
            refused(|s| s.labels = labelled(bad), &text);
        }
    }
}
