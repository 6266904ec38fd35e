//! Who changed what: one line of JSON for every change that somebody asked for, written by the manager it was asked of.
//!
//! `<data-root>/audit.log`, outside `swarm/` so that leaving a swarm does not take it along; at `MAX_BYTES` it becomes
//! `audit.log.1` and so on. What control and agents do by themselves (tasks) is not in it. Names and ids only: no values, no
//! tokens, no labels.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use skep_model::NodeId;
use skep_store::{Change, View};

use crate::clock::now;

const MAX_BYTES: u64 = 8 << 20;
const OLD_FILES: u32 = 4;

tokio::task_local! {
    static REQUESTER: String;
}

/// Runs what somebody asked for; changes it makes are put down to them. `who` is words for people: `unix uid=0 pid=812`,
/// `tls CN=alice 10.0.0.7`, `node 4lnz…`.
pub async fn by<F: Future>(who: String, work: F) -> F::Output {
    REQUESTER.scope(who, work).await
}

#[derive(Clone, Debug)]
pub(crate) struct AuditLog {
    path: Arc<Mutex<PathBuf>>,
}

#[derive(Serialize)]
struct Line<'a> {
    at: String,
    who: &'a str,
    what: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    /// Of the log of the swarm; the same on every manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
}

impl AuditLog {
    pub(crate) fn new(data_root: &Path) -> Self {
        Self { path: Arc::new(Mutex::new(data_root.join("audit.log"))) }
    }

    /// After the changes took effect; `view` is from before, where what was removed still has its name.
    pub(crate) fn record(&self, index: u64, view: &View, changes: &[Change]) {
        let who = REQUESTER.try_with(Clone::clone).unwrap_or_else(|_| "this node".into());
        for change in changes {
            let (what, id, name) = described(change, view);
            self.write(&Line { at: now().to_string(), who: &who, what, id: &id, name: &name, index: Some(index) });
        }
    }

    /// A node said goodbye.
    pub(crate) fn left(&self, node_id: &NodeId) {
        let who = format!("node {node_id}");
        self.write(&Line {
            at: now().to_string(),
            who: &who,
            what: "node.leave",
            id: node_id.as_str(),
            name: "",
            index: None,
        });
    }

    fn write(&self, line: &Line<'_>) {
        tracing::info!(target: "audit", who = line.who, what = line.what, id = line.id, name = line.name, index = line.index);
        let path = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        let append = || {
            let mut text = serde_json::to_string(line)?;
            text.push('\n');
            if fs::metadata(&*path).is_ok_and(|m| m.len() + text.len() as u64 > MAX_BYTES) {
                for number in (0..OLD_FILES).rev() {
                    let _ = fs::rename(numbered(&path, number), numbered(&path, number + 1));
                }
            }
            fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&*path)?.write_all(text.as_bytes())
        };
        if let Err(error) = append() {
            tracing::error!(%error, path = %path.display(), "cannot write the audit log");
        }
    }
}

/// `audit.log`, `audit.log.1`, …
fn numbered(path: &Path, number: u32) -> PathBuf {
    match number {
        0 => path.to_owned(),
        n => path.with_extension(format!("log.{n}")),
    }
}

/// What happens, to which object, and its name.
fn described(change: &Change, view: &View) -> (&'static str, String, String) {
    let node = |id: &NodeId| view.node(id).map(|n| n.description.hostname.clone()).unwrap_or_default();
    let service = |id: &skep_model::ServiceId| view.service(id).map(|s| s.spec.name.clone()).unwrap_or_default();
    let plain = |what| (what, String::new(), String::new());
    match change {
        Change::CreateCluster(cluster) => ("swarm.init", cluster.id.to_string(), String::new()),
        Change::SetClusterSpec(_) => plain("swarm.update"),
        Change::SetJoinTokens(_) => plain("swarm.join-token.rotate"),
        Change::SetRootCa { root_ca, .. } => match root_ca.rotation {
            Some(_) => ("swarm.ca.rotate", root_ca.digest.clone(), String::new()),
            None => ("swarm.ca.set", root_ca.digest.clone(), String::new()),
        },
        Change::CreateJoinToken(token) => ("swarm.join-token.create", token.id.to_string(), String::new()),
        Change::SpendJoinToken(id) => ("swarm.join-token.use", id.to_string(), String::new()),
        Change::RemoveJoinToken(id) => ("swarm.join-token.remove", id.to_string(), String::new()),
        Change::CreateNode(new) => ("node.join", new.id.to_string(), new.description.hostname.clone()),
        Change::SetNodeSpec { node_id, .. } => ("node.update", node_id.to_string(), node(node_id)),
        Change::SetNodeRole { node_id, .. } => ("node.role", node_id.to_string(), node(node_id)),
        Change::SetNodeManager { node_id, manager: Some(_) } => ("node.manages", node_id.to_string(), node(node_id)),
        Change::SetNodeManager { node_id, manager: None } => {
            ("node.manages-no-more", node_id.to_string(), node(node_id))
        }
        Change::RemoveNode { node_id } => ("node.remove", node_id.to_string(), node(node_id)),
        Change::CreateService(new) => ("service.create", new.id.to_string(), new.spec.name.clone()),
        Change::SetServiceSpec { service_id, spec } => ("service.update", service_id.to_string(), spec.name.clone()),
        Change::RollbackService { service_id, .. } => ("service.rollback", service_id.to_string(), service(service_id)),
        Change::RemoveService { service_id } => ("service.remove", service_id.to_string(), service(service_id)),
        Change::CreateNetwork(new) => ("network.create", new.id.to_string(), new.spec.name.clone()),
        Change::RemoveNetwork { network_id: id } => {
            ("network.remove", id.to_string(), view.network(id).map(|n| n.spec.name.clone()).unwrap_or_default())
        }
        Change::CreateSecret(new) => ("secret.create", new.id.to_string(), new.name.clone()),
        Change::SetSecretLabels { secret_id: id, .. } => {
            ("secret.update", id.to_string(), view.secret(id).map(|s| s.name.clone()).unwrap_or_default())
        }
        Change::RemoveSecret { secret_id: id } => {
            ("secret.remove", id.to_string(), view.secret(id).map(|s| s.name.clone()).unwrap_or_default())
        }
        Change::CreateConfig(new) => ("config.create", new.id.to_string(), new.name.clone()),
        Change::SetConfigLabels { config_id: id, .. } => {
            ("config.update", id.to_string(), view.config(id).map(|c| c.name.clone()).unwrap_or_default())
        }
        Change::RemoveConfig { config_id: id } => {
            ("config.remove", id.to_string(), view.config(id).map(|c| c.name.clone()).unwrap_or_default())
        }
        // Nobody asks for these; a new one that somebody does ask for belongs above.
        _ => plain("other"),
    }
}
