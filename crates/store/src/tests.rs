//! What apply accepts, refuses and tells; and what holds whatever is applied.

use skep_model::assignment::TaskReport;
use skep_model::cluster::{Cluster, JoinTokens, RootCa};
use skep_model::network::{Attachment, Network, NetworkAllocation, NetworkSpec};
use skep_model::node::{Availability, ManagerInfo, Node, NodeDescription, NodeSpec, NodeState, NodeStatus, Role};
use skep_model::secret::{Secret, SecretBytes};
use skep_model::service::{EndpointSpec, Mode, NetworkAttachmentConfig, PortConfig, PublishMode, Service, ServiceSpec};
use skep_model::task::{FileTarget, NetworkAttachment, SecretReference, TaskState, TaskStatus};
use skep_model::{Labels, Meta, NodeId, ServiceId, TaskId, Timestamp};

use crate::{Action, AddressOwner, Batch, Change, Kind, NewTask, ObjectKey, Refused, Request, Store};

mod properties;

fn service(id: &str, name: &str) -> Service {
    let mut spec = ServiceSpec { name: name.into(), ..ServiceSpec::default() };
    spec.task.container.image = "nginx".into();
    Service::new(id.parse().unwrap(), spec)
}

fn create(id: &str, name: &str, edit: impl FnOnce(&mut ServiceSpec)) -> Change {
    let mut service = service(id, name);
    edit(&mut service.spec);
    Change::CreateService(Box::new(service))
}

fn node(id: &str) -> Change {
    Change::CreateNode(Box::new(Node {
        id: id.parse().unwrap(),
        meta: Meta::default(),
        spec: NodeSpec::default(),
        role: Role::Worker,
        description: NodeDescription { hostname: format!("Host-{id}"), ..NodeDescription::default() },
        status: NodeStatus::default(),
        manager: None,
        attachments: Default::default(),
        mesh_index: None,
    }))
}

fn network(id: &str, name: &str) -> Change {
    let (name, ingress) = (name.into(), name == "ingress");
    let spec = NetworkSpec { name, driver: "overlay".into(), ingress, attachable: !ingress, ..Default::default() };
    Change::CreateNetwork(Box::new(Network::new(id.parse().unwrap(), spec)))
}

fn allocation(id: &str, subnet: &str, vni: u32) -> Change {
    let subnet: ipnet::Ipv4Net = subnet.parse().unwrap();
    let gateway = subnet.hosts().next().unwrap();
    Change::AllocateNetwork {
        network_id: id.parse().unwrap(),
        allocation: NetworkAllocation { vni, subnet, gateway, gateway6: None },
    }
}

fn new_task(id: &str, service: &str, spec_version: u64) -> NewTask {
    NewTask {
        id: id.parse().unwrap(),
        service_id: service.parse().unwrap(),
        spec_version,
        slot: Some(1),
        node_id: None,
        desired_state: TaskState::Running,
        state: TaskState::New,
        message: "created".into(),
        networks: Vec::new(),
        start_after: None,
        replaces: None,
        restart: false,
        generic: Vec::new(),
    }
}

fn attachment(network: &str, address: &str) -> NetworkAttachment {
    NetworkAttachment { network_id: network.parse().unwrap(), address: address.parse().unwrap(), aliases: Vec::new() }
}

struct Log {
    store: Store,
    index: u64,
}

impl Log {
    fn new() -> Self {
        Self { store: Store::new(), index: 0 }
    }

    fn batch(&mut self, batch: &Batch) -> Result<Vec<crate::Event>, Refused> {
        self.index += 1;
        let before = self.store.clone();
        let result = self.store.apply(self.index, 5, batch);
        if result.is_err() {
            assert_eq!(self.store, before, "a refusal changes nothing");
        }
        result
    }

    fn changes(&mut self, changes: Vec<Change>) -> Result<Vec<crate::Event>, Refused> {
        self.batch(&Batch::new(Timestamp::from_secs(1), changes))
    }

    fn ok(&mut self, changes: Vec<Change>) -> Vec<crate::Event> {
        self.changes(changes).unwrap()
    }

    #[track_caller]
    fn refused(&mut self, change: Change, kind: Kind, text: &str) {
        let refused = self.changes(vec![change]).unwrap_err();
        assert_eq!((refused.to_string().as_str(), refused.kind()), (text, kind));
    }
}

