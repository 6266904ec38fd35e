//! What a task asks of a node, and the first thing a node lacks, in swarmkit's order of filters.

use std::collections::BTreeSet;

use skep_model::constraint::Constraint;
use skep_model::generic::GenericResource;
use skep_model::node::Node;
use skep_model::service::{PortConfig, Protocol, PublishMode};
use skep_model::task::{Mount, Platform, Resources, TaskSpec};

use super::constraint::{Check, normal_architecture};
use super::ledger::Load;

/// Why a node will not do, in the order in which filters are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    NotReady,
    Resources,
    Plugin,
    Constraint,
    Platform,
    HostPort,
    MaxReplicas,
}

/// What one task of a template asks for.
#[derive(Clone, Debug)]
pub(super) struct Demand {
    pub(super) reserved: Resources,
    pub(super) generic: Vec<GenericResource>,
    /// Volume drivers beyond `local`.
    volume_drivers: BTreeSet<String>,
    constraints: Vec<Check>,
    platforms: Vec<Platform>,
    pub(super) host_ports: BTreeSet<(Protocol, u16)>,
    max_replicas: u64,
    pub(super) preferences: Vec<String>,
}

impl Demand {
    pub(super) fn of(spec: &TaskSpec, ports: &[PortConfig]) -> Result<Self, String> {
        let placement = spec.placement.clone().unwrap_or_default();
        let parsed = placement.constraints.iter().map(|text| text.parse::<Constraint>().map(Check::from));
        let driver = |mount: &Mount| mount.volume.as_ref()?.driver.as_ref().map(|(name, _)| name.clone());
        let drivers = spec.container.mounts.iter().filter_map(driver);
        Ok(Self {
            reserved: spec.resources.as_ref().and_then(|r| r.reservations).unwrap_or_default(),
            generic: spec.resources.as_ref().map(|r| r.generic.clone()).unwrap_or_default(),
            volume_drivers: drivers.filter(|d| !d.is_empty() && d != "local").collect(),
            constraints: parsed.collect::<Result<_, _>>()?,
            platforms: placement.platforms,
            host_ports: host_ports(ports),
            max_replicas: placement.max_replicas,
            preferences: placement.preferences,
        })
    }

    /// The filters that ask only what the node is.
    pub(super) fn fits_node(&self, node: &Node) -> bool {
        self.constraints_hold(node) && self.runs_on(node)
    }

    pub(super) fn constraints_hold(&self, node: &Node) -> bool {
        self.constraints.iter().all(|c| c.holds(node))
    }

    /// What the node lacks; `own` is how many tasks of the service it has.
    pub(super) fn refusal(&self, load: &Load, own: u32) -> Option<Refusal> {
        let node = &load.node;
        if !load.open {
            Some(Refusal::NotReady)
        } else if self.reserved.nano_cpus > load.free_nano_cpus
            || self.reserved.memory_bytes > load.free_memory_bytes
            || (!self.generic.is_empty() && load.generic.choose(&self.generic).is_none())
        {
            Some(Refusal::Resources)
        } else if !self.volume_drivers.iter().all(|driver| has_plugin(node, "Volume", driver)) {
            Some(Refusal::Plugin)
        } else if !self.constraints_hold(node) {
            Some(Refusal::Constraint)
        } else if !self.runs_on(node) {
            Some(Refusal::Platform)
        } else if self.host_ports.iter().any(|port| load.host_ports.contains(port)) {
            Some(Refusal::HostPort)
        } else if self.max_replicas > 0 && u64::from(own) >= self.max_replicas {
            Some(Refusal::MaxReplicas)
        } else {
            None
        }
    }

    /// An empty field of a platform is any.
    fn runs_on(&self, node: &Node) -> bool {
        let description = &node.description;
        let fits = |p: &Platform| {
            (p.os.is_empty() || p.os.eq_ignore_ascii_case(&description.os))
                && (p.architecture.is_empty()
                    || normal_architecture(&p.architecture) == normal_architecture(&description.architecture))
        };
        self.platforms.is_empty() || self.platforms.iter().any(fits)
    }
}

fn has_plugin(node: &Node, kind: &str, name: &str) -> bool {
    let named = |plugin: &str| plugin == name || plugin.strip_suffix(":latest") == Some(name);
    node.description.plugins.iter().any(|(k, n)| k == kind && named(n))
}

/// Ports the task takes on its host.
pub(super) fn host_ports(ports: &[PortConfig]) -> BTreeSet<(Protocol, u16)> {
    let taken = ports.iter().filter(|p| p.mode == PublishMode::Host && p.published_port != 0);
    taken.map(|p| (p.protocol, p.published_port)).collect()
}
