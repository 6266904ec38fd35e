//! An image's config file: the JSON whose digest is the image's id (OCI image spec `config.md`, Docker's superset).

use serde::{Deserialize, Deserializer, Serialize};
use skep_model::Timestamp;
use skep_model::container::ContainerConfig;

use super::id::DiffId;

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

/// What we read of a config. The bytes themselves are kept beside it, since re-serialising would change the id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageFile {
    #[serde(deserialize_with = "or_default")]
    pub architecture: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Env, cmd, entrypoint, user, working dir, ports, volumes, labels, health check, stop signal, shell.
    #[serde(deserialize_with = "or_default")]
    pub config: ContainerConfig,
    #[serde(deserialize_with = "or_default")]
    pub created: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    #[serde(deserialize_with = "or_default")]
    pub os: String,
    #[serde(rename = "os.version", deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    #[serde(deserialize_with = "or_default")]
    pub rootfs: RootFs,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    /// Bottom-most first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<DiffId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub created: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl ImageFile {
    pub fn created_at(&self) -> Timestamp {
        Timestamp::parse_rfc3339(&self.created).unwrap_or(Timestamp::ZERO)
    }
}