#[test]
fn names_are_unique_whatever_their_case() {
    let mut log = Log::new();
    log.ok(vec![create("s1", "web", |_| {})]);
    log.refused(
        create("s2", "WEB", |_| {}),
        Kind::Conflict,
        "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service WEB already exists",
    );
    log.ok(vec![network("n1", "back")]);
    log.refused(network("n2", "back"), Kind::Conflict, "network with name back already exists");
}

#[test]
fn an_update_must_name_the_version_it_was_made_from() {
    let mut log = Log::new();
    log.ok(vec![create("s1", "web", |_| {})]);
    let key = ObjectKey::Service("s1".parse().unwrap());
    let spec = |n| {
        let mut spec = service("s1", "web").spec;
        spec.mode = Mode::Replicated { replicas: n };
        Change::SetServiceSpec { service_id: "s1".parse().unwrap(), spec: Box::new(spec) }
    };
    let at = Timestamp::from_secs(2);
    let events = log.batch(&Batch::new(at, vec![spec(3)]).if_version(key.clone(), 1)).unwrap();
    assert_eq!(events[0].attributes()["replicas.old"], "1");
    assert_eq!(events[0].attributes()["replicas.new"], "3");
    let refused = log.batch(&Batch::new(at, vec![spec(4)]).if_version(key, 1)).unwrap_err();
    assert_eq!(refused, Refused::OutOfSequence);
    assert!(refused.to_string().ends_with("update out of sequence"));
    let web = log.store.read().find_service("web").unwrap();
    assert_eq!((web.meta.version, web.spec_version), (2, 1), "replicas alone make no new tasks");
}

#[test]
fn a_leaders_batch_is_refused_in_another_term() {
    let mut log = Log::new();
    let batch = Batch::new(Timestamp::ZERO, vec![node("n1")]);
    let refused = log.batch(&batch.clone().in_term(4)).unwrap_err();
    assert_eq!(refused.kind(), Kind::Stale);
    log.batch(&batch.in_term(5)).unwrap();
}

#[test]
fn a_proposal_that_is_sent_twice_takes_effect_once() {
    let mut log = Log::new();
    let request = Request { id: 7, since: 0 };
    let create = Batch::new(Timestamp::ZERO, vec![create("s1", "web", |_| {})]).named(request);
    assert_eq!(Batch::decode(&create.encode().unwrap()).unwrap(), create);
    log.batch(&create).unwrap();
    let before = log.store.clone();
    assert_eq!(log.batch(&create), Err(Refused::Repeated { index: 1 }), "not that the name is taken");
    // Its own effect moved the version it was guarded by.
    let update = Batch::new(
        Timestamp::ZERO,
        vec![Change::SetServiceSpec { service_id: "s1".parse().unwrap(), spec: Box::new(service("s1", "web").spec) }],
    )
    .if_version(ObjectKey::Service("s1".parse().unwrap()), 1)
    .named(Request { id: 8, since: 1 });
    assert_eq!(log.store, before);
    log.batch(&update).unwrap();
    assert_eq!(log.batch(&update), Err(Refused::Repeated { index: 3 }), "not that it is out of sequence");
    // What was refused may be asked again.
    let gone = Batch::new(Timestamp::ZERO, vec![Change::RemoveService { service_id: "s2".parse().unwrap() }])
        .named(Request { id: 9, since: 1 });
    for _ in 0..2 {
        assert!(matches!(log.batch(&gone), Err(Refused::NotFound { .. })));
    }
}

#[test]
fn of_two_demotions_that_each_saw_the_other_manager_the_second_is_refused() {
    let mut log = Log::new();
    let role = |id: &str, role| Change::SetNodeSpec {
        node_id: id.parse().unwrap(),
        spec: NodeSpec { role, ..NodeSpec::default() },
    };
    let manages = |id: &str, raft_id| Change::SetNodeManager {
        node_id: id.parse().unwrap(),
        manager: Some(ManagerInfo { raft_id, address: ([10, 0, 0, 1], 2377).into() }),
    };
    log.ok(vec![node("n1"), node("n2"), node("n3")]);
    log.ok(["n1", "n2", "n3"].map(|id| role(id, Role::Manager)).into());
    // The third was promoted and does not manage yet.
    log.ok(vec![manages("n1", 1), manages("n2", 2)]);
    log.ok(vec![role("n1", Role::Worker)]);
    let last = "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm";
    log.refused(role("n2", Role::Worker), Kind::Precondition, last);
    log.ok(vec![manages("n3", 3)]);
    log.ok(vec![role("n2", Role::Worker)]);
}

