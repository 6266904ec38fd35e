//! The users: what they ask for, of whichever manager, and what they were told became of it.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::Ipv4Net;
use skep_control::IdSource;
use skep_model::cluster::JoinTokens;
use skep_model::network::{Network, NetworkSpec};
use skep_model::node::{Availability, Role};
use skep_model::secret::{Secret, SecretBytes};
use skep_model::service::{
    EndpointSpec, FailureAction, Mode, NetworkAttachmentConfig, PortConfig, Service, ServiceSpec, UpdateConfig,
    UpdateOrder, UpdateState, UpdateStatus,
};
use skep_model::task::{RestartCondition, RestartPolicy};
use skep_model::validate::STOP_AFTER_LABEL;
use skep_model::{Labels, Meta, NetworkId, SecretId, ServiceId, Timestamp};
use skep_store::{Batch, Change, ObjectKey, Refused, View};

use crate::HostId;
use crate::dice::Dice;
use crate::invariants::Evidence;
use crate::log::Failure;
use crate::places::{Answer, Asked, CALL_DEADLINE};
use crate::trace::Detail;
use crate::world::{Asker, Event, World};

/// How long a manager tries, how soon it looks again for a leader, and how long it waits for one that may be gone
/// (`Manager::settle`).
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const GONE: Duration = Duration::from_millis(1_500);
/// The label that says which request an object was last written by.
pub(crate) const TAG: &str = "op";

/// What somebody wants, not yet in terms of what there is.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    Create {
        name: String,
        spec: Box<ServiceSpec>,
    },
    Scale {
        name: String,
        replicas: u64,
    },
    Image {
        name: String,
        image: String,
    },
    Rollback {
        name: String,
    },
    Remove {
        name: String,
    },
    Network {
        name: String,
    },
    RemoveNetwork {
        name: String,
    },
    Availability {
        host: HostId,
        availability: Availability,
    },
    Role {
        host: HostId,
        role: Role,
    },
    Secret {
        name: String,
    },
    Rotate,
    /// A container's place: what the wish is has been decided.
    Place,
}

#[derive(Clone, Debug)]
struct Request {
    wish: Wish,
    /// Made from the first manager's View, then passed on as it is.
    made: Option<(Batch, Option<Evidence>)>,
    asked: HostId,
    since: Duration,
    /// How often it was sent.
    attempt: u32,
    /// Which call for a container's place waits for it, and what it is then told.
    call: Option<(Asked, Answer)>,
}

#[derive(Debug, Default)]
pub(crate) struct Client {
    requests: BTreeMap<u64, Request>,
    next: u64,
    pub(crate) acknowledged: u64,
}

fn update_config(dice: &mut Dice) -> UpdateConfig {
    UpdateConfig {
        parallelism: dice.below(3) as u64,
        delay: dice.millis(0, 400),
        failure_action: *dice
            .pick(&[FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback])
            .unwrap_or(&FailureAction::Pause),
        monitor: Some(dice.millis(50, 600)),
        max_failure_ratio: 0.0,
        order: if dice.percent(50) { UpdateOrder::StopFirst } else { UpdateOrder::StartFirst },
    }
}

/// An image and how its containers behave (see `engine`).
fn image(dice: &mut Dice) -> String {
    const TEMPERS: &[&str] = &["ok", "ok", "ok", "ok", "flaky", "short", "broken", "missing", "stubborn"];
    format!("{}:{}", dice.pick(TEMPERS).unwrap_or(&"ok"), dice.below(1000))
}

pub(crate) fn spec(name: &str, image: &str) -> ServiceSpec {
    let mut spec = ServiceSpec { name: name.into(), ..ServiceSpec::default() };
    spec.task.container.image = image.into();
    spec.task.container.stop_grace_period = Some(Duration::from_millis(500));
    let delay = Some(Duration::from_millis(200));
    spec.task.restart = Some(RestartPolicy { delay, ..RestartPolicy::default() });
    let monitor = Some(Duration::from_millis(300));
    spec.update = Some(UpdateConfig { monitor, ..UpdateConfig::default() });
    spec
}

