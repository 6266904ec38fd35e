//! Numbers, times and names as they stand in a sentence.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use skep_model::node::{Node, NodeState};
use skep_model::task::Task;
use skep_store::View;

/// `1 task`, `3 tasks`.
pub(super) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn list(words: &[String]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// More than this are counted.
const NAMED: usize = 4;

/// `web.1 and web.2`, or `web.1, web.2, web.3 and 17 more`.
pub(super) fn names(tasks: &[Arc<Task>]) -> String {
    let all: Vec<String> = tasks.iter().map(|t| t.slot_name()).collect::<BTreeSet<_>>().into_iter().collect();
    shortened(all)
}

fn shortened(mut all: Vec<String>) -> String {
    if all.len() > NAMED {
        let more = all.len() - (NAMED - 1);
        all.truncate(NAMED - 1);
        all.push(format!("{more} more"));
    }
    list(&all)
}

pub(super) fn hostname(node: &Node) -> &str {
    if node.description.hostname.is_empty() { node.id.as_str() } else { &node.description.hostname }
}

/// Where the tasks are; empty if nowhere.
pub(super) fn hosts(view: &View, tasks: &[Arc<Task>]) -> String {
    let nodes = tasks.iter().filter_map(|t| t.node_id.as_ref());
    let all: BTreeSet<String> =
        nodes.map(|id| view.node(id).map_or("a node that is gone".to_owned(), |n| hostname(n).to_owned())).collect();
    if all.is_empty() { String::new() } else { shortened(all.into_iter().collect()) }
}

pub(super) fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready => "ready",
        NodeState::Down => "down",
        NodeState::Disconnected => "not connected to a manager",
        NodeState::Unknown => "not heard of since the leader changed",
    }
}

/// The largest unit alone: nobody needs the seconds of an hour.
pub(super) fn span(time: Duration) -> String {
    let seconds = usize::try_from(time.as_secs()).unwrap_or(usize::MAX);
    match seconds {
        0..120 => count(seconds, "second"),
        120..7200 => count(seconds / 60, "minute"),
        7200..172_800 => count(seconds / 3600, "hour"),
        _ => count(seconds / 86_400, "day"),
    }
}

pub(super) fn bytes(bytes: i64) -> String {
    const UNITS: [(i64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let Some((size, unit)) = UNITS.iter().find(|(size, _)| bytes >= *size) else { return format!("{bytes} bytes") };
    let number = format!("{:.2}", bytes as f64 / *size as f64);
    format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
}
