//! `skep network doctor`: every host is asked to try the others, at the same time, and what they found is put together. Not
//! Docker's.

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::future::join_all;
use skep_model::doctor::{Diagnosis, ProbeReport, ProbeRequest};

use super::system::host;
use crate::error::{ApiError, Result};
use crate::remote::{self, PROBE};
use crate::state::{ServerState, now};

pub(crate) fn routes() -> Router<ServerState> {
    Router::new().route("/skep/network/doctor", get(doctor)).route(PROBE, post(probe))
}

/// This host's part, asked for by a manager.
async fn probe(State(state): State<ServerState>, Json(request): Json<ProbeRequest>) -> Json<ProbeReport> {
    let (at, facts) = (now(), host::facts());
    let report = state.node().net().probe(request).await;
    let cgroup = facts.cgroup_version.parse().unwrap_or_default();
    Json(ProbeReport { at, kernel: facts.kernel, cgroup, ..report })
}

async fn doctor(State(state): State<ServerState>) -> Result<Json<Diagnosis>> {
    let requests = state.node().doctor_requests()?;
    let (mut asked, requests): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
    // All are spoken to before the first is asked: what one sends the others must be there to hear.
    let lines = join_all(asked.iter().map(|host| remote::line(&state, &host.node_id))).await;
    let answers = join_all(lines.into_iter().zip(&requests).map(|(line, request)| ask(line, request))).await;
    for (host, answer) in asked.iter_mut().zip(answers) {
        host.answer = answer.map_err(|error| error.message);
    }
    Ok(Json(state.node().doctor_diagnosis(&asked)?))
}

/// The host's report, and how far its clock is ahead of ours.
async fn ask(line: Result<remote::Line>, request: &ProbeRequest) -> Result<(ProbeReport, i64)> {
    let body = serde_json::to_vec(request).map_err(|error| ApiError::internal(error.to_string()))?;
    let request = Request::post(PROBE).header("host", "skep").header("content-type", "application/json");
    let request = request.body(Body::from(body)).map_err(|error| ApiError::internal(error.to_string()))?;
    let sent = now();
    let report: ProbeReport = remote::ask(line?, request).await?;
    let ahead = (report.at.0 - sent.0) / 1_000_000;
    Ok((report, ahead))
}
