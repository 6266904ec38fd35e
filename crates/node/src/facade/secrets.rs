//! `docker secret …` and `docker config …`. The caller must never show a secret's data.

use skep_model::secret::{Config, Secret, SecretBytes};
use skep_model::{ConfigId, Labels, SecretId};

use super::Node;
use crate::error::Result;

impl Node {
    pub async fn secret_create(&self, name: String, labels: Labels, data: SecretBytes) -> Result<SecretId> {
        let _ = (name, labels, data);
        unimplemented!()
    }

    pub fn secret_list(&self) -> Result<Vec<Secret>> {
        unimplemented!()
    }

    pub fn secret_inspect(&self, reference: &str) -> Result<Secret> {
        let _ = reference;
        unimplemented!()
    }

    /// Only labels may change. `data` is what the request's spec held, if anything.
    pub async fn secret_update(
        &self,
        reference: &str,
        version: u64,
        name: String,
        labels: Labels,
        data: Option<SecretBytes>,
    ) -> Result<()> {
        let _ = (reference, version, name, labels, data);
        unimplemented!()
    }

    pub async fn secret_remove(&self, reference: &str) -> Result<()> {
        let _ = reference;
        unimplemented!()
    }

    pub async fn config_create(&self, name: String, labels: Labels, data: SecretBytes) -> Result<ConfigId> {
        let _ = (name, labels, data);
        unimplemented!()
    }

    pub fn config_list(&self) -> Result<Vec<Config>> {
        unimplemented!()
    }

    pub fn config_inspect(&self, reference: &str) -> Result<Config> {
        let _ = reference;
        unimplemented!()
    }

    /// Only labels may change.
    pub async fn config_update(
        &self,
        reference: &str,
        version: u64,
        name: String,
        labels: Labels,
        data: Option<SecretBytes>,
    ) -> Result<()> {
        let _ = (reference, version, name, labels, data);
        unimplemented!()
    }

    pub async fn config_remove(&self, reference: &str) -> Result<()> {
        let _ = reference;
        unimplemented!()
    }
}
