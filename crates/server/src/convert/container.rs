//! Containers: inspections and rows of a list.

use std::collections::BTreeMap;

use skep_api::container::{
    GraphDriver, Health, HealthProbe, Inspect, MountPoint, NetworkSettings, Port, PortMap, State, Summary,
    SummaryHostConfig, SummaryNetworks, status_text,
};
use skep_api::network::{EndpointIpam, EndpointSettings, mac_text};
use skep_engine::container::{ContainerRecord, ContainerState, MountRecord, Status};
use skep_model::Timestamp;
use skep_model::container::{PortBinding, StringOrList};
use skep_model::sandbox::{EndpointInfo, EndpointRequest, Sandbox};

pub(crate) fn state(state: &ContainerState) -> State {
    State {
        status: state.status.as_str().into(),
        running: matches!(state.status, Status::Running | Status::Paused | Status::Restarting),
        paused: state.status == Status::Paused,
        restarting: state.status == Status::Restarting,
        oom_killed: state.oom_killed,
        dead: state.status == Status::Dead,
        pid: state.pid,
        exit_code: state.exit_code,
        error: state.error.clone(),
        started_at: state.started_at.into(),
        finished_at: state.finished_at.into(),
        health: state.health.as_ref().map(|h| Health {
            status: h.status.as_str().into(),
            failing_streak: h.failing_streak,
            log: h
                .log
                .iter()
                .map(|p| HealthProbe {
                    start: p.start.into(),
                    end: p.end.into(),
                    exit_code: p.exit_code,
                    output: p.output.clone(),
                })
                .collect(),
        }),
    }
}

fn mount(mount: &MountRecord) -> MountPoint {
    MountPoint {
        kind: mount.kind.clone(),
        name: mount.name.clone(),
        source: mount.source.clone(),
        destination: mount.destination.clone(),
        driver: mount.driver.clone(),
        mode: mount.mode.clone(),
        rw: mount.rw,
        propagation: mount.propagation.clone(),
    }
}

fn exposed(record: &ContainerRecord) -> impl Iterator<Item = &String> {
    record.config.exposed_ports.keys()
}

/// `80/tcp` to where it is published; `null` for ports only exposed. Empty when it does not run.
fn ports(record: &ContainerRecord) -> PortMap {
    let Some(sandbox) = &record.sandbox else { return PortMap::new() };
    let mut map: PortMap = exposed(record).map(|port| (port.clone(), None)).collect();
    for published in &sandbox.published {
        let key = format!("{}/{}", published.container_port, published.protocol);
        map.entry(key)
            .or_default()
            .get_or_insert_default()
            .push(PortBinding { host_ip: published.host_ip.to_string(), host_port: published.host_port.to_string() });
    }
    map
}

fn connected(endpoint: &EndpointInfo, request: Option<&EndpointRequest>) -> EndpointSettings {
    EndpointSettings {
        ipam_config: asked_address(request),
        aliases: request.map(|r| r.aliases.clone()).filter(|a| !a.is_empty()),
        mac_address: mac_text(endpoint.mac),
        network_id: endpoint.network_id.to_string(),
        endpoint_id: endpoint.endpoint_id.to_string(),
        gateway: endpoint.gateway.map(|g| g.to_string()).unwrap_or_default(),
        ip_address: endpoint.address.addr().to_string(),
        ip_prefix_len: endpoint.address.prefix_len(),
        ipv6_gateway: endpoint.gateway6.map(|g| g.to_string()).unwrap_or_default(),
        global_ipv6_address: endpoint.address6.map(|a| a.addr().to_string()).unwrap_or_default(),
        global_ipv6_prefix_len: endpoint.address6.map_or(0, |a| a.prefix_len()),
        dns_names: Some(endpoint.dns_names.clone()).filter(|n| !n.is_empty()),
        driver_opts: request.map(|r| r.driver_options.clone()).filter(|o| !o.is_empty()),
        ..Default::default()
    }
}

fn asked_address(request: Option<&EndpointRequest>) -> Option<EndpointIpam> {
    let request = request.filter(|r| r.address.is_some() || r.address6.is_some())?;
    Some(EndpointIpam {
        ipv4_address: request.address.map(|a| a.to_string()).unwrap_or_default(),
        ipv6_address: request.address6.map(|a| a.to_string()).unwrap_or_default(),
        ..Default::default()
    })
}

/// By network name: what is connected, and what will be when it starts.
fn networks(record: &ContainerRecord) -> BTreeMap<String, EndpointSettings> {
    let request_of = |name: &str, id: &str| record.endpoints.iter().find(|r| r.network == name || r.network == id);
    let mut map = BTreeMap::new();
    if let Some(sandbox) = &record.sandbox {
        for endpoint in &sandbox.endpoints {
            let request = request_of(&endpoint.network_name, endpoint.network_id.as_str());
            map.insert(endpoint.network_name.clone(), connected(endpoint, request));
        }
    }
    if map.is_empty() {
        for request in &record.endpoints {
            let settings = EndpointSettings {
                ipam_config: asked_address(Some(request)),
                aliases: Some(request.aliases.clone()).filter(|a| !a.is_empty()),
                driver_opts: Some(request.driver_options.clone()).filter(|o| !o.is_empty()),
                ..Default::default()
            };
            map.insert(request.network.clone(), settings);
        }
    }
    // Host and none have no endpoint to tell of, but the CLI looks for their names.
    let mode = record.host_config.network_mode.as_str();
    if map.is_empty() && !mode.starts_with("container:") {
        let name = if matches!(mode, "" | "default") { "bridge" } else { mode };
        map.insert(name.to_owned(), EndpointSettings::default());
    }
    map
}

