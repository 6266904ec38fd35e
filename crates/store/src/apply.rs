//! What a change may do. Total and deterministic: the same batches in the same order give the same state on every manager,
//! and whatever they say, the worst that happens is a refusal, with the state as it was.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use skep_model::assignment::TaskReport;
use skep_model::cluster::Cluster;
use skep_model::node::{Node, NodeSpec, Role};
use skep_model::service::{Endpoint, JobStatus, Service, ServiceSpec, UpdateStatus};
use skep_model::task::{NetworkAttachment, TaskSpec, TaskState};
use skep_model::{Meta, NetworkId, NodeId, ServiceId, TaskId, Timestamp};

use crate::Store;
use crate::address::AddressOwner;
use crate::change::{Batch, Change, Guard, ObjectKey};
use crate::event::{Event, Object};
use crate::refused::Refused;
use crate::view::{View, folded};

type Done = Result<(), Refused>;

/// At least so long a node that was removed or demoted is remembered: certificates may have been given for longer once.
const REVOKED_KEPT: Duration = Duration::from_secs(365 * 24 * 3600);

impl Store {
    /// Applies a log entry: all of its changes, or none and the reason. Never panics.
    pub fn apply(&mut self, index: u64, term: u64, batch: &Batch) -> Result<Vec<Event>, Refused> {
        // First of all: a repeated proposal would fail its own guard.
        if let Some(request) = &batch.request {
            self.view.requests.check(request)?;
        }
        self.view.check(term, &batch.guard)?;
        let mut entry = Entry { view: self.view.clone(), index, at: batch.at, events: Vec::new(), template: None };
        for change in &batch.changes {
            entry.change(change)?;
        }
        if let Some(request) = &batch.request {
            entry.view.requests.remember(request, index);
        }
        entry.view.index = index;
        entry.view.term = term;
        self.view = entry.view;
        Ok(entry.events)
    }
}

impl View {
    fn check(&self, term: u64, guard: &Guard) -> Done {
        match guard.term {
            Some(proposed) if proposed != term => return Err(Refused::TermMoved { proposed, current: term }),
            Some(_) | None => {}
        }
        for (key, version) in &guard.versions {
            if self.version(key)? != *version {
                return Err(Refused::OutOfSequence);
            }
        }
        Ok(())
    }

    /// `Meta::version` of an object.
    pub fn version(&self, key: &ObjectKey) -> Result<u64, Refused> {
        let (kind, id, meta): (&str, &str, Option<Meta>) = match key {
            ObjectKey::Cluster => ("cluster", "default", self.cluster.as_ref().map(|o| o.meta)),
            ObjectKey::Node(id) => ("node", id.as_str(), self.node(id).map(|o| o.meta)),
            ObjectKey::Service(id) => ("service", id.as_str(), self.service(id).map(|o| o.meta)),
            ObjectKey::Task(id) => ("task", id.as_str(), self.task(id).map(|o| o.meta)),
            ObjectKey::Network(id) => ("network", id.as_str(), self.network(id).map(|o| o.meta)),
            ObjectKey::Secret(id) => ("secret", id.as_str(), self.secret(id).map(|o| o.meta)),
            ObjectKey::Config(id) => ("config", id.as_str(), self.config(id).map(|o| o.meta)),
        };
        meta.map(|m| m.version).ok_or_else(|| Refused::not_found(kind, &id))
    }
}

/// One log entry being applied, on a copy.
struct Entry {
    view: View,
    index: u64,
    at: Timestamp,
    events: Vec<Event>,
    /// Of the service whose task was made last: tasks made together share it.
    template: Option<(Arc<Service>, Arc<TaskSpec>)>,
}

/// Templates are compared without what does not make a running task out of date: the credentials it was pulled with.
fn same_template(a: &ServiceSpec, b: &ServiceSpec) -> bool {
    let bare = |spec: &TaskSpec| {
        let mut spec = spec.clone();
        spec.container.pull_auth = None;
        spec
    };
    bare(&a.task) == bare(&b.task)
        && a.networks == b.networks
        && a.endpoint.clone().unwrap_or_default() == b.endpoint.clone().unwrap_or_default()
}

