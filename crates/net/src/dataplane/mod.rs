//! The host's swarm state in the kernel: takes a whole [`HostPlan`], compares it with what was applied last, sends the
//! difference.
//!
//! ```text
//!   plan --> overlays put --> remote endpoints put --> balancers --> mesh --> endpoints pruned --> overlays removed
//!                                                                                    '--> dead connections forgotten
//! ```
//!
//! What is new exists before anything points to it, and nothing points to what is removed.
//!
//! Decides the order in which overlays, balancers and the mesh are changed. Must not know why a plan is what it is, nor
//! about bridge networks of this host.

mod container;
mod repair;
mod six;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::{Ipv4Net, Ipv6Net};
use skep_model::network::mac_of;
use skep_model::plan::{HostPlan, IngressPlan};
use skep_model::{ContainerId, NetworkId};

use crate::balance::{Changed, Forget};
use crate::ingress::rules::SourceMode;
use crate::ingress::task::NodeMacs;
use crate::ingress::{self, Mesh};
use crate::link::Namespace;
use crate::nft::NftError;
use crate::overlay::{self, Endpoint, MembersOnly, Overlay, Underlay};
use crate::sorted::{differences, entries};
use crate::tunnel::Tunnel;

use container::{Connection, Container};

/// Where a data plane lives.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// Overlay namespaces are mounted at `<exec_root>/netns/ov-<network id>`.
    pub exec_root: PathBuf,
    /// The daemon's four hex digits in kernel names.
    pub tag: String,
    /// The host's namespace: the one the daemon runs in.
    pub host: Namespace,
    /// What tasks see of the mesh's clients; where this kernel cannot do [`SourceMode::Preserve`], it is not done.
    pub source_mode: SourceMode,
}

/// A container's place on an overlay.
#[derive(Clone, Debug)]
pub struct Attachment {
    pub container_id: ContainerId,
    pub network_id: NetworkId,
    /// The container's namespace.
    pub namespace: Namespace,
    pub address: Ipv4Addr,
    /// `eth0`, `eth1`, …: the name inside the container.
    pub ifname: String,
}

/// What [`Dataplane::connect`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub network_name: String,
    /// With the subnet's prefix length.
    pub address: Ipv4Net,
    /// On a network with IPv6.
    pub address6: Option<Ipv6Net>,
    pub mac: [u8; 6],
}

/// What [`Dataplane::apply`] did and could not do. Failures leave the rest of the plan applied and are tried again by the
/// next `apply`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyReport {
    /// Things changed in the kernel; 0 when the plan was already in place.
    pub changes: usize,
    /// What is not as the plan wants it, in words for the log.
    pub failures: Vec<String>,
    /// Some balancer's rules are not the plan's: connections may still be given to whom the plan does not name.
    pub misdirected: bool,
}

/// Errors of connecting a container.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    #[error("network {0} not found")]
    NoSuchNetwork(NetworkId),
    #[error("network {name} cannot be made on this host: {reason}")]
    Unmade { name: String, reason: String },
    #[error("failed to {action}")]
    Kernel { action: String, source: io::Error },
}

/// An error and what it came of, in one line.
pub(crate) fn chain_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The MACs of all hosts' legs, this one's too.
fn node_macs(ingress: &IngressPlan) -> NodeMacs {
    let mut macs = ingress.node_macs.clone();
    if let Some(address) = ingress.address {
        macs.entry(ingress.mesh_index).or_insert(mac_of(address.addr()));
    }
    macs
}

/// The swarm's networking of one host. Cheap to clone.
#[derive(Clone)]
pub struct Dataplane {
    state: Arc<Mutex<State>>,
}

