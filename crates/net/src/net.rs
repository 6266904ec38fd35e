//! The façade: every call from outside comes in here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use skep_model::doctor::{ProbeReport, ProbeRequest};
use skep_model::plan::HostPlan;
use skep_model::sandbox::{EndpointInfo, EndpointRequest, LocalNetwork, LocalNetworkSpec, Sandbox, SandboxRequest};
use skep_model::{ContainerId, NetworkId};

use crate::bridge::Stored;
use crate::config::NetConfig;
use crate::dataplane::ApplyReport;
use crate::error::Result;
use crate::host::{Host, OverlayInfo};
use crate::sandbox::blocking;

/// How often is looked whether the kernel still is as it was made.
const REPAIR_PERIOD: Duration = Duration::from_secs(60);

/// The network side of one host. Cheap to clone.
#[derive(Clone)]
pub struct Net {
    host: Arc<Host>,
}

impl Net {
    /// Reads what an earlier daemon left, makes the default networks, and brings back the sandboxes that are still there
    /// with their resolvers and published ports. Must be called in the host's network namespace.
    pub async fn open(config: NetConfig) -> Result<Self> {
        let host = Arc::new(blocking(move || Host::open(config)).await?);
        host.adopt().await?;
        let net = Self { host };
        let closing = net.host.closing.clone();
        let keeper = net.clone();
        net.host.tasks.spawn(async move { closing.run_until_cancelled(keeper.keep_repaired()).await });
        Ok(net)
    }

    async fn keep_repaired(&self) {
        loop {
            tokio::time::sleep(REPAIR_PERIOD).await;
            let report = self.repair().await;
            if report.changes > 0 {
                tracing::warn!(report.changes, "something else had changed this host's networks; they are mended");
            }
            for failure in &report.failures {
                tracing::warn!(%failure, "this host's networks could not be mended");
            }
        }
    }

    /// Makes a container's sandbox, or gives back the one it has.
    pub async fn setup_sandbox(&self, request: &SandboxRequest) -> Result<Sandbox> {
        self.host.setup(request).await
    }

    /// Takes a sandbox away with everything in it. Succeeds when there is none.
    pub async fn teardown_sandbox(&self, container: &ContainerId) -> Result<()> {
        self.host.teardown(container).await
    }

    /// Told once after a start which containers live on: all other sandboxes go.
    pub async fn retain_sandboxes(&self, living: &[ContainerId]) -> Result<()> {
        let stale: Vec<ContainerId> = {
            let state = self.host.state();
            state.sandboxes.keys().filter(|container| !living.contains(container)).cloned().collect()
        };
        let mut first = Ok(());
        for container in stale {
            let result = self.teardown_sandbox(&container).await;
            first = first.and(result);
        }
        first
    }

    /// A sandbox as it is now: `connect` and `disconnect` change its endpoints and files.
    pub fn sandbox(&self, container: &ContainerId) -> Option<Sandbox> {
        let record = self.host.state().sandboxes.get(container).cloned()?;
        self.host.view(&record).ok()
    }

    /// What a sandbox was asked for with.
    pub fn request_of(&self, container: &ContainerId) -> Option<SandboxRequest> {
        self.host.state().sandboxes.get(container).map(|record| record.request.clone())
    }

    /// Places on the swarm's networks of containers that are no tasks.
    pub fn attached(&self) -> Vec<(ContainerId, EndpointInfo)> {
        let state = self.host.state();
        let records = state.sandboxes.values().filter(|record| !record.request.is_task);
        let of_swarm = |id: &NetworkId| state.networks.get(id).is_some_and(Stored::is_of_swarm);
        let places = records.flat_map(|record| {
            let places = record.endpoints.iter();
            let places = places.filter(|endpoint| endpoint.is_overlay() || of_swarm(&endpoint.info.network_id));
            places.map(|endpoint| (record.container().clone(), endpoint.info.clone()))
        });
        places.collect()
    }

    /// Connects a running container to one more network.
    pub async fn connect(&self, container: &ContainerId, request: &EndpointRequest) -> Result<EndpointInfo> {
        self.host.connect(container, request).await
    }

    /// Disconnects a container from a network, by the network's name or id. With `force`, a container that is not
    /// connected is no error.
    pub async fn disconnect(&self, container: &ContainerId, network: &str, force: bool) -> Result<()> {
        self.host.disconnect(container, network, force).await
    }

