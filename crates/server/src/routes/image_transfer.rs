//! Images in motion: pull, push, load, save, import, commit; and whether a registry takes our credentials.

use std::future::Future;
use std::io;
use std::pin::Pin;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use skep_api::image::ErrorLine;
use skep_engine::image::{
    ByteStream, CommitOptions, ImageError, ImportOptions, Progress, ProgressSender, PullOptions, RegistryAuth,
};
use skep_model::reference::is_digest;
use tokio::sync::mpsc;

use crate::error::{ApiError, Result};
use crate::extract::{GoJson, Params, RawJson, registry_auth};
use crate::state::ServerState;
use crate::stream::lines::{line, streamed};

/// Progress lines a slow client may be behind.
const PROGRESS_BACKLOG: usize = 64;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/images/create", post(create))
        .route("/images/load", post(load))
        .route("/images/get", get(save_many))
        .route("/commit", post(commit))
        .route("/auth", post(auth))
}

type Transfer = Pin<Box<dyn Future<Output = Result<(), ImageError>> + Send>>;

/// Runs a transfer under its answer: an error before anything was said is the request's status, a later one the stream's
/// last line. The transfer ends with the connection.
async fn progress(
    state: &ServerState,
    mut transfer: Transfer,
    mut lines: mpsc::Receiver<Progress>,
) -> Result<Response> {
    let (first, transfer) = tokio::select! {
        biased;
        item = lines.recv() => (item, Some(transfer)),
        result = &mut transfer => {
            result?;
            // It may have ended with lines still unread; it must not be polled again for them.
            (lines.recv().await, None)
        }
    };
    let Some(first) = first else {
        return Ok(streamed("application/json", futures_util::stream::empty(), state.stop()));
    };
    let running = Running { transfer, failed: None, lines };
    let rest = futures_util::stream::unfold(running, |mut running| async move {
        let bytes = running.next().await?;
        Some((bytes, running))
    });
    let body = futures_util::stream::iter([line(&first)]).chain(rest);
    Ok(streamed("application/json", body, state.stop()))
}

struct Running {
    transfer: Option<Transfer>,
    failed: Option<ImageError>,
    lines: mpsc::Receiver<Progress>,
}

impl Running {
    async fn next(&mut self) -> Option<Bytes> {
        while let Some(transfer) = &mut self.transfer {
            tokio::select! {
                biased;
                Some(item) = self.lines.recv() => return Some(line(&item)),
                result = transfer => {
                    self.failed = result.err();
                    self.transfer = None;
                }
            }
        }
        if let Some(item) = self.lines.recv().await {
            return Some(line(&item));
        }
        self.failed.take().map(|error| line(&ErrorLine::new(&error.sentence())))
    }
}

fn channel() -> (ProgressSender, mpsc::Receiver<Progress>) {
    let (sender, lines) = mpsc::channel(PROGRESS_BACKLOG);
    (ProgressSender::new(sender), lines)
}

fn body_stream(body: Body) -> ByteStream {
    Box::pin(body.into_data_stream().map_err(io::Error::other))
}

/// `repo` and `tag` of a request as one reference; the tag may be a digest.
fn joined(repo: &str, tag: &str) -> String {
    match tag {
        "" => repo.to_owned(),
        digest if is_digest(digest) => format!("{repo}@{digest}"),
        tag => format!("{repo}:{tag}"),
    }
}

async fn create(State(state): State<ServerState>, query: Params, request: Request) -> Result<Response> {
    let image = query.text("fromImage");
    if image.is_empty() {
        return import(&state, &query, request).await;
    }
    let auth = registry_auth(request.headers())?;
    let reference = joined(image, query.text("tag"));
    let parsed: skep_model::reference::Reference =
        reference.parse().map_err(|e: skep_model::reference::InvalidReference| ApiError::invalid(e.to_string()))?;
    if parsed.tag.is_none() && parsed.digest.is_none() {
        return Err(ApiError::unserved("pulling all tags of a repository (name one)"));
    }
    let platform = Some(query.text("platform").to_owned()).filter(|p| !p.is_empty());
    let images = state.images().clone();
    let (sender, lines) = channel();
    let transfer = async move { images.pull(&reference, PullOptions { auth, platform }, sender).await.map(|_| ()) };
    progress(&state, Box::pin(transfer), lines).await
}