impl Dataplane {
    pub fn new(config: DataplaneConfig) -> Self {
        let state = State {
            config,
            plan: Arc::default(),
            fresh: true,
            probed: false,
            failures: Vec::new(),
            overlays: BTreeMap::new(),
            unmade: BTreeMap::new(),
            tunnel: None,
            members_only: None,
            containers: BTreeMap::new(),
            mesh: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Makes the kernel look like `plan`. Idempotent; the first call after a start adopts what an earlier daemon left and
    /// is still wanted, and removes the rest; so a first plan must be a whole one, not the empty plan of an agent that has
    /// not heard from a manager yet.
    pub async fn apply(&self, plan: &Arc<HostPlan>) -> ApplyReport {
        let plan = Arc::clone(plan);
        self.blocking(move |state| state.apply(plan)).await
    }

    /// Looks whether the kernel still is as the last plan wants it, and makes good what somebody else has changed: links,
    /// forwarding entries and rules. Changes nothing, and breaks no connection, where nothing is amiss.
    pub async fn repair(&self) -> ApplyReport {
        self.blocking(State::repair).await
    }

    /// Gives the container an interface on the overlay and the overlay's balancers. The network must be in the applied
    /// plan. Idempotent, so that sandboxes may be made again after a restart.
    pub async fn connect(&self, attachment: &Attachment) -> Result<Attached, DataplaneError> {
        let attachment = attachment.clone();
        self.blocking(move |state| state.connect(&attachment)).await
    }

    /// The container has another default route: answers to datagrams of the mesh go by it. A flow that comes before it is
    /// known would never be answered, since the kernel decides but once where a flow goes.
    pub async fn routed(&self, container_id: &ContainerId) {
        let container_id = container_id.clone();
        self.blocking(move |state| state.routed(&container_id)).await;
    }

    /// Takes the interface and the balancers away. Succeeds when there is nothing to take.
    pub async fn disconnect(&self, container_id: &ContainerId, network_id: &NetworkId) -> Result<(), DataplaneError> {
        let (container_id, network_id) = (container_id.clone(), network_id.clone());
        self.blocking(move |state| state.disconnect(&container_id, &network_id)).await
    }

    /// The container's namespace is going: disconnects everything and closes the sockets that would pin it.
    pub async fn forget(&self, container_id: &ContainerId) {
        let container_id = container_id.clone();
        self.blocking(move |state| state.forget(&container_id)).await;
    }

    /// Netlink and namespace visits block, for microseconds mostly.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&mut State) -> T + Send + 'static) -> T {
        let state = self.state.clone();
        let task = tokio::task::spawn_blocking(move || {
            // A panic in the middle of a change leaves state that says less than what is in the kernel, never more.
            work(&mut state.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match task.await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

struct State {
    config: DataplaneConfig,
    plan: Arc<HostPlan>,
    /// Nothing of an earlier daemon has been looked at yet.
    fresh: bool,
    /// Whether the source mode is one that this kernel can do.
    probed: bool,
    /// Those of the last plan, which were logged.
    failures: Vec<String>,
    overlays: BTreeMap<NetworkId, Overlay>,
    /// Why overlays of the plan are not there, or carry nothing to other hosts.
    unmade: BTreeMap<NetworkId, String>,
    /// While there is an encrypted overlay.
    tunnel: Option<Tunnel>,
    /// While there is one that is not.
    members_only: Option<MembersOnly>,
    containers: BTreeMap<ContainerId, Container>,
    mesh: Option<(NetworkId, Mesh)>,
}

const FILE_PREFIX: &str = "ov-";

impl State {
    fn apply(&mut self, plan: Arc<HostPlan>) -> ApplyReport {
        let mut report = ApplyReport::default();
        let before = std::mem::replace(&mut self.plan, plan);
        if std::mem::take(&mut self.fresh) {
            self.remove_stale(&mut report);
        }
        self.put_overlays(&mut report);
        self.finish(&before, report)
    }

    /// All but the overlays themselves.
    fn finish(&mut self, before: &HostPlan, mut report: ApplyReport) -> ApplyReport {
        let gone = self.gone_since(before);
        self.probe();
        let changed = self.update_containers(&mut report);
        let datagrams = self.update_mesh(&mut report);
        self.prune_overlays(&mut report);
        self.forget_connections(&changed, datagrams, &gone, &mut report);
        for failure in report.failures.iter().filter(|failure| !self.failures.contains(failure)) {
            tracing::warn!(%failure, "the host's network is not as planned");
        }
        self.failures.clone_from(&report.failures);
        report
    }

    fn path(&self, network_id: &NetworkId) -> PathBuf {
        overlay_path(&self.config.exec_root, network_id)
    }

    /// What an earlier daemon made and nobody wants.
    fn remove_stale(&mut self, report: &mut ApplyReport) {
        let wanted: BTreeSet<PathBuf> = self.plan.overlays.keys().map(|id| self.path(id)).collect();
        let found = std::fs::read_dir(self.config.exec_root.join("netns")).into_iter().flatten().flatten();
        for path in found.map(|entry| entry.path()) {
            let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FILE_PREFIX));
            if ours && !wanted.contains(&path) {
                report.note(overlay::remove_stale(&path).map(|()| 1), || format!("remove {}", path.display()));
            }
        }
        if self.plan.overlays.values().all(|overlay| overlay.keys.is_some()) {
            let removed = MembersOnly::open(&self.config.host, &self.config.tag).and_then(|mut there| there.remove());
            report.note(removed, || "remove a rule of an earlier run".to_owned());
        }
        if self.plan.ingress.is_none() {
            let removed = ingress::remove_stale(&self.config.host, &self.config.tag);
            report.note(removed, || "remove the mesh of an earlier run".to_owned());
        }
    }

    fn put_overlays(&mut self, report: &mut ApplyReport) {
        let underlay = Underlay { vtep: self.plan.vtep, port: self.plan.vxlan_port };
        let guarded = self.let_members_in(underlay);
        report.note(guarded, || "keep frames of strangers out of the overlays".to_owned());
        self.unmade.clear();
        for (id, plan) in &self.plan.overlays {
            let (host, tag) = (&self.config.host, &self.config.tag);
            let result = match self.overlays.get_mut(id) {
                Some(overlay) => overlay.ensure_link(host, tag, plan, underlay),
                None => Overlay::ensure(host, &self.path(id), tag, plan, underlay).map(|(overlay, changes)| {
                    self.overlays.insert(id.clone(), overlay);
                    changes
                }),
            };
            if let Err(error) = &result {
                self.unmade.insert(id.clone(), error.to_string());
            }
            report.note(result, || format!("make overlay network {}", plan.name));
            if let Some(overlay) = self.overlays.get_mut(id) {
                report.add(overlay.put_remote(&plan.remote));
            }
        }
        let carried = self.carry();
        if let Err(error) = &carried {
            let sealed = self.plan.overlays.iter().filter(|(_, plan)| plan.keys.is_some());
            let reasons = sealed.map(|(id, _)| (id.clone(), error.to_string()));
            self.unmade.extend(reasons);
        }
        report.note(carried.map(|()| 0), || "carry encrypted networks".to_owned());
    }

    fn let_members_in(&mut self, underlay: Underlay) -> Result<usize, NftError> {
        let plain = self.plan.overlays.values().filter(|overlay| overlay.keys.is_none());
        let vnis: BTreeSet<u32> = plain.map(|overlay| overlay.vni).collect();
        if vnis.is_empty() {
            return self.members_only.take().map_or(Ok(0), |mut there| there.remove());
        }
        if self.members_only.is_none() {
            self.members_only = Some(MembersOnly::open(&self.config.host, &self.config.tag)?);
        }
        let there = self.members_only.as_mut();
        there.map_or(Ok(0), |there| there.update(underlay, &vnis, &self.plan.members))
    }

    /// Tells the tunnel what the encrypted overlays are now.
    fn carry(&mut self) -> io::Result<()> {
        let underlay = Underlay { vtep: self.plan.vtep, port: self.plan.vxlan_port };
        let planned = self.plan.overlays.iter();
        let sealed =
            planned.filter_map(|(id, plan)| Some((plan, plan.keys.as_ref()?, self.overlays.get(id)?.sealed()?)));
        let sealed: Vec<_> = sealed.collect();
        if sealed.is_empty() {
            self.tunnel = None;
            return Ok(());
        }
        let own = underlay.vtep.ok_or_else(|| io::Error::other("this host's address is not known yet"))?;
        let port = underlay.sealed_port();
        let tunnel = match self.tunnel.take() {
            Some(tunnel) if tunnel.is_at(own, port) => tunnel,
            before => {
                drop(before);
                Tunnel::open(&self.config.host, own, port)?
            }
        };
        let tunnel = self.tunnel.insert(tunnel);
        tunnel.retain(|vni| sealed.iter().any(|(plan, ..)| plan.vni == vni));
        sealed
            .iter()
            .try_for_each(|(plan, keys, (tap, remote))| tunnel.put(plan.vni, tap, remote, plan.dual_stack, keys))
    }

    /// Before the first mesh: falls back to what every kernel can do.
    fn probe(&mut self) {
        let network = self.plan.ingress.as_ref().and_then(|ingress| ingress.network_id.as_ref());
        let Some(overlay) = network.and_then(|id| self.overlays.get(id)).filter(|_| !self.probed) else { return };
        self.probed = true;
        if self.config.source_mode == SourceMode::Preserve
            && let Err(error) = overlay.probe_way_back()
        {
            let reason = chain_of(error.as_ref());
            tracing::warn!(reason, "this kernel cannot keep the addresses of published services' clients");
            self.config.source_mode = SourceMode::Masquerade;
        }
    }

    /// Endpoints that were there before this plan and are no more, on any network.
    fn gone_since(&self, before: &HostPlan) -> BTreeMap<NetworkId, BTreeSet<Ipv4Addr>> {
        let mut gone = BTreeMap::new();
        for (id, old) in &before.overlays {
            let new = self.plan.overlays.get(id);
            let (nowhere, nobody) = (BTreeMap::new(), BTreeMap::new());
            let (remote, rings) = new.map_or((&nowhere, &nobody), |new| (&new.remote, &new.balancers));
            let mut dead: BTreeSet<_> =
                differences(entries(&old.remote), entries(remote)).into_iter().map(|(address, ..)| address).collect();
            let changed =
                differences(entries(&old.balancers), entries(rings)).into_iter().filter_map(|(_, ring, _)| ring);
            dead.extend(changed.flat_map(|ring| ring.backends.iter().copied()));
            let local = self.containers.values().filter_map(|c| c.connections.get(id)).map(|c| c.address);
            dead.retain(|address| !remote.contains_key(address));
            local.for_each(|address| _ = dead.remove(&address));
            dead.retain(|address| !rings.values().any(|ring| ring.backends.contains(address)));
            if !dead.is_empty() {
                gone.insert(id.clone(), dead);
            }
        }
        gone
    }

    fn update_containers(&mut self, report: &mut ApplyReport) -> BTreeMap<ContainerId, Changed<Ipv4Addr>> {
        let mut changed = BTreeMap::new();
        for (id, container) in &mut self.containers {
            let outcome = container.update(&self.plan, self.config.source_mode);
            report.add((outcome.changes, outcome.failures));
            report.misdirected |= outcome.misdirected;
            changed.insert(id.clone(), outcome.balancers);
        }
        changed
    }

    /// After all rules are in force: looking through connections is slow beside writing rules.
    fn forget_connections(
        &mut self,
        changed: &BTreeMap<ContainerId, Changed<Ipv4Addr>>,
        datagrams: BTreeSet<Ipv4Addr>,
        gone: &BTreeMap<NetworkId, BTreeSet<Ipv4Addr>>,
        report: &mut ApplyReport,
    ) {
        for (id, container) in &mut self.containers {
            let dead = container.connections.keys().filter_map(|id| gone.get(id)).flatten().copied().collect();
            let nothing = Changed::default();
            let changed = changed.get(id).unwrap_or(&nothing);
            report.failures.extend(container.forget_connections(changed, &dead));
        }
        let dead = self.mesh.as_ref().and_then(|(id, _)| gone.get(id)).cloned().unwrap_or_default();
        self.mesh.iter().for_each(|(_, mesh)| mesh.cut(&dead));
        let forget = Forget { all: dead, datagrams, ..Forget::default() };
        report.failures.extend(container::forget_connections(&self.config.host, &forget));
    }

    /// Returns the backends that take no more datagrams.
    fn update_mesh(&mut self, report: &mut ApplyReport) -> BTreeSet<Ipv4Addr> {
        let wanted = self.plan.ingress.as_ref().and_then(|ingress| ingress.network_id.clone());
        if let Some((id, mesh)) = self.mesh.take_if(|(id, _)| wanted.as_ref() != Some(id)) {
            report.note(mesh.remove(self.overlays.get(&id)), || "remove the mesh".to_owned());
        }
        let (Some(plan), Some(id)) = (&self.plan.ingress, wanted) else { return BTreeSet::new() };
        let Some(overlay) = self.overlays.get(&id) else {
            report.failures.push("the mesh has no ingress network".to_owned());
            return BTreeSet::new();
        };
        let host = &self.config.host;
        if self.mesh.is_none() {
            match Mesh::open(host, &self.config.tag) {
                Ok(mesh) => self.mesh = Some((id.clone(), mesh)),
                Err(error) => report.failures.push(chain_of(&error)),
            }
        }
        let Some((_, mesh)) = &mut self.mesh else { return BTreeSet::new() };
        let update = mesh.update(host, overlay, plan, self.config.source_mode);
        report.add((update.changes, update.failures));
        report.misdirected |= update.misdirected;
        update.dropped
    }

    fn prune_overlays(&mut self, report: &mut ApplyReport) {
        for overlay in self.overlays.values_mut() {
            report.add(overlay.prune_remote());
        }
        if self.tunnel.is_some() {
            let carried = self.carry();
            report.note(carried.map(|()| 0), || "carry encrypted networks".to_owned());
        }
        let unwanted: Vec<NetworkId> =
            self.overlays.keys().filter(|id| !self.plan.overlays.contains_key(*id)).cloned().collect();
        for id in unwanted {
            for container in self.containers.values_mut() {
                container.connections.remove(&id);
            }
            if let Some(overlay) = self.overlays.remove(&id) {
                report.note(overlay.remove().map(|()| 1), || format!("remove overlay network {id}"));
            }
        }
    }

    fn connect(&mut self, attachment: &Attachment) -> Result<Attached, DataplaneError> {
        let id = &attachment.network_id;
        let Some(plan) = self.plan.overlays.get(id) else { return Err(DataplaneError::NoSuchNetwork(id.clone())) };
        let key = attachment.container_id.short();
        // What is connected stays so: it may be carried again soon.
        let there = self.overlays.get(id).filter(|overlay| !self.unmade.contains_key(id) || overlay.holds(key));
        let Some(overlay) = there else {
            let reason = self.unmade.get(id).cloned().unwrap_or_default();
            return Err(DataplaneError::Unmade { name: plan.name.clone(), reason });
        };
        let kernel = |action: &str, source: io::Error| DataplaneError::Kernel {
            action: format!("{action} network {}", plan.name),
            source,
        };
        overlay
            .attach(&Endpoint {
                key,
                namespace: &attachment.namespace,
                ifname: &attachment.ifname,
                address: attachment.address,
            })
            .map_err(|error| kernel("connect the container to", error))?;
        let attached = Attached {
            network_name: plan.name.clone(),
            address: overlay.with_prefix(attachment.address),
            address6: overlay.six(attachment.address),
            mac: mac_of(attachment.address),
        };
        let container = match self.containers.entry(attachment.container_id.clone()) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let opened = Container::open(&attachment.container_id, attachment.namespace.clone());
                entry.insert(opened.map_err(|error| kernel("balance the services of", io::Error::other(error)))?)
            }
        };
        let connection = Connection { address: attachment.address, ifname: attachment.ifname.clone() };
        container.connections.insert(id.clone(), connection);
        let outcome = container.update(&self.plan, self.config.source_mode);
        match outcome.failures.into_iter().next() {
            None => Ok(attached),
            Some(failure) => Err(kernel("balance the services of", io::Error::other(failure))),
        }
    }

    fn routed(&mut self, container_id: &ContainerId) {
        let Some(container) = self.containers.get_mut(container_id) else { return };
        container.forget_way_out();
        for failure in container.update(&self.plan, self.config.source_mode).failures {
            tracing::warn!(%failure, "a container's way back into the mesh is not as it should be");
        }
    }

    fn disconnect(&mut self, container_id: &ContainerId, network_id: &NetworkId) -> Result<(), DataplaneError> {
        let Some(container) = self.containers.get_mut(container_id) else { return Ok(()) };
        let Some(connection) = container.connections.remove(network_id) else { return Ok(()) };
        let outcome = container.update(&self.plan, self.config.source_mode);
        let result = self.detach(container_id, network_id, connection.address);
        if let Some(failure) = outcome.failures.into_iter().next() {
            let action = format!("remove the balancers of network {network_id}");
            return Err(DataplaneError::Kernel { action, source: io::Error::other(failure) });
        }
        result.map_err(|source| DataplaneError::Kernel {
            action: format!("disconnect from network {network_id}"),
            source,
        })
    }

    fn detach(&mut self, container_id: &ContainerId, network_id: &NetworkId, address: Ipv4Addr) -> io::Result<()> {
        let Some(overlay) = self.overlays.get(network_id) else { return Ok(()) };
        overlay.detach(container_id.short())?;
        if self.plan.overlays.get(network_id).is_some_and(|plan| plan.remote.contains_key(&address)) {
            return Ok(());
        }
        // A dead endpoint's balancers may or may not know yet; its clients are let go when they do, and here if they did.
        let dead = BTreeSet::from([address]);
        let clients = self.containers.values_mut().filter(|container| container.connections.contains_key(network_id));
        let mut failures: Vec<_> =
            clients.filter_map(|container| container.forget_connections(&Changed::default(), &dead)).collect();
        if self.mesh.as_ref().is_some_and(|(id, _)| id == network_id) {
            self.mesh.iter().for_each(|(_, mesh)| mesh.cut(&dead));
            let forget = Forget { all: dead, ..Forget::default() };
            failures.extend(container::forget_connections(&self.config.host, &forget));
        }
        for failure in failures {
            tracing::warn!(%failure, "clients of a removed container may hang");
        }
        Ok(())
    }

    fn forget(&mut self, container_id: &ContainerId) {
        let Some(mut container) = self.containers.remove(container_id) else { return };
        if let Err(error) = container.clear() {
            tracing::debug!(error = chain_of(&error), "failed to clear the rules of a container");
        }
        for (network_id, connection) in std::mem::take(&mut container.connections) {
            if let Err(error) = self.detach(container_id, &network_id, connection.address) {
                tracing::warn!(%error, network.id = %network_id, "failed to disconnect a removed container");
            }
        }
    }
}

impl ApplyReport {
    fn add(&mut self, (changes, failures): (usize, Vec<String>)) {
        self.changes += changes;
        self.failures.extend(failures);
    }

    fn note<E: Error + 'static>(&mut self, result: Result<usize, E>, action: impl FnOnce() -> String) {
        match result {
            Ok(changes) => self.changes += changes,
            Err(error) => self.failures.push(format!("failed to {}: {}", action(), chain_of(&error))),
        }
    }
}

/// Where overlay namespaces of a daemon are mounted.
pub fn overlay_path(exec_root: &Path, network_id: &NetworkId) -> PathBuf {
    exec_root.join("netns").join(format!("{FILE_PREFIX}{network_id}"))
}