macro_rules! changed {
    ($self:ident, $put:ident, $kind:ident, $old:expr, $new:expr) => {{
        let (old, new) = ($old, Arc::new($new));
        if old.as_ref() != Some(&new) {
            $self.view.$put(new.clone());
            $self.tell(Object::$kind(old, Some(new)));
        }
        Ok(())
    }};
}

impl Entry {
    fn tell(&mut self, object: Object) {
        self.events.push(Event { index: self.index, at: self.at, object });
    }

    fn created(&self) -> Meta {
        Meta { version: self.index, created_at: self.at, updated_at: self.at }
    }

    fn touched(&self, meta: Meta) -> Meta {
        Meta { version: self.index, updated_at: self.at, ..meta }
    }

    fn change(&mut self, change: &Change) -> Done {
        match change {
            Change::CreateCluster(cluster) => self.create_cluster(cluster),
            Change::SetClusterSpec(spec) => self.with_cluster(|c| c.spec = (**spec).clone()),
            Change::SetJoinTokens(tokens) => self.with_cluster(|c| c.join_tokens = tokens.clone()),
            Change::SetUnlockKey(key) => self.with_cluster(|c| c.unlock_key.clone_from(key)),
            Change::CreateJoinToken(token) => self.create_join_token(token),
            Change::SpendJoinToken(id) => self.spend_join_token(id),
            Change::RemoveJoinToken(id) => match self.view.join_tokens.remove(id) {
                Some(_) => Ok(()),
                None => Err(Refused::not_found("join token", id)),
            },
            Change::SetRootCa { root_ca, at } => {
                if self.view.cluster.as_ref().is_some_and(|c| c.root_ca.digest != root_ca.digest) {
                    self.view.join_tokens.clear();
                }
                self.with_cluster(|c| {
                    c.root_ca = root_ca.clone();
                    c.root_rotated_at = *at;
                })
            }

            Change::SetGossipKey(key) => {
                if self.view.cluster().is_some_and(|c| c.gossip_key.is_some()) {
                    return Err(Refused::Stale("there is a gossip key".into()));
                }
                self.with_cluster(|c| c.gossip_key = Some(key.clone()))
            }

            Change::CreateNode(node) => self.create_node(node),
            Change::SetNodeSpec { node_id, spec } => self.set_node_spec(node_id, spec),
            Change::SetNodeDescription { node_id, description } => {
                self.with_node(node_id, |n| n.description = (**description).clone())
            }
            Change::SetNodeStatus { node_id, status } => self.with_node(node_id, |n| n.status = status.clone()),
            Change::SetNodeRole { node_id, role } => {
                if *role == Role::Worker && self.view.node(node_id).is_some_and(|n| n.role == Role::Manager) {
                    self.revoke(node_id);
                }
                self.with_node(node_id, |n| n.role = *role)
            }
            Change::SetNodeManager { node_id, manager } => self.with_node(node_id, |n| n.manager = manager.clone()),
            Change::AllocateNode { node_id, attachments, mesh_index } => {
                let owner = AddressOwner::Node(node_id.clone());
                for (network, address) in attachments {
                    self.claim(network, *address, &owner)?;
                }
                if mesh_index.is_some() && self.view.nodes().any(|n| n.id != *node_id && n.mesh_index == *mesh_index) {
                    return Err(Refused::Stale("mesh index given twice".into()));
                }
                self.with_node(node_id, |n| {
                    n.attachments = attachments.clone();
                    n.mesh_index = *mesh_index;
                })
            }
            Change::RemoveNode { node_id } => self.remove_node(node_id),

            Change::CreateService(service) => self.create_service(service),
            Change::SetServiceSpec { service_id, spec } => self.set_service_spec(service_id, spec),
            Change::RollbackService { service_id, status, automatic } => {
                self.rollback_service(service_id, status, *automatic)
            }
            Change::SetUpdateStatus { service_id, status } => {
                self.with_service(service_id, |s| s.update_status = status.clone())
            }
            Change::SetEndpoint { service_id, endpoint } => self.set_endpoint(service_id, endpoint),
            Change::RemoveService { service_id } => self.remove_service(service_id),

            Change::CreateTask(task) => self.create_task(task),
            Change::AllocateTask { task_id, networks } => self.allocate_task(task_id, networks),
            Change::AssignTask { task_id, node_id, generic } => self.assign_task(task_id, node_id, generic),
            Change::SetTaskRemark { task_id, message, error } => self.with_task(task_id, |t| {
                if t.status.state < TaskState::Assigned {
                    t.status.message.clone_from(message);
                    t.status.error.clone_from(error);
                }
            }),
            Change::SetTaskDesired { task_id, desired_state } => {
                self.with_task(task_id, |t| t.desired_state = t.desired_state.max(*desired_state))
            }
            Change::SetTaskStatus(reports) => reports.iter().try_for_each(|report| self.report(report)),
            Change::SetTaskState { task_id, status } => {
                self.report(&TaskReport { task_id: task_id.clone(), status: status.clone() })
            }
            Change::RemoveTask { task_id } => {
                self.remove_task(task_id);
                Ok(())
            }

            Change::CreateNetwork(network) => self.create_network(network),
            Change::AllocateNetwork { network_id, allocation } => self.allocate_network(network_id, allocation),
            Change::RotateNetworkKeys { network_id, from, next } => self.rotate_keys(network_id, *from, next),
            Change::RemoveNetwork { network_id } => self.remove_network(network_id),
            Change::AttachContainer { network_id, container_id, attachment } => {
                self.attach_container(network_id, container_id, attachment)
            }
            Change::DetachContainer { network_id, container_id } => self.detach_container(network_id, container_id),

            Change::CreateSecret(secret) => self.create_secret(secret),
            Change::SetSecretLabels { secret_id, labels } => self.label_secret(secret_id, labels),
            Change::RemoveSecret { secret_id } => self.remove_secret(secret_id),
            Change::CreateConfig(config) => self.create_config(config),
            Change::SetConfigLabels { config_id, labels } => self.label_config(config_id, labels),
            Change::RemoveConfig { config_id } => self.remove_config(config_id),
        }
    }

