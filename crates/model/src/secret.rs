//! Secrets and configs: named blobs that tasks are handed as files.

use serde::{Deserialize, Serialize};

use crate::{ConfigId, Labels, Meta, SecretId};

/// Bytes that must not be shown: `Debug` tells only the length.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretBytes(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Secret {
    pub id: SecretId,
    pub meta: Meta,
    pub name: String,
    pub labels: Labels,
    pub data: SecretBytes,
    /// How the payload is filled in on the node that uses it, if it is: [`TEMPLATING_GOLANG`].
    #[serde(default)]
    pub templating: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub id: ConfigId,
    pub meta: Meta,
    pub name: String,
    pub labels: Labels,
    pub data: SecretBytes,
    /// How the payload is filled in on the node that uses it, if it is: [`TEMPLATING_GOLANG`].
    #[serde(default)]
    pub templating: Option<String>,
}

/// The one template driver there is.
pub const TEMPLATING_GOLANG: &str = "golang";

/// A secret must be smaller than this, in bytes (swarmkit `MaxSecretSize`).
pub const MAX_SECRET_BYTES: usize = 500 * 1024;
/// A config must be smaller than this, in bytes (swarmkit `MaxConfigSize`).
pub const MAX_CONFIG_BYTES: usize = 1000 * 1024;