fn network_settings(record: &ContainerRecord) -> NetworkSettings {
    let networks = networks(record);
    let key = |sandbox: &Sandbox| sandbox.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    // The single-network members of before API 1.21 tell of the default bridge.
    let bridge = networks.get("bridge").cloned().unwrap_or_default();
    NetworkSettings {
        sandbox_id: record.sandbox.as_ref().map(|_| record.id.to_string()).unwrap_or_default(),
        sandbox_key: record.sandbox.as_ref().map(key).unwrap_or_default(),
        ports: ports(record),
        endpoint_id: bridge.endpoint_id,
        gateway: bridge.gateway,
        ip_address: bridge.ip_address,
        ip_prefix_len: bridge.ip_prefix_len,
        ipv6_gateway: bridge.ipv6_gateway,
        global_ipv6_address: bridge.global_ipv6_address,
        global_ipv6_prefix_len: bridge.global_ipv6_prefix_len,
        mac_address: bridge.mac_address,
        networks,
        ..Default::default()
    }
}

fn graph(record: &ContainerRecord) -> GraphDriver {
    let dirs = &record.graph;
    let join =
        |paths: &[std::path::PathBuf]| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(":");
    GraphDriver {
        name: "overlay2".into(),
        data: [
            ("ID".to_owned(), record.id.to_string()),
            ("LowerDir".to_owned(), join(&dirs.lower)),
            ("MergedDir".to_owned(), dirs.merged.display().to_string()),
            ("UpperDir".to_owned(), dirs.upper.display().to_string()),
            ("WorkDir".to_owned(), dirs.work.display().to_string()),
        ]
        .into(),
    }
}

pub(crate) fn inspect(record: &ContainerRecord, sizes: Option<(u64, u64)>) -> Inspect {
    let path = |p: &std::path::Path| p.display().to_string();
    Inspect {
        id: record.id.to_string(),
        created: record.created_at.into(),
        path: record.path.clone(),
        args: record.args.clone(),
        state: state(&record.state),
        image: record.image_id.clone(),
        resolv_conf_path: path(&record.resolv_conf_path),
        hostname_path: path(&record.hostname_path),
        hosts_path: path(&record.hosts_path),
        // As moby: how another driver keeps its log is its own affair.
        log_path: if record.host_config.log_config.driver == "json-file" {
            path(&record.log_path)
        } else {
            String::new()
        },
        name: format!("/{}", record.name),
        restart_count: record.restart_count,
        driver: "overlay2".into(),
        platform: "linux".into(),
        exec_ids: Some(record.exec_ids.clone()).filter(|ids| !ids.is_empty()),
        host_config: record.host_config.clone(),
        graph_driver: graph(record),
        size_rw: sizes.map(|s| s.0),
        size_root_fs: sizes.map(|s| s.1),
        mounts: record.mounts.iter().map(mount).collect(),
        config: record.config.clone(),
        network_settings: network_settings(record),
        ..Default::default()
    }
}

/// Ports of a row: published ones, and exposed ones that are not.
pub(crate) fn row_ports(record: &ContainerRecord) -> Vec<Port> {
    let mut rows = Vec::new();
    for (key, bindings) in ports(record) {
        let (number, kind) = key.split_once('/').unwrap_or((&key, "tcp"));
        let Ok(private_port) = number.parse() else { continue };
        let port = Port { private_port, kind: kind.to_owned(), ..Default::default() };
        match bindings {
            None => rows.push(port),
            Some(bindings) => rows.extend(bindings.into_iter().map(|b| Port {
                ip: b.host_ip,
                public_port: b.host_port.parse().unwrap_or(0),
                ..port.clone()
            })),
        }
    }
    rows
}

pub(crate) fn summary(record: &ContainerRecord, image: String, now: Timestamp, sizes: Option<(u64, u64)>) -> Summary {
    let s = &record.state;
    let status = status_text(
        s.status.as_str(),
        s.health.as_ref().map(|h| h.status.as_str()),
        s.exit_code,
        now.since(s.started_at),
        (!s.finished_at.is_zero()).then(|| now.since(s.finished_at)),
    );
    Summary {
        id: record.id.to_string(),
        names: vec![format!("/{}", record.name)],
        image,
        image_id: record.image_id.clone(),
        command: command(&record.path, &record.args),
        created: record.created_at.0.div_euclid(1_000_000_000),
        ports: row_ports(record),
        size_rw: sizes.map(|s| s.0),
        size_root_fs: sizes.map(|s| s.1),
        labels: record.config.labels.clone(),
        state: s.status.as_str().into(),
        status,
        host_config: SummaryHostConfig { network_mode: record.host_config.network_mode.clone() },
        network_settings: SummaryNetworks { networks: networks(record) },
        mounts: record.mounts.iter().map(mount).collect(),
    }
}

/// The command line as `docker ps` shows it: arguments with spaces quoted (moby `snapshot` of the container view).
fn command(path: &str, args: &[String]) -> String {
    let quoted = args.iter().map(|arg| if arg.contains(' ') { format!("'{arg}'") } else { arg.clone() });
    std::iter::once(path.to_owned()).chain(quoted).collect::<Vec<_>>().join(" ")
}

/// The words of a command that may have been given as one.
pub(crate) fn words(list: Option<StringOrList>) -> Vec<String> {
    list.unwrap_or_default().0
}
