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
            spec: BlobSpec { name: secret.name.clone(), labels: secret.labels.clone(), ..Default::default() },
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
                ..Default::default()
            },
        }
    }
}

impl BlobSpec {
    /// Name, labels and bytes of a request.
    pub fn into_parts(self) -> Result<(String, Labels, Option<SecretBytes>), ConvertError> {
        let named = |v: &Option<Value>| {
            v.as_ref().and_then(|v| v.get("Name")).and_then(Value::as_str).is_some_and(|n| !n.is_empty())
        };
        if named(&self.driver) {
            return ConvertError::unserved("a secret driver");
        }
        if named(&self.templating) {
            return ConvertError::unserved("a template driver of a secret or config");
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
        Ok((self.name, self.labels, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go_json;

    #[test]
    fn a_request_is_read_and_a_secret_is_not_shown() {
        let spec: BlobSpec = go_json::decode(br#"{"Name":"pw","Labels":{},"Data":"aGVsbG8="}"#).unwrap();
        let (name, labels, data) = spec.into_parts().unwrap();
        assert_eq!((name.as_str(), data.as_ref().map(|d| d.0.as_slice())), ("pw", Some(&b"hello"[..])));
        let secret =
            model::Secret { id: "a".parse().unwrap(), meta: Default::default(), name, labels, data: data.unwrap() };
        assert!(!serde_json::to_string(&Blob::from(&secret)).unwrap().contains("Data"));
    }
}
