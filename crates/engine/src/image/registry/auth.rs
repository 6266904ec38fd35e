//! `WWW-Authenticate` challenges and bearer tokens (distribution `docs/spec/auth/token.md`).

use std::collections::BTreeMap;

use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::READ_TIMEOUT;
use super::words::{self, Refusal};
use crate::image::{ImageError, RegistryAuth, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: Option<String> },
}

impl Challenge {
    /// The first challenge we can answer; bearer before basic, as Docker prefers.
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let texts: Vec<&str> =
            headers.get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok()).collect();
        let parsed: Vec<Self> = texts.iter().filter_map(|text| Self::parse(text)).collect();
        parsed.iter().find(|c| matches!(c, Self::Bearer { .. })).or(parsed.first()).cloned()
    }

    /// What a refusal says of the token it answers.
    pub(super) fn refusal(status: u16, headers: &HeaderMap) -> Option<Refusal> {
        headers.get_all("www-authenticate").iter().find_map(|value| {
            let (scheme, rest) = value.to_str().ok()?.trim().split_once(' ')?;
            let mut said = scheme.eq_ignore_ascii_case("bearer").then(|| parameters(rest))?;
            Refusal::of_token(status, &said.remove("error")?, said.remove("error_description"))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest);
        Some(Self::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service").unwrap_or_default(),
            scope: parameters.remove("scope"),
        })
    }
}

/// `a="b, c",d=e`.
fn parameters(mut text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    while let Some((key, rest)) = text.split_once('=') {
        let (value, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_at(rest.find(',').unwrap_or(rest.len())),
        };
        found.insert(key.trim_matches([',', ' ']).to_ascii_lowercase(), value.to_owned());
        text = after;
    }
    found
}

/// Fetches a token for a scope. Credentials go to the realm the registry named, as Docker does.
pub(super) async fn fetch_token(
    client: &reqwest::Client,
    realm: &str,
    service: &str,
    scopes: &[String],
    auth: Option<&RegistryAuth>,
) -> Result<String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Answer {
        token: String,
        access_token: String,
    }
    if !realm.starts_with("https://") && !realm.starts_with("http://") {
        return Err(ImageError::Registry(format!("the registry names an unusable token service {realm:?}")));
    }
    let request = match auth.filter(|auth| !auth.identitytoken.is_empty()) {
        Some(auth) => {
            let scope = scopes.join(" ");
            let fields = [
                ("grant_type", "refresh_token"),
                ("refresh_token", auth.identitytoken.as_str()),
                ("service", service),
                ("scope", scope.as_str()),
                ("client_id", "docker"),
            ];
            let body: Vec<String> = fields.iter().map(|(key, value)| format!("{key}={}", escape(value))).collect();
            client.post(realm).header("content-type", "application/x-www-form-urlencoded").body(body.join("&"))
        }
        None => {
            let mut query = vec![("service", service)];
            query.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
            let user = auth.filter(|auth| !auth.username.is_empty());
            query.extend(user.map(|auth| ("account", auth.username.as_str())));
            let request = client.get(realm).query(&query);
            match user {
                Some(auth) => request.basic_auth(&auth.username, Some(&auth.password)),
                None => request,
            }
        }
    };
    let exchange = async {
        let response = request.send().await?;
        Ok((response.status().as_u16(), response.bytes().await?))
    };
    let (status, body) = tokio::time::timeout(READ_TIMEOUT, exchange)
        .await
        .map_err(|_| words::silent("GET", realm))?
        .map_err(|error: reqwest::Error| words::transport("GET", realm, &error.without_url()))?;
    if !(200..300).contains(&status) {
        return Err(Refusal::parse(status, &body).into_error());
    }
    let answer: Answer = serde_json::from_slice(&body)
        .map_err(|_| ImageError::Registry(format!("the token service {realm} gave an unreadable answer")))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() {
        return Err(ImageError::Registry("authorization server did not include a token in the response".to_owned()));
    }
    Ok(token)
}

/// Percent-encoding of everything but unreserved characters.
fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text =
            r#"Bearer realm="https://auth.example/token",service="reg.example",scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(text),
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: "reg.example".into(),
                scope: Some("repository:a/b:pull,push".into()),
            })
        );
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(escape("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}
