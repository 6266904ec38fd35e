//! Connecting a sandbox to networks, and which of them is its way out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use skep_model::network::{GWBRIDGE_NETWORK_NAME, mac_of};
use skep_model::sandbox::{EndpointInfo, EndpointRequest, PublishRequest};
use skep_model::service::Protocol;
use skep_model::{EndpointId, NetworkId};

use super::record::{Endpoint, EndpointKind, INTERFACE_PREFIX, Record};
use crate::bridge::rules::protocol_number;
use crate::bridge::{Stored, driver, macvlan};
use crate::conntrack::Conntrack;
use crate::dataplane::Attachment;
use crate::error::{Context, NetError, Result};
use crate::host::{Host, OverlayInfo};
use crate::link::{Namespace, Route};
use crate::publish::Target;

/// A task may be started a moment before the plan with its network comes.
const PLAN_TIMEOUT: Duration = Duration::from_secs(10);

/// Where an endpoint request leads.
pub(super) enum Found {
    Local(Box<Stored>),
    Overlay(NetworkId, OverlayInfo),
}

/// Runs what blocks elsewhere than on a worker of the runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl Host {
    /// The network of an endpoint. One with a fixed address may be an overlay of a plan that is still to come.
    pub(super) async fn locate(&self, request: &EndpointRequest) -> Result<Found> {
        let found = self.state().networks.find(&request.network).cloned();
        let missing = match found {
            Ok(stored) => return Ok(Found::Local(Box::new(stored))),
            Err(error) => error,
        };
        let in_plan = |overlays: &BTreeMap<NetworkId, OverlayInfo>| {
            overlays
                .iter()
                .filter(|(_, info)| request.address.is_none_or(|address| info.local.contains(&address)))
                .find(|(id, info)| id.as_str() == request.network || info.name == request.network)
                .map(|(id, info)| (id.clone(), info.clone()))
        };
        let present = in_plan(&self.overlays.borrow());
        if let Some((id, info)) = present {
            return Ok(Found::Overlay(id, info));
        }
        if request.address.is_none() {
            return Err(missing);
        }
        let mut overlays = self.overlays.subscribe();
        let waited =
            tokio::time::timeout(PLAN_TIMEOUT, overlays.wait_for(|overlays| in_plan(overlays).is_some())).await;
        let found = waited.ok().and_then(std::result::Result::ok).and_then(|overlays| in_plan(&overlays));
        found.map(|(id, info)| Found::Overlay(id, info)).ok_or(missing)
    }

    /// Connects the sandbox to one network and notes it in the record, first thing, so that a failure can be undone from it.
    pub(super) async fn attach(
        self: &Arc<Self>,
        record: &mut Record,
        namespace: &Namespace,
        request: &EndpointRequest,
    ) -> Result<()> {
        // Nobody takes it for unused before it has an endpoint.
        let is_way_out = record.request.is_task && request.network == GWBRIDGE_NETWORK_NAME;
        let turn = if is_way_out || request.made_from.is_some() { Some(self.network_turn.lock().await) } else { None };
        self.ensure_of_swarm(request).await?;
        if is_way_out {
            let host = Arc::clone(self);
            blocking(move || host.ensure_gwbridge()).await?;
        }
        match self.locate(request).await? {
            Found::Local(stored) => {
                let endpoint = self.reserve(record, &stored, request, false)?;
                drop(turn);
                self.attach_bridge(record, namespace, *stored, endpoint).await
            }
            Found::Overlay(id, info) => self.attach_overlay(record, namespace, request, id, &info).await,
        }
    }

    /// Gives a container without another way out an endpoint on `docker_gwbridge`.
    pub(super) async fn attach_way_out(self: &Arc<Self>, record: &mut Record, namespace: &Namespace) -> Result<()> {
        let turn = self.network_turn.lock().await;
        let host = Arc::clone(self);
        let stored = blocking(move || host.ensure_gwbridge()).await?;
        drop(turn);
        let request = EndpointRequest { network: stored.network.id.to_string(), ..EndpointRequest::default() };
        let endpoint = self.reserve(record, &stored, &request, true)?;
        self.attach_bridge(record, namespace, stored, endpoint).await
    }

    /// Takes an address on a bridge network for the container, and a name for its interface.
    fn reserve(
        &self,
        record: &mut Record,
        stored: &Stored,
        request: &EndpointRequest,
        way_out: bool,
    ) -> Result<Endpoint> {
        if stored.network.spec.config_only {
            let text = "cannot create endpoint on configuration-only network";
            return Err(NetError::Forbidden(text.to_owned()));
        }
        if !stored.is_bridge() && !stored.is_macvlan() {
            let text = format!("container cannot be connected to {} network with other networks", stored.name());
            return Err(NetError::Invalid(text));
        }
        if (request.address.is_some() || request.address6.is_some()) && stored.is_default_bridge() {
            let text = "user specified IP address is supported on user defined networks only";
            return Err(NetError::Invalid(text.to_owned()));
        }
        let endpoint_id = EndpointId::from_bits([rand::random(), rand::random()]);
        let host_end = format!("v{}{}", self.config.tag, &endpoint_id.as_str()[..8]);
        let mut state = self.state();
        // Looked at again under the lock: the network may have been removed, or its last address given away.
        let network = &state.networks.find(stored.network.id.as_str())?.network;
        let id = network.id.clone();
        if network.endpoints.contains_key(record.container()) {
            let (container, network) = (record.request.container_name.clone(), network.spec.name.clone());
            return Err(NetError::AlreadyConnected { container, network });
        }
        let address = state.networks.assign(&id, request.address)?;
        let address6 = state.networks.assign6(&id, request.address6)?;
        let leads_out = !stored.network.spec.internal;
        let named = !stored.is_default_bridge() && !way_out;
        let info = EndpointInfo {
            network_id: id,
            network_name: stored.name().to_owned(),
            endpoint_id,
            address,
            gateway: stored.network.gateway.filter(|_| leads_out),
            address6,
            gateway6: stored.network.gateway6.filter(|_| leads_out).map(|gateway| gateway.addr()),
            mac: request.mac.unwrap_or_else(|| mac_of(address.addr())),
            aliases: request.aliases.clone(),
            dns_names: if named {
                record.request.dns_names(request)
            } else {
                vec![record.request.container_name.clone()]
            },
        };
        state.networks.connect(record.container(), info.clone());
        drop(state);
        let internal = stored.network.spec.internal;
        let kind = match way_out {
            true => EndpointKind::WayOut { host_end },
            false if stored.is_macvlan() => EndpointKind::Macvlan { internal },
            false => EndpointKind::Bridge { host_end, internal },
        };
        let endpoint = Endpoint { info, name: record.take_name(stored.interface_prefix()), kind };
        record.endpoints.push(endpoint.clone());
        Ok(endpoint)
    }

    async fn attach_bridge(
        self: &Arc<Self>,
        record: &Record,
        namespace: &Namespace,
        stored: Stored,
        endpoint: Endpoint,
    ) -> Result<()> {
        let (host, inside) = (Arc::clone(self), namespace.clone());
        let name = record.request.container_name.clone();
        blocking(move || {
            let port = driver::Port {
                host_end: endpoint.host_end().unwrap_or_default(),
                name: &endpoint.name,
                address: endpoint.info.address,
                address6: endpoint.info.address6,
                mac: endpoint.info.mac,
            };
            let connect = if stored.is_macvlan() { macvlan::connect } else { driver::connect };
            connect(&host.namespace, &stored, &inside, &port)
                .context(|| format!("connect container {name} to network {}", stored.name()))?;
            host.refresh_zone(&stored.network.id);
            Ok(())
        })
        .await
    }

    async fn attach_overlay(
        &self,
        record: &mut Record,
        namespace: &Namespace,
        request: &EndpointRequest,
        id: NetworkId,
        info: &OverlayInfo,
    ) -> Result<()> {
        let Some(address) = request.address else {
            return Err(NetError::Invalid(format!("no address was given for the container on network {}", info.name)));
        };
        if request.mac.is_some_and(|mac| mac != mac_of(address)) {
            let text = format!(
                "a MAC address of a container's own on overlay network {} is not implemented yet: there it follows from the \
                 IPv4 address",
                info.name
            );
            return Err(NetError::NotImplemented(text));
        }
        if record.endpoints.iter().any(|endpoint| endpoint.info.network_id == id) {
            let (container, network) = (record.request.container_name.clone(), info.name.clone());
            return Err(NetError::AlreadyConnected { container, network });
        }
        let endpoint = EndpointInfo {
            network_id: id.clone(),
            network_name: info.name.clone(),
            endpoint_id: EndpointId::from_bits([rand::random(), rand::random()]),
            address: Ipv4Net::new_assert(address, 32),
            gateway: None,
            address6: None,
            gateway6: None,
            mac: mac_of(address),
            aliases: request.aliases.clone(),
            dns_names: record.request.dns_names(request),
        };
        let name = record.take_name(INTERFACE_PREFIX);
        let kind = EndpointKind::Overlay { internal: info.internal };
        record.endpoints.push(Endpoint { info: endpoint, name: name.clone(), kind });
        let attached = self
            .dataplane
            .connect(&Attachment {
                container_id: record.container().clone(),
                network_id: id.clone(),
                namespace: namespace.clone(),
                address,
                ifname: name,
            })
            .await?;
        if let Some(endpoint) = record.endpoints.iter_mut().find(|endpoint| endpoint.info.network_id == id) {
            endpoint.info.address = attached.address;
            endpoint.info.address6 = attached.address6;
            endpoint.info.mac = attached.mac;
        }
        // A leader of an earlier version does not know that it was asked for.
        match request.address6 {
            Some(asked) if attached.address6.is_none_or(|six| six.addr() != asked) => Err(NetError::Invalid(format!(
                "{asked} on network {} does not go with the address that the swarm gave, {address}",
                info.name
            ))),
            _ => Ok(()),
        }
    }

    /// Takes one endpoint away from the kernel and from its network.
    pub(super) async fn detach(self: &Arc<Self>, record: &mut Record, network: &NetworkId) -> Result<()> {
        let Some(place) = record.endpoints.iter().position(|endpoint| endpoint.info.network_id == *network) else {
            return Ok(());
        };
        let endpoint = record.endpoints.remove(place);
        let container = record.container().clone();
        if endpoint.is_overlay() {
            return Ok(self.dataplane.disconnect(&container, network).await?);
        }
        let host = Arc::clone(self);
        blocking(move || {
            let result = match endpoint.host_end() {
                Some(host_end) => driver::disconnect(&host.namespace, host_end),
                None => Namespace::open(&host.netns_path(&container))
                    .and_then(|inside| inside.links().delete(&endpoint.name).map(drop)),
            }
            .context(|| format!("disconnect container {container} from {}", endpoint.info.network_name));
            host.state().networks.disconnect(&container, &endpoint.info.network_id);
            host.refresh_zone(&endpoint.info.network_id);
            result
        })
        .await
    }

    /// Sees to it that the default route and the published ports lead through the right endpoint.
    pub(super) async fn route(self: &Arc<Self>, record: &mut Record, namespace: &Namespace) -> Result<()> {
        if record.needs_way_out() {
            self.attach_way_out(record, namespace).await?;
        }
        self.route6(record, namespace).await?;
        let wanted = record.choose_gateway().cloned();
        let network = wanted.as_ref().map(|endpoint| endpoint.info.network_id.clone());
        if network == record.gateway {
            return Ok(());
        }
        record.gateway = network;
        let gateway =
            wanted.as_ref().and_then(|endpoint| endpoint.info.gateway.map(|via| (endpoint.name.clone(), via)));
        let inside = namespace.clone();
        blocking(move || match gateway {
            Some((name, via)) => driver::set_default_route(&inside, &name, via),
            None => {
                let route = Route { destination: Ipv4Net::default(), gateway: None, link: None, table: None };
                inside.links().delete_route(&route)
            }
        })
        .await
        .context(|| format!("set the default route of container {}", record.request.container_name))?;
        self.dataplane.routed(record.container()).await;
        self.publish(record, wanted.as_ref())
    }

    async fn route6(self: &Arc<Self>, record: &mut Record, namespace: &Namespace) -> Result<()> {
        let wanted = record.choose_gateway6().map(|endpoint| (endpoint.info.clone(), endpoint.name.clone()));
        let network = wanted.as_ref().map(|(info, _)| info.network_id.clone());
        if network == record.gateway6 {
            return Ok(());
        }
        record.gateway6 = network;
        let inside = namespace.clone();
        blocking(move || {
            let via = wanted.as_ref().and_then(|(info, name)| Some((name.as_str(), info.gateway6?)));
            driver::set_default_route6(&inside, via)
        })
        .await
        .context(|| format!("set the IPv6 default route of container {}", record.request.container_name))
    }

    /// Publishes the container's ports at `endpoint` in place of where they were; random ports stay what they were.
    fn publish(&self, record: &mut Record, endpoint: Option<&Endpoint>) -> Result<()> {
        if record.request.publish.is_empty() {
            return Ok(());
        }
        let requests: Vec<PublishRequest> = if record.published.is_empty() {
            record.request.publish.clone()
        } else {
            record.published.iter().map(as_request).collect()
        };
        let mut state = self.state();
        state.ports.release(record.container());
        if let Some(endpoint) = endpoint.filter(|endpoint| endpoint.takes_ports()) {
            let binding =
                state.networks.get(&endpoint.info.network_id).map_or(Ipv4Addr::UNSPECIFIED, Stored::host_binding);
            let target = Target {
                container: record.container(),
                name: &record.request.container_name,
                endpoint_id: &endpoint.info.endpoint_id,
                address: endpoint.info.address.addr(),
                address6: endpoint.info.address6.map(|address| address.addr()),
                binding,
            };
            let published = state.ports.publish(&target, &requests)?;
            record.published = published;
        }
        state.sync_firewall(&self.config.tag)?;
        drop(state);
        if record.published.iter().any(|port| port.protocol == Protocol::Udp) {
            self.forget_refused();
        }
        Ok(())
    }

    /// A client that kept sending while nobody was there is remembered as one that wanted the host itself, and would never
    /// be led to the container.
    fn forget_refused(&self) {
        let udp = protocol_number(Protocol::Udp);
        let forgotten = self.namespace.links().addresses().and_then(|addresses| {
            let own = addresses.into_iter().map(|(_, address)| address.addr()).collect();
            Conntrack::open(self.namespace.fd())?.forget(&own, |c| c.protocol == udp)
        });
        if let Err(error) = forgotten {
            tracing::warn!(%error, "tracked UDP connections to the host were not forgotten");
        }
    }

    /// Holds the ports of a sandbox of an earlier daemon again.
    pub(super) fn publish_again(&self, record: &mut Record) -> Result<()> {
        let endpoint = record.choose_gateway().cloned();
        self.publish(record, endpoint.as_ref())
    }

    pub(super) fn host_gateway(&self) -> Option<IpAddr> {
        let state = self.state();
        state.networks.named(crate::bridge::DEFAULT_NETWORK)?.network.gateway.map(IpAddr::V4)
    }
}

fn as_request(port: &skep_model::sandbox::PublishedPort) -> PublishRequest {
    PublishRequest {
        container_port: port.container_port,
        protocol: port.protocol,
        host_ip: Some(port.host_ip),
        host_ports: (port.host_port, port.host_port),
    }
}
