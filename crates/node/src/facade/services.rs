//! `docker service …`.

use skep_model::explain::Explanation;
use skep_model::network::HOST_NETWORKS;
use skep_model::secret::SecretBytes;
use skep_model::service::{Mode, Service, ServiceSpec, UpdateState, UpdateStatus};
use skep_model::{ServiceId, validate};
use skep_store::{Batch, Change, ObjectKey, View};

use super::Node;
use crate::clock::now;
use crate::error::{Kind, NodeError, Result};

/// Whose registry credentials an update without `X-Registry-Auth` goes on with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RegistryAuthFrom {
    #[default]
    Spec,
    PreviousSpec,
}

impl RegistryAuthFrom {
    /// The credentials that an update of this service goes on with.
    ///
    /// # Errors
    ///
    /// There is no previous spec to take them from.
    pub fn credentials(self, service: &Service) -> Result<Option<SecretBytes>> {
        let spec = match self {
            Self::Spec => Some(&service.spec),
            Self::PreviousSpec => service.previous_spec.as_deref(),
        };
        match spec {
            Some(spec) => Ok(spec.task.container.pull_auth.clone()),
            None => Err(NodeError::Internal("service does not have a previous spec".into())),
        }
    }
}

/// `POST /services/{id}/update`.
#[derive(Clone, Debug)]
pub enum ServiceUpdate {
    /// With `spec.task.container.pull_auth` from the request's header, if it had one.
    Spec(Box<ServiceSpec>, RegistryAuthFrom),
    /// `rollback=previous`.
    Rollback,
}

/// What can be told of a spec without the store.
fn check(spec: &ServiceSpec) -> Result<()> {
    validate::service(spec)?;
    skep_agent::spec::check_templates(spec).map_err(NodeError::Invalid)?;
    // swarmkit gives this error no code, which moby answers as its own failure.
    validate::constraints(spec).map_err(|invalid| NodeError::Refused {
        code: "Unknown",
        text: invalid.0,
        kind: Kind::Internal,
    })
}

fn unimplemented(text: &str) -> NodeError {
    NodeError::Refused { code: "Unimplemented", text: text.to_owned(), kind: Kind::NotImplemented }
}

/// Names of networks, secrets and configs become ids; what does not exist, and a port that is the swarm's own, is refused
/// before anything is stored.
fn resolve(view: &View, spec: &mut ServiceSpec) -> Result<()> {
    if let Some(text) = skep_control::reserved_port(view, spec) {
        return Err(NodeError::Invalid(text));
    }
    for attachment in spec.task.networks.iter_mut().chain(&mut spec.networks) {
        if HOST_NETWORKS.contains(&attachment.target.as_str()) {
            continue;
        }
        let network = view.find_network(&attachment.target)?;
        if network.spec.ingress {
            return Err(NodeError::Invalid(format!(
                "Service cannot be explicitly attached to the ingress network \"{}\"",
                network.spec.name
            )));
        }
        attachment.target = network.id.to_string();
    }
    // An id and a name must be of the same object, as swarmkit has it.
    let secrets = spec.task.container.secrets.iter();
    let lost = secrets.filter(|s| view.secret(&s.secret_id).is_none_or(|found| found.name != s.secret_name));
    all_found("secret", lost.map(|s| s.secret_name.as_str()).collect())?;
    let configs = spec.task.container.configs.iter();
    let lost = configs.filter(|c| view.config(&c.config_id).is_none_or(|found| found.name != c.config_name));
    all_found("config", lost.map(|c| c.config_name.as_str()).collect())
}

fn all_found(kind: &str, lost: Vec<&str>) -> Result<()> {
    match lost.len() {
        0 => Ok(()),
        1 => Err(NodeError::Invalid(format!("{kind} not found: {}", lost[0]))),
        _ => Err(NodeError::Invalid(format!("{kind}s not found: {}", lost.join(", ")))),
    }
}

impl Node {
    /// Networks may be given by name; they are stored by id, as moby does.
    pub async fn service_create(&self, mut spec: ServiceSpec) -> Result<ServiceId> {
        let manager = self.inner.manager()?;
        if spec.name.is_empty() {
            spec.name = skep_model::names::invent(rand::random());
        }
        check(&spec)?;
        resolve(&manager.view(), &mut spec)?;
        let id = ServiceId::from_bits(rand::random());
        let service = Service::new(id.clone(), spec);
        manager.propose(Batch::new(now(), vec![Change::CreateService(Box::new(service))])).await?;
        Ok(id)
    }

    pub async fn service_update(&self, reference: &str, version: u64, update: ServiceUpdate) -> Result<()> {
        let manager = self.inner.manager()?;
        let view = manager.view();
        let service = view.find_service(reference)?;
        let service_id = service.id.clone();
        let change = match update {
            ServiceUpdate::Spec(mut spec, auth_from) => {
                check(&spec)?;
                if spec.name != service.spec.name {
                    return Err(unimplemented("renaming services is not supported"));
                }
                if std::mem::discriminant(&spec.mode) != std::mem::discriminant(&service.spec.mode) {
                    return Err(unimplemented("service mode change is not allowed"));
                }
                resolve(&view, &mut spec)?;
                if spec.task.container.pull_auth.is_none() {
                    spec.task.container.pull_auth = auth_from.credentials(service)?;
                }
                Change::SetServiceSpec { service_id: service_id.clone(), spec }
            }
            ServiceUpdate::Rollback => {
                if service.previous_spec.is_none() {
                    return Err(NodeError::Refused {
                        code: "FailedPrecondition",
                        text: format!("service {service_id} does not have a previous spec"),
                        kind: Kind::Invalid,
                    });
                }
                if matches!(service.spec.mode, Mode::ReplicatedJob { .. } | Mode::GlobalJob) {
                    return Err(NodeError::Invalid("a job cannot be rolled back".into()));
                }
                let status = UpdateStatus {
                    state: UpdateState::RollbackStarted,
                    started_at: now(),
                    completed_at: None,
                    message: "manually requested rollback".into(),
                };
                Change::RollbackService { service_id: service_id.clone(), status, automatic: false }
            }
        };
        let batch = Batch::new(now(), vec![change]).if_version(ObjectKey::Service(service_id), version);
        manager.propose(batch).await.map(drop)
    }

    pub async fn service_remove(&self, reference: &str) -> Result<()> {
        let manager = self.inner.manager()?;
        let service_id = manager.view().find_service(reference)?.id.clone();
        manager.propose(Batch::new(now(), vec![Change::RemoveService { service_id }])).await.map(drop)
    }

    /// Why it is not as asked, in sentences.
    pub fn service_explain(&self, reference: &str) -> Result<Explanation> {
        let view = self.view()?;
        let service = view.find_service(reference)?;
        Ok(skep_control::explain(&view, service, now()))
    }

    /// By id, name, or an unambiguous beginning of the id.
    pub fn service_inspect(&self, reference: &str) -> Result<Service> {
        Ok((**self.view()?.find_service(reference)?).clone())
    }
}
