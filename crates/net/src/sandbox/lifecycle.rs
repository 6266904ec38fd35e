//! Setting up, taking down, and taking up again after a restart of the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use skep_model::sandbox::{EndpointInfo, EndpointRequest, NetworkMode, Sandbox, SandboxRequest};
use skep_model::service::Protocol;
use skep_model::{ContainerId, NetworkId};

use super::endpoints::blocking;
use super::files;
use super::names::ContainerNames;
use super::record::{EndpointKind, Record};
use crate::bridge::{Stored, rules};
use crate::conntrack::Conntrack;
use crate::dataplane::Attachment;
use crate::dns::{Resolver, Sockets};
use crate::error::{Context, NetError, Result};
use crate::host::Host;
use crate::link::Namespace;

/// How long the kernel may take to sweep up a namespace's links.
const SWEEP_DELAY: Duration = Duration::from_secs(2);

/// How long the last words of a container may take to arrive. More than a packet sent again needs, little enough to wait for
/// when nobody is there to hear them.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Waits until what the container's processes sent before they ended has arrived: the kernel goes on sending for them, but no
/// longer than there are links. An answer that was lost or is still queued would never come. (Links to bridge networks stay for
/// [`SWEEP_DELAY`] anyway.)
async fn last_words(namespace: Namespace) {
    let all_arrived = async {
        loop {
            let namespace = namespace.clone();
            match blocking(move || namespace.run(open_streams)).await {
                Ok(Ok(open)) if open > 0 => tokio::time::sleep(LOOK_AGAIN).await,
                _ => return,
            }
        }
    };
    if tokio::time::timeout(LAST_WORDS, all_arrived).await.is_err() {
        tracing::debug!("a container's last words were not acknowledged");
    }
}

/// TCP sockets of this thread's namespace that are not closed yet (`TCP: inuse 3 …` in `sockstat`, of each IP version).
fn open_streams() -> std::io::Result<usize> {
    let mut open = 0;
    for (file, protocol) in [("sockstat", "TCP:"), ("sockstat6", "TCP6:")] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(protocol)).unwrap_or_default();
        open += line.split_whitespace().nth(1).and_then(|count| count.parse::<usize>().ok()).unwrap_or_default();
    }
    Ok(open)
}

/// A resolver and what it answers from.
pub(crate) struct RunningResolver {
    resolver: Resolver,
    names: Arc<ContainerNames>,
}

impl Host {
    /// Makes a sandbox, or gives back the one there is.
    pub(crate) async fn setup(self: &Arc<Self>, request: &SandboxRequest) -> Result<Sandbox> {
        let container = &request.container_id;
        let _turn = self.turn(container).await;
        let there = self.state().sandboxes.get(container).cloned();
        if let Some(record) = there {
            if record.request.mode != NetworkMode::Private || Namespace::open(&self.netns_path(container)).is_ok() {
                return self.view(&record);
            }
            // The host was started again: what the record speaks of is gone.
            self.dismantle(record).await?;
        }
        let mut record = Record::new(request.clone());
        if matches!(request.mode, NetworkMode::Private | NetworkMode::None)
            && let Err(error) = self.build(&mut record).await
        {
            if let Err(also) = self.dismantle(record).await {
                tracing::warn!(error = %also, container.id = %container, "failed to clean up after a failed set-up");
            }
            return Err(error);
        }
        let view = self.view(&record)?;
        self.state().sandboxes.insert(container.clone(), record);
        Ok(view)
    }

    async fn build(self: &Arc<Self>, record: &mut Record) -> Result<()> {
        let path = self.netns_path(record.container());
        let namespace = blocking(move || -> std::io::Result<Namespace> {
            Namespace::delete(&path)?;
            let namespace = Namespace::create(&path)?;
            // As Docker: no IPv6 beyond loopback on networks without it, low ports and ping for every user.
            namespace.write_sysctls(&[
                ("ipv6/conf/default/disable_ipv6", "1"),
                ("ipv4/ip_unprivileged_port_start", "0"),
                ("ipv4/ping_group_range", "0 2147483647"),
            ])?;
            Ok(namespace)
        })
        .await
        .context(|| format!("make the network namespace of container {}", record.request.container_name))?;
        for endpoint in record.request.endpoints.clone() {
            self.attach(record, &namespace, &endpoint).await?;
        }
        self.route(record, &namespace).await?;
        self.start_resolver(record, &namespace).await?;
        record.save(&self.records_path()).context(|| "write the record of a sandbox".to_owned())
    }

