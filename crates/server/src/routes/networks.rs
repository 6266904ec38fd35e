//! Networks: bridges of this host and overlays of the swarm, in one list.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use skep_api::Filters;
use skep_api::network::{
    ConnectRequest, CreateRequest, CreateResponse, CreateSpec, DisconnectRequest, EndpointResource, NetworkResource,
    PeerInfo, PruneReport, ServiceInfo, ServiceTask, mac_text,
};
use skep_engine::EventKind;
use skep_model::network::{HOST_NETWORKS, Network};
use skep_model::sandbox::LocalNetwork;
use skep_model::service::ServiceSpec;
use skep_model::{Labels, Timestamp};
use skep_node::NodeError;

use crate::error::{ApiError, Result};
use crate::extract::{GoJson, Params};
use crate::state::{ServerState, now};

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(connect))
        .route("/networks/{id}/disconnect", post(disconnect))
}

/// A network found by name or id.
enum Found {
    Local(LocalNetwork),
    Swarm(Network),
}

/// A full name or id anywhere comes before the beginning of an id anywhere. Only a manager knows the swarm's networks.
fn find(state: &ServerState, reference: &str) -> Result<Found> {
    let local = state.node().net().network(reference);
    let exact = |name: &str, id: &str| name == reference || id == reference;
    match local {
        Ok(network) if exact(&network.spec.name, network.id.as_str()) => Ok(Found::Local(network)),
        local => match state.node().network_inspect(reference) {
            Ok(network) if exact(&network.spec.name, network.id.as_str()) || local.is_err() => {
                Ok(Found::Swarm(network))
            }
            Ok(_) | Err(_) => match local {
                Ok(network) => Ok(Found::Local(network)),
                Err(error) => Err(error.into()),
            },
        },
    }
}

/// The id of a network of either kind.
pub(crate) fn id_of(state: &ServerState, reference: &str) -> Option<String> {
    match find(state, reference).ok()? {
        Found::Local(network) => Some(network.id.to_string()),
        Found::Swarm(network) => Some(network.id.to_string()),
    }
}

/// A service may be on such a network of its hosts, which a client names by the id they have on this host.
/// Every other network of one host is refused (moby `populateNetworkID`).
pub(super) fn name_local(state: &ServerState, spec: &mut ServiceSpec) -> Result<()> {
    for attachment in spec.task.networks.iter_mut().chain(&mut spec.networks) {
        if state.node().network_inspect(&attachment.target).is_ok() {
            continue;
        }
        let Ok(local) = state.node().net().network(&attachment.target) else { continue };
        match local.spec.name.as_str() {
            name if HOST_NETWORKS.contains(&name) => attachment.target = local.spec.name,
            "none" => return Err(ApiError::not_found("network none not found")),
            name => {
                let text = format!(
                    "The network {name} cannot be used with services. Only networks scoped to the swarm can be used, such as \
                     those created with the overlay driver."
                );
                return Err(ApiError::new(StatusCode::FORBIDDEN, text));
            }
        }
    }
    Ok(())
}

const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];

fn passes(network: &NetworkResource, filters: &Filters) -> Result<bool> {
    let builtin = matches!(network.name.as_str(), "bridge" | "host" | "none" | "ingress" | "docker_gwbridge");
    for word in filters.get("type") {
        if !matches!(word, "builtin" | "custom") {
            return Err(ApiError::invalid(format!("invalid filter 'type={word}'")));
        }
    }
    let dangling = filters.flag("dangling")?;
    Ok(filters.exact("driver", &network.driver)
        && filters.prefix("id", &network.id)
        && filters.substring("name", &network.name)
        && filters.labels("label", &network.labels)
        && filters.exact("scope", &network.scope)
        && filters.exact("type", if builtin { "builtin" } else { "custom" })
        && dangling.is_none_or(|wanted| wanted == (!builtin && network.containers.is_empty())))
}

