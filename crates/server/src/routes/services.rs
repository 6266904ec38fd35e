//! Services.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use skep_api::ApiVersion;
use skep_api::service::{Service, ServiceCreateResponse, ServiceSpec, ServiceStatus, ServiceUpdateResponse, VirtualIp};
use skep_engine::image::RegistryAuth;
use skep_model::explain::Explanation;
use skep_model::network::HOST_NETWORKS;
use skep_model::reference::Reference;
use skep_model::secret::SecretBytes;
use skep_model::service as model;
use skep_model::service::{Mode, ResolutionMode};
use skep_model::task::TaskState;
use skep_node::{RegistryAuthFrom, ServiceUpdate};
use skep_store::View;

use super::networks;
use super::swarm::object_version;
use super::tasks::{LogsOf, task_logs_response};
use crate::error::{ApiError, Result};
use crate::extract::{GoJson, Params, registry_auth_text};
use crate::state::ServerState;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/services", get(list))
        .route("/services/create", post(create))
        .route("/services/{id}", get(inspect).delete(remove))
        .route("/services/{id}/update", post(update))
        .route("/services/{id}/logs", get(logs))
        // Not Docker's.
        .route("/skep/services/{id}/explain", get(explain))
}

async fn list(State(state): State<ServerState>, query: Params) -> Result<Json<Vec<Service>>> {
    let view = state.node().view()?;
    let filters = query.filters()?;
    filters.validate(&["id", "label", "mode", "name", "runtime"])?;
    let counted = query.flag("status");
    let listed = view.services().filter(|service| {
        filters.prefix("id", service.id.as_str())
            && filters.prefix("name", &service.spec.name)
            && filters.exact("mode", mode_word(service.spec.mode))
            && filters.exact("runtime", "container")
            && filters.labels("label", &service.spec.labels)
    });
    let listed = listed.map(|service| {
        let mut out = shown(&view, service);
        out.service_status = counted.then(|| status(&view, service));
        out
    });
    Ok(Json(listed.collect()))
}

/// As Docker shows it: the mesh's VIP first, and for a network whose addresses are each host's own a VIP without an address.
fn shown(view: &View, service: &model::Service) -> Service {
    let mut out = Service::from(service);
    if service.spec.resolution_mode() != ResolutionMode::Vip {
        return out;
    }
    let mut given = std::mem::take(&mut out.endpoint.virtual_ips);
    let mut virtual_ips = Vec::new();
    for attachment in service.spec.networks() {
        let own = HOST_NETWORKS.contains(&attachment.target.as_str())
            || view.find_network(&attachment.target).is_ok_and(|network| network.spec.is_node_local());
        if own {
            virtual_ips.push(VirtualIp { network_id: attachment.target.clone(), address: String::new() });
        } else if let Some(at) = given.iter().position(|vip| vip.network_id == attachment.target) {
            virtual_ips.push(given.remove(at));
        }
    }
    // What is left is the mesh's, or of a network that it is about to leave.
    given.extend(virtual_ips);
    if !given.is_empty() {
        out.endpoint.spec = (&service.spec.endpoint.clone().unwrap_or_default()).into();
    }
    out.endpoint.virtual_ips = given;
    out
}

fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Replicated { .. } => "replicated",
        Mode::Global => "global",
        Mode::ReplicatedJob { .. } => "replicated-job",
        Mode::GlobalJob => "global-job",
    }
}

/// swarmkit `ListServiceStatuses`: replicas are what the spec says, global services want as many tasks as are meant to run.
fn status(view: &View, service: &model::Service) -> ServiceStatus {
    let count = |wanted: &dyn Fn(&skep_model::task::Task) -> bool| {
        view.tasks_of_service(&service.id).filter(|task| wanted(task)).count() as u64
    };
    let is_job = service.spec.mode.is_job();
    // Earlier runs of a job are history.
    let current = |t: &skep_model::task::Task| !is_job || t.job_iteration == service.job_iteration();
    ServiceStatus {
        // What is asked to stop, or was on a host that is gone, is not counted (moby 31999).
        running_tasks: count(&|t| t.status.state == TaskState::Running && t.is_wanted() && current(t)),
        desired_tasks: match service.spec.mode {
            Mode::Replicated { replicas } => replicas,
            Mode::ReplicatedJob { max_concurrent, .. } => max_concurrent,
            Mode::Global => count(&|t| t.desired_state == TaskState::Running),
            Mode::GlobalJob => count(&|t| {
                t.desired_state == TaskState::Complete && t.status.state != TaskState::Complete && current(t)
            }),
        },
        completed_tasks: count(&|t| is_job && t.status.state == TaskState::Complete && current(t)),
    }
}

/// The spec of a request as the model has it, with the credentials for those who pull. The node checks it.
fn accepted(body: ServiceSpec, headers: &HeaderMap) -> Result<model::ServiceSpec> {
    let mut spec: model::ServiceSpec = body.try_into()?;
    let auth = registry_auth_text(headers)?;
    if !auth.is_empty() {
        spec.task.container.pull_auth = Some(SecretBytes(auth.into_bytes()));
    }
    Ok(spec)
}

