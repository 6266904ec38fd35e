//! Tasks, and the logs of tasks and services.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Json, Router};
use futures_util::StreamExt;
use skep_api::task::{Task, desired_state};
use skep_api::time::parse_moment;
use skep_api::{ApiVersion, Filters};
use skep_engine::container::StdStream;
use skep_model::task::TaskState;
use skep_model::{ServiceId, TaskId};
use skep_node::{LogRequest, TaskLog};
use skep_store::View;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::{ApiError, Result};
use crate::extract::Params;
use crate::state::{ServerState, now};
use crate::stream::lines::streamed;
use crate::stream::logs::LogStyle;
use crate::stream::stdcopy::{self, Framing};

pub(crate) fn routes() -> Router<ServerState> {
    Router::new().route("/tasks", get(list)).route("/tasks/{id}", get(inspect)).route("/tasks/{id}/logs", get(logs))
}

/// What a list asks for, with names resolved once.
struct Selection<'a> {
    filters: &'a Filters,
    services: Option<BTreeSet<ServiceId>>,
    nodes: Option<BTreeSet<skep_model::NodeId>>,
    desired: BTreeSet<TaskState>,
    up_to_date: Option<bool>,
}

impl<'a> Selection<'a> {
    fn new(state: &ServerState, filters: &'a Filters) -> Result<Self> {
        let service = |reference| Ok(state.node().service_inspect(reference)?.id);
        let services = match filters.contains("service") {
            false => None,
            true => Some(filters.get("service").map(service).collect::<Result<_>>()?),
        };
        let node = |reference| Ok(state.node().node_inspect(reference)?.id);
        let nodes = match filters.contains("node") {
            false => None,
            true => Some(filters.get("node").map(node).collect::<Result<_>>()?),
        };
        let desired = filters
            .get("desired-state")
            .map(|text| {
                desired_state(text).ok_or_else(|| ApiError::invalid(format!("Invalid desired-state filter: '{text}'")))
            })
            .collect::<Result<_>>()?;
        Ok(Self { filters, services, nodes, desired, up_to_date: filters.flag("_up-to-date")? })
    }

    fn has(&self, view: &View, task: &skep_model::task::Task) -> bool {
        let f = self.filters;
        self.services.as_ref().is_none_or(|ids| ids.contains(&task.service_id))
            && self.nodes.as_ref().is_none_or(|ids| task.node_id.as_ref().is_some_and(|id| ids.contains(id)))
            && (self.desired.is_empty() || self.desired.contains(&task.desired_state))
            && self.up_to_date.is_none_or(|wanted| {
                let current = view.service(&task.service_id).is_some_and(|s| s.spec_version == task.spec_version);
                wanted == current
            })
            && f.prefix("id", task.id.as_str())
            && f.prefix("name", &task.name())
            && f.labels("label", &task.service_labels)
            && f.exact("runtime", "container")
    }
}

async fn list(State(state): State<ServerState>, query: Params) -> Result<Json<Vec<Task>>> {
    let view = state.node().view()?;
    let filters = query.filters()?;
    filters.validate(&["_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"])?;
    let selection = Selection::new(&state, &filters)?;
    let network = |id: &skep_model::NetworkId| view.network(id).map(AsRef::as_ref);
    // A list for one service need not walk the tasks of all.
    let tasks: Vec<Task> = match &selection.services {
        Some(ids) => ids
            .iter()
            .flat_map(|id| view.tasks_of_service(id))
            .filter(|t| selection.has(&view, t))
            .map(|t| Task::from_model(t, network))
            .collect(),
        None => view.tasks().filter(|t| selection.has(&view, t)).map(|t| Task::from_model(t, network)).collect(),
    };
    Ok(Json(tasks))
}

async fn inspect(State(state): State<ServerState>, Path(id): Path<String>) -> Result<Json<Task>> {
    let task = state.node().task_inspect(&id)?;
    let view = state.node().view()?;
    Ok(Json(Task::from_model(&task, |id| view.network(id).map(AsRef::as_ref))))
}

async fn logs(
    State(state): State<ServerState>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    query: Params,
) -> Result<Response> {
    let task = state.node().task_inspect(&id)?;
    task_logs_response(&state, version, &query, task.spec.container.tty, LogsOf::Task(task.id)).await
}

/// Whose logs.
pub(crate) enum LogsOf {
    Service(ServiceId),
    Task(TaskId),
}

pub(crate) async fn task_logs_response(
    state: &ServerState,
    version: ApiVersion,
    query: &Params,
    tty: bool,
    of: LogsOf,
) -> Result<Response> {
    let request = LogRequest {
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        follow: query.flag("follow"),
        since: parse_moment(query.text("since"), now())?.unwrap_or_default(),
        tail: tail(query.text("tail"))?,
    };
    if !request.stdout && !request.stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    let framing = Framing::of_tty(tty);
    let style = LogStyle { framing, timestamps: query.flag("timestamps"), details: query.flag("details") };
    let stream = match of {
        LogsOf::Service(id) => state.node().service_logs(id.as_str(), request).await?,
        LogsOf::Task(id) => state.node().task_logs(id.as_str(), request).await?,
    };
    let body = ReceiverStream::new(stream).map(move |item| match item {
        Ok(log) => {
            let stream = if log.stderr { StdStream::Stderr } else { StdStream::Stdout };
            style.render(stream, log.at, &attributes(&log), &log.data)
        }
        // The last that comes; as moby passes on what swarmkit said.
        Err(error) => {
            stdcopy::error(framing, &format!("Error grabbing logs: rpc error: code = Unknown desc = {error}\n"))
        }
    });
    Ok(streamed(framing.content_type(version), body, state.stop()))
}

/// So many of the last lines; `None` is all of them.
fn tail(text: &str) -> Result<Option<u64>> {
    match (text, text.parse::<i64>()) {
        ("" | "all", _) => Ok(None),
        (_, Ok(lines)) => {
            u64::try_from(lines).map(Some).map_err(|_| ApiError::invalid("negative tail values not supported"))
        }
        (_, Err(_)) => Err(ApiError::invalid("tail value must be a positive integer or \"all\"")),
    }
}

/// What `docker service logs` prints in front of a line is made from these.
fn attributes(log: &TaskLog) -> std::collections::BTreeMap<String, String> {
    [
        ("com.docker.swarm.node.id".to_owned(), log.node_id.to_string()),
        ("com.docker.swarm.service.id".to_owned(), log.service_id.to_string()),
        ("com.docker.swarm.task.id".to_owned(), log.task_id.to_string()),
    ]
    .into()
}