    /// Takes a sandbox away. Succeeds when there is none.
    pub(crate) async fn teardown(self: &Arc<Self>, container: &ContainerId) -> Result<()> {
        let _turn = self.turn(container).await;
        let record = self.state().sandboxes.remove(container);
        match record {
            Some(record) => self.dismantle(record).await,
            None => Ok(()),
        }
    }

    /// Everything is tried; the first failure is told.
    async fn dismantle(self: &Arc<Self>, record: Record) -> Result<()> {
        let container = record.container().clone();
        self.stop_resolver(&container).await;
        if record.endpoints.iter().any(super::record::Endpoint::is_overlay) {
            if let Ok(namespace) = Namespace::open(&self.netns_path(&container)) {
                last_words(namespace).await;
            }
            self.dataplane.forget(&container).await;
        }
        let host = Arc::clone(self);
        let links: Vec<String> =
            record.endpoints.iter().filter_map(|endpoint| endpoint.host_end().map(str::to_owned)).collect();
        let left: Vec<NetworkId> = record.endpoints.iter().map(|endpoint| endpoint.info.network_id.clone()).collect();
        let result = blocking(move || host.dismantle_rest(&record)).await;
        self.sweep_later(links);
        result.and(self.leave(&left).await)
    }

    /// What is here of the swarm's node-local networks goes with the last endpoint.
    pub(super) async fn leave(self: &Arc<Self>, networks: &[NetworkId]) -> Result<()> {
        let of_swarm = |id: &NetworkId| self.state().networks.get(id).is_some_and(Stored::is_of_swarm);
        if !networks.iter().any(of_swarm) {
            return Ok(());
        }
        let _turn = self.network_turn.lock().await;
        let host = Arc::clone(self);
        blocking(move || host.remove_unused()).await
    }

