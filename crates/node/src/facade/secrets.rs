//! `docker secret …` and `docker config …`. The caller must never show a secret's data.

use skep_model::secret::{Config, MAX_CONFIG_BYTES, MAX_SECRET_BYTES, Secret, SecretBytes};
use skep_model::{ConfigId, Labels, Meta, SecretId, validate};
use skep_store::{Batch, Change, ObjectKey};

use super::Node;
use crate::clock::now;
use crate::error::{NodeError, Result};

fn check_size(kind: &str, data: &SecretBytes, limit: usize) -> Result<()> {
    if data.0.is_empty() || data.0.len() >= limit {
        return Err(NodeError::Invalid(format!("{kind} data must be larger than 0 and less than {limit} bytes")));
    }
    Ok(())
}

/// swarmkit compares the whole spec but for labels; a name or payload left out of the request is no change.
fn only_labels(same_name: bool, same_data: bool) -> Result<()> {
    if same_name && same_data { Ok(()) } else { Err(NodeError::Invalid("only updates to Labels are allowed".into())) }
}

impl Node {
    pub async fn secret_create(
        &self,
        name: String,
        labels: Labels,
        data: SecretBytes,
        templating: Option<String>,
    ) -> Result<SecretId> {
        let manager = self.inner.manager()?;
        validate::blob_name(&name)?;
        check_size("secret", &data, MAX_SECRET_BYTES)?;
        let id = SecretId::from_bits(rand::random());
        let secret = Secret { id: id.clone(), meta: Meta::default(), name, labels, data, templating };
        manager.propose(Batch::new(now(), vec![Change::CreateSecret(Box::new(secret))])).await?;
        Ok(id)
    }

    pub fn secret_list(&self) -> Result<Vec<Secret>> {
        Ok(self.view()?.secrets().map(|s| (**s).clone()).collect())
    }

    pub fn secret_inspect(&self, reference: &str) -> Result<Secret> {
        Ok((**self.view()?.find_secret(reference)?).clone())
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
        let manager = self.inner.manager()?;
        let view = manager.view();
        let secret = view.find_secret(reference)?;
        only_labels(name.is_empty() || name == secret.name, data.is_none_or(|d| d.0.is_empty() || d == secret.data))?;
        let secret_id = secret.id.clone();
        let batch = Batch::new(now(), vec![Change::SetSecretLabels { secret_id: secret_id.clone(), labels }])
            .if_version(ObjectKey::Secret(secret_id), version);
        manager.propose(batch).await.map(drop)
    }

    pub async fn secret_remove(&self, reference: &str) -> Result<()> {
        let manager = self.inner.manager()?;
        let secret_id = manager.view().find_secret(reference)?.id.clone();
        manager.propose(Batch::new(now(), vec![Change::RemoveSecret { secret_id }])).await.map(drop)
    }

    pub async fn config_create(
        &self,
        name: String,
        labels: Labels,
        data: SecretBytes,
        templating: Option<String>,
    ) -> Result<ConfigId> {
        let manager = self.inner.manager()?;
        validate::blob_name(&name)?;
        check_size("config", &data, MAX_CONFIG_BYTES)?;
        let id = ConfigId::from_bits(rand::random());
        let config = Config { id: id.clone(), meta: Meta::default(), name, labels, data, templating };
        manager.propose(Batch::new(now(), vec![Change::CreateConfig(Box::new(config))])).await?;
        Ok(id)
    }

    pub fn config_list(&self) -> Result<Vec<Config>> {
        Ok(self.view()?.configs().map(|c| (**c).clone()).collect())
    }

    pub fn config_inspect(&self, reference: &str) -> Result<Config> {
        Ok((**self.view()?.find_config(reference)?).clone())
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
        let manager = self.inner.manager()?;
        let view = manager.view();
        let config = view.find_config(reference)?;
        only_labels(name.is_empty() || name == config.name, data.is_none_or(|d| d.0.is_empty() || d == config.data))?;
        let config_id = config.id.clone();
        let batch = Batch::new(now(), vec![Change::SetConfigLabels { config_id: config_id.clone(), labels }])
            .if_version(ObjectKey::Config(config_id), version);
        manager.propose(batch).await.map(drop)
    }

    pub async fn config_remove(&self, reference: &str) -> Result<()> {
        let manager = self.inner.manager()?;
        let config_id = manager.view().find_config(reference)?.id.clone();
        manager.propose(Batch::new(now(), vec![Change::RemoveConfig { config_id }])).await.map(drop)
    }
}
