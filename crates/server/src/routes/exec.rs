//! Exec: more processes in a running container.

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http_body_util::BodyExt;
use skep_api::container::{ExecCreate, ExecInspect, ExecProcess, ExecStart};
use skep_api::{ApiVersion, go_json};
use skep_engine::EngineError;
use skep_engine::container::{Attached, ExecConfig, OutputChunk, StdStream};

use crate::convert::container::words;
use crate::error::{ApiError, Result};
use crate::extract::{GoJson, Params};
use crate::state::ServerState;
use crate::stream::detach::DetachKeys;
use crate::stream::hijack::Hijack;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/containers/{id}/exec", post(create))
        .route("/exec/{id}/start", post(start))
        .route("/exec/{id}/resize", post(resize))
        .route("/exec/{id}/json", get(inspect))
}

async fn create(
    State(state): State<ServerState>,
    Path(id): Path<String>,
    GoJson(body): GoJson<ExecCreate>,
) -> Result<(StatusCode, Json<serde_json::Value>)> {
    let cmd = words(body.cmd);
    if cmd.is_empty() {
        return Err(ApiError::invalid("No exec command specified"));
    }
    DetachKeys::parse(&body.detach_keys)?;
    let config = ExecConfig {
        cmd,
        tty: body.tty,
        attach_stdin: body.attach_stdin,
        attach_stdout: body.attach_stdout,
        attach_stderr: body.attach_stderr,
        user: body.user,
        env: body.env,
        working_dir: body.working_dir,
        privileged: body.privileged,
        detach_keys: body.detach_keys,
        console_size: body.console_size,
    };
    let exec_id = state.engine().exec_create(&id, config).await?;
    Ok((StatusCode::CREATED, Json(serde_json::json!({ "Id": exec_id }))))
}

async fn start(
    State(state): State<ServerState>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    mut request: Request,
) -> Result<Response> {
    let asked = request.headers().contains_key(header::UPGRADE);
    let upgrade = if asked { Some(hyper::upgrade::on(&mut request)) } else { None };
    let body = request.into_body().collect().await.map_err(|e| ApiError::invalid(e.to_string()))?.to_bytes();
    let options: ExecStart = go_json::decode(&body)?;
    let record = state.engine().exec_inspect(&id)?;
    if options.detach {
        state.engine().exec_start_detached(&id).await?;
        return Ok(StatusCode::OK.into_response());
    }
    let attached = match state.engine().exec_start_attached(&id).await {
        // By then Docker has taken over the connection: the reason is written where the output would be, and the exit code
        // (126, 127) is read from the exec's inspect.
        Err(EngineError::StartFailed { message, .. }) => {
            let chunk = OutputChunk { stream: StdStream::Stdout, data: format!("{message}\r\n").into() };
            let output = futures_util::stream::once(std::future::ready(Ok(chunk)));
            Attached { tty: record.config.tty, stdin: None, output: Box::pin(output) }
        }
        result => result?,
    };
    if let Some([height, width]) = options.console_size.filter(|s| *s != [0, 0]) {
        // The size may be too late for a process that ended at once.
        let _ = state.engine().exec_resize(&id, height, width).await;
    }
    let keys = match attached.tty && attached.stdin.is_some() {
        true => Some(DetachKeys::parse(&record.config.detach_keys)?),
        false => None,
    };
    Ok(Hijack::without_body(upgrade).connect(attached, keys, version, &state, || ()))
}

async fn resize(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<StatusCode> {
    let (height, width) = query.size()?;
    state.engine().exec_resize(&id, height, width).await?;
    Ok(StatusCode::OK)
}

async fn inspect(State(state): State<ServerState>, Path(id): Path<String>) -> Result<Json<ExecInspect>> {
    let record = state.engine().exec_inspect(&id)?;
    let mut cmd = record.config.cmd.into_iter();
    Ok(Json(ExecInspect {
        id: record.id,
        running: record.running,
        exit_code: record.exit_code,
        process_config: ExecProcess {
            tty: record.config.tty,
            entrypoint: cmd.next().unwrap_or_default(),
            arguments: cmd.collect(),
            privileged: record.config.privileged,
            user: record.config.user,
        },
        open_stdin: record.config.attach_stdin,
        open_stderr: record.config.attach_stderr,
        open_stdout: record.config.attach_stdout,
        can_remove: !record.running && record.exit_code.is_some(),
        container_id: record.container_id.to_string(),
        detach_keys: record.config.detach_keys,
        pid: record.pid,
    }))
}
