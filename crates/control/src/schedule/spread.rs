//! The next best node of those that fit: first the branch of the placement preferences with the fewest tasks of the service,
//! then within it the node that ranks lowest.

use std::collections::{BTreeMap, BTreeSet};

use skep_model::node::Node;
use skep_model::{NodeId, ServiceId};

use super::filter::Demand;
use super::ledger::{Ledger, Load};

type Rank = (bool, u64, u64, NodeId);
/// The values of the preferred labels, outermost first; a node without the label has "".
type Branch = Vec<String>;

pub(super) struct Candidates {
    branches: BTreeMap<Branch, BTreeSet<Rank>>,
    /// Tasks of the service below each prefix of a branch, on nodes that fit or not.
    weights: BTreeMap<Branch, u64>,
    depth: usize,
}

impl Candidates {
    pub(super) fn new(ledger: &Ledger, service: &ServiceId, demand: &Demand) -> Self {
        let mut out = Self { branches: BTreeMap::new(), weights: BTreeMap::new(), depth: demand.preferences.len() };
        for (id, load) in ledger.nodes() {
            if demand.refusal(load, service).is_some() {
                continue;
            }
            let branch = branch(&load.node, demand);
            out.weigh(&branch, load.of_service(service));
            out.branches.entry(branch).or_default().insert(rank(id, load, service));
        }
        out
    }

    fn weigh(&mut self, branch: &[String], tasks: u64) {
        for length in 1..=branch.len() {
            *self.weights.entry(branch[..length].to_vec()).or_default() += tasks;
        }
    }

    /// Chooses, and enters the choice into the ledger.
    pub(super) fn next(&mut self, ledger: &mut Ledger, service: &ServiceId, demand: &Demand) -> Option<NodeId> {
        let branch = self.lightest()?;
        let ranks = self.branches.get_mut(&branch)?;
        let (_, _, _, node) = ranks.pop_first()?;
        ledger.place(&node, service, demand);
        if let Some(load) = ledger.node(&node)
            && demand.refusal(load, service).is_none()
        {
            ranks.insert(rank(&node, load, service));
        }
        if ranks.is_empty() {
            self.branches.remove(&branch);
        }
        self.weigh(&branch, 1);
        Some(node)
    }

    /// Walks down from the outermost preference, at each level into the child with the fewest tasks that has a node left.
    fn lightest(&self) -> Option<Branch> {
        if self.depth == 0 {
            return self.branches.keys().next().cloned();
        }
        let mut prefix: Branch = Vec::new();
        for level in 0..self.depth {
            let below = self.branches.keys().filter(|b| b.starts_with(&prefix));
            let children: BTreeSet<&[String]> = below.map(|b| &b[..=level]).collect();
            let weight = |child: &&&[String]| self.weights.get(**child).copied().unwrap_or(0);
            prefix = children.iter().min_by_key(weight)?.to_vec();
        }
        Some(prefix)
    }
}

fn rank(id: &NodeId, load: &Load, service: &ServiceId) -> Rank {
    let (shunned, of_service, total) = load.rank(service);
    (shunned, of_service, total, id.clone())
}

fn branch(node: &Node, demand: &Demand) -> Branch {
    let value = |preference: &String| {
        let labels = [("node.labels.", &node.spec.labels), ("engine.labels.", &node.description.engine_labels)];
        let found = labels.iter().find_map(|(prefix, labels)| labels.get(preference.strip_prefix(prefix)?));
        found.cloned().unwrap_or_default()
    };
    demand.preferences.iter().map(value).collect()
}