async fn import(state: &ServerState, query: &Params, request: Request) -> Result<Response> {
    if query.text("fromSrc") != "-" {
        return Err(ApiError::unserved("importing from a URL (send the archive itself)"));
    }
    let repo = query.text("repo");
    let options = ImportOptions {
        reference: (!repo.is_empty()).then(|| joined(repo, query.text("tag"))),
        message: query.text("message").to_owned(),
        changes: query.all("changes").to_vec(),
        platform: Some(query.text("platform").to_owned()).filter(|p| !p.is_empty()),
    };
    let id = state.images().import(body_stream(request.into_body()), options).await?;
    let done = Progress::message(id.to_string());
    Ok(streamed("application/json", futures_util::stream::iter([line(&done)]), state.stop()))
}

pub(crate) async fn push(state: &ServerState, name: &str, query: &Params, headers: &HeaderMap) -> Result<Response> {
    let auth = registry_auth(headers)?;
    let reference = joined(name, query.text("tag"));
    let images = state.images().clone();
    let (sender, lines) = channel();
    let transfer = async move { images.push(&reference, auth, sender).await };
    progress(state, Box::pin(transfer), lines).await
}

async fn load(State(state): State<ServerState>, request: Request) -> Result<Response> {
    let images = state.images().clone();
    let input = body_stream(request.into_body());
    let (sender, lines) = channel();
    let transfer = async move { images.load(input, sender).await.map(|_| ()) };
    progress(&state, Box::pin(transfer), lines).await
}

pub(crate) async fn save(state: &ServerState, names: &[String]) -> Result<Response> {
    let stream = state.images().save(names).await?;
    Response::builder()
        .header(header::CONTENT_TYPE, "application/x-tar")
        .body(Body::from_stream(stream))
        .map_err(|e| ApiError::internal(e.to_string()))
}

async fn save_many(State(state): State<ServerState>, query: Params) -> Result<Response> {
    let names = query.all("names");
    if names.is_empty() {
        return Err(ApiError::invalid("no image names given: names=NAME[&names=NAME...]"));
    }
    save(&state, names).await
}

async fn commit(State(state): State<ServerState>, query: Params, RawJson(body): RawJson) -> Result<Response> {
    let record = state.engine().inspect(query.text("container"))?;
    let repo = query.text("repo");
    let mut config = record.config.clone();
    let given: skep_model::container::ContainerConfig = skep_api::go_json::decode(&body)?;
    overlay(&mut config, given);
    let options = CommitOptions {
        reference: (!repo.is_empty()).then(|| joined(repo, query.text("tag"))),
        parent: record.image_id.parse().ok(),
        upper_dir: record.graph.upper.clone(),
        container_id: record.id.to_string(),
        config,
        changes: query.all("changes").to_vec(),
        author: query.text("author").to_owned(),
        comment: query.text("comment").to_owned(),
    };
    // A container that writes while its layer is read gives a layer that never was.
    let pause = query.flag_or("pause", true) && record.state.status == skep_engine::container::Status::Running;
    if pause {
        state.engine().pause(record.id.as_str()).await?;
    }
    let committed = state.images().commit(options).await;
    if pause {
        state.engine().unpause(record.id.as_str()).await?;
    }
    Ok((StatusCode::CREATED, Json(serde_json::json!({ "Id": committed?.to_string() }))).into_response())
}

/// What a commit's body says of the new image's configuration, over the container's own.
fn overlay(config: &mut skep_model::container::ContainerConfig, given: skep_model::container::ContainerConfig) {
    config.env.extend(given.env);
    config.labels.extend(given.labels);
    config.exposed_ports.extend(given.exposed_ports);
    if given.cmd.is_some() {
        config.cmd = given.cmd;
    }
    if given.entrypoint.is_some() {
        config.entrypoint = given.entrypoint;
    }
    if !given.user.is_empty() {
        config.user = given.user;
    }
    if !given.working_dir.is_empty() {
        config.working_dir = given.working_dir;
    }
}

async fn auth(State(state): State<ServerState>, GoJson(auth): GoJson<RegistryAuth>) -> Result<Json<serde_json::Value>> {
    let status = state.images().login(auth).await.map_err(|error| {
        let status = ApiError::from(error);
        // Of all routes only this one says 401, and the CLI asks for the password again.
        if status.status == StatusCode::FORBIDDEN {
            ApiError::new(StatusCode::UNAUTHORIZED, status.message)
        } else {
            status
        }
    })?;
    Ok(Json(serde_json::json!({ "Status": status, "IdentityToken": "" })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_digests() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(joined("busybox", "1"), "busybox:1");
        assert_eq!(joined("busybox", ""), "busybox");
        assert_eq!(joined("busybox", &digest), format!("busybox@{digest}"));
    }
}