#[test]
fn a_batch_is_applied_whole_or_not_at_all() {
    let mut log = Log::new();
    log.changes(vec![create("s1", "web", |_| {}), create("s2", "web", |_| {})]).unwrap_err();
    assert!(log.store.read().services().next().is_none());
}

#[test]
fn only_a_new_template_raises_the_spec_version_and_a_rollback_brings_the_old_one_back() {
    let mut log = Log::new();
    log.ok(vec![create("s1", "web", |_| {})]);
    let set = |image: &str, auth: Option<&str>| {
        let mut spec = service("s1", "web").spec;
        spec.task.container.image = image.into();
        spec.task.container.pull_auth = auth.map(|a| SecretBytes(a.as_bytes().to_vec()));
        vec![Change::SetServiceSpec { service_id: "s1".parse().unwrap(), spec: Box::new(spec) }]
    };
    log.ok(set("nginx", Some("token")));
    assert_eq!(log.store.read().find_service("s1").unwrap().spec_version, 1, "credentials make no new tasks");
    log.ok(set("nginx:2", None));
    assert_eq!(log.store.read().find_service("s1").unwrap().spec_version, 3);
    let status = skep_model::service::UpdateStatus {
        state: skep_model::service::UpdateState::RollbackStarted,
        started_at: Timestamp::ZERO,
        completed_at: None,
        message: String::new(),
    };
    log.ok(vec![Change::RollbackService { service_id: "s1".parse().unwrap(), status, automatic: false }]);
    let web = log.store.read().find_service("s1").unwrap().clone();
    assert_eq!((web.spec_version, web.spec.task.container.image.as_str()), (1, "nginx"));
}

#[test]
fn status_only_moves_up() {
    let mut log = Log::new();
    log.ok(vec![create("s1", "web", |_| {}), Change::CreateTask(Box::new(new_task("t1", "s1", 1)))]);
    let report = |state, message: &str| {
        let status = TaskStatus { state, message: message.into(), ..TaskStatus::default() };
        vec![Change::SetTaskStatus(vec![TaskReport { task_id: "t1".parse().unwrap(), status }])]
    };
    log.ok(report(TaskState::Running, "started"));
    assert_eq!(log.ok(report(TaskState::Starting, "starting")), [], "older news are no news");
    assert_eq!(log.ok(report(TaskState::Running, "started")), []);
    assert_eq!(log.ok(report(TaskState::Failed, "started")).len(), 1);
    assert_eq!(log.ok(report(TaskState::Rejected, "started")), [], "what has ended does not end in another way");
    let gone = TaskReport { task_id: "t9".parse().unwrap(), status: TaskStatus::default() };
    assert_eq!(log.ok(vec![Change::SetTaskStatus(vec![gone])]), []);
}

#[test]
fn what_is_complete_stays_complete() {
    let mut log = Log::new();
    log.ok(vec![create("s1", "web", |_| {}), Change::CreateTask(Box::new(new_task("t1", "s1", 1)))]);
    let report = |state| {
        let status = TaskStatus { state, ..TaskStatus::default() };
        vec![Change::SetTaskStatus(vec![TaskReport { task_id: "t1".parse().unwrap(), status }])]
    };
    log.ok(report(TaskState::Complete));
    // Of a daemon that was started anew, and found what it was to stop.
    assert_eq!(log.ok(report(TaskState::Shutdown)), []);
    assert_eq!(log.ok(report(TaskState::Failed)), []);
}

#[test]
fn desired_state_only_moves_up() {
    let mut log = Log::new();
    log.ok(vec![create("s1", "web", |_| {}), Change::CreateTask(Box::new(new_task("t1", "s1", 1)))]);
    let desire = |desired_state| vec![Change::SetTaskDesired { task_id: "t1".parse().unwrap(), desired_state }];
    log.ok(desire(TaskState::Shutdown));
    assert_eq!(log.ok(desire(TaskState::Running)), []);
}

