//! Query parameters and bodies as moby reads them.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use skep_api::{Filters, go_json};
use skep_engine::image::RegistryAuth;

use crate::error::{ApiError, Result};

/// The most a JSON body may hold; a config is at most 1000 KiB before base64.
const MAX_JSON_BYTES: usize = 16 * 1024 * 1024;

/// The query string. Malformed pairs are left out, as in Go.
#[derive(Debug, Default)]
pub(crate) struct Params(BTreeMap<String, Vec<String>>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let pairs =
            Query::<Vec<(String, String)>>::from_request_parts(parts, state).await.map(|q| q.0).unwrap_or_default();
        let mut params = Self::default();
        for (key, value) in pairs {
            params.0.entry(key).or_default().push(value);
        }
        Ok(params)
    }
}

impl Params {
    /// The first value; empty if absent.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(|v| v.first()).map_or("", String::as_str)
    }

    pub(crate) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// moby `httputils.BoolValue`: everything but these few words is true.
    pub(crate) fn flag(&self, key: &str) -> bool {
        !matches!(self.text(key).trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
    }

    pub(crate) fn flag_or(&self, key: &str, default: bool) -> bool {
        if self.0.contains_key(key) { self.flag(key) } else { default }
    }

    pub(crate) fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>> {
        match self.text(key) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| ApiError::invalid(format!("invalid value {text:?} for {key}"))),
        }
    }

    pub(crate) fn filters(&self) -> Result<Filters> {
        Ok(Filters::parse(self.text("filters"))?)
    }

    /// `h` and `w` of a resize.
    pub(crate) fn size(&self) -> Result<(u16, u16)> {
        Ok((self.number("h")?.unwrap_or(0), self.number("w")?.unwrap_or(0)))
    }
}

/// A JSON body, read by Go's rules.
pub(crate) struct GoJson<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for GoJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        Ok(Self(go_json::decode(&read_body(request.into_body()).await?)?))
    }
}

/// The bytes of a JSON body.
pub(crate) struct RawJson(pub(crate) bytes::Bytes);

impl<S: Send + Sync> FromRequest<S> for RawJson {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        Ok(Self(read_body(request.into_body()).await?))
    }
}

async fn read_body(body: Body) -> Result<bytes::Bytes> {
    let limited = http_body_util::Limited::new(body, MAX_JSON_BYTES);
    Ok(limited
        .collect()
        .await
        .map_err(|e| ApiError::invalid(format!("cannot read the request's body: {e}")))?
        .to_bytes())
}

/// Credentials of `X-Registry-Auth`, if any.
pub(crate) fn registry_auth(headers: &HeaderMap) -> Result<Option<RegistryAuth>> {
    let text = registry_auth_text(headers)?;
    Ok(RegistryAuth::from_header(&text)?.filter(|auth| !auth.is_empty()))
}

/// The header as it came, for passing on to the nodes that pull.
pub(crate) fn registry_auth_text(headers: &HeaderMap) -> Result<String> {
    match headers.get("x-registry-auth") {
        None => Ok(String::new()),
        Some(value) => match value.to_str() {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(ApiError::invalid("invalid X-Registry-Auth header: not ASCII")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_as_moby_reads_them() {
        let with = |v: &str| Params([("all".to_owned(), vec![v.to_owned()])].into());
        for yes in ["1", "true", "True", "yes", "x"] {
            assert!(with(yes).flag("all"), "{yes}");
        }
        for no in ["", "0", "false", "False", "no", "none"] {
            assert!(!with(no).flag("all"), "{no}");
        }
        assert!(!Params::default().flag("all") && Params::default().flag_or("all", true));
    }
}