    /// Makes the host's swarm networking look like `plan`, and connects the sandboxes that waited for a network of it.
    pub async fn apply(&self, plan: &Arc<HostPlan>) -> ApplyReport {
        let mut report = self.host.dataplane.apply(plan).await;
        let overlays: BTreeMap<NetworkId, OverlayInfo> = plan
            .overlays
            .iter()
            .map(|(id, overlay)| {
                let (name, internal, local) = (overlay.name.clone(), overlay.internal, overlay.local.clone());
                (id.clone(), OverlayInfo { name, internal, local })
            })
            .collect();
        let known: BTreeSet<NetworkId> = self.host.overlays.borrow().keys().cloned().collect();
        for (id, overlay) in &plan.overlays {
            self.host.zones.set(id.clone(), overlay.zone.clone());
        }
        for gone in known.iter().filter(|id| !overlays.contains_key(*id)) {
            self.host.zones.forget(gone);
        }
        self.host.set_swarm_zones(&plan.zones);
        // Sandboxes of networks that were in the last plan are connected since then.
        let new = overlays.keys().filter(|id| !known.contains(*id)).cloned().collect();
        report.failures.extend(self.host.connect_overlays(&new).await);
        self.host.overlays.send_replace(overlays);
        report
    }

    /// Returns when the plan in force has no container of this host at that address of a swarm's network.
    pub async fn without(&self, network: &NetworkId, address: Ipv4Addr) {
        let mut overlays = self.host.overlays.subscribe();
        let is_without = |overlays: &BTreeMap<NetworkId, OverlayInfo>| {
            overlays.get(network).is_none_or(|overlay| !overlay.local.contains(&address))
        };
        // It ends with the host, and then there is nothing to wait for.
        let _ = overlays.wait_for(is_without).await;
    }

    /// Looks whether the kernel still is as it was made, for the swarm's networks and this host's own, and mends what somebody
    /// else has changed.
    pub async fn repair(&self) -> ApplyReport {
        let mut report = self.host.dataplane.repair().await;
        let _turn = self.host.network_turn.lock().await;
        let host = Arc::clone(&self.host);
        match blocking(move || host.remove_unused().and_then(|()| host.repair())).await {
            Ok(changes) => report.changes += changes,
            Err(error) => report.failures.push(crate::dataplane::chain_of(&error)),
        }
        report
    }

    /// MTU of the interface that holds this address of the host; `None` if none does.
    pub fn underlay_mtu(&self, address: IpAddr) -> Option<u32> {
        crate::probe::underlay(&self.host.namespace, address).ok().flatten().map(|(_, mtu)| mtu)
    }

    /// Tries what gets from here to other hosts and from them to here, and what this kernel can do. Takes two seconds.
    pub async fn probe(&self, request: ProbeRequest) -> ProbeReport {
        let scratch = self.host.config.exec_root.join(format!("netns/probe-{:016x}", request.token));
        crate::probe::run(self.host.namespace.clone(), scratch, request).await
    }

    /// Networks of this host alone, by name.
    pub fn networks(&self) -> Vec<LocalNetwork> {
        let mut networks: Vec<LocalNetwork> =
            self.host.state().networks.all().map(|stored| stored.network.clone()).collect();
        networks.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        networks
    }

    /// By full name, full id, or the beginning of an id, in this order.
    pub fn network(&self, name_or_id: &str) -> Result<LocalNetwork> {
        self.host.state().networks.find(name_or_id).map(|stored| stored.network.clone())
    }

    pub async fn create_network(&self, spec: LocalNetworkSpec) -> Result<LocalNetwork> {
        let _turn = self.host.network_turn.lock().await;
        let host = Arc::clone(&self.host);
        blocking(move || host.create_network(spec)).await
    }

    /// Makes this host's part of a node-local network of the swarm, if the request is for one and it is not there yet.
    pub async fn ensure_of_swarm(&self, request: &EndpointRequest) -> Result<()> {
        let _turn = self.host.network_turn.lock().await;
        self.host.ensure_of_swarm(request).await
    }

    pub async fn remove_network(&self, name_or_id: &str) -> Result<NetworkId> {
        let _turn = self.host.network_turn.lock().await;
        let (host, name) = (Arc::clone(&self.host), name_or_id.to_owned());
        blocking(move || host.remove_network(&name)).await
    }

    /// Makes `docker_gwbridge` if it is not there: on `swarm init` and `swarm join`, as tools expect.
    pub async fn ensure_gwbridge(&self) -> Result<LocalNetwork> {
        let _turn = self.host.network_turn.lock().await;
        let host = Arc::clone(&self.host);
        blocking(move || host.ensure_gwbridge()).await.map(|stored| stored.network)
    }

    /// Closes resolvers and held ports; containers and their namespaces stay.
    pub async fn close(&self) {
        self.host.close().await;
    }
}
