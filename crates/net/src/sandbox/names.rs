//! Which names a container can resolve: the zones of its networks, as they are at the moment of the question.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use skep_model::NetworkId;
use skep_model::dns::{Answer, Question, Zone};
use skep_model::sandbox::SandboxRequest;

use super::files::{ResolvConf, upstream_servers};
use crate::bridge::Stored;
use crate::config::AnswerFn;
use crate::dns::Names;

/// A changed `resolv.conf` of the host is noticed after this long.
const RESOLV_CONF_AGE: Duration = Duration::from_secs(5);

/// The zones of all networks.
#[derive(Debug, Default)]
pub(crate) struct Zones {
    by_network: RwLock<BTreeMap<NetworkId, Arc<Zone>>>,
}

impl Zones {
    pub(crate) fn set(&self, network: NetworkId, zone: Zone) {
        self.by_network.write().unwrap_or_else(PoisonError::into_inner).insert(network, Arc::new(zone));
    }

    pub(crate) fn forget(&self, network: &NetworkId) {
        self.by_network.write().unwrap_or_else(PoisonError::into_inner).remove(network);
    }

    fn of(&self, networks: &[NetworkId]) -> Vec<Arc<Zone>> {
        let by_network = self.by_network.read().unwrap_or_else(PoisonError::into_inner);
        networks.iter().filter_map(|network| by_network.get(network)).map(Arc::clone).collect()
    }
}

/// The names of a bridge network. The default bridge has none.
pub(crate) fn zone_of(stored: &Stored) -> Zone {
    let mut zone =
        Zone { network_name: stored.name().to_owned(), internal: stored.network.spec.internal, ..Zone::default() };
    if stored.is_default_bridge() {
        return zone;
    }
    for endpoint in stored.network.endpoints.values() {
        let address = endpoint.address.addr();
        for name in &endpoint.dns_names {
            zone.names.entry(name.to_lowercase()).or_default().push(address);
        }
        zone.six.extend(endpoint.address6.map(|six| (address, six.addr())));
        zone.addresses.entry(address).or_default().extend(endpoint.dns_names.first().cloned());
    }
    zone
}

/// The host's resolver configuration, read again when it may have changed: a laptop moves while its containers run.
#[derive(Debug)]
pub(crate) struct HostResolv {
    path: PathBuf,
    read: Mutex<Option<(Instant, ResolvConf)>>,
}

impl HostResolv {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::new(None) }
    }

    pub(crate) fn get(&self) -> ResolvConf {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match &*read {
            Some((when, conf)) if when.elapsed() < RESOLV_CONF_AGE => conf.clone(),
            _ => {
                let conf = ResolvConf::parse(&std::fs::read_to_string(&self.path).unwrap_or_default());
                *read = Some((Instant::now(), conf.clone()));
                conf
            }
        }
    }
}

/// What one container's resolver answers from.
pub(super) struct ContainerNames {
    pub(super) zones: Arc<Zones>,
    pub(super) networks: RwLock<Vec<NetworkId>>,
    pub(super) answer: AnswerFn,
    pub(super) host: Arc<HostResolv>,
    pub(super) request: SandboxRequest,
}

impl ContainerNames {
    pub(super) fn set_networks(&self, networks: Vec<NetworkId>) {
        *self.networks.write().unwrap_or_else(PoisonError::into_inner) = networks;
    }
}

impl Names for ContainerNames {
    fn answer(&self, question: &Question) -> Answer {
        let zones = self.zones.of(&self.networks.read().unwrap_or_else(PoisonError::into_inner));
        (self.answer)(&zones.iter().map(AsRef::as_ref).collect::<Vec<_>>(), question)
    }

    fn upstreams(&self) -> Vec<IpAddr> {
        upstream_servers(&self.host.get(), &self.request)
    }
}