#[test]
fn a_published_port_is_had_once_in_the_swarm() {
    let port = |published, mode| {
        move |s: &mut ServiceSpec| {
            let port = PortConfig { target_port: 80, published_port: published, mode, ..PortConfig::default() };
            s.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
        }
    };
    let mut log = Log::new();
    log.refused(
        create("s0", "early", port(80, PublishMode::Ingress)),
        Kind::Precondition,
        "rpc error: code = FailedPrecondition desc = service needs ingress network, but no ingress network is present",
    );
    log.ok(vec![network("ing", "ingress"), create("s1", "web", port(8080, PublishMode::Ingress))]);
    log.refused(
        create("s2", "other", port(8080, PublishMode::Ingress)),
        Kind::Invalid,
        "rpc error: code = InvalidArgument desc = port '8080' is already in use by service 'web' (s1) as an ingress port",
    );
    log.ok(vec![create("s3", "a", port(9090, PublishMode::Host)), create("s4", "b", port(9090, PublishMode::Host))]);
    log.refused(
        create("s5", "c", port(9090, PublishMode::Ingress)),
        Kind::Invalid,
        "rpc error: code = InvalidArgument desc = port '9090' is already in use by service 'a' (s3) as a host-published port",
    );
}

#[test]
fn what_is_used_stays() {
    let mut log = Log::new();
    let secret = Secret {
        id: "sec".parse().unwrap(),
        meta: Meta::default(),
        name: "key".into(),
        labels: Labels::new(),
        data: SecretBytes(vec![1]),
        templating: None,
    };
    let uses = |s: &mut ServiceSpec| {
        let file = FileTarget::default();
        let reference = SecretReference { secret_id: "sec".parse().unwrap(), secret_name: "key".into(), file };
        s.task.container.secrets.push(reference);
        s.task.networks.push(NetworkAttachmentConfig {
            target: "net".into(),
            aliases: Vec::new(),
            driver_options: Default::default(),
        });
    };
    log.refused(create("s1", "web", uses), Kind::NotFound, "network net not found");
    log.ok(vec![network("net", "back")]);
    log.refused(
        create("s1", "web", uses),
        Kind::Invalid,
        "rpc error: code = InvalidArgument desc = secret not found: key",
    );
    log.ok(vec![Change::CreateSecret(Box::new(secret.clone())), create("s1", "web", uses)]);
    log.refused(
        Change::RemoveSecret { secret_id: "sec".parse().unwrap() },
        Kind::Invalid,
        "rpc error: code = InvalidArgument desc = secret 'key' is in use by the following service: web",
    );
    log.refused(
        Change::RemoveNetwork { network_id: "net".parse().unwrap() },
        Kind::Precondition,
        "rpc error: code = FailedPrecondition desc = network net is in use by service s1",
    );
    log.refused(
        Change::CreateSecret(Box::new(Secret { id: "sec2".parse().unwrap(), ..secret })),
        Kind::Conflict,
        "rpc error: code = AlreadyExists desc = secret key already exists",
    );
    log.ok(vec![
        Change::RemoveService { service_id: "s1".parse().unwrap() },
        Change::RemoveSecret { secret_id: "sec".parse().unwrap() },
        Change::RemoveNetwork { network_id: "net".parse().unwrap() },
    ]);
}

#[test]
fn a_service_is_not_made_on_a_network_that_was_removed_meanwhile() {
    let mut log = Log::new();
    let attached = |s: &mut ServiceSpec| {
        s.task.networks.push(NetworkAttachmentConfig {
            target: "net".into(),
            aliases: Vec::new(),
            driver_options: Default::default(),
        });
    };
    log.ok(vec![network("net", "back"), create("s1", "web", |_| {})]);
    log.ok(vec![Change::RemoveNetwork { network_id: "net".parse().unwrap() }]);
    log.refused(create("s2", "late", attached), Kind::NotFound, "network net not found");
    let mut spec = log.store.read().find_service("s1").unwrap().spec.clone();
    attached(&mut spec);
    let update = Change::SetServiceSpec { service_id: "s1".parse().unwrap(), spec: Box::new(spec) };
    log.refused(update, Kind::NotFound, "network net not found");
}

