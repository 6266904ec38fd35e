//! One operation's talk with one registry: it finds the base URL that answers, holds the credentials, and tries again what
//! may pass.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Body, Method, Response};
use skep_model::reference::Reference;

use super::auth::{Challenge, fetch_token};
use super::endpoint::Endpoint;
use super::manifest;
use super::words::{self, Refusal};
use super::{READ_TIMEOUT, Registries};
use crate::image::id::Digest;
use crate::image::{ImageError, RegistryAuth, Result};

/// How often a request is made that fails in a way that may pass.
const ATTEMPTS: u32 = 5;
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// A registry may ask for patience; more than this is told to the user instead.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
const MAX_MANIFEST_BYTES: usize = 8 * 1024 * 1024;

pub(super) struct Session {
    client: reqwest::Client,
    /// `https://host/v2/path`.
    repository: String,
    base: String,
    actions: &'static str,
    path: String,
    auth: Option<RegistryAuth>,
    challenge: Option<Challenge>,
    authorization: Mutex<Option<HeaderValue>>,
}

/// A request as a value, so that it can be made again.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    /// Makes the body anew for each attempt.
    pub(super) body: Option<&'a (dyn Fn() -> Body + Send + Sync)>,
    pub(super) attempts: u32,
}

impl<'a> Request<'a> {
    pub(super) fn new(method: Method, url: impl Into<String>) -> Self {
        Self { method, url: url.into(), headers: HeaderMap::new(), body: None, attempts: ATTEMPTS }
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }

    pub(super) fn body(mut self, body: &'a (dyn Fn() -> Body + Send + Sync)) -> Self {
        self.body = Some(body);
        self
    }

    /// For what cannot simply be said again, and for questions whose answer a user waits for.
    pub(super) fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }
}

/// Why a ping found no registry to talk to.
enum Ping {
    Unreachable(ImageError),
    Refused(Refusal),
}

/// A manifest or index as its bytes, with the digest they have.
pub(super) struct Fetched {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    pub(super) media_type: String,
}

impl Session {
    /// Connects to the first endpoint that answers. Plain HTTP is tried only if nothing spoke TLS there: credentials that
    /// were refused over HTTPS are not then sent in the clear.
    pub(super) async fn open(
        registries: &Registries,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        actions: &'static str,
    ) -> Result<Self> {
        Self::first(registries, registries.endpoints(&reference.domain, false), reference, auth, actions, None).await
    }

    /// Connects and fetches a manifest: from a mirror if one has it, else from the registry itself.
    pub(super) async fn find(
        registries: &Registries,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        tag_or_digest: &str,
    ) -> Result<(Self, Fetched)> {
        let (mirrors, own): (Vec<_>, Vec<_>) =
            registries.endpoints(&reference.domain, true).into_iter().partition(|endpoint| endpoint.mirror);
        for mirror in mirrors {
            let base = mirror.base.clone();
            let found = async {
                // Credentials are the registry's own, not a mirror's.
                let session =
                    Self::first(registries, vec![mirror], reference, None, "pull", Some(tag_or_digest)).await?;
                let manifest = session.manifest(reference, tag_or_digest).await?;
                Ok::<_, ImageError>((session, manifest))
            };
            match found.await {
                Ok(found) => return Ok(found),
                Err(error) => tracing::debug!(mirror = base, %error, "mirror passed over"),
            }
        }
        let session = Self::first(registries, own, reference, auth, "pull", Some(tag_or_digest)).await?;
        let manifest = session.manifest(reference, tag_or_digest).await?;
        Ok((session, manifest))
    }

