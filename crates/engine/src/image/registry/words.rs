//! Failures of registries in the words Docker has for them, since tools and people look for these.

use std::error::Error as _;

use serde::Deserialize;

use crate::image::ImageError;

/// An error body: `{"errors":[{"code":"DENIED","message":"…"}]}`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Refusal {
    #[serde(skip)]
    pub(super) status: u16,
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

impl Refusal {
    /// Reads what the registry said, or says what its status means.
    pub(super) fn parse(status: u16, body: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            errors: Vec<Refusal>,
            /// Docker Hub's token server says it so.
            details: String,
        }
        let body = serde_json::from_slice::<Body>(body).unwrap_or_default();
        let details = Some(body.details).filter(|details| !details.is_empty()).map(|message| {
            let code = match status {
                401 => "UNAUTHORIZED",
                429 => "TOOMANYREQUESTS",
                _ => "UNKNOWN",
            };
            Self { status, code: code.to_owned(), message }
        });
        let said = details.or_else(|| body.errors.into_iter().next());
        let refusal = said.filter(|refusal| !refusal.code.is_empty()).unwrap_or_else(|| {
            let (code, message) = match status {
                401 => ("UNAUTHORIZED", "authentication required"),
                403 => ("DENIED", "requested access to the resource is denied"),
                404 => ("NOT_FOUND", "not found"),
                429 => ("TOOMANYREQUESTS", "too many requests"),
                _ => ("UNKNOWN", "unknown error"),
            };
            Self { status, code: code.to_owned(), message: message.to_owned() }
        });
        Self { status, ..refusal }
    }

    /// What a challenge says of the token that was sent (RFC 6750) counts more than the body, as in distribution's client.
    pub(super) fn of_token(status: u16, error: &str, description: Option<String>) -> Option<Self> {
        let (code, message) = match error {
            "invalid_token" => ("UNAUTHORIZED", "authentication required"),
            "insufficient_scope" => ("DENIED", "requested access to the resource is denied"),
            _ => return None,
        };
        Some(Self { status, code: code.to_owned(), message: description.unwrap_or_else(|| message.to_owned()) })
    }

    /// Go's `errcode.Error`: `manifest unknown: manifest unknown`.
    pub(super) fn text(&self) -> String {
        let code = self.code.to_ascii_lowercase().replace('_', " ");
        if self.message.is_empty() || self.code == "UNKNOWN" && self.status >= 500 {
            return format!("received unexpected HTTP status: {}", status_text(self.status));
        }
        format!("{code}: {}", self.message)
    }

    /// moby's `translatePullError`.
    pub(super) fn into_pull_error(self, familiar: &str, familiar_name: &str) -> ImageError {
        let text = self.text();
        match self.code.as_str() {
            "DENIED" => ImageError::NotFound(format!(
                "pull access denied for {familiar_name}, repository does not exist or may require 'docker login': {text}"
            )),
            "MANIFEST_UNKNOWN" => ImageError::NotFound(format!("manifest for {familiar} not found: {text}")),
            "NAME_UNKNOWN" => ImageError::NotFound(format!("repository {familiar_name} not found: {text}")),
            "NOT_FOUND" => {
                ImageError::NotFound(format!("manifest for {familiar} not found: manifest unknown: manifest unknown"))
            }
            _ => self.into_error(),
        }
    }

    pub(super) fn into_error(self) -> ImageError {
        let text = self.text();
        match self.status {
            401 | 403 => ImageError::Unauthorized(text),
            404 => ImageError::NotFound(text),
            _ => ImageError::Registry(text),
        }
    }
}

fn status_text(status: u16) -> String {
    reqwest::StatusCode::from_u16(status).map_or_else(|_| status.to_string(), |status| status.to_string())
}

/// What Go's `net/http` says when a request does not come through: `Get "https://host/v2/": dial tcp …`.
pub(super) fn transport(method: &str, url: &str, error: &reqwest::Error) -> ImageError {
    ImageError::Registry(format!("{} \"{url}\": {}", verb(method), reason(url, error)))
}

/// A registry that takes the connection and says nothing.
pub(super) fn silent(method: &str, url: &str) -> ImageError {
    let reason = "net/http: request canceled (Client.Timeout exceeded while awaiting headers)";
    ImageError::Registry(format!("{} \"{url}\": {reason}", verb(method)))
}

/// Go writes `Get`, not `GET`.
fn verb(method: &str) -> String {
    let mut verb = method.to_ascii_lowercase();
    if let Some(first) = verb.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    verb
}

fn reason(url: &str, error: &reqwest::Error) -> String {
    let authority = url.split("://").nth(1).unwrap_or(url).split('/').next().unwrap_or_default();
    let default_port = if url.starts_with("https") { 443 } else { 80 };
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let address = if has_port { authority.to_owned() } else { format!("{authority}:{default_port}") };
    let host = if has_port { authority.rsplit_once(':').map_or(authority, |(host, _)| host) } else { authority };
    let text = chain(error);
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            match io.kind() {
                std::io::ErrorKind::ConnectionRefused => {
                    return format!("dial tcp {address}: connect: connection refused");
                }
                std::io::ErrorKind::HostUnreachable => return format!("dial tcp {address}: connect: no route to host"),
                std::io::ErrorKind::NetworkUnreachable => {
                    return format!("dial tcp {address}: connect: network is unreachable");
                }
                std::io::ErrorKind::UnexpectedEof => return "EOF".to_owned(),
                std::io::ErrorKind::ConnectionReset => return "read: connection reset by peer".to_owned(),
                _ => {}
            }
        }
        source = cause.source();
    }
    if error.is_timeout() {
        return if error.is_connect() {
            format!("dial tcp {address}: i/o timeout")
        } else {
            "net/http: request canceled (Client.Timeout exceeded while awaiting headers)".to_owned()
        };
    }
    if text.contains("dns error") || text.contains("failed to lookup address") {
        return format!("dial tcp: lookup {host}: no such host");
    }
    if text.contains("InvalidContentType") || text.contains("corrupt message") {
        return "http: server gave HTTP response to HTTPS client".to_owned();
    }
    if text.contains("UnknownIssuer") {
        return "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned();
    }
    if text.contains("NotValidForName") {
        return format!("tls: failed to verify certificate: x509: certificate is not valid for {host}");
    }
    if text.contains("Expired") {
        return "tls: failed to verify certificate: x509: certificate has expired or is not yet valid".to_owned();
    }
    text
}

/// An error with all its causes; reqwest's own text does not have them.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_as_docker_tells_them() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#;
        let error = Refusal::parse(404, body).into_pull_error("r:5000/a:x", "r:5000/a");
        assert_eq!(error.to_string(), "manifest for r:5000/a:x not found: manifest unknown: manifest unknown");
        let error = Refusal::parse(403, b"").into_pull_error("a:x", "a");
        assert_eq!(
            error.to_string(),
            "pull access denied for a, repository does not exist or may require 'docker login': denied: requested access \
             to the resource is denied"
        );
        let error = Refusal::parse(401, br#"{"details":"incorrect username or password"}"#).into_error();
        assert_eq!(error.to_string(), "unauthorized: incorrect username or password");
        let error = Refusal::parse(502, b"<html>").into_error();
        assert_eq!(error.to_string(), "received unexpected HTTP status: 502 Bad Gateway");
    }
}