fn local_resource(state: &ServerState, network: &LocalNetwork) -> NetworkResource {
    let mut resource = NetworkResource::from(network);
    for (id, endpoint) in &network.endpoints {
        resource.containers.insert(
            id.to_string(),
            EndpointResource {
                name: state.engine().inspect(id.as_str()).map(|r| r.name.clone()).unwrap_or_default(),
                endpoint_id: endpoint.endpoint_id.to_string(),
                mac_address: mac_text(endpoint.mac),
                ipv4_address: endpoint.address.to_string(),
                ipv6_address: endpoint.address6.map(|a| a.to_string()).unwrap_or_default(),
            },
        );
    }
    resource
}

/// An overlay, with the containers this host has on it and the nodes that take part.
fn swarm_resource(state: &ServerState, network: &Network, verbose: bool) -> NetworkResource {
    let mut resource = NetworkResource::from(network);
    let view = state.node().view().ok();
    for record in state.engine().list(skep_engine::container::ListOptions { all: false }) {
        let endpoint = record.sandbox.iter().flat_map(|s| &s.endpoints).find(|e| e.network_id == network.id);
        if let Some(endpoint) = endpoint {
            resource.containers.insert(
                record.id.to_string(),
                EndpointResource {
                    name: record.name.clone(),
                    endpoint_id: endpoint.endpoint_id.to_string(),
                    mac_address: mac_text(endpoint.mac),
                    ipv4_address: endpoint.address.to_string(),
                    ipv6_address: endpoint.address6.map(|a| a.to_string()).unwrap_or_default(),
                },
            );
        }
    }
    if let Some(view) = view {
        add_members(&mut resource, &view, network, verbose);
    }
    resource
}

/// The nodes that take part, and with `verbose` the tasks.
fn add_members(resource: &mut NetworkResource, view: &skep_store::View, network: &Network, verbose: bool) {
    let mut peers = BTreeMap::new();
    let mut add_peer = |id: &skep_model::NodeId| {
        if let Some(node) = view.node(id) {
            let ip = node.status.address.map(|a| a.to_string()).unwrap_or_default();
            peers.insert(node.id.to_string(), PeerInfo { name: node.id.short().to_owned(), ip });
        }
    };
    network.attachments.values().for_each(|attachment| add_peer(&attachment.node_id));
    for task in view.tasks().filter(|t| t.is_live() && t.joins(&network.id)) {
        task.node_id.iter().for_each(&mut add_peer);
        if verbose {
            add_task(&mut resource.services, view, network, task);
        }
    }
    resource.peers = peers.into_values().collect();
}

fn add_task(
    services: &mut BTreeMap<String, ServiceInfo>,
    view: &skep_store::View,
    network: &Network,
    task: &skep_model::task::Task,
) {
    let Some(service) = view.service(&task.service_id) else { return };
    let entry = services.entry(service.spec.name.clone()).or_insert_with(|| {
        let endpoint = service.endpoint.as_ref();
        let vip = endpoint.and_then(|e| e.virtual_ips.iter().find(|v| v.network_id == network.id));
        ServiceInfo {
            vip: vip.map(|v| v.ip().to_string()).unwrap_or_default(),
            ports: endpoint
                .iter()
                .flat_map(|e| &e.ports)
                .map(|p| format!("Target: {}, Publish: {}", p.target_port, p.published_port))
                .collect(),
            ..Default::default()
        }
    });
    let given = task.networks.iter().find(|n| n.network_id == network.id).map(|n| n.address.addr());
    let address = given.or_else(|| task.status.addresses.get(&network.id).copied()).map(|address| address.to_string());
    let host = task.node_id.as_ref().and_then(|id| view.node(id)).and_then(|n| n.status.address);
    entry.tasks.push(ServiceTask {
        name: task.name(),
        endpoint_id: String::new(),
        endpoint_ip: address.unwrap_or_default(),
        info: host.map(|h| ("Host IP".to_owned(), h.to_string())).into_iter().collect(),
    });
}