fn random_spec(name: &str, view: &View, dice: &mut Dice) -> ServiceSpec {
    let mut spec = spec(name, &image(dice));
    spec.mode = if dice.percent(20) { Mode::Global } else { Mode::Replicated { replicas: dice.below(5) as u64 } };
    spec.task.container.stop_grace_period = Some(dice.millis(100, 1_000));
    let condition = if dice.percent(80) { RestartCondition::Any } else { RestartCondition::OnFailure };
    let max_attempts = if dice.percent(20) { 1 + dice.below(3) as u64 } else { 0 };
    let delay = Some(if dice.percent(20) { Duration::ZERO } else { dice.millis(50, 1_500) });
    spec.task.restart = Some(RestartPolicy { condition, delay, max_attempts, window: Duration::ZERO });
    spec.update = Some(update_config(dice));
    spec.rollback = Some(update_config(dice));
    if dice.percent(40) {
        let published_port = if dice.percent(50) { 0 } else { 8_000 + dice.below(3) as u16 };
        let port = PortConfig { target_port: 80, published_port, ..PortConfig::default() };
        spec.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
    }
    if dice.percent(15) && spec.mode != Mode::Global {
        spec.labels.insert(STOP_AFTER_LABEL.into(), "3s".into());
        // Start-first is to run twice for a while.
        for update in spec.update.iter_mut().chain(&mut spec.rollback) {
            update.order = UpdateOrder::StopFirst;
        }
    }
    if dice.percent(20) {
        job(&mut spec, dice);
    }
    let networks: Vec<_> = view.networks().filter(|n| !n.spec.ingress).collect();
    if let Some(network) = dice.pick(&networks).filter(|_| dice.clone().percent(60)) {
        let target = network.id.to_string();
        let (aliases, driver_options) = (Vec::new(), BTreeMap::new());
        spec.task.networks.push(NetworkAttachmentConfig { target, aliases, driver_options });
    }
    spec
}

/// What ends, and is then done.
fn job(spec: &mut ServiceSpec, dice: &mut Dice) {
    let (max_concurrent, total_completions) = (1 + dice.below(3) as u64, dice.below(6) as u64);
    spec.mode =
        if dice.percent(30) { Mode::GlobalJob } else { Mode::ReplicatedJob { max_concurrent, total_completions } };
    spec.task.container.image = format!("job:{}", dice.below(1000));
    spec.task.restart = spec.task.restart.map(|r| RestartPolicy { condition: RestartCondition::OnFailure, ..r });
    (spec.update, spec.rollback, spec.endpoint) = (None, None, None);
}

/// Something a user may want of a world that looks like this.
pub(crate) fn any_wish(view: &View, hosts: usize, dice: &mut Dice) -> Wish {
    let names: Vec<String> = view.services().map(|s| s.spec.name.clone()).collect();
    let known = |dice: &mut Dice| dice.pick(&names).cloned().unwrap_or_else(|| "nothing".into());
    match dice.below(100) {
        0..30 => {
            let name = format!("s{}", dice.below(6));
            let spec = Box::new(random_spec(&name, view, dice));
            Wish::Create { name, spec }
        }
        30..50 => Wish::Scale { name: known(dice), replicas: dice.below(7) as u64 },
        50..65 => Wish::Image { name: known(dice), image: image(dice) },
        65..70 => Wish::Rollback { name: known(dice) },
        70..78 => Wish::Remove { name: known(dice) },
        78..85 => Wish::Network { name: format!("net{}", dice.below(4)) },
        85..88 => Wish::RemoveNetwork { name: format!("net{}", dice.below(4)) },
        88..93 => {
            let choices = [Availability::Active, Availability::Active, Availability::Pause, Availability::Drain];
            let availability = *dice.pick(&choices).unwrap_or(&Availability::Active);
            Wish::Availability { host: HostId(dice.below(hosts)), availability }
        }
        93..96 => {
            let role = if dice.percent(60) { Role::Manager } else { Role::Worker };
            Wish::Role { host: HostId(dice.below(hosts)), role }
        }
        96..98 => Wish::Secret { name: format!("secret{}", dice.below(10)) },
        _ => Wish::Rotate,
    }
}