    fn create_cluster(&mut self, cluster: &Cluster) -> Done {
        if self.view.cluster.is_some() {
            return Err(Refused::NameConflict("a cluster object already exists".into()));
        }
        let cluster = Arc::new(Cluster { meta: self.created(), ..cluster.clone() });
        self.view.cluster = Some(cluster.clone());
        self.tell(Object::Cluster(None, Some(cluster)));
        Ok(())
    }

    fn with_cluster(&mut self, edit: impl FnOnce(&mut Cluster)) -> Done {
        let old = self.view.cluster.clone().ok_or_else(|| Refused::not_found("cluster", &"default"))?;
        let mut new = (*old).clone();
        edit(&mut new);
        if new != *old {
            new.meta = self.touched(old.meta);
            let new = Arc::new(new);
            self.view.cluster = Some(new.clone());
            self.tell(Object::Cluster(Some(old), Some(new)));
        }
        Ok(())
    }

    fn create_node(&mut self, node: &Node) -> Done {
        if self.view.nodes.contains_key(&node.id) {
            return Err(Refused::NameConflict(format!("node {} already exists", node.id)));
        }
        let owner = AddressOwner::Node(node.id.clone());
        for (network, address) in &node.attachments {
            self.claim(network, *address, &owner)?;
        }
        changed!(self, put_node, Node, None, Node { meta: self.created(), ..node.clone() })
    }

