//! The daemon itself: ping, version, info, disk usage.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use skep_api::ApiVersion;
use skep_api::info::{
    Commit, Component, DiskUsage, IndexInfo, Info, Named, Plugins, RegistryConfig, Runtime, Version, go_arch,
};
use skep_api::swarm::{Peer, Swarm, SwarmInfo};
use skep_api::version::{MINIMUM, NEWEST};
use skep_engine::container::{ListOptions, Status};
use skep_node::LocalState;

use crate::error::Result;
use crate::state::{ServerState, now};

pub(super) mod host;

pub(crate) fn routes() -> Router<ServerState> {
    Router::new()
        .route("/_ping", get(ping).head(ping))
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/system/df", get(disk_usage))
}

async fn ping(State(state): State<ServerState>) -> Response {
    let node = state.node();
    // `active` alone is a worker, as in moby.
    let swarm = match node.local_state() {
        LocalState::Active if node.info().control_available => "active/manager",
        LocalState::Active => "active/worker",
        other => other.as_str(),
    };
    (
        [
            (header::CACHE_CONTROL.as_str(), "no-cache, no-store, must-revalidate"),
            (header::PRAGMA.as_str(), "no-cache"),
            (header::CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"),
            // Classic builder: the CLI asks BuildKit nothing.
            ("builder-version", "1"),
            ("swarm", swarm),
        ],
        "OK",
    )
        .into_response()
}

async fn version(State(state): State<ServerState>) -> Json<Version> {
    let about = state.about();
    let host = host::facts();
    let details: BTreeMap<String, String> = [
        ("ApiVersion", NEWEST.to_string()),
        ("MinAPIVersion", MINIMUM.to_string()),
        ("Arch", go_arch(&host.machine).to_owned()),
        ("BuildTime", about.build_time.clone()),
        ("Experimental", "false".to_owned()),
        ("GitCommit", about.git_commit.clone()),
        ("GoVersion", "none (Rust)".to_owned()),
        ("KernelVersion", host.kernel.clone()),
        ("Os", "linux".to_owned()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v))
    .collect();
    Json(Version {
        platform: Named { name: "skep".into() },
        components: vec![Component { name: "Engine".into(), version: about.version.clone(), details }],
        version: about.version.clone(),
        api_version: NEWEST.to_string(),
        min_api_version: MINIMUM.to_string(),
        git_commit: about.git_commit.clone(),
        go_version: "none (Rust)".into(),
        os: "linux".into(),
        arch: go_arch(&host.machine).into(),
        kernel_version: host.kernel,
        experimental: false,
        build_time: about.build_time.clone(),
    })
}

fn swarm_info(state: &ServerState) -> SwarmInfo {
    let info = state.node().info();
    let peers: Vec<Peer> =
        info.remote_managers.iter().map(|m| Peer { node_id: m.node_id.to_string(), addr: m.addr.clone() }).collect();
    SwarmInfo {
        node_id: info.node_id.map(|id| id.to_string()).unwrap_or_default(),
        node_addr: info.node_addr,
        local_node_state: info.state.as_str().into(),
        control_available: info.control_available,
        error: info.error,
        remote_managers: Some(peers).filter(|p| !p.is_empty()),
        nodes: info.nodes.unwrap_or(0),
        managers: info.managers.unwrap_or(0),
        cluster: info.cluster.as_ref().map(Swarm::without_tokens),
    }
}

async fn info(State(state): State<ServerState>) -> Result<Json<Info>> {
    let about = state.about();
    let host = host::facts();
    let containers = state.engine().list(ListOptions { all: true });
    let count = |wanted: fn(Status) -> bool| containers.iter().filter(|c| wanted(c.state.status)).count();
    let proxy = |name: &str| about.proxies.get(name).cloned().unwrap_or_default();
    let driver_status = [("Backing Filesystem", "extfs"), ("Supports d_type", "true"), ("userxattr", "false")];
    let index =
        IndexInfo { name: "docker.io".into(), mirrors: about.registry_mirrors.clone(), secure: true, official: true };
    Ok(Json(Info {
        id: about.id.clone(),
        containers: containers.len(),
        containers_running: count(|s| matches!(s, Status::Running | Status::Restarting)),
        containers_paused: count(|s| s == Status::Paused),
        containers_stopped: count(|s| !matches!(s, Status::Running | Status::Restarting | Status::Paused)),
        images: state.images().list(&BTreeMap::new(), false)?.len(),
        driver: "overlay2".into(),
        driver_status: driver_status.map(|(k, v)| [k.to_owned(), v.to_owned()]).to_vec(),
        plugins: Plugins {
            volume: vec!["local".into()],
            network: ["bridge", "host", "macvlan", "null", "overlay"].map(str::to_owned).to_vec(),
            authorization: None,
            log: ["journald", "json-file", "local", "syslog"].map(str::to_owned).to_vec(),
        },
        memory_limit: true,
        swap_limit: host.swap_limit,
        cpu_cfs_period: true,
        cpu_cfs_quota: true,
        cpu_shares: true,
        cpu_set: true,
        pids_limit: true,
        ipv4_forwarding: true,
        debug: about.debug,
        n_fd: host.open_files,
        oom_kill_disable: host.cgroup_version == "1",
        system_time: now().to_string(),
        logging_driver: state.engine().config().log_driver.clone(),
        cgroup_driver: "cgroupfs".into(),
        cgroup_version: host.cgroup_version,
        kernel_version: host.kernel,
        operating_system: host.operating_system,
        os_version: host.os_version,
        os_type: "linux".into(),
        architecture: host.machine,
        index_server_address: "https://index.docker.io/v1/".into(),
        registry_config: RegistryConfig {
            insecure_registry_cidrs: ["::1/128".to_owned(), "127.0.0.0/8".to_owned()].into(),
            index_configs: [("docker.io".to_owned(), index)]
                .into_iter()
                .chain(about.insecure_registries.iter().map(|name| {
                    (
                        name.clone(),
                        IndexInfo { name: name.clone(), mirrors: Vec::new(), secure: false, official: false },
                    )
                }))
                .collect(),
            mirrors: about.registry_mirrors.clone(),
        },
        n_cpu: host.cpus,
        mem_total: host.memory_bytes,
        docker_root_dir: about.data_root.display().to_string(),
        http_proxy: proxy("HTTP_PROXY"),
        https_proxy: proxy("HTTPS_PROXY"),
        no_proxy: proxy("NO_PROXY"),
        name: about.hostname.clone(),
        labels: about.labels.clone(),
        generic_resources: Some(about.generic_resources.iter().map(Into::into).collect())
            .filter(|l: &Vec<_>| !l.is_empty()),
        server_version: about.version.clone(),
        runtimes: [("skep".to_owned(), Runtime { path: "skep".into() })].into(),
        default_runtime: "skep".into(),
        swarm: swarm_info(&state),
        live_restore_enabled: about.live_restore,
        init_binary: "docker-init".into(),
        containerd_commit: Commit::default(),
        runc_commit: Commit::default(),
        init_commit: Commit::default(),
        security_options: ["name=seccomp,profile=builtin".to_owned()].into(),
        ..Default::default()
    }))
}

async fn disk_usage(
    State(state): State<ServerState>,
    Extension(version): Extension<ApiVersion>,
    query: crate::extract::Params,
) -> Result<Json<DiskUsage>> {
    let kinds = query.all("type");
    let wanted = |kind: &str| kinds.is_empty() || kinds.iter().any(|k| k == kind);
    let mut usage = DiskUsage::default();
    if wanted("image") {
        usage.layers_size = state.images().usage().layers_bytes;
        usage.images = super::images::summaries(&state, version)?;
    }
    if wanted("container") {
        let mut sizes = Vec::new();
        for record in state.engine().list(ListOptions { all: true }) {
            if let Ok(size) = state.engine().sizes(record.id.as_str()).await {
                sizes.push((record.id.to_string(), size));
            }
        }
        usage.containers = super::containers::summaries(&state, &sizes);
    }
    if wanted("volume") {
        usage.volumes = super::volumes::measured(&state).await?;
    }
    Ok(Json(usage))
}