/// What an API request becomes, as `facade/` makes it: read from a manager's View, guarded by the version read.
fn make(wish: &Wish, number: u64, view: &View, at: Timestamp, ids: &mut Dice) -> Option<(Batch, Evidence)> {
    let tag = number.to_string();
    let tagged = |labels: &mut Labels| {
        labels.insert(TAG.into(), tag.clone());
    };
    let update = |name: &str, edit: &dyn Fn(&mut ServiceSpec)| {
        let service = view.find_service(name).ok()?;
        let mut spec = service.spec.clone();
        edit(&mut spec);
        tagged(&mut spec.labels);
        let id = service.id.clone();
        let change = Change::SetServiceSpec { service_id: id.clone(), spec: Box::new(spec) };
        let batch = Batch::new(at, vec![change]).if_version(ObjectKey::Service(id.clone()), service.meta.version);
        Some((batch, Evidence::Service { id, tag: tag.clone() }))
    };
    let one = |change: Change, evidence: Evidence| Some((Batch::new(at, vec![change]), evidence));
    match wish {
        Wish::Create { spec, .. } => {
            let id = ServiceId::from_bits(ids.next_id());
            let mut spec = (**spec).clone();
            tagged(&mut spec.labels);
            let service = Service::new(id.clone(), spec);
            one(Change::CreateService(Box::new(service)), Evidence::Service { id, tag })
        }
        Wish::Scale { name, replicas } => {
            view.find_service(name).ok().filter(|s| matches!(s.spec.mode, Mode::Replicated { .. }))?;
            update(name, &|spec| spec.mode = Mode::Replicated { replicas: *replicas })
        }
        Wish::Image { name, image } => update(name, &|spec| {
            // Another one of its kind.
            let version = image.split_once(':').map_or("", |(_, version)| version);
            let image = if spec.mode.is_job() { format!("job:{version}") } else { image.clone() };
            spec.task.container.image = image;
        }),
        Wish::Rollback { name } => {
            let service = view.find_service(name).ok().filter(|s| s.previous_spec.is_some())?;
            let status = UpdateStatus {
                state: UpdateState::RollbackStarted,
                started_at: at,
                completed_at: None,
                message: "rollback in progress".into(),
            };
            let id = service.id.clone();
            let change = Change::RollbackService { service_id: id.clone(), status, automatic: false };
            let batch = Batch::new(at, vec![change]).if_version(ObjectKey::Service(id.clone()), service.meta.version);
            Some((batch, Evidence::ServiceTouched { id }))
        }
        Wish::Remove { name } => {
            let id = view.find_service(name).ok()?.id.clone();
            one(Change::RemoveService { service_id: id.clone() }, Evidence::ServiceGone { id })
        }
        Wish::Network { name } => {
            let id = NetworkId::from_bits(ids.next_id());
            // A small one, in which addresses soon come again.
            let third = name.bytes().last().unwrap_or_default();
            let subnet = Ipv4Net::new([10, 200, third, 0].into(), 28).ok();
            let (driver, attachable) = ("overlay".into(), true);
            let spec = NetworkSpec { name: name.clone(), driver, subnet, attachable, ..NetworkSpec::default() };
            let network = Network::new(id.clone(), spec);
            one(Change::CreateNetwork(Box::new(network)), Evidence::Network { id, there: true })
        }
        Wish::RemoveNetwork { name } => {
            let id = view.find_network(name).ok()?.id.clone();
            one(Change::RemoveNetwork { network_id: id.clone() }, Evidence::Network { id, there: false })
        }
        Wish::Availability { host, availability } => {
            let node = view.node(&crate::world::node_id(*host))?;
            let mut spec = node.spec.clone();
            spec.availability = *availability;
            tagged(&mut spec.labels);
            let id = node.id.clone();
            let change = Change::SetNodeSpec { node_id: id.clone(), spec };
            let batch = Batch::new(at, vec![change]).if_version(ObjectKey::Node(id.clone()), node.meta.version);
            Some((batch, Evidence::Node { id, tag }))
        }
        Wish::Role { host, role } => {
            let node = view.node(&crate::world::node_id(*host)).filter(|n| n.spec.role != *role)?;
            let mut spec = node.spec.clone();
            spec.role = *role;
            tagged(&mut spec.labels);
            let id = node.id.clone();
            let change = Change::SetNodeSpec { node_id: id.clone(), spec };
            let batch = Batch::new(at, vec![change]).if_version(ObjectKey::Node(id.clone()), node.meta.version);
            Some((batch, Evidence::Node { id, tag }))
        }
        Wish::Secret { name } => {
            let id = SecretId::from_bits(ids.next_id());
            let data = SecretBytes(tag.into_bytes());
            let secret = Secret {
                id: id.clone(),
                meta: Meta::default(),
                name: name.clone(),
                labels: Labels::new(),
                data,
                templating: None,
            };
            one(Change::CreateSecret(Box::new(secret)), Evidence::Secret { id })
        }
        Wish::Rotate => {
            let tokens = JoinTokens { worker: format!("SWMTKN-1-{tag}"), manager: format!("SWMTKN-1-m{tag}") };
            one(Change::SetJoinTokens(tokens.clone()), Evidence::Tokens { tokens })
        }
        Wish::Place => None,
    }
}