    /// Two demotions at once may each see another manager; here the second one sees that none would be left.
    fn set_node_spec(&mut self, id: &NodeId, spec: &NodeSpec) -> Done {
        let manages = |n: &Node| n.spec.role == Role::Manager && n.manager.is_some();
        let demoted = spec.role == Role::Worker && self.view.node(id).is_some_and(|n| manages(n));
        if demoted && !self.view.nodes().any(|n| n.id != *id && manages(n)) {
            return Err(Refused::Precondition("attempting to demote the last manager of the swarm".into()));
        }
        self.with_node(id, |n| n.spec = spec.clone())
    }

    fn with_node(&mut self, id: &NodeId, edit: impl FnOnce(&mut Node)) -> Done {
        let old = self.view.node(id).cloned().ok_or_else(|| Refused::not_found("node", id))?;
        let mut new = (*old).clone();
        edit(&mut new);
        if new == *old {
            return Ok(());
        }
        new.meta = self.touched(old.meta);
        changed!(self, put_node, Node, Some(old), new)
    }

    fn remove_node(&mut self, id: &NodeId) -> Done {
        let old = self.view.take_node(id).ok_or_else(|| Refused::not_found("node", id))?;
        self.tell(Object::Node(Some(old), None));
        if self.view.cluster.is_some() {
            self.with_cluster(|c| c.gossip_key = None)?;
        }
        self.hurry_keys()?;
        self.detach_all_of(id)?;
        self.revoke(id);
        Ok(())
    }

    /// Managers that lag behind must not listen to a node that is no manager any more; a certificate dies by itself in time.
    fn revoke(&mut self, id: &NodeId) {
        let life = self.view.cluster.as_ref().map_or(Duration::ZERO, |c| c.spec.node_cert_expiry).max(REVOKED_KEPT);
        let at = self.at;
        let long_ago: Vec<_> =
            self.view.revoked.iter().filter(|(_, then)| at.since(**then) > life).map(|(id, _)| id.clone()).collect();
        for id in long_ago {
            self.view.revoked.remove(&id);
        }
        self.view.revoked.insert(id.clone(), at);
    }

    fn create_service(&mut self, service: &Service) -> Done {
        let name = &service.spec.name;
        if self.view.services.contains_key(&service.id) || self.view.service_names.contains_key(&folded(name)) {
            return Err(Refused::NameConflict(format!(
                "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service {name} already exists"
            )));
        }
        self.spec_fits(&service.id, &service.spec)?;
        let job = service.spec.mode.is_job();
        let new = Service {
            meta: self.created(),
            spec_version: self.index,
            job_status: job.then_some(JobStatus { iteration: 0, last_execution: self.at }),
            ..Service::new(service.id.clone(), service.spec.clone())
        };
        changed!(self, put_service, Service, None, new)
    }

    /// What only the store can tell about a spec.
    fn spec_fits(&self, id: &ServiceId, spec: &ServiceSpec) -> Done {
        self.view.all_exist(spec)?;
        let ports: Vec<_> = spec.endpoint.iter().flat_map(|e| e.ports.iter().cloned()).collect();
        self.view.ports_free(id, &ports)?;
        if spec.ingress_ports().next().is_some() && self.view.ingress_network().is_none() {
            return Err(Refused::Precondition(
                "service needs ingress network, but no ingress network is present".into(),
            ));
        }
        Ok(())
    }

    fn service(&self, id: &ServiceId) -> Result<Arc<Service>, Refused> {
        self.view.service(id).cloned().ok_or_else(|| Refused::not_found("service", id))
    }

    fn with_service(&mut self, id: &ServiceId, edit: impl FnOnce(&mut Service)) -> Done {
        let old = self.service(id)?;
        let mut new = (*old).clone();
        edit(&mut new);
        if new == *old {
            return Ok(());
        }
        new.meta = self.touched(old.meta);
        changed!(self, put_service, Service, Some(old), new)
    }

