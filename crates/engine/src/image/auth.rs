//! Registry credentials as clients send them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::Deserialize;

use super::ImageError;

/// The JSON inside `X-Registry-Auth`. Never shown: its `Debug` is blank.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    /// Older clients: base64 of `user:password`.
    pub auth: String,
    pub serveraddress: String,
    /// An OAuth2 refresh token, used instead of a password.
    pub identitytoken: String,
    /// A bearer token to send as it is.
    pub registrytoken: String,
}

impl RegistryAuth {
    /// Reads the header's value; an empty one is no credentials. Docker takes both base64 alphabets.
    pub fn from_header(value: &str) -> Result<Option<Self>, ImageError> {
        let value = value.trim();
        if value.is_empty() {
            return Ok(None);
        }
        let bad = |what: &str| ImageError::Invalid(format!("invalid X-Registry-Auth header: {what}"));
        let bytes = URL_SAFE
            .decode(value)
            .or_else(|_| STANDARD.decode(value))
            .or_else(|_| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(value.trim_end_matches('=')))
            .map_err(|_| bad("not base64"))?;
        if bytes.is_empty() || bytes == b"null" {
            return Ok(None);
        }
        let auth: Self = serde_json::from_slice(&bytes).map_err(|_| bad("not a JSON object of credentials"))?;
        Ok(Some(auth.normalised()))
    }

    fn normalised(mut self) -> Self {
        if self.username.is_empty() && !self.auth.is_empty() {
            let decoded = STANDARD.decode(&self.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            if let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) {
                self.username = user.to_owned();
                self.password = password.trim_end_matches('\0').to_owned();
            }
        }
        self
    }

    pub fn is_empty(&self) -> bool {
        self.username.is_empty() && self.identitytoken.is_empty() && self.registrytoken.is_empty()
    }
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryAuth(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_alphabets_and_nothing_are_read() {
        let json = br#"{"username":"bee","password":"h\u00f8ney??>>","serveraddress":"r:5000"}"#;
        for value in [STANDARD.encode(json), URL_SAFE.encode(json)] {
            let auth = RegistryAuth::from_header(&value).unwrap().unwrap();
            assert_eq!((auth.username.as_str(), auth.password.as_str()), ("bee", "høney??>>"));
            assert_eq!(format!("{auth:?}"), "RegistryAuth(..)");
        }
        assert_eq!(RegistryAuth::from_header("").unwrap(), None);
        assert!(RegistryAuth::from_header("e30=").unwrap().unwrap().is_empty());
        assert!(RegistryAuth::from_header("!!!").is_err());
    }

    #[test]
    fn the_old_auth_field_is_read() {
        let json = format!(r#"{{"auth":"{}"}}"#, STANDARD.encode("bee:honey"));
        let auth = RegistryAuth::from_header(&STANDARD.encode(json)).unwrap().unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("bee", "honey"));
    }
}