impl World {
    /// Somebody asks a manager.
    pub(crate) fn wish(&mut self, host: HostId, wish: Wish) {
        self.client.next += 1;
        let (number, since) = (self.client.next, self.now);
        self.client.requests.insert(number, Request { wish, made: None, asked: host, since, attempt: 0, call: None });
        self.try_again(number, 0);
    }

    /// A leader writes what a call for a container's place asks for.
    pub(crate) fn settle_place(&mut self, host: HostId, batch: Batch, call: (Asked, Answer)) {
        self.client.next += 1;
        let (number, since) = (self.client.next, self.now);
        let batch = batch.named(skep_store::Request { id: number.into(), since: self.log.view(host).index() });
        let made = Some((batch, None));
        let request = Request { wish: Wish::Place, made, asked: host, since, attempt: 0, call: Some(call) };
        self.client.requests.insert(number, request);
        self.try_again(number, 0);
    }

    /// The manager that was asked sends the request, again if nothing came of it: always under the same name, so that it takes
    /// effect once.
    pub(crate) fn try_again(&mut self, number: u64, attempt: u32) {
        let now = self.now;
        let Some(request) = self.client.requests.get_mut(&number).filter(|r| r.attempt == attempt) else { return };
        let patience = if request.call.is_some() { CALL_DEADLINE } else { WRITE_DEADLINE };
        let late = now.saturating_sub(request.since) > patience;
        request.attempt += 1;
        let (host, attempt) = (request.asked, request.attempt);
        if late {
            return self.gave_up(number, "no answer in time");
        }
        self.after(GONE, Event::TryAgain { number, attempt });
        self.ask(number, host, 0);
    }

    fn soon_again(&mut self, number: u64) {
        if let Some(request) = self.client.requests.get(&number) {
            let attempt = request.attempt;
            self.after(LOOK_AGAIN, Event::TryAgain { number, attempt });
        }
    }

    pub(crate) fn ask(&mut self, number: u64, host: HostId, hops: u32) {
        if self.hosts[host.0].frozen_until > self.now {
            let until = self.hosts[host.0].frozen_until;
            return self.at(until, Event::Ask { number, host, hops });
        }
        if self.hosts[host.0].daemon.as_ref().is_none_or(|d| d.log_stopped) || !self.log.votes(host) {
            return if hops == 0 { self.gave_up(number, "nobody answers") } else { self.soon_again(number) };
        }
        let (view, at) = (self.log.view(host), self.hosts[host.0].clock(self.now));
        let Some(request) = self.client.requests.get(&number) else { return };
        if let Wish::Role { host: node, role: Role::Worker } = request.wish
            && request.made.is_none()
            && !self.may_demote(host, &view, node)
        {
            return self.gave_up(number, "it would cost the quorum");
        }
        let Some(request) = self.client.requests.get_mut(&number) else { return };
        if request.made.is_none() {
            let name = skep_store::Request { id: number.into(), since: view.index() };
            let made = make(&request.wish, number, &view, at, &mut self.dice.client);
            request.made = made.map(|(batch, evidence)| (batch.named(name), Some(evidence)));
        }
        let Some((batch, _)) = request.made.clone() else { return self.gave_up(number, "there is no such thing") };
        let ticket = self.log.propose(host, None, batch);
        self.asked.insert(ticket, Asker::Client { number, hops });
    }

