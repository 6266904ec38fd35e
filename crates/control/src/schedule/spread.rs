//! The next best node of those that fit: first the branch of the placement preferences with the fewest tasks of the service,
//! then within it the node that ranks lowest. A choice costs a logarithm of the nodes, and only a template with preferences, or
//! with more tasks than nodes, costs a look at every node.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Bound;

use skep_model::generic::GenericResource;
use skep_model::node::Node;

use super::filter::Demand;
use super::ledger::{Group, Ledger};

/// Lower is better: not failing here, few tasks of the service, few at all; then its place in the ledger. In one number, 32
/// bits for each: it is made for many nodes and templates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u128);

impl Rank {
    /// `None` if the node does not fit.
    fn of(ledger: &Ledger, group: &Group, demand: &Demand, node: usize) -> Option<Self> {
        let (load, own) = (&ledger.loads()[node], group.own[node]);
        let parts = || [u32::from(group.shunned[node]), own, load.total, u32::try_from(node).unwrap_or(u32::MAX)];
        let fits = demand.refusal(load, own).is_none();
        fits.then(|| Self(parts().into_iter().fold(0, |rank, part| (rank << 32) | u128::from(part))))
    }

    fn node(self) -> usize {
        (self.0 & u128::from(u32::MAX)) as usize
    }
}

pub(super) enum Candidates {
    /// Nodes without a task of the service rank before all others, as the ledger has them in order; up to here they are taken
    /// or do not fit.
    Fresh(Bound<(u32, usize)>),
    Ranked(Branch),
}

/// Nodes that have the same values of the preferences down to here.
#[derive(Default)]
pub(super) struct Branch {
    /// Tasks of the service below, also on nodes that do not fit.
    tasks: u32,
    children: BTreeMap<String, Branch>,
    /// Children with a node left, by their tasks.
    open: BTreeSet<(u32, String)>,
    /// Those that fit: as they come while the tree is made, then the best of them first.
    found: Vec<Reverse<Rank>>,
    nodes: BinaryHeap<Reverse<Rank>>,
}

impl Branch {
    /// Of all nodes.
    fn root(ledger: &Ledger, group: &Group, demand: &Demand) -> Self {
        let mut root = Self::default();
        for (node, load) in ledger.loads().iter().enumerate() {
            let values = demand.preferences.iter().map(|preference| value(preference, &load.node));
            if let Some(leaf) = root.leaf(values, group.own[node]) {
                leaf.found.extend(Rank::of(ledger, group, demand, node).map(Reverse));
            }
        }
        root.open();
        root
    }

    /// The branch of nodes with these values, to put another in, with its tasks.
    fn leaf<'a>(&mut self, values: impl Iterator<Item = &'a str>, tasks: u32) -> Option<&mut Self> {
        let mut branch = self;
        branch.tasks += tasks;
        for value in values {
            if !branch.children.contains_key(value) {
                branch.children.insert(value.to_owned(), Self::default());
            }
            branch = branch.children.get_mut(value)?;
            branch.tasks += tasks;
        }
        Some(branch)
    }

    /// Once all are inserted.
    fn open(&mut self) {
        self.nodes = BinaryHeap::from(std::mem::take(&mut self.found));
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
            let mut best = self.nodes.peek_mut()?;
            let (placed, rank) = place(best.0.node());
            match rank {
                Some(rank) => *best = Reverse(rank),
                None => drop(PeekMut::pop(best)),
            }
            placed
        };
        self.tasks += 1;
        Some(placed)
    }
}

impl Candidates {
    pub(super) fn new(ledger: &Ledger, group: &Group, demand: &Demand) -> Self {
        if demand.preferences.is_empty() {
            Self::Fresh(Bound::Unbounded)
        } else {
            Self::Ranked(Branch::root(ledger, group, demand))
        }
    }

    /// Chooses, and enters the choice into the ledger: the node's place there, and what it gives of its generic resources.
    pub(super) fn next(
        &mut self,
        ledger: &mut Ledger,
        group: &mut Group,
        demand: &Demand,
    ) -> Option<(usize, Vec<GenericResource>)> {
        if let Self::Fresh(after) = self {
            let fits = |node: usize| {
                group.own[node] == 0 && !group.shunned[node] && demand.refusal(&ledger.loads()[node], 0).is_none()
            };
            if let Some(place) = ledger.order().range((*after, Bound::Unbounded)).copied().find(|(_, node)| fits(*node))
            {
                *after = Bound::Excluded(place);
                return Some((place.1, ledger.place(place.1, group, demand)));
            }
            *self = Self::Ranked(Branch::root(ledger, group, demand));
        }
        let Self::Ranked(root) = self else { return None };
        root.take(&mut |node| {
            let given = ledger.place(node, group, demand);
            ((node, given), Rank::of(ledger, group, demand, node))
        })
    }
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
