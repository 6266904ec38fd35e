//! What the network side of this host holds: networks, sandboxes, ports, firewall, and the locks around them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::Ipv4Net;
use skep_model::dns::Zone;
use skep_model::network::GWBRIDGE_NETWORK_NAME;
use skep_model::sandbox::{EndpointRequest, LocalNetwork, LocalNetworkSpec};
use skep_model::{ContainerId, NetworkId, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bridge::{Networks, Stored, default_spec, driver, gwbridge_spec, is_predefined, macvlan, rules, rules6};
use crate::config::NetConfig;
use crate::dataplane::{Dataplane, DataplaneConfig};
use crate::dns::Forwarder;
use crate::error::{Context, NetError, Result};
use crate::ingress::rules::SourceMode;
use crate::link::Namespace;
use crate::nft::{Family, NftError, NftSocket, Ownership, Table};
use crate::publish::Ports;
use crate::sandbox::{HostResolv, Record, RunningResolver, Zones, blocking, zone_of};

/// An overlay of the plan, as far as a sandbox needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OverlayInfo {
    pub(crate) name: String,
    pub(crate) internal: bool,
    /// Addresses that may be connected here. Without them, a container that starts just after the last one on the network
    /// ended would be put on what the next plan takes away.
    pub(crate) local: BTreeSet<Ipv4Addr>,
}

pub(crate) struct Host {
    pub(crate) config: NetConfig,
    pub(crate) namespace: Namespace,
    pub(crate) dataplane: Dataplane,
    pub(crate) zones: Arc<Zones>,
    pub(crate) resolv: Arc<HostResolv>,
    pub(crate) forwarder: Forwarder,
    pub(crate) overlays: watch::Sender<BTreeMap<NetworkId, OverlayInfo>>,
    pub(crate) resolvers: Mutex<BTreeMap<ContainerId, RunningResolver>>,
    state: Mutex<State>,
    /// Names on node-local networks of the swarm that the last plan knew.
    swarm_zones: Mutex<BTreeMap<NetworkId, Zone>>,
    /// One change at a time for each container.
    turns: Mutex<BTreeMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
    /// One network made or removed at a time.
    pub(crate) network_turn: tokio::sync::Mutex<()>,
    /// Work that goes on after the call it belongs to.
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
}

pub(crate) struct State {
    pub(crate) networks: Networks,
    pub(crate) sandboxes: BTreeMap<ContainerId, Record>,
    pub(crate) ports: Ports,
    firewall: Firewall,
    firewall6: Firewall,
}

/// The rules in force.
struct Firewall {
    socket: NftSocket,
    current: Option<Table>,
    there: bool,
    /// There is a table that ought to be in force.
    needed: bool,
}

impl Host {
    /// Blocks. Reads the networks and sees to it that their bridges are there.
    pub(crate) fn open(config: NetConfig) -> Result<Self> {
        let namespace = Namespace::current().context(|| "open the host's network namespace".to_owned())?;
        let mut networks = Networks::new(&config.default_address_pools);
        let path = networks_path(&config);
        networks.load(&path).context(|| format!("read {}", path.display()))?;
        let firewall = Firewall::open(&namespace, Family::Ip, &config.tag)?;
        let firewall6 = Firewall::open(&namespace, Family::Ip6, &config.tag)?;
        let dataplane = Dataplane::new(DataplaneConfig {
            exec_root: config.exec_root.clone(),
            tag: config.tag.clone(),
            host: namespace.clone(),
            source_mode: SourceMode::Preserve,
        });
        let host = Self {
            namespace,
            dataplane,
            zones: Arc::default(),
            resolv: Arc::new(HostResolv::new(config.resolv_conf.clone())),
            forwarder: Forwarder::new(),
            overlays: watch::Sender::new(BTreeMap::new()),
            resolvers: Mutex::default(),
            state: Mutex::new(State { networks, sandboxes: BTreeMap::new(), ports: Ports::new(), firewall, firewall6 }),
            swarm_zones: Mutex::default(),
            turns: Mutex::default(),
            network_turn: tokio::sync::Mutex::new(()),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            config,
        };
        host.make_defaults()?;
        Ok(host)
    }