#[test]
fn a_removed_service_takes_its_unplaced_tasks_and_tells_the_others_to_go() {
    let mut log = Log::new();
    let placed =
        NewTask { node_id: Some("n1".parse().unwrap()), state: TaskState::Assigned, ..new_task("t2", "s1", 1) };
    log.ok(vec![
        node("n1"),
        create("s1", "web", |_| {}),
        Change::CreateTask(Box::new(new_task("t1", "s1", 1))),
        Change::CreateTask(Box::new(placed)),
    ]);
    let events = log.ok(vec![Change::RemoveService { service_id: "s1".parse().unwrap() }]);
    assert_eq!(events.iter().filter(|e| e.action() == Action::Remove).count(), 2);
    let left: Vec<_> = log.store.read().tasks().map(|t| (t.id.to_string(), t.desired_state)).collect();
    assert_eq!(left, [("t2".to_owned(), TaskState::Remove)]);
}

#[test]
fn an_address_has_one_owner_until_that_has_ended() {
    let mut log = Log::new();
    log.ok(vec![network("net", "back"), allocation("net", "10.0.5.0/29", 4097), create("s1", "web", |_| {})]);
    let task = |id: &str, address: &str| {
        let networks = vec![attachment("net", address)];
        Change::CreateTask(Box::new(NewTask { networks, state: TaskState::Pending, ..new_task(id, "s1", 1) }))
    };
    log.ok(vec![task("t1", "10.0.5.2/29")]);
    for bad in ["10.0.5.2/29", "10.0.5.1/29", "10.0.6.2/29"] {
        assert_eq!(log.changes(vec![task("t2", bad)]).unwrap_err().kind(), Kind::Stale, "{bad}");
    }
    let status = TaskStatus { state: TaskState::Failed, ..TaskStatus::default() };
    log.ok(vec![Change::SetTaskState { task_id: "t1".parse().unwrap(), status }]);
    log.ok(vec![task("t2", "10.0.5.2/29")]);
    let addresses = log.store.read().addresses(&"net".parse().unwrap()).unwrap().clone();
    assert_eq!(addresses.owner([10, 0, 5, 2].into()), Some(&AddressOwner::Task("t2".parse().unwrap())));
    assert_eq!(addresses.cursor(), Some([10, 0, 5, 2].into()));
}

#[test]
fn an_attached_container_holds_its_address_and_its_network() {
    let mut log = Log::new();
    log.ok(vec![node("w1"), node("w2"), network("n1", "back"), allocation("n1", "10.0.1.0/24", 4097)]);
    let id: skep_model::NetworkId = "n1".parse().unwrap();
    let attach = |container: &str, node: &str, address: [u8; 4]| Change::AttachContainer {
        network_id: "n1".parse().unwrap(),
        container_id: container.parse().unwrap(),
        attachment: Attachment {
            node_id: node.parse().unwrap(),
            address: Some(address.into()),
            names: vec!["web".into()],
        },
    };
    log.ok(vec![attach("aa", "w1", [10, 0, 1, 5])]);
    log.refused(attach("bb", "w2", [10, 0, 1, 5]), Kind::Stale, "decided on an old view: address 10.0.1.5 is taken");
    log.refused(attach("bb", "w9", [10, 0, 1, 6]), Kind::NotFound, "node w9 not found");
    let removal = Change::RemoveNetwork { network_id: id.clone() };
    let text = "rpc error: code = FailedPrecondition desc = network n1 is in use by container web on node w1";
    log.refused(removal.clone(), Kind::Precondition, text);
    assert_eq!(log.ok(vec![attach("aa", "w1", [10, 0, 1, 5])]).len(), 0, "asked again");
    log.ok(vec![attach("aa", "w1", [10, 0, 1, 7])]);
    let owner = |log: &Log, last| {
        let view = log.store.view();
        view.addresses(&id).and_then(|a| a.owner([10, 0, 1, last].into()).cloned())
    };
    assert_eq!(owner(&log, 5), None, "it moved");
    assert_eq!(owner(&log, 7), Some(AddressOwner::Container("aa".parse().unwrap())));
    // With its node it is gone, and then nothing holds the network.
    log.ok(vec![attach("bb", "w2", [10, 0, 1, 5]), Change::RemoveNode { node_id: "w1".parse().unwrap() }]);
    assert_eq!(owner(&log, 7), None);
    log.ok(vec![Change::DetachContainer { network_id: id.clone(), container_id: "bb".parse().unwrap() }]);
    assert_eq!(owner(&log, 5), None);
    log.ok(vec![removal]);
}

