//! Secrets and configs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skep_model::Labels;
use skep_model::secret as model;
use skep_model::secret::SecretBytes;

use crate::{ConvertError, GoTime, ObjectVersion};

/// `SecretSpec` and `ConfigSpec`.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct BlobSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub labels: Labels,
    /// Base64. A secret's is never shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templating: Option<Value>,
}

/// `Secret` and `Config`.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Blob {
    #[serde(rename = "ID")]
    pub id: String,
    pub version: ObjectVersion,
    pub created_at: GoTime,
    pub updated_at: GoTime,
    pub spec: BlobSpec,
}

impl From<&model::Secret> for Blob {
    fn from(secret: &model::Secret) -> Self {
        Self {
            id: secret.id.to_string(),
            version: ObjectVersion { index: secret.meta.version },
            created_at: secret.meta.created_at.into(),
            updated_at: secret.meta.updated_at.into(),
            spec: BlobSpec {
                name: secret.name.clone(),
                labels: secret.labels.clone(),
                templating: templating(&secret.templating),
                ..Default::default()
            },
        }
    }
}

impl From<&model::Config> for Blob {
    fn from(config: &model::Config) -> Self {
        Self {
            id: config.id.to_string(),
            version: ObjectVersion { index: config.meta.version },
            created_at: config.meta.created_at.into(),
            updated_at: config.meta.updated_at.into(),
            spec: BlobSpec {
                name: config.name.clone(),
                labels: config.labels.clone(),
                data: Some(STANDARD.encode(&config.data.0)),
                templating: templating(&config.templating),
                ..Default::default()
            },
        }
    }
}

/// What a request asks for.
pub struct Parts {
    pub name: String,
    pub labels: Labels,
    pub data: Option<SecretBytes>,
    pub templating: Option<String>,
}

fn driver_name(driver: &Option<Value>) -> Option<&str> {
    driver.as_ref()?.get("Name")?.as_str().filter(|name| !name.is_empty())
}

fn templating(name: &Option<String>) -> Option<Value> {
    name.as_ref().map(|name| serde_json::json!({ "Name": name }))
}

impl BlobSpec {
    pub fn into_parts(self) -> Result<Parts, ConvertError> {
        if driver_name(&self.driver).is_some() {
            return ConvertError::unserved("a secret driver");
        }
        let templating = driver_name(&self.templating).map(str::to_owned);
        if templating.as_deref().is_some_and(|name| name != model::TEMPLATING_GOLANG) {
            return ConvertError::invalid("unrecognized template type (golang is the one there is)");
        }
        let data = match self.data.as_deref() {
            None | Some("") => None,
            Some(text) => {
                let bytes = STANDARD
                    .decode(text)
                    .map_err(|_| ConvertError::Invalid("invalid JSON: illegal base64 data in Data".into()))?;
                Some(SecretBytes(bytes))
            }
        };
        Ok(Parts { name: self.name, labels: self.labels, data, templating })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go_json;

    #[test]
    fn a_request_is_read_and_a_secret_is_not_shown() {
        let spec: BlobSpec = go_json::decode(br#"{"Name":"pw","Labels":{},"Data":"aGVsbG8="}"#).unwrap();
        let Parts { name, labels, data, templating } = spec.into_parts().unwrap();
        assert_eq!((name.as_str(), data.as_ref().map(|d| d.0.as_slice())), ("pw", Some(&b"hello"[..])));
        let id = "a".parse().unwrap();
        let secret = model::Secret { id, meta: Default::default(), name, labels, data: data.unwrap(), templating };
        assert!(!serde_json::to_string(&Blob::from(&secret)).unwrap().contains("Data"));
    }
}