    fn make_defaults(&self) -> Result<()> {
        let wanted =
            [default_spec(self.config.bip, self.config.mtu), predefined("host", "host"), predefined("none", "null")];
        for spec in wanted {
            let there = self.state().networks.named(&spec.name).cloned();
            // `--bip` may have changed since; a network without containers of its own running can follow.
            let differs = |stored: &Stored| spec.subnet.is_some() && stored.network.spec != spec;
            match there {
                Some(stored) if !differs(&stored) => {}
                Some(stored) => {
                    self.state().networks.remove(&stored.network.id);
                    driver::remove_bridge(&self.namespace, &stored)
                        .context(|| format!("remove bridge {}", stored.link))?;
                    self.make_network(spec)?;
                }
                None => {
                    self.make_network(spec)?;
                }
            }
        }
        let all: Vec<Stored> = self.state().networks.all().cloned().collect();
        for stored in all.iter().filter(|stored| stored.is_bridge()) {
            driver::ensure_bridge(&self.namespace, stored)
                .context(|| format!("make bridge {} of network {}", stored.link, stored.name()))?;
            self.refresh_zone(&stored.network.id);
        }
        for stored in all.iter().filter(|stored| stored.is_macvlan()) {
            match macvlan::ensure_parent(&self.namespace, stored) {
                Ok(_) => self.refresh_zone(&stored.network.id),
                // Its containers do not start until it is there; everything else does.
                Err(error) => {
                    tracing::warn!(%error, network = stored.name(), "a network's parent interface is missing")
                }
            }
        }
        self.state().sync_firewall(&self.config.tag)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for other changes to the container to end.
    pub(crate) async fn turn(&self, container: &ContainerId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|id, turn| id == container || Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(container.clone()).or_default())
        };
        turn.lock_owned().await
    }

    pub(crate) fn netns_path(&self, container: &ContainerId) -> PathBuf {
        self.config.exec_root.join("netns").join(container.as_str())
    }

    pub(crate) fn records_path(&self) -> PathBuf {
        self.config.exec_root.join("net")
    }

    /// Blocks. Validates, makes the bridge, writes the list.
    pub(crate) fn create_network(&self, spec: LocalNetworkSpec) -> Result<LocalNetwork> {
        if is_predefined(&spec.name) {
            return Err(NetError::Predefined(spec.name));
        }
        self.make_network(spec)
    }

    fn make_network(&self, spec: LocalNetworkSpec) -> Result<LocalNetwork> {
        let id = skep_model::id::hex_64([rand::random(), rand::random()]).parse().expect("64 hex digits are an id");
        self.make_network_as(id, spec)
    }

    fn make_network_as(&self, id: NetworkId, spec: LocalNetworkSpec) -> Result<LocalNetwork> {
        let routed = self.routed().context(|| "read the host's routes".to_owned())?;
        let mut stored = self.state().networks.plan(spec, id, now(), &routed)?;
        if stored.is_bridge() {
            stored.owns_link = driver::ensure_bridge(&self.namespace, &stored)
                .context(|| format!("make bridge {} of network {}", stored.link, stored.name()))?;
        } else if stored.is_macvlan() {
            stored.owns_link = macvlan::ensure_parent(&self.namespace, &stored)?;
        }
        let network = stored.network.clone();
        let mut state = self.state();
        state.networks.insert(stored.clone());
        let written = state.sync_firewall(&self.config.tag).and_then(|()| self.save_networks(&state));
        if let Err(error) = written {
            state.networks.remove(&network.id);
            let _ = driver::remove_bridge(&self.namespace, &stored);
            return Err(error);
        }
        drop(state);
        self.refresh_zone(&network.id);
        Ok(network)
    }

    /// Blocks.
    pub(crate) fn remove_network(&self, name_or_id: &str) -> Result<NetworkId> {
        let mut state = self.state();
        let stored = state.networks.find(name_or_id)?.clone();
        state.networks.check_removal(&stored)?;
        state.networks.remove(&stored.network.id);
        self.save_networks(&state)?;
        state.sync_firewall(&self.config.tag)?;
        drop(state);
        self.zones.forget(&stored.network.id);
        driver::remove_bridge(&self.namespace, &stored).context(|| format!("remove bridge {}", stored.link))?;
        Ok(stored.network.id)
    }

    /// Blocks; the caller holds `network_turn`. The network that gives tasks a way out.
    pub(crate) fn ensure_gwbridge(&self) -> Result<Stored> {
        let there = self.state().networks.named(GWBRIDGE_NETWORK_NAME).cloned();
        if let Some(stored) = there {
            return Ok(stored);
        }
        let id = self.make_network(gwbridge_spec())?.id;
        self.state().networks.get(&id).cloned().ok_or_else(|| NetError::NoSuchNetwork(GWBRIDGE_NETWORK_NAME.to_owned()))
    }

    /// The caller holds `network_turn`. Makes a node-local network of the swarm here, if the request is for one.
    pub(crate) async fn ensure_of_swarm(self: &Arc<Self>, request: &EndpointRequest) -> Result<()> {
        let Some(spec) = &request.made_from else { return Ok(()) };
        let Ok(id) = request.network.parse::<NetworkId>() else { return Ok(()) };
        if self.state().networks.get(&id).is_some() {
            return Ok(());
        }
        let (host, spec) = (Arc::clone(self), LocalNetworkSpec::clone(spec));
        blocking(move || host.make_network_as(id, spec)).await.map(drop)
    }

    /// Blocks; the caller holds `network_turn`. Takes away what is here of the swarm's node-local networks and has nothing on it:
    /// whoever comes next makes it again.
    pub(crate) fn remove_unused(&self) -> Result<()> {
        let unused: Vec<NetworkId> = {
            let state = self.state();
            let unused = state.networks.all().filter(|s| s.is_of_swarm() && s.network.endpoints.is_empty());
            unused.map(|stored| stored.network.id.clone()).collect()
        };
        unused.iter().try_for_each(|id| self.remove_network(id.as_str()).map(drop))
    }

    /// Takes names on node-local networks of the swarm that others than this host's containers have.
    pub(crate) fn set_swarm_zones(&self, zones: &BTreeMap<NetworkId, Zone>) {
        let before =
            std::mem::replace(&mut *self.swarm_zones.lock().unwrap_or_else(PoisonError::into_inner), zones.clone());
        let changed = before.keys().chain(zones.keys()).filter(|id| before.get(*id) != zones.get(*id));
        changed.collect::<BTreeSet<_>>().into_iter().for_each(|id| self.refresh_zone(id));
    }

    /// Blocks; the caller holds `network_turn`. Makes bridges, their ports and the rules what they are to be, where somebody
    /// else has changed them; how many things that were.
    pub(crate) fn repair(&self) -> Result<usize> {
        let (bridges, ends) = {
            let state = self.state();
            let bridges: Vec<Stored> = state.networks.all().filter(|stored| stored.is_bridge()).cloned().collect();
            let endpoints = state.sandboxes.values().flat_map(|record| record.endpoints.iter());
            let ends =
                endpoints.filter_map(|e| Some((e.info.network_id.clone(), e.host_end()?.to_owned(), e.info.mac)));
            (bridges, ends.collect::<Vec<_>>())
        };
        let mut changes = 0;
        for stored in &bridges {
            let action = || format!("mend bridge {} of network {}", stored.link, stored.name());
            changes += usize::from(driver::ensure_bridge(&self.namespace, stored).context(action)?);
            for (_, host_end, mac) in ends.iter().filter(|(id, ..)| *id == stored.network.id) {
                changes += usize::from(driver::ensure_port(&self.namespace, stored, host_end, *mac).context(action)?);
            }
        }
        let mut state = self.state();
        if state.firewall.look_again()? | state.firewall6.look_again()? {
            state.sync_firewall(&self.config.tag)?;
            changes += 1;
        }
        drop(state);
        Ok(changes + self.lead_queries_again()?)
    }

    /// What the host itself can reach without its default route: no network of ours may hide it.
    fn routed(&self) -> io::Result<Vec<Ipv4Net>> {
        let links = self.namespace.links();
        let routes = links.routes()?.into_iter().map(|route| route.destination);
        let addresses = links.addresses()?.into_iter().map(|(_, address)| address.trunc());
        Ok(routes.chain(addresses).filter(|subnet| subnet.prefix_len() > 0).collect())
    }

    fn save_networks(&self, state: &State) -> Result<()> {
        let path = networks_path(&self.config);
        state.networks.save(&path).context(|| format!("write {}", path.display()))
    }

    /// Makes the names of a bridge network what its endpoints are now.
    pub(crate) fn refresh_zone(&self, network: &NetworkId) {
        let zone = self.state().networks.get(network).map(zone_of);
        let swarm = self.swarm_zones.lock().unwrap_or_else(PoisonError::into_inner);
        match zone {
            Some(mut zone) => {
                if let Some(names) = swarm.get(network) {
                    zone.merge(names);
                }
                self.zones.set(network.clone(), zone);
            }
            None => self.zones.forget(network),
        }
    }
}