async fn list(State(state): State<ServerState>, query: Params) -> Result<Json<Vec<NetworkResource>>> {
    let filters = query.filters()?;
    filters.validate(&FILTERS)?;
    let mut all: Vec<NetworkResource> = Vec::new();
    for network in state.node().net().networks() {
        let resource = local_resource(&state, &network);
        if passes(&resource, &filters)? {
            all.push(resource);
        }
    }
    for network in state.node().network_list().unwrap_or_default() {
        // This host's part of it is in the list.
        if state.node().net().network(network.id.as_str()).is_ok() {
            continue;
        }
        let resource = NetworkResource::from(&network);
        if passes(&resource, &filters)? {
            all.push(resource);
        }
    }
    // Who is connected is only shown by an inspection since API 1.28.
    for resource in &mut all {
        resource.containers.clear();
    }
    Ok(Json(all))
}

async fn inspect(
    State(state): State<ServerState>,
    Path(id): Path<String>,
    query: Params,
) -> Result<Json<NetworkResource>> {
    let mut resource = match find(&state, &id)? {
        Found::Local(network) => {
            let mut resource = local_resource(&state, &network);
            if network.spec.of_swarm
                && let Ok(view) = state.node().view()
                && let Some(network) = view.network(&network.id)
            {
                add_members(&mut resource, &view, network, query.flag("verbose"));
            }
            resource
        }
        Found::Swarm(network) => swarm_resource(&state, &network, query.flag("verbose")),
    };
    let scope = query.text("scope");
    // Services can be on these; the client asks for the swarm's before it creates one.
    if scope == "swarm" && HOST_NETWORKS.contains(&resource.name.as_str()) && state.node().view().is_ok() {
        resource.scope = "swarm".into();
    }
    if !scope.is_empty() && scope != resource.scope {
        return Err(ApiError::not_found(format!("network {id} not found")));
    }
    Ok(Json(resource))
}

fn tell(state: &ServerState, action: &str, id: &str, name: &str, driver: &str, container: Option<&str>) {
    let mut attributes: BTreeMap<String, String> =
        [("name".into(), name.into()), ("type".into(), driver.into())].into();
    if let Some(container) = container {
        attributes.insert("container".into(), container.into());
    }
    state.engine().events().emit(EventKind::Network, action, id, attributes);
}

async fn create(
    State(state): State<ServerState>,
    GoJson(body): GoJson<CreateRequest>,
) -> Result<(StatusCode, Json<CreateResponse>)> {
    let id = match body.into_spec()? {
        CreateSpec::Local(spec) => {
            let network = state.node().net().create_network(spec).await?;
            tell(&state, "create", network.id.as_str(), &network.spec.name, &network.spec.driver, None);
            network.id.to_string()
        }
        CreateSpec::Swarm(spec) => {
            if state.node().net().networks().iter().any(|n| n.spec.name == spec.name) {
                return Err(ApiError::new(
                    StatusCode::CONFLICT,
                    format!("network with name {} already exists", spec.name),
                ));
            }
            if matches!(state.node().view(), Err(NodeError::NotManager)) {
                let text = "Cannot create a multi-host network from a worker node. Please create the network from a manager node.";
                return Err(ApiError::new(StatusCode::FORBIDDEN, text));
            }
            state.node().network_create(spec).await?.to_string()
        }
    };
    Ok((StatusCode::CREATED, Json(CreateResponse { id, warning: String::new() })))
}