/// How long a create waits for a registry to name a digest.
const REGISTRY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Clients since API 1.30 pin the image's digest themselves, or were told not to; older ones leave it to the daemon.
const CLIENTS_PIN_SINCE: ApiVersion = ApiVersion::new(1, 30);

/// Pins the image for clients that do not. Gives moby's warning if the registry does not answer.
async fn pin(state: &ServerState, version: ApiVersion, spec: &mut model::ServiceSpec) -> Vec<String> {
    let container = &mut spec.task.container;
    let image = &mut container.image;
    let Ok(reference) = image.parse::<Reference>() else { return Vec::new() };
    if version >= CLIENTS_PIN_SINCE || reference.digest.is_some() {
        return Vec::new();
    }
    // As moby: credentials that cannot be read are none.
    let text = container.pull_auth.as_ref().map(|auth| String::from_utf8_lossy(&auth.0)).unwrap_or_default();
    let auth = RegistryAuth::from_header(&text).ok().flatten().filter(|auth| !auth.is_empty());
    let name = reference.to_string();
    let asked = state.images().distribution_inspect(&name, auth);
    match tokio::time::timeout(REGISTRY_TIMEOUT, asked).await {
        Ok(Ok(found)) => {
            if let Some(digest) = found.digest {
                *image = Reference { digest: Some(digest.to_string()), ..reference }.familiar();
            }
            Vec::new()
        }
        Ok(Err(_)) | Err(_) => vec![format!(
            "image {image} could not be accessed on a registry to record\nits digest. Each node will access {image} independently,\npossibly leading to different nodes running different\nversions of the image.\n"
        )],
    }
}

async fn create(
    State(state): State<ServerState>,
    Extension(version): Extension<ApiVersion>,
    headers: HeaderMap,
    GoJson(body): GoJson<ServiceSpec>,
) -> Result<(StatusCode, Json<ServiceCreateResponse>)> {
    // Not being a manager is the first thing to say, whatever the spec.
    state.node().view()?;
    let mut spec = accepted(body, &headers)?;
    networks::name_local(&state, &mut spec)?;
    let warnings = pin(&state, version, &mut spec).await;
    let id = state.node().service_create(spec).await?;
    Ok((StatusCode::CREATED, Json(ServiceCreateResponse { id: id.to_string(), warnings })))
}

async fn update(
    State(state): State<ServerState>,
    Extension(api): Extension<ApiVersion>,
    Path(id): Path<String>,
    query: Params,
    headers: HeaderMap,
    GoJson(body): GoJson<ServiceSpec>,
) -> Result<Json<ServiceUpdateResponse>> {
    state.node().view()?;
    let version = object_version(&query, "service")?;
    let from = match query.text("registryAuthFrom") {
        "" | "spec" => RegistryAuthFrom::Spec,
        "previous-spec" => RegistryAuthFrom::PreviousSpec,
        _ => return Err(ApiError::invalid("unsupported registryAuthFrom value")),
    };
    let mut warnings = Vec::new();
    let update = match query.text("rollback") {
        "" => {
            let mut spec = accepted(body, &headers)?;
            networks::name_local(&state, &mut spec)?;
            if spec.task.container.pull_auth.is_none() {
                spec.task.container.pull_auth = from.credentials(&state.node().service_inspect(&id)?)?;
            }
            warnings = pin(&state, api, &mut spec).await;
            ServiceUpdate::Spec(Box::new(spec), from)
        }
        "previous" => ServiceUpdate::Rollback,
        other => return Err(ApiError::invalid(format!("unrecognized rollback option {other}"))),
    };
    state.node().service_update(&id, version, update).await?;
    Ok(Json(ServiceUpdateResponse { warnings: Some(warnings).filter(|w| !w.is_empty()) }))
}

async fn inspect(State(state): State<ServerState>, Path(id): Path<String>, query: Params) -> Result<Json<Service>> {
    let service = shown(&state.node().view()?, &state.node().service_inspect(&id)?);
    Ok(Json(if query.flag("insertDefaults") { service.with_defaults() } else { service }))
}

async fn explain(State(state): State<ServerState>, Path(id): Path<String>) -> Result<Json<Explanation>> {
    Ok(Json(state.node().service_explain(&id)?))
}

async fn remove(State(state): State<ServerState>, Path(id): Path<String>) -> Result<StatusCode> {
    state.node().service_remove(&id).await?;
    Ok(StatusCode::OK)
}

async fn logs(
    State(state): State<ServerState>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    query: Params,
) -> Result<Response> {
    let service = state.node().service_inspect(&id)?;
    task_logs_response(&state, version, &query, service.spec.task.container.tty, LogsOf::Service(service.id)).await
}