impl State {
    /// Brings the rules to what networks and ports say.
    pub(crate) fn sync_firewall(&mut self, tag: &str) -> Result<()> {
        let bridges: Vec<rules::Bridge> = self.networks.all().filter_map(Stored::rules).collect();
        let table = rules::table(tag, bridges.iter(), self.ports.published());
        self.firewall.apply(table)?;
        // A kernel without IPv6 has no such networks and is asked for no such table.
        let bridges: Vec<rules6::Bridge6> = self.networks.all().filter_map(Stored::rules6).collect();
        if bridges.is_empty() && !self.firewall6.there && !self.firewall6.needed {
            return Ok(());
        }
        self.firewall6.apply(rules6::table(tag, bridges.iter(), self.ports.published()))
    }
}

impl Firewall {
    fn open(namespace: &Namespace, family: Family, tag: &str) -> Result<Self> {
        let mut socket = NftSocket::open(namespace.fd()).map_err(failed_to("open the firewall"))?;
        let name = rules::table_name(tag);
        let there = socket.tables(family, &name).map_err(failed_to("open the firewall"))?.contains(&name);
        Ok(Self { socket, current: None, there, needed: false })
    }

    /// True if somebody else has changed or removed the rules, as `nft flush ruleset` does: they are then made anew.
    fn look_again(&mut self) -> Result<bool> {
        let Some(table) = &self.current else { return Ok(self.needed) };
        let whole = self.socket.has(table).map_err(failed_to("look at the firewall"))?;
        if !whole {
            let tables = self.socket.tables(table.family, &table.name).map_err(failed_to("look at the firewall"))?;
            self.there = tables.contains(&table.name);
            self.current = None;
        }
        Ok(!whole)
    }

    fn apply(&mut self, table: Table) -> Result<()> {
        self.needed = true;
        // An earlier daemon's table is replaced in one transaction: `difference` does so when the shapes differ.
        let stranger = Table::new(table.family, table.name.clone(), Ownership::Ours);
        let old = self.current.as_ref().or(self.there.then_some(&stranger));
        if let Err(error) = self.socket.apply(old, &table) {
            if self.current.is_none() || !self.look_again()? {
                return Err(failed_to("change the firewall")(error));
            }
            let old = self.there.then_some(&stranger);
            self.socket.apply(old, &table).map_err(failed_to("change the firewall"))?;
        }
        self.current = Some(table);
        Ok(())
    }
}

fn failed_to(action: &str) -> impl Fn(NftError) -> NetError {
    move |error| NetError::Kernel { action: action.to_owned(), source: io::Error::other(error) }
}

fn predefined(name: &str, driver: &str) -> LocalNetworkSpec {
    LocalNetworkSpec { name: name.to_owned(), driver: driver.to_owned(), ..LocalNetworkSpec::default() }
}

fn networks_path(config: &NetConfig) -> PathBuf {
    config.data_root.join("network").join("local.json")
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