    /// Links go with their namespace, many namespaces in one sweep of the kernel's; deleting each one by itself would take
    /// tens of milliseconds and keep all other changes waiting. Only where something holds the namespace, it is done here.
    fn sweep_later(self: &Arc<Self>, links: Vec<String>) {
        if links.is_empty() {
            return;
        }
        let host = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = host.closing.cancelled() => {}
                () = tokio::time::sleep(SWEEP_DELAY) => {}
            }
            blocking(move || {
                for link in links {
                    if let Err(error) = host.namespace.links().delete(&link) {
                        tracing::warn!(%error, link, "the link of a removed container stays");
                    }
                }
            })
            .await;
        });
    }

    fn dismantle_rest(&self, record: &Record) -> Result<()> {
        let container = record.container();
        let mut first = Ok(());
        let mut note = |result: Result<()>| {
            if let Err(error) = result
                && first.is_ok()
            {
                first = Err(error);
            }
        };
        let released = {
            let mut state = self.state();
            for endpoint in &record.endpoints {
                state.networks.disconnect(container, &endpoint.info.network_id);
            }
            let released = state.ports.release(container);
            if !released.is_empty() {
                note(state.sync_firewall(&self.config.tag));
            }
            released
        };
        self.forget_connections(&released);
        for endpoint in record.endpoints.iter().filter(|endpoint| !endpoint.is_overlay()) {
            self.refresh_zone(&endpoint.info.network_id);
        }
        let path = self.netns_path(container);
        note(Namespace::delete(&path).context(|| format!("remove the network namespace {}", path.display())));
        note(Record::delete(&self.records_path(), container).context(|| "remove the record of a sandbox".to_owned()));
        first
    }

    /// UDP clients that keep sending would be led to an address that somebody else may get next.
    fn forget_connections(&self, released: &[rules::Published]) {
        let gone: BTreeSet<_> =
            released.iter().filter(|port| port.protocol == Protocol::Udp).map(|port| port.address).collect();
        if gone.is_empty() {
            return;
        }
        let udp = rules::protocol_number(Protocol::Udp);
        let forgotten =
            Conntrack::open(self.namespace.fd()).and_then(|conntrack| conntrack.forget(&gone, |c| c.protocol == udp));
        if let Err(error) = forgotten {
            tracing::warn!(%error, "tracked UDP connections of a removed container were not forgotten");
        }
    }

    /// Connects a running container to one more network.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        container: &ContainerId,
        request: &EndpointRequest,
    ) -> Result<EndpointInfo> {
        let _turn = self.turn(container).await;
        let (mut record, namespace) = self.running(container)?;
        let known: BTreeSet<NetworkId> = record.endpoints.iter().map(|e| e.info.network_id.clone()).collect();
        let result = async {
            self.attach(&mut record, &namespace, request).await?;
            self.route(&mut record, &namespace).await?;
            self.start_resolver(&record, &namespace).await
        }
        .await;
        let added: Vec<NetworkId> = record.endpoints.iter().map(|e| e.info.network_id.clone()).collect();
        let added: Vec<NetworkId> = added.into_iter().filter(|id| !known.contains(id)).collect();
        if result.is_err() {
            for network in &added {
                if let Err(error) = self.detach(&mut record, network).await {
                    tracing::warn!(%error, container.id = %container, "failed to undo a connection to a network");
                }
            }
        } else if !record.request.endpoints.contains(request) {
            record.request.endpoints.push(request.clone());
        }
        let info = record.endpoints.iter().find(|e| added.first() == Some(&e.info.network_id)).map(|e| e.info.clone());
        self.keep(record)?;
        result?;
        info.ok_or_else(|| NetError::NoSuchNetwork(request.network.clone()))
    }

    /// Disconnects a container from a network.
    pub(crate) async fn disconnect(
        self: &Arc<Self>,
        container: &ContainerId,
        network: &str,
        force: bool,
    ) -> Result<()> {
        let _turn = self.turn(container).await;
        let (mut record, namespace) = match self.running(container) {
            Err(_) if force => return Ok(()),
            other => other?,
        };
        let by_name = self.state().networks.find(network).map(|stored| stored.network.id.clone()).ok();
        let place = record.endpoints.iter().find(|endpoint| {
            let info = &endpoint.info;
            let named = info.network_id.as_str() == network || info.network_name == network;
            named || Some(&info.network_id) == by_name.as_ref()
        });
        let Some(id) = place.map(|endpoint| endpoint.info.network_id.clone()) else {
            let error = NetError::NotConnected { container: container.to_string(), network: network.to_owned() };
            return if force { Ok(()) } else { Err(error) };
        };
        let mut result = self.detach(&mut record, &id).await;
        if result.is_ok() {
            let way_out = record.endpoints.iter().find(|e| matches!(e.kind, EndpointKind::WayOut { .. }));
            if let Some(way_out) = way_out.map(|endpoint| endpoint.info.network_id.clone())
                && !record.is_on_open_overlay()
            {
                result = self.detach(&mut record, &way_out).await;
            }
        }
        if result.is_ok() {
            result = self.route(&mut record, &namespace).await;
        }
        record.request.endpoints.retain(|endpoint| endpoint.network != network && endpoint.network != id.as_str());
        self.keep(record)?;
        result.and(self.leave(&[id]).await)
    }

    fn running(&self, container: &ContainerId) -> Result<(Record, Namespace)> {
        let record = self.state().sandboxes.get(container).cloned();
        let record = record.ok_or_else(|| NetError::NoSandbox(container.to_string()))?;
        match record.request.mode {
            NetworkMode::Private | NetworkMode::None => {}
            NetworkMode::Host | NetworkMode::Container(_) => {
                let text = "container sharing network namespace with another container or host cannot be connected \
                            to any other network";
                return Err(NetError::Forbidden(text.to_owned()));
            }
        }
        let path = self.netns_path(container);
        let namespace = Namespace::open(&path).context(|| format!("open the network namespace {}", path.display()))?;
        Ok((record, namespace))
    }

    /// Notes a changed sandbox.
    fn keep(&self, record: Record) -> Result<()> {
        if let Some(running) = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner).get(record.container()) {
            running.names.set_networks(record.name_networks());
        }
        let saved = record.save(&self.records_path());
        self.state().sandboxes.insert(record.container().clone(), record);
        saved.context(|| "write the record of a sandbox".to_owned())
    }

    /// Starts the resolver if the container needs one and has none; otherwise tells it the networks.
    async fn start_resolver(&self, record: &Record, namespace: &Namespace) -> Result<()> {
        let networks = record.name_networks();
        if let Some(running) = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner).get(record.container()) {
            running.names.set_networks(networks);
            return Ok(());
        }
        if !record.needs_resolver() {
            return Ok(());
        }
        let failed = || format!("start the resolver of container {}", record.request.container_name);
        let inside = namespace.clone();
        let sockets = blocking(move || Sockets::open(&inside)).await.context(failed)?;
        let names = Arc::new(ContainerNames {
            zones: Arc::clone(&self.zones),
            networks: RwLock::new(networks),
            answer: self.config.answer,
            host: Arc::clone(&self.resolv),
            request: record.request.clone(),
        });
        let resolver = Resolver::start(sockets, names.clone(), self.forwarder.clone()).context(failed)?;
        let running = RunningResolver { resolver, names };
        self.resolvers.lock().unwrap_or_else(PoisonError::into_inner).insert(record.container().clone(), running);
        Ok(())
    }

    /// Blocks. Leads the queries of containers to their resolvers again, where somebody else has taken that away; of how many.
    pub(crate) fn lead_queries_again(&self) -> Result<usize> {
        let all: Vec<_> = {
            let running = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner);
            running.iter().map(|(container, running)| (container.clone(), running.resolver.ports())).collect()
        };
        let mut changes = 0;
        for (container, ports) in all {
            // One that is not there any more has just ended.
            let Ok(namespace) = Namespace::open(&self.netns_path(&container)) else { continue };
            let action = || format!("lead the queries of container {container} to its resolver");
            changes += usize::from(ports.lead_again(&namespace).context(action)?);
        }
        Ok(changes)
    }

    async fn stop_resolver(&self, container: &ContainerId) {
        let running = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner).remove(container);
        if let Some(running) = running {
            running.resolver.stop().await;
        }
    }

    /// Stops all resolvers and lets go of all ports; containers stay.
    pub(crate) async fn close(&self) {
        let all = std::mem::take(&mut *self.resolvers.lock().unwrap_or_else(PoisonError::into_inner));
        for running in all.into_values() {
            running.resolver.stop().await;
        }
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let mut state = self.state();
        let containers: Vec<ContainerId> = state.sandboxes.keys().cloned().collect();
        for container in containers {
            state.ports.release(&container);
        }
    }

    /// A sandbox as the engine sees it.
    pub(crate) fn view(&self, record: &Record) -> Result<Sandbox> {
        let request = &record.request;
        let resolv = self.resolv.get();
        let path = self.netns_path(record.container());
        match &request.mode {
            NetworkMode::Host => {
                let mut hosts_file = std::fs::read_to_string(&self.config.hosts).unwrap_or_default();
                hosts_file += &files::extra_hosts(request, self.host_gateway());
                let resolv_conf = std::fs::read_to_string(&self.config.resolv_conf).unwrap_or_default();
                Ok(Sandbox { hosts_file, resolv_conf, ..Sandbox::default() })
            }
            NetworkMode::Container(other) => {
                let shared = self.state().sandboxes.get(other).cloned();
                match shared {
                    // A chain of containers ends at one with a namespace, unless it leads back here.
                    Some(shared) if shared.request.mode != request.mode && shared.container() != record.container() => {
                        self.view(&shared).map(|view| Sandbox { endpoints: Vec::new(), published: Vec::new(), ..view })
                    }
                    _ => Err(NetError::NoSandbox(other.to_string())),
                }
            }
            NetworkMode::None | NetworkMode::Private => {
                let endpoints = record.shown();
                let resolv_conf = if record.needs_resolver() {
                    files::internal_resolv_conf(&resolv, request)
                } else {
                    files::direct_resolv_conf(&resolv, request)
                };
                Ok(Sandbox {
                    netns: Some(path),
                    hosts_file: files::hosts_file(request, &endpoints, self.host_gateway()),
                    resolv_conf,
                    published: record.published.clone(),
                    endpoints,
                })
            }
        }
    }

    /// Takes up the sandboxes of an earlier daemon that are still there, and removes the traces of those that are not.
    pub(crate) async fn adopt(self: &Arc<Self>) -> Result<()> {
        let directory = self.records_path();
        let records = blocking(move || Record::load_all(&directory)).await;
        for mut record in records {
            let container = record.container().clone();
            let path = self.netns_path(&container);
            let Ok(namespace) = Namespace::open(&path) else {
                self.dismantle(record).await?;
                continue;
            };
            {
                let mut state = self.state();
                for endpoint in record.endpoints.iter().filter(|endpoint| !endpoint.is_overlay()) {
                    state.networks.connect(&container, endpoint.info.clone());
                }
            }
            for endpoint in &record.endpoints {
                if !endpoint.is_overlay() {
                    self.refresh_zone(&endpoint.info.network_id);
                }
            }
            if let Err(error) = self.publish_again(&mut record) {
                tracing::warn!(%error, container.id = %container, "published ports were lost while the daemon was away");
                record.published.clear();
            }
            self.start_resolver(&record, &namespace).await?;
            self.state().sandboxes.insert(container, record);
        }
        let host = Arc::clone(self);
        blocking(move || host.remove_stale()).await
    }

    /// Namespaces and links that belong to no sandbox: a daemon ended while it made or removed them.
    fn remove_stale(&self) -> Result<()> {
        let (containers, links): (BTreeSet<String>, BTreeSet<String>) = {
            let state = self.state();
            let links = state.sandboxes.values().flat_map(|record| &record.endpoints);
            let links = links.filter_map(|endpoint| endpoint.host_end().map(str::to_owned)).collect();
            (state.sandboxes.keys().map(ToString::to_string).collect(), links)
        };
        let entries = std::fs::read_dir(self.config.exec_root.join("netns")).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_container = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_container && !containers.contains(&name) {
                Namespace::delete(&entry.path()).context(|| format!("remove stale namespace {name}"))?;
            }
        }
        let prefix = format!("v{}", self.config.tag);
        let found = self.namespace.links().list_prefix(&prefix).context(|| "list links".to_owned())?;
        for link in found.into_iter().filter(|link| !links.contains(&link.name)) {
            self.namespace.links().delete(&link.name).context(|| format!("remove stale link {}", link.name))?;
        }
        Ok(())
    }

    /// After a new plan: overlay endpoints of adopted sandboxes are connected again, which changes nothing that is right.
    pub(crate) async fn connect_overlays(&self, networks: &BTreeSet<NetworkId>) -> Vec<String> {
        let mut waiting: BTreeMap<ContainerId, Vec<(NetworkId, std::net::Ipv4Addr, String)>> = BTreeMap::new();
        for (container, record) in &self.state().sandboxes {
            for endpoint in record.endpoints.iter().filter(|endpoint| endpoint.is_overlay()) {
                let id = &endpoint.info.network_id;
                if networks.contains(id) {
                    let place = (id.clone(), endpoint.info.address.addr(), endpoint.name.clone());
                    waiting.entry(container.clone()).or_default().push(place);
                }
            }
        }
        let mut failures = Vec::new();
        for (container_id, places) in waiting {
            let Ok(namespace) = Namespace::open(&self.netns_path(&container_id)) else { continue };
            for (network_id, address, ifname) in places {
                let (container_id, namespace) = (container_id.clone(), namespace.clone());
                let attachment = Attachment { container_id, network_id, namespace, address, ifname };
                if let Err(error) = self.dataplane.connect(&attachment).await {
                    failures.push(crate::dataplane::chain_of(&error));
                }
            }
        }
        failures
    }
}
