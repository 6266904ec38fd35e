//! What a manager tells one worker: exactly what that worker needs to know, and nothing about others' secrets.
//!
//! `control::dispatch` makes it from a View; the node's RPC carries it, whole at first and as differences after; the agent
//! turns `tasks` into containers and the rest into a [`crate::plan::HostPlan`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::network::Network;
use crate::secret::{Config, Secret};
use crate::service::PortConfig;
use crate::task::{Task, TaskStatus};
use crate::traffic::Traffic;
use crate::{ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId};

/// Everything one node is to know, keyed so that two sets can be compared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AssignmentSet {
    /// Tasks to run or to stop: those of this node whose desired state is not yet reached, or that still run.
    pub tasks: BTreeMap<TaskId, Task>,
    /// The networks those tasks are on, and ingress always.
    pub networks: BTreeMap<NetworkId, Network>,
    /// Every living endpoint on those networks, wherever it runs.
    pub endpoints: BTreeMap<(NetworkId, TaskId), EndpointRecord>,
    /// Every service on those networks, or publishing a port.
    pub services: BTreeMap<ServiceId, ServiceRecord>,
    /// Underlay and mesh facts of every node.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    pub secrets: BTreeMap<SecretId, Secret>,
    pub configs: BTreeMap<ConfigId, Config>,
    /// Those of `tasks` that are to stop and are given new connections by no host any more, each host having said so: they
    /// may have their stop signal.
    pub left: BTreeSet<TaskId>,
}

/// One task's address on one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    pub service_id: ServiceId,
    pub node_id: NodeId,
    pub address: Ipv4Addr,
    /// `web.1.<id>`: resolves to this endpoint alone.
    pub task_name: String,
    pub aliases: Vec<String>,
    /// Running (and healthy, where there is a check) and not asked to stop: may be given new connections.
    pub serving: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    pub name: String,
    /// Its VIP on each network; none in DNS round robin mode.
    pub virtual_ips: BTreeMap<NetworkId, Ipv4Addr>,
    /// Its ports with published ports filled in, of every publish mode.
    pub ports: Vec<PortConfig>,
    /// What its labels ask for its connections.
    #[serde(default)]
    pub traffic: Traffic,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Underlay address: the VXLAN endpoint.
    pub vtep: Ipv4Addr,
    /// Its balancer's leg on the ingress network.
    pub ingress_address: Option<Ipv4Addr>,
    pub mesh_index: Option<u16>,
    /// How many connections its tasks get where others get one; not told by older managers.
    #[serde(default = "one")]
    pub weight: u8,
    /// MTU of the interface that holds that address.
    #[serde(default)]
    pub link_mtu: Option<u32>,
}

fn one() -> u8 {
    1
}

/// The difference between two sets: what to put, and what to take away. Applied in order, it turns one into the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AssignmentChange {
    pub put: AssignmentSet,
    pub gone: AssignmentKeys,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AssignmentKeys {
    pub tasks: Vec<TaskId>,
    pub networks: Vec<NetworkId>,
    pub endpoints: Vec<(NetworkId, TaskId)>,
    pub services: Vec<ServiceId>,
    pub nodes: Vec<NodeId>,
    pub secrets: Vec<SecretId>,
    pub configs: Vec<ConfigId>,
    pub left: Vec<TaskId>,
}

/// An agent's news about one of its tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    pub task_id: TaskId,
    pub status: TaskStatus,
}

fn diff_map<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    put: &mut BTreeMap<K, V>,
    gone: &mut Vec<K>,
) {
    for (key, value) in new {
        if old.get(key) != Some(value) {
            put.insert(key.clone(), value.clone());
        }
    }
    gone.extend(old.keys().filter(|k| !new.contains_key(*k)).cloned());
}

fn apply_map<K: Ord, V>(map: &mut BTreeMap<K, V>, put: BTreeMap<K, V>, gone: &[K]) {
    for key in gone {
        map.remove(key);
    }
    map.extend(put);
}

macro_rules! each_table {
    ($do:ident) => {
        $do!(tasks);
        $do!(networks);
        $do!(endpoints);
        $do!(services);
        $do!(nodes);
        $do!(secrets);
        $do!(configs);
    };
}

impl AssignmentSet {
    /// What to send a node that has `self` so that it has `new`.
    pub fn diff(&self, new: &Self) -> AssignmentChange {
        let mut change = AssignmentChange::default();
        macro_rules! table {
            ($name:ident) => {
                diff_map(&self.$name, &new.$name, &mut change.put.$name, &mut change.gone.$name);
            };
        }
        each_table!(table);
        change.put.left = new.left.difference(&self.left).cloned().collect();
        change.gone.left = self.left.difference(&new.left).cloned().collect();
        change
    }

    pub fn apply(&mut self, change: AssignmentChange) {
        macro_rules! table {
            ($name:ident) => {
                apply_map(&mut self.$name, change.put.$name, &change.gone.$name);
            };
        }
        each_table!(table);
        self.left.retain(|task| !change.gone.left.contains(task));
        self.left.extend(change.put.left);
    }
}

impl AssignmentChange {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