async fn remove(State(state): State<ServerState>, Path(id): Path<String>) -> Result<StatusCode> {
    match find(&state, &id)? {
        Found::Local(network) if network.spec.of_swarm => state.node().network_remove(network.id.as_str()).await?,
        Found::Local(network) => {
            state.node().net().remove_network(network.id.as_str()).await?;
            tell(&state, "destroy", network.id.as_str(), &network.spec.name, &network.spec.driver, None);
        }
        Found::Swarm(network) => state.node().network_remove(network.id.as_str()).await?,
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A network to connect to or disconnect from, by the name it has. A worker may not know one before a container is on it.
fn named(state: &ServerState, reference: &str) -> Result<String> {
    match find(state, reference) {
        Ok(Found::Local(network)) => Ok(network.spec.name),
        Ok(Found::Swarm(network)) => Ok(network.spec.name),
        Err(_) if matches!(state.node().view(), Err(NodeError::NotManager)) => Ok(reference.to_owned()),
        Err(error) => Err(error),
    }
}

/// The event of a container that came or went.
fn tell_of(state: &ServerState, action: &str, network: &str, container: &str) {
    let (id, driver) = match find(state, network) {
        Ok(Found::Local(n)) => (n.id.to_string(), n.spec.driver),
        Ok(Found::Swarm(n)) => (n.id.to_string(), n.spec.driver),
        Err(_) => (network.to_owned(), "overlay".to_owned()),
    };
    tell(state, action, &id, network, &driver, Some(container));
}

async fn connect(
    State(state): State<ServerState>,
    Path(id): Path<String>,
    GoJson(body): GoJson<ConnectRequest>,
) -> Result<StatusCode> {
    let network = named(&state, &id)?;
    let request = body.endpoint_config.unwrap_or_default().into_request(network.clone())?;
    state.engine().connect(&body.container, request).await?;
    let container = state.engine().inspect(&body.container)?.id.to_string();
    tell_of(&state, "connect", &network, &container);
    Ok(StatusCode::OK)
}

async fn disconnect(
    State(state): State<ServerState>,
    Path(id): Path<String>,
    GoJson(body): GoJson<DisconnectRequest>,
) -> Result<StatusCode> {
    let network = named(&state, &id)?;
    let container = state.engine().inspect(&body.container)?.id.to_string();
    state.engine().disconnect(&container, &network, body.force).await?;
    tell_of(&state, "disconnect", &network, &container);
    Ok(StatusCode::OK)
}

async fn prune(State(state): State<ServerState>, query: Params) -> Result<Json<PruneReport>> {
    let filters = query.filters()?;
    filters.validate(&["label", "label!", "until"])?;
    let until = match filters.get("until").next() {
        Some(text) => skep_api::time::parse_moment(text, now())?,
        None => None,
    };
    let reserved: Vec<String> = state
        .engine()
        .list(skep_engine::container::ListOptions { all: true })
        .iter()
        .flat_map(|r| {
            r.endpoints
                .iter()
                .map(|e| e.network.clone())
                .chain([r.host_config.network_mode.clone()])
                .collect::<Vec<_>>()
        })
        .collect();
    let has = |labels: &Labels, wanted: &str| match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|there| there == value),
        None => labels.contains_key(wanted),
    };
    let chosen = |labels: &Labels, created_at: Timestamp| {
        filters.labels("label", labels)
            && filters.get("label!").all(|label| !has(labels, label))
            && until.is_none_or(|t| created_at <= t)
    };
    let mut report = PruneReport::default();
    for network in state.node().net().networks() {
        let builtin = matches!(network.spec.name.as_str(), "bridge" | "host" | "none" | "docker_gwbridge");
        let used = !network.endpoints.is_empty()
            || reserved.iter().any(|r| *r == network.spec.name || r == network.id.as_str());
        if !builtin
            && !network.spec.of_swarm
            && !used
            && !network.spec.config_only
            && chosen(&network.spec.labels, network.created_at)
            && state.node().net().remove_network(network.id.as_str()).await.is_ok()
        {
            tell(&state, "destroy", network.id.as_str(), &network.spec.name, &network.spec.driver, None);
            report.networks_deleted.get_or_insert_default().push(network.spec.name);
        }
    }
    // On a manager the swarm's too, but for the mesh's; those in use are refused (moby `clusterNetworksPrune`).
    let swarms = if state.node().view().is_ok() { state.node().network_list()? } else { Vec::new() };
    for network in swarms.into_iter().filter(|n| !n.spec.ingress && chosen(&n.spec.labels, n.meta.created_at)) {
        if state.node().network_remove(network.id.as_str()).await.is_ok() {
            report.networks_deleted.get_or_insert_default().push(network.spec.name);
        }
    }
    Ok(Json(report))
}
