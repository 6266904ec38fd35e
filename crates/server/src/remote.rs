//! Containers of tasks on other nodes: a request about one is sent on to its node, and answered there as if it had been
//! asked there.
//!
//! Decides which requests go elsewhere, and which a node answers that was asked by a manager. What they mean is for the
//! routes, on that node.

use std::sync::PoisonError;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use skep_api::ApiVersion;
use skep_model::NodeId;

use crate::error::{ApiError, Result};
use crate::state::ServerState;

/// What of a container can be had from afar: to look at it, to talk to it, to stop it.
const VERBS: [&str; 10] = ["json", "logs", "top", "stats", "exec", "attach", "resize", "wait", "stop", "kill"];

/// A path that may concern a container elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target<'p> {
    Container { reference: &'p str, verb: &'p str },
    Exec { id: &'p str },
}

impl<'p> Target<'p> {
    fn of(path: &'p str) -> Option<Self> {
        let words: Vec<&str> = path.trim_matches('/').split('/').collect();
        match words[..] {
            ["containers", reference, verb] if VERBS.contains(&verb) => Some(Self::Container { reference, verb }),
            ["exec", id, "start" | "resize" | "json"] => Some(Self::Exec { id }),
            _ => None,
        }
    }
}

/// What `skep network doctor` asks hosts.
pub(crate) const PROBE: &str = "/skep/network/probe";

/// Whether a manager may ask for this.
pub(crate) fn may_be_asked(path: &str) -> bool {
    Target::of(path).is_some() || path == PROBE
}

/// A connection to a node's API, to send requests on.
pub(crate) type Line = hyper::client::conn::http1::SendRequest<Body>;

fn gone(node_id: &NodeId, error: &hyper::Error) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("node {node_id} broke the connection: {error}"))
}

pub(crate) async fn line(state: &ServerState, node_id: &NodeId) -> Result<Line> {
    let connection = state.node().reach(node_id).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(connection)).await;
    let (sender, driver) = handshake.map_err(|error| gone(node_id, &error))?;
    tokio::spawn(async move {
        if let Err(error) = driver.with_upgrades().await {
            tracing::debug!(%error, "a connection to another node's API ended");
        }
    });
    Ok(sender)
}

/// A node that has not answered a question by then does not.
const PATIENCE: Duration = Duration::from_secs(10);

/// The answer to one question.
pub(crate) async fn ask<T: DeserializeOwned>(mut line: Line, question: Request<Body>) -> Result<T> {
    let unanswered = |what: &str| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, what);
    let answered = async {
        let response = line.send_request(question).await?;
        let (parts, body) = response.into_parts();
        Ok::<_, hyper::Error>((parts.status, body.collect().await?.to_bytes()))
    };
    let answered = tokio::time::timeout(PATIENCE, answered).await.map_err(|_| unanswered("it does not answer"))?;
    let (status, body) = answered.map_err(|error| unanswered(&format!("it broke the connection: {error}")))?;
    match serde_json::from_slice(&body) {
        Ok(answer) if status.is_success() => Ok(answer),
        _ if status == StatusCode::NOT_FOUND => Err(unanswered("its daemon is older and does not know the question")),
        _ => Err(unanswered(&format!("it answered {status}"))),
    }
}

/// The answer from elsewhere, or the request back: it is for this node.
pub(crate) async fn forward(
    state: &ServerState,
    request: Request<Body>,
) -> std::result::Result<Response<Body>, Request<Body>> {
    let path = request.uri().path().to_owned();
    let found = match Target::of(&path) {
        None => return Err(request),
        Some(Target::Container { reference, .. }) if state.engine().inspect(reference).is_ok() => return Err(request),
        // `docker inspect TASK` asks for a container first, and is to find the task.
        Some(Target::Container { reference, verb }) => state
            .node()
            .remote_container(reference, verb != "json")
            .map(|found| found.map(|c| (c.node_id, format!("/containers/{}/{verb}", c.container_id)))),
        Some(Target::Exec { id }) => Ok(state.exec_elsewhere(id).map(|node_id| (node_id, path.clone()))),
    };
    match found {
        Ok(None) => Err(request),
        Ok(Some((node_id, path))) => {
            let sent = send(state, request, &node_id, &path).await;
            Ok(sent.unwrap_or_else(IntoResponse::into_response))
        }
        Err(error) => Ok(ApiError::from(error).into_response()),
    }
}

async fn send(state: &ServerState, mut request: Request<Body>, node_id: &NodeId, path: &str) -> Result<Response<Body>> {
    let mut sender = line(state, node_id).await?;
    let version = request.extensions().get::<ApiVersion>().copied();
    let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let version = version.map(|v| format!("/v{v}")).unwrap_or_default();
    *request.uri_mut() =
        format!("{version}{path}{query}").parse::<Uri>().map_err(|_| ApiError::invalid("malformed request path"))?;
    let makes_exec = request.method() == Method::POST && path.ends_with("/exec");
    let client = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let mut response = sender.send_request(request).await.map_err(|e| gone(node_id, &e))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        let node = hyper::upgrade::on(&mut response);
        let stop = state.stop().clone();
        state.work().spawn(stop.run_until_cancelled_owned(async move {
            if let (Ok(client), Ok(node)) = tokio::join!(client, node) {
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(node)).await;
            }
        }));
    }
    let (parts, body) = response.into_parts();
    if !makes_exec || parts.status != StatusCode::CREATED {
        return Ok(Response::from_parts(parts, Body::new(body)));
    }
    let body = body.collect().await.map_err(|e| gone(node_id, &e))?.to_bytes();
    if let Some(id) =
        serde_json::from_slice::<serde_json::Value>(&body).ok().and_then(|v| v["Id"].as_str().map(str::to_owned))
    {
        state.remember_exec(id, node_id.clone());
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

/// Execs made on other nodes through this one: at most so many are remembered, the newest.
const EXECS: usize = 4096;

impl ServerState {
    fn remember_exec(&self, id: String, node_id: NodeId) {
        let mut execs = self.execs().lock().unwrap_or_else(PoisonError::into_inner);
        if execs.len() >= EXECS {
            execs.pop_front();
        }
        execs.push_back((id, node_id));
    }

    fn exec_elsewhere(&self, id: &str) -> Option<NodeId> {
        let execs = self.execs().lock().unwrap_or_else(PoisonError::into_inner);
        execs.iter().find(|(known, _)| known == id).map(|(_, node_id)| node_id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::{Target, may_be_asked};

    #[test]
    fn only_what_concerns_a_container_goes_elsewhere() {
        assert_eq!(Target::of("/containers/web.1/logs"), Some(Target::Container { reference: "web.1", verb: "logs" }));
        assert_eq!(Target::of("/exec/abc/start"), Some(Target::Exec { id: "abc" }));
        for path in [
            "/containers/json",
            "/containers/create",
            "/containers/a/start",
            "/containers/a/archive",
            "/images/json",
            "/swarm/leave",
            "/skep/network/doctor",
        ] {
            assert!(!may_be_asked(path), "{path}");
        }
    }
}
