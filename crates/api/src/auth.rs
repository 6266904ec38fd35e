//! Registry credentials as clients send them: `X-Registry-Auth`, base64url of a JSON object.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};

use crate::{ConvertError, go_json};

/// `AuthConfig`. Names are lower camel case, unlike the rest of the API.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auth: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub serveraddress: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identitytoken: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub registrytoken: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig").field("serveraddress", &self.serveraddress).finish_non_exhaustive()
    }
}

impl AuthConfig {
    /// Reads the header's text. Empty text is no credentials; moby also ignores text that is no base64 or no JSON, because
    /// old clients sent such, but that hides mistakes: it is refused here with moby's newer words.
    pub fn decode(header: &str) -> Result<Option<Self>, ConvertError> {
        if header.is_empty() {
            return Ok(None);
        }
        let bad =
            |what: &dyn std::fmt::Display| ConvertError::Invalid(format!("invalid X-Registry-Auth header: {what}"));
        let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let url_safe = GeneralPurpose::new(&base64::alphabet::URL_SAFE, lenient);
        let standard = GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
        let bytes = url_safe.decode(header).or_else(|_| standard.decode(header)).map_err(|e| bad(&e))?;
        let mut auth: Self = go_json::decode(&bytes).map_err(|_| bad(&"not a JSON object"))?;
        if auth.username.is_empty() && !auth.auth.is_empty() {
            let pair = standard.decode(&auth.auth).ok().and_then(|b| String::from_utf8(b).ok());
            if let Some((username, password)) = pair.as_deref().and_then(|p| p.split_once(':')) {
                auth.username = username.to_owned();
                auth.password = password.trim_end_matches('\0').to_owned();
            }
        }
        Ok(Some(auth).filter(|a| *a != Self::default()))
    }
}

/// `POST /auth` when the registry took the credentials.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AuthenticateOk {
    pub status: String,
    pub identity_token: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_clients_send() {
        let json = br#"{"username":"jim","password":"pw","serveraddress":"r.example"}"#;
        let header = base64::engine::general_purpose::URL_SAFE.encode(json);
        let auth = AuthConfig::decode(&header).unwrap().unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("jim", "pw"));
        let none = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(b"{}");
        assert_eq!(AuthConfig::decode(&none).unwrap(), None);
        assert_eq!(AuthConfig::decode("").unwrap(), None);
        assert!(AuthConfig::decode("%%").is_err());
        assert!(!format!("{auth:?}").contains("pw"));
    }
}