    async fn first(
        registries: &Registries,
        endpoints: Vec<Endpoint>,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        actions: &'static str,
        manifest: Option<&str>,
    ) -> Result<Self> {
        let mut failure = None;
        let auth = auth.filter(|auth| !auth.is_empty());
        for endpoint in endpoints {
            let mut session = Self::new(registries, &endpoint, &reference.path, auth, actions)?;
            match session.ping().await {
                Ok(Some(response)) => {
                    session.challenge = Challenge::from_headers(response.headers());
                    session.authorize(None).await.map_err(|error| session.named(manifest, error))?;
                    return Ok(session);
                }
                Ok(None) => return Ok(session),
                Err(Ping::Refused(refusal)) => return Err(refusal.into_error()),
                Err(Ping::Unreachable(error)) => {
                    tracing::debug!(endpoint = endpoint.base, %error, "registry endpoint not reachable");
                    failure = Some(error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| ImageError::Registry("no registry endpoint".to_owned())))
    }

    fn new(
        registries: &Registries,
        endpoint: &Endpoint,
        path: &str,
        auth: Option<&RegistryAuth>,
        actions: &'static str,
    ) -> Result<Self> {
        Ok(Self {
            client: registries.client(endpoint.insecure)?,
            repository: format!("{}/v2/{path}", endpoint.base),
            base: endpoint.base.clone(),
            actions,
            path: path.to_owned(),
            auth: auth.cloned(),
            challenge: None,
            authorization: Mutex::new(None),
        })
    }

    /// Asks whether a registry is there; the response is one that wants credentials.
    async fn ping(&self) -> Result<Option<Response>, Ping> {
        let url = format!("{}/v2/", self.base);
        let response = self.attempt(&Request::new(Method::GET, &url).attempts(2)).await.map_err(Ping::Unreachable)?;
        match response.status().as_u16() {
            200..300 => Ok(None),
            401 => Ok(Some(response)),
            status => {
                let body = response.bytes().await.unwrap_or_default();
                Err(Ping::Refused(Refusal::parse(status, &body)))
            }
        }
    }

    /// Whether a registry takes these credentials.
    pub(super) async fn login(registries: &Registries, domain: &str, auth: &RegistryAuth) -> Result<()> {
        let reference = Reference { domain: domain.to_owned(), path: String::new(), tag: None, digest: None };
        let session = Self::open(registries, &reference, Some(auth), "pull").await?;
        let url = format!("{}/v2/", session.base);
        let response = session.attempt(&Request::new(Method::GET, &url).attempts(2)).await?;
        match response.status().as_u16() {
            200..300 => Ok(()),
            401 | 403 => {
                Err(ImageError::Unauthorized(format!("login attempt to {url} failed with status: 401 Unauthorized")))
            }
            status => Err(Refusal::parse(status, &response.bytes().await.unwrap_or_default()).into_error()),
        }
    }

    fn header(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gets what the challenge asks for. `scope` is what a later challenge asked beyond our own guess.
    async fn authorize(&self, scope: Option<String>) -> Result<()> {
        use base64::Engine as _;
        let text = match &self.challenge {
            None => return Ok(()),
            Some(Challenge::Basic) => match &self.auth {
                Some(auth) if !auth.username.is_empty() => {
                    let pair = format!("{}:{}", auth.username, auth.password);
                    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
                }
                _ => return Err(ImageError::Unauthorized("no basic auth credentials".to_owned())),
            },
            Some(Challenge::Bearer { realm, service, .. }) => match &self.auth {
                Some(auth) if !auth.registrytoken.is_empty() => format!("Bearer {}", auth.registrytoken),
                auth => {
                    let own = (!self.path.is_empty()).then(|| format!("repository:{}:{}", self.path, self.actions));
                    let scopes: Vec<String> = scope.or(own).into_iter().collect();
                    let token = fetch_token(&self.client, realm, service, &scopes, auth.as_ref()).await?;
                    format!("Bearer {token}")
                }
            },
        };
        let mut value = HeaderValue::try_from(text)
            .map_err(|_| ImageError::Registry("the registry's token cannot be sent in a header".to_owned()))?;
        value.set_sensitive(true);
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    /// Docker names the request that needed credentials: a login's, or the first for a manifest. It asks for that of a tag
    /// with HEAD.
    fn named(&self, manifest: Option<&str>, error: ImageError) -> ImageError {
        let asked = match manifest {
            _ if self.path.is_empty() => format!("Get \"{}/v2/\"", self.base),
            Some(reference) => {
                let verb = if reference.parse::<Digest>().is_ok() { "Get" } else { "Head" };
                format!("{verb} \"{}\"", self.url(&format!("manifests/{reference}")))
            }
            None => return error,
        };
        match error {
            ImageError::Unauthorized(why) => ImageError::Unauthorized(format!("{asked}: {why}")),
            other => other,
        }
    }

    /// One request, again after a failure that may pass.
    async fn attempt(&self, request: &Request<'_>) -> Result<Response> {
        let attempts = request.attempts;
        let mut delay = FIRST_DELAY;
        let mut attempt = 1;
        loop {
            let mut builder =
                self.client.request(request.method.clone(), &request.url).headers(request.headers.clone());
            if let Some(value) = self.header() {
                builder = builder.header(AUTHORIZATION, value);
            }
            if let Some(body) = request.body {
                builder = builder.body(body());
            }
            let wait = match answer(request, builder).await? {
                Ok(response) if response.status().as_u16() == 429 || response.status().is_server_error() => {
                    if attempt >= attempts {
                        return Ok(response);
                    }
                    match retry_after(response.headers()) {
                        Some(asked) if asked > MAX_RETRY_AFTER => return Ok(response),
                        asked => asked.unwrap_or(delay),
                    }
                }
                Ok(response) => return Ok(response),
                // Nobody there: asking again at once is no use, and the user waits for the answer.
                Err(error) if error.is_connect() || attempt >= attempts => {
                    return Err(words::transport(request.method.as_str(), &request.url, &error));
                }
                Err(error) => {
                    tracing::debug!(error = words::chain(&error), attempt, "registry request failed, trying again");
                    delay
                }
            };
            tokio::time::sleep(wait).await;
            delay *= 2;
            attempt += 1;
        }
    }

    /// Makes a request and, if the registry wants other or fresher credentials, once more with these.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response> {
        let response = self.attempt(request).await?;
        if response.status().as_u16() != 401 {
            return Ok(response);
        }
        let scope = match Challenge::from_headers(response.headers()) {
            Some(Challenge::Bearer { scope, .. }) => scope,
            _ => return Ok(response),
        };
        if self.auth.as_ref().is_some_and(|auth| !auth.registrytoken.is_empty()) {
            return Ok(response);
        }
        self.authorize(scope).await?;
        self.attempt(request).await
    }

    /// As [`Self::send`], with anything but success as a refusal.
    pub(super) async fn send_ok(&self, request: &Request<'_>) -> Result<Result<Response, Refusal>> {
        let response = self.send(request).await?;
        if response.status().is_success() {
            return Ok(Ok(response));
        }
        let status = response.status().as_u16();
        let of_token = Challenge::refusal(status, response.headers());
        let body = response.bytes().await.unwrap_or_default();
        Ok(Err(of_token.unwrap_or_else(|| Refusal::parse(status, &body))))
    }

    pub(super) fn url(&self, rest: &str) -> String {
        format!("{}/{rest}", self.repository)
    }

    /// A `Location` header made whole.
    pub(super) fn absolute(&self, location: &str) -> String {
        if location.starts_with('/') { format!("{}{location}", self.base) } else { location.to_owned() }
    }

    /// A manifest by tag or digest; bytes that are not what was asked for are an error.
    pub(super) async fn manifest(&self, reference: &Reference, tag_or_digest: &str) -> Result<Fetched> {
        let mut request = Request::new(Method::GET, self.url(&format!("manifests/{tag_or_digest}")));
        for media_type in manifest::ACCEPT {
            request = request.header(ACCEPT.as_str(), media_type);
        }
        let response = match self.send_ok(&request).await? {
            Ok(response) => response,
            Err(refusal) => return Err(refusal.into_pull_error(&reference.familiar(), &reference.familiar_name())),
        };
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let media_type = header("content-type").unwrap_or_default();
        let promised = header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let bytes = self.small_body(response, &request.url).await?;
        let digest = Digest::of(&bytes);
        let expected = tag_or_digest.parse::<Digest>().ok().or(promised);
        match expected.filter(|expected| *expected != digest) {
            Some(expected) => {
                Err(ImageError::DigestMismatch { expected: expected.to_string(), actual: digest.to_string() })
            }
            None => Ok(Fetched { bytes, digest, media_type }),
        }
    }

    async fn small_body(&self, mut response: Response, url: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = next_chunk(&mut response, url).await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_MANIFEST_BYTES {
                return Err(ImageError::Registry(format!("{url} is larger than {MAX_MANIFEST_BYTES} bytes")));
            }
        }
        Ok(bytes)
    }

    /// A small blob in memory, verified.
    pub(super) async fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let request = Request::new(Method::GET, self.url(&format!("blobs/{digest}")));
        let response = self.send_ok(&request).await?.map_err(Refusal::into_error)?;
        let bytes = self.small_body(response, &request.url).await?;
        let actual = Digest::of(&bytes);
        if actual == *digest {
            Ok(bytes)
        } else {
            Err(ImageError::DigestMismatch { expected: digest.to_string(), actual: actual.to_string() })
        }
    }

    /// A blob from `offset` on; the status tells whether the registry heeded it.
    pub(super) async fn blob(&self, digest: &Digest, offset: u64) -> Result<Response> {
        let mut request = Request::new(Method::GET, self.url(&format!("blobs/{digest}")));
        if offset > 0 {
            request = request.header(RANGE.as_str(), &format!("bytes={offset}-"));
        }
        self.send_ok(&request).await?.map_err(Refusal::into_error)
    }
}

/// Waits for the answer, for ever only while a body is being sent.
async fn answer(request: &Request<'_>, builder: reqwest::RequestBuilder) -> Result<reqwest::Result<Response>> {
    if request.body.is_some() {
        return Ok(builder.send().await);
    }
    let silent = |_| words::silent(request.method.as_str(), &request.url);
    tokio::time::timeout(READ_TIMEOUT, builder.send()).await.map_err(silent)
}

/// The next piece of an answer; silence is an error.
pub(super) async fn next_chunk(response: &mut Response, url: &str) -> Result<Option<bytes::Bytes>> {
    match tokio::time::timeout(READ_TIMEOUT, response.chunk()).await {
        Ok(chunk) => chunk.map_err(|error| words::transport("GET", url, &error)),
        Err(_) => Err(words::silent("GET", url)),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
