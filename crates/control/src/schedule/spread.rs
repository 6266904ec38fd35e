//! The next best node of those that fit: first the branch of the placement preferences with the fewest tasks of the service,
//! then within it the node that ranks lowest. A choice costs a logarithm of the nodes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use skep_model::node::Node;

use super::filter::Demand;
use super::ledger::{Group, Ledger};

/// Lower is better: not failing here, few tasks of the service, few at all; then its place in the ledger.
type Rank = (bool, u64, u64, usize);

pub(super) struct Candidates {
    root: Branch,
}

/// Nodes that have the same values of the preferences down to here.
#[derive(Default)]
struct Branch {
    /// Tasks of the service below, also on nodes that do not fit.
    tasks: u64,
    children: BTreeMap<String, Branch>,
    /// Children with a node left, by their tasks.
    open: BTreeSet<(u64, String)>,
    nodes: BinaryHeap<Reverse<Rank>>,
}

impl Branch {
    fn insert(&mut self, path: &[&str], tasks: u64, rank: Option<Rank>) {
        self.tasks += tasks;
        match path.split_first() {
            Some((value, rest)) => {
                if !self.children.contains_key(*value) {
                    self.children.insert((*value).to_owned(), Self::default());
                }
                if let Some(child) = self.children.get_mut(*value) {
                    child.insert(rest, tasks, rank);
                }
            }
            None => self.nodes.extend(rank.map(Reverse)),
        }
    }

    /// Once all are inserted.
    fn open(&mut self) {
        for (value, child) in &mut self.children {
            child.open();
            if child.has_room() {
                self.open.insert((child.tasks, value.clone()));
            }
        }
    }

    fn has_room(&self) -> bool {
        !self.nodes.is_empty() || !self.open.is_empty()
    }

    /// Takes the best node, lets `place` enter it and say how it ranks now, if it fits once more.
    fn take<T>(&mut self, place: &mut impl FnMut(usize) -> (T, Option<Rank>)) -> Option<T> {
        let placed = if let Some((_, value)) = self.open.pop_first() {
            let child = self.children.get_mut(&value)?;
            let placed = child.take(place)?;
            if child.has_room() {
                self.open.insert((child.tasks, value));
            }
            placed
        } else {
            let Reverse((_, _, _, node)) = self.nodes.pop()?;
            let (placed, rank) = place(node);
            self.nodes.extend(rank.map(Reverse));
            placed
        };
        self.tasks += 1;
        Some(placed)
    }
}

impl Candidates {
    pub(super) fn new(ledger: &Ledger, group: &Group, demand: &Demand) -> Self {
        let mut root = Branch::default();
        for node in 0..ledger.loads().len() {
            let path: Vec<&str> = demand.preferences.iter().map(|p| value(p, &ledger.loads()[node].node)).collect();
            root.insert(&path, group.own[node], rank(ledger, group, demand, node));
        }
        root.open();
        Self { root }
    }

    /// Chooses, and enters the choice into the ledger: the node's place there, and what `entered` makes of it.
    pub(super) fn next(
        &mut self,
        ledger: &mut Ledger,
        group: &mut Group,
        demand: &Demand,
    ) -> Option<(usize, Vec<skep_model::generic::GenericResource>)> {
        self.root.take(&mut |node| {
            let given = ledger.place(node, group, demand);
            ((node, given), rank(ledger, group, demand, node))
        })
    }
}

/// `None` if the node does not fit.
fn rank(ledger: &Ledger, group: &Group, demand: &Demand, node: usize) -> Option<Rank> {
    let load = &ledger.loads()[node];
    let fits = demand.refusal(load, group.own[node]).is_none();
    fits.then(|| (group.shunned[node], group.own[node], load.total, node))
}

/// A node without the label, and every node for what is no label, has "".
fn value<'a>(preference: &str, node: &'a Node) -> &'a str {
    let labels = [("node.labels.", &node.spec.labels), ("engine.labels.", &node.description.engine_labels)];
    let named = |prefix: &str| match preference.get(..prefix.len()) {
        Some(head) if head.eq_ignore_ascii_case(prefix) => Some(&preference[prefix.len()..]),
        _ => None,
    };
    labels.iter().find_map(|(prefix, labels)| labels.get(named(prefix)?)).map_or("", String::as_str)
}