    /// As `facade/nodes.rs`.
    fn may_demote(&self, asked: HostId, view: &View, host: HostId) -> bool {
        let id = crate::world::node_id(host);
        let Some(raft_id) = view.node(&id).and_then(|n| n.manager.as_ref().map(|m| m.raft_id)) else { return true };
        let others = view.nodes().any(|n| n.id != id && n.spec.role == Role::Manager && n.manager.is_some());
        others && self.can_remove(asked, raft_id)
    }

    pub(crate) fn answered(&mut self, number: u64, host: HostId, hops: u32, outcome: Result<u64, Failure>) {
        let Some(asked) = self.client.requests.get(&number).map(|r| r.asked) else { return };
        match outcome {
            Ok(index) | Err(Failure::Refused(Refused::Repeated { index })) => {
                // The way back to whom was asked.
                if !self.net.is_open(host, asked) || self.hosts[asked.0].daemon.is_none() {
                    return;
                }
                let Some(request) = self.client.requests.remove(&number) else { return };
                if let Some((call, answer)) = request.call {
                    return self.answer_call(asked, &call, answer);
                }
                self.client.acknowledged += 1;
                if let Some((_, Some(evidence))) = request.made {
                    self.tell(Detail::Step, format!("request {number} is acknowledged, entry {index}: {evidence:?}"));
                    self.watch.acknowledged(index, &evidence);
                }
            }
            Err(Failure::NotLeader(Some(leader))) if hops == 0 && leader != host => {
                if !self.net.reaches(host, leader) || self.net.loses(host, leader, &mut self.dice.wire) {
                    return self.soon_again(number);
                }
                let delay = self.net.delay(host, leader, &mut self.dice.wire);
                self.after(delay, Event::Ask { number, host: leader, hops: hops + 1 });
            }
            Err(Failure::Refused(refused)) => {
                let call = self.client.requests.get(&number).and_then(|r| r.call.clone());
                self.gave_up(number, &refused.to_string());
                // Somebody else was given the address meanwhile, or leads.
                if let Some((call, _)) = call.filter(|_| refused.kind() == skep_store::Kind::Stale) {
                    self.asked_for_place(asked, call);
                }
            }
            Err(_) => self.soon_again(number),
        }
    }

    fn gave_up(&mut self, number: u64, why: &str) {
        if let Some(request) = self.client.requests.remove(&number) {
            let what = words(&request.wish);
            self.tell(Detail::Story, format!("request {number} ({what}) fails: {why}"));
        }
    }
}

pub(crate) fn words(wish: &Wish) -> String {
    match wish {
        Wish::Create { name, .. } => format!("create {name}"),
        Wish::Scale { name, replicas } => format!("scale {name} to {replicas}"),
        Wish::Image { name, image } => format!("update {name} to {image}"),
        Wish::Rollback { name } => format!("roll back {name}"),
        Wish::Remove { name } => format!("remove {name}"),
        Wish::Network { name } => format!("create network {name}"),
        Wish::RemoveNetwork { name } => format!("remove network {name}"),
        Wish::Availability { host, availability } => format!("{host} becomes {availability:?}"),
        Wish::Role { host, role } => format!("{host} shall be a {role:?}"),
        Wish::Secret { name } => format!("create secret {name}"),
        Wish::Rotate => "rotate join tokens".into(),
        Wish::Place => "a container's place".into(),
    }
}
