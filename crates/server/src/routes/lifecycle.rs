//! What a container is told to do: start, stop, kill, restart, pause, resize; and waiting for its end.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use skep_api::container::{TopResponse, WaitError, WaitResponse};
use skep_engine::container::{StopOptions, WaitCondition};

use crate::error::{ApiError, Result};
use crate::extract::Params;
use crate::state::ServerState;
use crate::stream::lines::line;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/containers/{id}/start", post(start))
        .route("/containers/{id}/stop", post(stop))
        .route("/containers/{id}/kill", post(kill))
        .route("/containers/{id}/restart", post(restart))
        .route("/containers/{id}/pause", post(pause))
        .route("/containers/{id}/unpause", post(unpause))
        .route("/containers/{id}/resize", post(resize))
        .route("/containers/{id}/wait", post(wait))
        .route("/containers/{id}/top", get(top))
}

const DONE: Result<StatusCode> = Ok(StatusCode::NO_CONTENT);

async fn start(State(state): State<ServerState>, Path(id): Path<String>) -> Result<StatusCode> {
    state.engine().start(&id).await?;
    DONE
}

fn stop_options(query: &Params) -> Result<StopOptions> {
    let signal = query.text("signal");
    Ok(StopOptions { timeout_secs: query.number("t")?, signal: (!signal.is_empty()).then(|| signal.to_owned()) })
}

async fn stop(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<StatusCode> {
    state.engine().stop(&id, stop_options(&query)?).await?;
    DONE
}

async fn kill(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<StatusCode> {
    state.engine().kill(&id, query.text("signal")).await?;
    DONE
}

async fn restart(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<StatusCode> {
    state.engine().restart(&id, stop_options(&query)?).await?;
    DONE
}

async fn pause(State(state): State<ServerState>, Path(id): Path<String>) -> Result<StatusCode> {
    state.engine().pause(&id).await?;
    DONE
}

async fn unpause(State(state): State<ServerState>, Path(id): Path<String>) -> Result<StatusCode> {
    state.engine().unpause(&id).await?;
    DONE
}

async fn resize(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<StatusCode> {
    let (height, width) = query.size()?;
    state.engine().resize(&id, height, width).await?;
    Ok(StatusCode::OK)
}

async fn top(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<Json<TopResponse>> {
    let ps_args = match query.text("ps_args") {
        "" => "-ef",
        given => given,
    };
    let top = state.engine().top(&id, ps_args).await?;
    Ok(Json(TopResponse { titles: top.titles, processes: top.processes }))
}

/// The status comes at once, so that the client knows the wait has begun before it starts the container; the body when it
/// ended. A client that goes away takes the wait with it.
async fn wait(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<Response> {
    let condition = match query.text("condition") {
        "" | "not-running" => WaitCondition::NotRunning,
        "next-exit" => WaitCondition::NextExit,
        "removed" => WaitCondition::Removed,
        other => return Err(ApiError::invalid(format!("invalid condition: {other:?}"))),
    };
    // The id, since the name may go with the container.
    let id = state.engine().inspect(&id)?.id.to_string();
    let engine = state.engine().clone();
    let outcome = async move {
        match engine.wait(&id, condition).await {
            // Why a start failed is told by the start; an error here would be one of waiting.
            Ok(outcome) => WaitResponse { status_code: outcome.exit_code.into(), error: None },
            Err(error) => WaitResponse { status_code: -1, error: Some(WaitError { message: error.to_string() }) },
        }
    };
    // Polled once before the answer begins, so that an exit right after it is not missed.
    let mut outcome = Box::pin(outcome);
    let first = futures_util::poll!(&mut outcome);
    let body = futures_util::stream::once(async move {
        match first {
            std::task::Poll::Ready(response) => line(&response),
            std::task::Poll::Pending => line(&outcome.await),
        }
    });
    let body = body.take_until(state.stop().clone().cancelled_owned()).map(Ok::<_, std::convert::Infallible>);
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from_stream(body))
        .map_err(|e| ApiError::internal(e.to_string()))
}