    fn set_service_spec(&mut self, id: &ServiceId, spec: &ServiceSpec) -> Done {
        let old = self.service(id)?;
        if folded(&old.spec.name) != folded(&spec.name) {
            return Err(Refused::Invalid("renaming services is not supported".into()));
        }
        if std::mem::discriminant(&old.spec.mode) != std::mem::discriminant(&spec.mode) {
            return Err(Refused::Invalid("service mode change is not allowed".into()));
        }
        if old.spec.endpoint != spec.endpoint {
            self.spec_fits(id, spec)?;
        } else {
            self.view.all_exist(spec)?;
        }
        let (index, at) = (self.index, self.at);
        self.with_service(id, |s| {
            if let Some(job) = &mut s.job_status {
                *job = JobStatus { iteration: job.iteration + 1, last_execution: at };
            }
            s.previous_spec = Some(Box::new(std::mem::replace(&mut s.spec, spec.clone())));
            s.previous_spec_version = Some(s.spec_version);
            s.update_status = None;
            // Every update of a job runs it again; so its runs are told apart by this, too.
            if s.job_status.is_some() || !same_template(&old.spec, spec) {
                s.spec_version = index;
            }
        })
    }

    fn rollback_service(&mut self, id: &ServiceId, status: &UpdateStatus, automatic: bool) -> Done {
        let old = self.service(id)?;
        let Some(previous) = &old.previous_spec else {
            return Err(Refused::Precondition(format!("service {id} does not have a previous spec")));
        };
        if old.job_status.is_some() {
            return Err(Refused::Precondition(format!("service {id} is a job, which cannot be rolled back")));
        }
        self.spec_fits(id, previous)?;
        self.with_service(id, |s| {
            let version = s.previous_spec_version.unwrap_or(s.spec_version);
            let failed = std::mem::replace(&mut s.spec, (**previous).clone());
            // What failed is nothing to go back to.
            s.previous_spec = (!automatic).then(|| Box::new(failed));
            s.previous_spec_version = (!automatic).then_some(s.spec_version);
            s.spec_version = version;
            s.update_status = Some(status.clone());
        })
    }

    fn set_endpoint(&mut self, id: &ServiceId, endpoint: &Endpoint) -> Done {
        self.service(id)?;
        self.view.ports_free(id, &endpoint.ports)?;
        let owner = AddressOwner::Service(id.clone());
        for vip in &endpoint.virtual_ips {
            self.claim(&vip.network_id, vip.ip(), &owner)?;
        }
        self.with_service(id, |s| s.endpoint = Some(endpoint.clone()))
    }

    /// Its tasks are told to go in the same entry, so that nothing waits for a leader to notice.
    fn remove_service(&mut self, id: &ServiceId) -> Done {
        let old = self.view.take_service(id).ok_or_else(|| Refused::not_found("service", id))?;
        self.tell(Object::Service(Some(old), None));
        let tasks: Vec<_> = self.view.tasks_of_service(id).map(|t| (t.id.clone(), t.node_id.is_some())).collect();
        for (task, assigned) in tasks {
            if assigned {
                self.with_task(&task, |t| t.desired_state = TaskState::Remove)?;
            } else {
                self.remove_task(&task);
            }
        }
        Ok(())
    }

    /// An address may be taken if it is free or already the taker's.
    fn claim(&mut self, network: &NetworkId, address: Ipv4Addr, owner: &AddressOwner) -> Done {
        let Some(of) = self.view.network(network).cloned() else {
            return Err(Refused::Stale(format!("network {network} is gone")));
        };
        let addresses = self.view.addresses.entry(network.clone()).or_default();
        match addresses.held.get(&address) {
            Some(holder) if holder == owner => return Ok(()),
            Some(_) => return Err(Refused::Stale(format!("address {address} is taken"))),
            None => {}
        }
        if !of.gives(address) {
            return Err(Refused::Stale(format!("address {address} is not the network's to give")));
        }
        addresses.held.insert(address, owner.clone());
        addresses.cursor = Some(address);
        Ok(())
    }

    fn claim_all(&mut self, task: &TaskId, networks: &[NetworkAttachment]) -> Done {
        let owner = AddressOwner::Task(task.clone());
        networks.iter().try_for_each(|n| self.claim(&n.network_id, n.address.addr(), &owner))
    }
}

mod join_tokens;
mod objects;
mod tasks;