#[test]
fn a_task_is_never_made_from_a_template_its_maker_did_not_see() {
    let mut log = Log::new();
    log.ok(vec![create("s1", "web", |_| {})]);
    let refused = log.changes(vec![Change::CreateTask(Box::new(new_task("t1", "s1", 9)))]).unwrap_err();
    assert_eq!(refused.kind(), Kind::Stale);
}

#[test]
fn objects_are_found_by_id_name_or_an_unambiguous_beginning() {
    let mut log = Log::new();
    log.ok(vec![create("abc1", "web", |_| {}), create("abd2", "abc1x", |_| {}), node("n1"), node("n2")]);
    let view = log.store.view();
    let found = |text: &str| view.find_service(text).map(|s| s.id.to_string()).map_err(|e| e.to_string());
    assert_eq!(found("abc1"), Ok("abc1".into()));
    assert_eq!(found("Web"), Ok("abc1".into()));
    assert_eq!(found("abd"), Ok("abd2".into()));
    assert_eq!(found("ab"), Err("service ab is ambiguous (2 matches found)".into()));
    assert_eq!(found("nope"), Err("service nope not found".into()));
    assert_eq!(found("a/b"), Err("service a/b not found".into()));
    assert_eq!(view.find_node("host-n2").unwrap().id, "n2".parse().unwrap());
}

#[test]
fn events_say_what_moved_as_docker_does() {
    let mut log = Log::new();
    let node_id: NodeId = "n1".parse().unwrap();
    log.ok(vec![node("n1")]);
    let status = NodeStatus { state: NodeState::Ready, ..NodeStatus::default() };
    let events = log.ok(vec![Change::SetNodeStatus { node_id: node_id.clone(), status }]);
    let attributes = events[0].attributes();
    assert_eq!((attributes["name"].as_str(), attributes["state.new"].as_str()), ("Host-n1", "ready"));
    let spec = NodeSpec { availability: Availability::Drain, ..NodeSpec::default() };
    let events = log.ok(vec![Change::SetNodeSpec { node_id: node_id.clone(), spec: spec.clone() }]);
    assert_eq!(events[0].attributes()["availability.new"], "drain");
    assert!(events[0].is_public());
    assert_eq!(log.ok(vec![Change::SetNodeSpec { node_id, spec }]), [], "nothing moved");
}

#[test]
fn a_snapshot_is_the_whole_store() {
    let mut log = Log::new();
    let cluster = Cluster {
        root_ca: RootCa { cert_pem: "c".into(), key_pem: "k".into(), digest: "d".into(), ..RootCa::default() },
        join_tokens: JoinTokens { worker: "w".into(), manager: "m".into() },
        ..Cluster::new("c1".parse().unwrap())
    };
    let restarted =
        NewTask { restart: true, networks: vec![attachment("net", "10.0.5.2/29")], ..new_task("t1", "s1", 1) };
    log.ok(vec![
        Change::CreateCluster(Box::new(cluster.clone())),
        network("net", "back"),
        allocation("net", "10.0.5.0/29", 4097),
        create("s1", "web", |_| {}),
        Change::CreateTask(Box::new(restarted)),
    ]);
    let request = Request { id: u128::MAX - 1, since: 0 };
    log.batch(&Batch::new(Timestamp::ZERO, vec![create("s2", "db", |_| {})]).named(request)).unwrap();
    let bytes = log.store.encode().unwrap();
    let back = Store::decode(&bytes).unwrap();
    assert_eq!(back, log.store);
    assert_eq!(back.encode().unwrap(), bytes);
    log.changes(vec![Change::CreateCluster(Box::new(cluster))]).unwrap_err();
}

#[test]
fn what_is_no_snapshot_is_said() {
    assert!(Store::decode(b"").is_err());
    assert!(Store::decode(b"skepsnap").is_err());
    assert!(Store::decode(b"skepsnap\x02").unwrap_err().to_string().contains("newer"));
    assert!(Store::decode(b"skepsnap\x01\xc1").is_err());
    assert!(Batch::decode(b"").is_err());
    assert!(Batch::decode(b"\x01\x00").is_err());
}
