//! `docker service …`.

use skep_model::ServiceId;
use skep_model::service::{Service, ServiceSpec};

use super::Node;
use crate::error::Result;

/// Whose registry credentials an update without `X-Registry-Auth` goes on with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RegistryAuthFrom {
    #[default]
    Spec,
    PreviousSpec,
}

/// `POST /services/{id}/update`.
#[derive(Clone, Debug)]
pub enum ServiceUpdate {
    /// With `spec.task.container.pull_auth` from the request's header, if it had one.
    Spec(Box<ServiceSpec>, RegistryAuthFrom),
    /// `rollback=previous`.
    Rollback,
}

impl Node {
    /// Networks may be given by name; they are stored by id, as moby does.
    pub async fn service_create(&self, spec: ServiceSpec) -> Result<ServiceId> {
        let _ = spec;
        unimplemented!()
    }

    pub async fn service_update(&self, reference: &str, version: u64, update: ServiceUpdate) -> Result<()> {
        let _ = (reference, version, update);
        unimplemented!()
    }

    pub async fn service_remove(&self, reference: &str) -> Result<()> {
        let _ = reference;
        unimplemented!()
    }

    pub fn service_list(&self) -> Result<Vec<Service>> {
        unimplemented!()
    }

    /// By id, name, or an unambiguous beginning of the id.
    pub fn service_inspect(&self, reference: &str) -> Result<Service> {
        let _ = reference;
        unimplemented!()
    }
}
