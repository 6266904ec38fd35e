//! Who may make which call, and how certificates come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use skep_control::membership;
use skep_model::node::{Availability, NodeDescription, NodeState, Role};
use skep_model::task::{TaskState, TaskStatus};
use skep_model::{ClusterId, NodeId};
use skep_store::{Batch, Change};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::cluster::{Host, cluster, eventually, service};
use crate::ca::{NodeKey, Signer};
use crate::clock::now;
use crate::facade::{LogRequest, TaskLog};
use crate::manager::Manager;
use crate::transport::message::{Hello, IssueRequest, LogPart, Up};
use crate::transport::proto::Envelope;
use crate::transport::{Connection, LiveTls, TlsMaterial, pack};
use crate::{LocalState, Node, RootRequest, RotateTokens};

fn manager(host: &Host) -> Arc<Manager> {
    host.node.inner.manager().unwrap()
}

async fn change(host: &Host, changes: Vec<Change>) {
    manager(host).propose(Batch::new(now(), changes)).await.unwrap();
}

/// A node the swarm knows, without a host behind it.
async fn enroll(host: &Host, role: Role) -> NodeId {
    let id = NodeId::from_bits(rand::random());
    let view = manager(host).view();
    change(host, membership::admit(&view, &id, role, Availability::Active, "nobody", now()).into_iter().collect())
        .await;
    id
}

/// A certificate of this swarm's root, whatever it says.
fn forged(host: &Host, id: &NodeId, role: Role, cluster: Option<ClusterId>, life: Duration) -> LiveTls {
    let view = manager(host).view();
    let own = view.cluster().unwrap();
    let key = NodeKey::generate().unwrap();
    let signed = Signer::of(&own.root_ca)
        .unwrap()
        .sign(&key.request_pem().unwrap(), id, role, &cluster.unwrap_or_else(|| own.id.clone()), life)
        .unwrap();
    LiveTls::new(TlsMaterial::new(&own.root_ca.cert_pem, &signed.cert_pem, &key.pem()).unwrap())
}

const HOUR: Duration = Duration::from_secs(3600);

const CALLS: [&str; 12] = [
    "Ca.GetRoot",
    "Ca.Issue",
    "Raft.Call",
    "Control.Propose",
    "Control.JoinRaft",
    "Control.LeaveRaft",
    "Control.Logs",
    "Control.Reach",
    "Dispatcher.Session",
    "Dispatcher.PublishLogs",
    "Dispatcher.Reached",
    "Dispatcher.Leave",
];

/// Makes the call with nothing in it: who may call is told that there is nothing in it, or answered.
async fn call(connection: &Connection, name: &str) -> Result<(), Status> {
    let nothing = || pack(&());
    let silence = tokio_stream::empty::<Envelope>;
    let issue = || {
        pack(&IssueRequest {
            request_pem: NodeKey::generate().unwrap().request_pem().unwrap(),
            token: None,
            availability: Availability::Active,
            hostname: "nobody".into(),
        })
    };
    match name {
        "Ca.GetRoot" => connection.ca().get_root(nothing()).await.map(drop),
        "Ca.Issue" => connection.ca().issue(issue()).await.map(drop),
        "Raft.Call" => connection.raft().call(nothing()).await.map(drop),
        "Control.Propose" => connection.control().propose(nothing()).await.map(drop),
        "Control.JoinRaft" => connection.control().join_raft(nothing()).await.map(drop),
        "Control.LeaveRaft" => connection.control().leave_raft(nothing()).await.map(drop),
        "Control.Logs" => connection.control().logs(nothing()).await.map(drop),
        "Control.Reach" => connection.control().reach(silence()).await.map(drop),
        "Dispatcher.Reached" => connection.dispatcher().reached(silence()).await.map(drop),
        "Dispatcher.Session" => connection.dispatcher().session(silence()).await.map(drop),
        "Dispatcher.PublishLogs" => connection.dispatcher().publish_logs(silence()).await.map(drop),
        "Dispatcher.Leave" => connection.dispatcher().leave(nothing()).await.map(drop),
        other => panic!("{other} is not in the table"),
    }
}

/// What a call could change, without what moves by itself: who is there, as what, and the swarm's own secrets.
fn settled(host: &Host) -> impl PartialEq + std::fmt::Debug {
    let view = manager(host).view();
    let nodes: Vec<_> = view.nodes().map(|n| (n.id.clone(), n.spec.clone(), n.role, n.manager.clone())).collect();
    let cluster = view.cluster().map(|c| (c.spec.clone(), c.root_ca.clone(), c.join_tokens.clone()));
    (nodes, cluster, manager(host).consensus().members().len())
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_who_may_make_each_call() {
    let hosts = cluster(0).await;
    let host = &hosts[0];
    let worker = enroll(host, Role::Worker).await;
    let boss = enroll(host, Role::Manager).await;
    let demoted = enroll(host, Role::Manager).await;
    let removed = enroll(host, Role::Manager).await;
    let soon = Duration::ZERO;
    let expired = [forged(host, &worker, Role::Worker, None, soon), forged(host, &boss, Role::Manager, None, soon)];
    let was_manager = forged(host, &demoted, Role::Manager, None, HOUR);
    let was_member = forged(host, &removed, Role::Manager, None, HOUR);
    eventually("a second after both were given", 5, || expired.iter().all(|t| t.current().identity.has_expired(now())))
        .await;
    let mut as_worker = manager(host).view().node(&demoted).unwrap().spec.clone();
    as_worker.role = Role::Worker;
    let demote = vec![
        Change::SetNodeSpec { node_id: demoted.clone(), spec: as_worker },
        Change::SetNodeRole { node_id: demoted.clone(), role: Role::Worker },
        Change::RemoveNode { node_id: removed.clone() },
    ];
    change(host, demote).await;
    let elsewhere = cluster(0).await;
    let id = enroll(&elsewhere[0], Role::Manager).await;
    let foreign = forged(&elsewhere[0], &id, Role::Manager, None, HOUR);
    let misnamed = forged(host, &boss, Role::Manager, Some(ClusterId::from_bits(1)), HOUR);

    let root = manager(host).view().cluster().unwrap().root_ca.cert_pem.clone();
    let connect = |tls: &LiveTls| Connection::lazy(&host.address, tls).unwrap();
    let everything = CALLS.as_slice();
    let renewal = ["Ca.GetRoot", "Ca.Issue"].as_slice();
    let of_a_worker = [
        "Ca.GetRoot",
        "Ca.Issue",
        "Dispatcher.Session",
        "Dispatcher.PublishLogs",
        "Dispatcher.Reached",
        "Dispatcher.Leave",
    ]
    .as_slice();
    let callers: [(&str, Connection, &[&str]); 9] = [
        ("no certificate", Connection::joining(&host.address, &root).unwrap(), &["Ca.GetRoot"]),
        ("worker", connect(&forged(host, &worker, Role::Worker, None, HOUR)), of_a_worker),
        ("manager", connect(&forged(host, &boss, Role::Manager, None, HOUR)), everything),
        ("manager that was demoted", connect(&was_manager), of_a_worker),
        ("expired worker", connect(&expired[0]), renewal),
        ("expired manager", connect(&expired[1]), renewal),
        ("removed node", connect(&was_member), &["Ca.GetRoot"]),
        ("another swarm's", connect(&foreign), &[]),
        ("another swarm's name", connect(&misnamed), &["Ca.GetRoot"]),
    ];
    for (who, connection, may) in &callers {
        for name in CALLS {
            let before = settled(host);
            let answer = call(connection, name).await;
            let served =
                matches!(answer.as_ref().map_err(Status::code), Ok(()) | Err(Code::InvalidArgument | Code::NotFound));
            assert_eq!(served, may.contains(&name), "{who} calls {name}: {answer:?}");
            if !served {
                assert_eq!(settled(host), before, "{who} was refused {name} and changed something");
                let (code, text) = answer.map_err(|s| (s.code(), s.message().to_owned())).unwrap_err();
                let refused = matches!(code, Code::Unauthenticated | Code::PermissionDenied);
                assert!(refused || may.is_empty(), "{who} calls {name}: {code:?} {text}");
            }
        }
    }
}

/// An agent's session by hand.
async fn session(host: &Host, tls: &LiveTls) -> mpsc::Sender<Envelope> {
    let (up, outgoing) = mpsc::channel(16);
    let description = NodeDescription { hostname: "nobody".into(), os: "linux".into(), ..NodeDescription::default() };
    up.send(pack(&Up::Hello(Box::new(Hello { description, address: None })))).await.unwrap();
    let connection = Connection::lazy(&host.address, tls).unwrap();
    let mut down = connection.dispatcher().session(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let heart = up.clone();
    tokio::spawn(async move {
        while heart.send(pack(&Up::Heartbeat { sent_ms: 0 })).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    tokio::spawn(async move { while let Ok(Some(_)) = down.message().await {} });
    up
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_speaks_only_of_itself() {
    let hosts = cluster(0).await;
    let host = &hosts[0];
    let (one, other) = (enroll(host, Role::Worker).await, enroll(host, Role::Worker).await);
    let (tls_one, tls_other) =
        (forged(host, &one, Role::Worker, None, HOUR), forged(host, &other, Role::Worker, None, HOUR));
    let (up, _up_other) = (session(host, &tls_one).await, session(host, &tls_other).await);
    let view = || manager(host).view();
    eventually("both are ready", 5, || {
        [&one, &other].iter().all(|id| view().node(id).unwrap().status.state == NodeState::Ready)
    })
    .await;
    host.node.service_create(service("web", 6)).await.unwrap();
    let task_of = |id: &NodeId| view().tasks_of_node(id).next().map(|t| t.id.clone());
    eventually("each has a task", 5, || task_of(&one).is_some() && task_of(&other).is_some()).await;
    let (own, foreign) = (task_of(&one).unwrap(), task_of(&other).unwrap());

    // Of tasks: the second report is its own, and shows that the first was heard.
    let failed =
        |text: &str| TaskStatus { state: TaskState::Failed, message: text.into(), at: now(), ..TaskStatus::default() };
    for task_id in [&foreign, &own] {
        let report = skep_model::assignment::TaskReport { task_id: task_id.clone(), status: failed("by hand") };
        up.send(pack(&Up::Reports(vec![report]))).await.unwrap();
    }
    eventually("its own task failed", 5, || view().task(&own).is_none_or(|t| t.status.message == "by hand")).await;
    assert_ne!(view().task(&foreign).unwrap().status.state, TaskState::Failed);

    // Of logs: neither the other's subscription nor the other's lines.
    let (sink, mut lines) = mpsc::channel(4);
    let request =
        LogRequest { stdout: true, stderr: true, follow: true, since: skep_model::Timestamp::ZERO, tail: None };
    manager(host).dispatcher().unwrap().subscribe(vec![foreign.clone()], request, sink).await;
    let publish = |tls: &LiveTls, parts: Vec<LogPart>| {
        let connection = Connection::lazy(&host.address, tls).unwrap();
        async move {
            let parts: Vec<Envelope> = parts.iter().map(pack).collect();
            connection.dispatcher().publish_logs(tokio_stream::iter(parts)).await.map(drop).map_err(|s| s.code())
        }
    };
    let line = |node_id: &NodeId| {
        LogPart::Line(TaskLog {
            service_id: view().task(&foreign).unwrap().service_id.clone(),
            task_id: foreign.clone(),
            node_id: node_id.clone(),
            stderr: false,
            at: now(),
            data: bytes::Bytes::from_static(b"lies"),
        })
    };
    assert_eq!(publish(&tls_one, vec![LogPart::Begin(0), line(&one)]).await, Err(Code::NotFound));
    assert_eq!(publish(&tls_other, vec![LogPart::Begin(0), line(&one)]).await, Err(Code::PermissionDenied));
    assert!(lines.recv().await.is_none(), "no line came through");

    // Of leaving: the call names nobody, so nobody else can be meant.
    Connection::lazy(&host.address, &tls_one).unwrap().dispatcher().leave(pack(&other)).await.unwrap();
    eventually("it is down itself", 5, || view().node(&one).unwrap().status.state == NodeState::Down).await;
    assert_eq!(view().node(&other).unwrap().status.state, NodeState::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_out_at_once_and_stays_out() {
    let hosts = cluster(1).await;
    let id = hosts[1].node.info().node_id.unwrap();
    eventually("the node is ready", 5, || {
        hosts[0].node.node_inspect(id.as_str()).unwrap().status.state == NodeState::Ready
    })
    .await;
    let connection = Connection::lazy(&hosts[0].address, &hosts[1].tls()).unwrap();
    call(&connection, "Ca.Issue").await.unwrap();
    hosts[0].node.node_remove(id.as_str(), true).await.unwrap();
    let refused = call(&connection, "Dispatcher.Session").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("docker swarm leave --force"), "{refused}");
    assert_eq!(call(&connection, "Ca.Issue").await.unwrap_err().code(), Code::PermissionDenied);
    eventually("its session has ended", 2, || !hosts[1].node.inner.member().unwrap().is_connected()).await;
    assert_eq!(hosts[0].node.node_list().unwrap().len(), 1);
}

async fn rotate(node: &Node, root: RootRequest) -> Result<(), crate::NodeError> {
    let cluster = node.swarm_inspect().unwrap();
    let mut spec = cluster.spec.clone();
    spec.force_rotate += u64::from(root.cert_pem.is_empty());
    node.swarm_update(cluster.meta.version, spec, RotateTokens::default(), root).await
}

fn rotating(node: &Node) -> bool {
    node.swarm_inspect().unwrap().root_ca.rotation.is_some()
}

/// How many nodes trust the swarm's root of now and have a certificate of it.
fn converged(node: &Node) -> usize {
    let root = node.swarm_inspect().unwrap().root_ca;
    let issuer = crate::ca::issuer_of(root.signing().0).unwrap();
    let nodes = node.node_list().unwrap();
    let same = |n: &&skep_model::node::Node| {
        n.description.tls_issuer_key == issuer.key && n.description.tls_trust_root_pem == root.cert_pem
    };
    nodes.iter().filter(same).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_replaced_while_everything_goes_on() {
    let mut hosts = cluster(1).await;
    let second = Host::new("second").await;
    second.join_as_manager(&hosts[0]).await;
    hosts.push(second);
    let node = &hosts[0].node;
    let before = node.swarm_inspect().unwrap();
    rotate(node, RootRequest::default()).await.unwrap();
    eventually("all three have the new root", 15, || !rotating(node) && converged(node) == 3).await;
    let after = node.swarm_inspect().unwrap();
    assert_ne!(after.root_ca.digest, before.root_ca.digest);
    assert_ne!(after.join_tokens.worker, before.join_tokens.worker);
    eventually("every node is ready", 5, || {
        node.node_list().unwrap().iter().all(|n| n.status.state == NodeState::Ready)
    })
    .await;
    // Every disk and every handshake: nothing of the old root is trusted any more.
    for host in &hosts {
        assert_eq!(host.tls().current().root_pem, after.root_ca.cert_pem);
    }
    let late = Host::new("late").await;
    let refused = late.node.swarm_join(late.join_request(&hosts[0], &before.join_tokens.worker)).await.unwrap_err();
    assert!(refused.to_string().contains("remote CA does not match fingerprint"), "{refused}");
    late.join_as_manager(&hosts[2]).await;
    // And once more: the second rotation starts where the first ended.
    rotate(&late.node, RootRequest::default()).await.unwrap();
    eventually("all four have the third root", 15, || !rotating(node) && converged(node) == 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_waits_for_who_is_down_and_survives_its_leader() {
    let mut hosts = cluster(2).await;
    for name in ["second", "third"] {
        let manager = Host::new(name).await;
        manager.join_as_manager(&hosts[0]).await;
        hosts.push(manager);
    }
    let id = hosts[2].node.info().node_id.unwrap();
    hosts[1].node.shutdown().await;
    hosts[2].node.shutdown().await;
    rotate(&hosts[0].node, RootRequest::default()).await.unwrap();
    let node = hosts[4].node.clone();
    eventually("three of five have certificates of the new root", 15, || converged(&node) == 3).await;
    assert!(rotating(&node));
    hosts.remove(0).node.shutdown().await;
    eventually("another one leads", 10, || {
        node.managers()
            .leader
            .is_some_and(|l| node.node_inspect(l.as_str()).is_ok_and(|n| n.description.hostname != "node1"))
    })
    .await;
    assert!(rotating(&node), "the leader's going neither ends nor undoes it");
    // One comes back, two never do.
    hosts[0].restart().await;
    eventually("who was down is back", 15, || converged(&node) == 4).await;
    assert!(rotating(&node));
    node.node_remove(id.as_str(), true).await.unwrap();
    eventually("the rotation is over", 15, || !rotating(&node)).await;
    eventually("who was down trusts the new root", 10, || {
        hosts[0].tls().current().root_pem == node.swarm_inspect().unwrap().root_ca.cert_pem
    })
    .await;
    assert_eq!(hosts[0].node.info().state, LocalState::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_brought_must_fit() {
    let hosts = cluster(0).await;
    let node = &hosts[0].node;
    let ours = manager(&hosts[0]).view().cluster().unwrap().root_ca.clone();
    let (fresh, other) = (Signer::create_root().unwrap(), Signer::create_root().unwrap());
    let cases = [
        ("", fresh.key_pem.as_str(), "if a signing CA key is provided, the signing CA cert must also be provided"),
        ("nonsense", "", "no valid root CA certificates found"),
        (&format!("{}{}", fresh.cert_pem, other.cert_pem), &fresh.key_pem, "cannot contain multiple certificates"),
        (&fresh.cert_pem, &other.key_pem, "certificate key mismatch"),
        (&fresh.cert_pem, "nonsense", "could not parse the desired CA key"),
        (&fresh.cert_pem, "", "at least one valid, reachable external CA corresponding to the desired CA certificate"),
    ];
    for (cert, key, words) in cases {
        let root = RootRequest { cert_pem: cert.into(), key_pem: key.into() };
        let error = rotate(node, root).await.unwrap_err();
        assert!(error.to_string().starts_with("rpc error: code = InvalidArgument"), "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    assert_eq!(node.swarm_inspect().unwrap().root_ca, ours, "nothing changed");
    rotate(node, RootRequest { cert_pem: fresh.cert_pem.clone(), key_pem: fresh.key_pem.clone() }).await.unwrap();
    eventually("the root that was brought is the root", 10, || {
        !rotating(node) && node.swarm_inspect().unwrap().root_ca.digest == fresh.digest
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_and_one_that_ran_out_still_comes_back() {
    let mut hosts = cluster(1).await;
    // Everybody gets a new certificate with a new root, and from then on every few seconds. No user may ask for so short a life.
    let old = manager(&hosts[0]).view().cluster().unwrap().clone();
    let mut spec = old.spec.clone();
    spec.node_cert_expiry = Duration::from_secs(4);
    spec.force_rotate += 1;
    let root_ca = crate::ca::next_root(&old, &spec, &RootRequest::default(), now()).unwrap();
    change(&hosts[0], vec![Change::SetClusterSpec(Box::new(spec)), Change::SetRootCa { root_ca, at: now() }]).await;
    let node = hosts[0].node.clone();
    eventually("both have the new root", 15, || !rotating(&node) && converged(&node) == 2).await;
    let certificate = |host: &Host| host.tls().current().identity.certificate.clone();
    let (first, old) = (certificate(&hosts[1]), hosts[1].tls());
    let seen = |host: &Host| {
        let id = host.node.info().node_id.unwrap();
        node.node_inspect(id.as_str()).unwrap().description.tls_certificate
    };
    eventually("the worker renewed, and shows it", 10, || {
        certificate(&hosts[1]) != first && seen(&hosts[1]) == certificate(&hosts[1])
    })
    .await;
    // What was replaced and ran out gives no entry: only the last one does.
    eventually("the first one ran out", 10, || old.current().identity.has_expired(now())).await;
    let stale = Connection::lazy(&hosts[0].address, &old).unwrap();
    assert_eq!(call(&stale, "Ca.Issue").await.unwrap_err().code(), Code::PermissionDenied);

    // All of them asleep until nobody has a certificate that is still good.
    for host in &hosts {
        host.node.shutdown().await;
    }
    eventually("every certificate ran out", 15, || {
        hosts.iter().all(|host| host.tls().current().identity.has_expired(now()))
    })
    .await;
    for host in &mut hosts {
        host.restart().await;
    }
    let node = hosts[0].node.clone();
    eventually("both are back", 20, || {
        hosts.iter().all(|h| !h.tls().current().identity.has_expired(now()))
            && node.node_list().unwrap().iter().all(|n| n.status.state == NodeState::Ready)
            && hosts[1].node.inner.member().is_some_and(|m| m.is_connected())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_lets_exactly_one_in() {
    let mut hosts = cluster(0).await;
    let second = Host::new("second").await;
    second.join_as_manager(&hosts[0]).await;
    hosts.push(second);
    let (token, text) = hosts[0].node.join_token_create(Role::Worker, None, Some(1)).await.unwrap();
    eventually("the other manager knows it", 5, || hosts[1].node.join_tokens().unwrap().len() == 1).await;
    let (a, b) = (Host::new("a").await, Host::new("b").await);
    // At the same time, by different managers.
    let (one, other) = tokio::join!(
        a.node.swarm_join(a.join_request(&hosts[0], &text)),
        b.node.swarm_join(b.join_request(&hosts[1], &text))
    );
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    let refused = one.err().or(other.err()).unwrap().to_string();
    assert!(refused.contains("good for 1 joins, all used"), "{refused}");
    assert!(refused.contains("skep swarm join-token create --role worker"), "{refused}");
    assert_eq!(hosts[0].node.node_list().unwrap().len(), 3, "who was refused left nothing behind");
    assert_eq!(hosts[0].node.join_tokens().unwrap()[0].used, 1);

    let (_, brief) =
        hosts[0].node.join_token_create(Role::Manager, Some(Duration::from_millis(1)), None).await.unwrap();
    let late = Host::new("late").await;
    let refused = late.node.swarm_join(late.join_request(&hosts[0], &brief)).await.unwrap_err().to_string();
    assert!(refused.contains("the join token expired at 2"), "{refused}");
    assert!(refused.contains("--role manager"), "{refused}");
    assert_eq!(late.node.info().state, LocalState::Inactive);

    hosts[1].node.join_token_remove(&token.id.as_str()[..12]).await.unwrap();
    let refused = late.node.swarm_join(late.join_request(&hosts[1], &text)).await.unwrap_err().to_string();
    assert!(refused.contains("A valid join token is necessary to join this cluster"), "{refused}");
    let (_, boss) = hosts[0].node.join_token_create(Role::Manager, Some(HOUR), Some(2)).await.unwrap();
    late.node.swarm_join(late.join_request(&hosts[0], &boss)).await.unwrap();
    assert!(late.node.info().control_available);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_on_record_with_who_asked_and_no_secrets() {
    let hosts = cluster(0).await;
    let node = &hosts[0].node;
    let (_, token) = node.join_token_create(Role::Worker, None, None).await.unwrap();
    let by_alice = async {
        let data = skep_model::secret::SecretBytes(b"hunter2 and nothing else".to_vec());
        node.secret_create("pin".into(), Default::default(), data, None).await.unwrap();
        node.service_create(service("web", 1)).await.unwrap();
        node.service_remove("web").await.unwrap();
    };
    crate::audit::by("tls CN=alice 10.0.0.7:4711".into(), by_alice).await;
    let worker = Host::new("worker").await;
    worker.node.swarm_join(worker.join_request(&hosts[0], &token)).await.unwrap();
    worker.node.swarm_leave(false).await.unwrap();
    let text = std::fs::read_to_string(hosts[0].data_root().join("audit.log")).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let told = |what: &str| {
        let line = lines.iter().rfind(|l| l["what"] == what).unwrap_or_else(|| panic!("no {what} in {text}"));
        (line["who"].as_str().unwrap().to_owned(), line["name"].as_str().unwrap_or_default().to_owned())
    };
    let alice = || "tls CN=alice 10.0.0.7:4711".to_owned();
    assert_eq!(told("secret.create"), (alice(), "pin".into()));
    assert_eq!(told("service.create"), (alice(), "web".into()));
    assert_eq!(told("service.remove"), (alice(), "web".into()), "what is gone still has its name");
    assert_eq!(told("node.join").1, "worker");
    assert!(told("node.join").0.starts_with("join token from 127."), "{text}");
    assert!(told("node.leave").0.starts_with("node "), "{text}");
    let indexes: Vec<u64> = lines.iter().filter_map(|l| l["index"].as_u64()).collect();
    assert!(indexes.is_sorted() && indexes[0] > 0, "{indexes:?}");
    let secret_part = token.rsplit('-').next().unwrap();
    for secret in ["hunter2", secret_part] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
}

/// A CFSSL server with one endpoint, which serves members of the swarm only; how often it signed.
async fn cfssl(root: &skep_model::cluster::RootCa, clients_root: &str) -> (String, Arc<AtomicUsize>) {
    let key = rcgen::KeyPair::from_pem(&root.key_pem).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root.cert_pem, key).unwrap();
    let own_key = rcgen::KeyPair::generate().unwrap();
    let own =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&own_key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut clients = rustls::RootCertStore::empty();
    clients.add(CertificateDer::from_pem_slice(clients_root.as_bytes()).unwrap()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider.clone());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![own.der().clone()],
            PrivateKeyDer::from_pem_slice(own_key.serialize_pem().as_bytes()).unwrap(),
        )
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/api/v1/cfssl/sign", listener.local_addr().unwrap());
    let (acceptor, root, signed) = (tokio_rustls::TlsAcceptor::from(Arc::new(config)), root.clone(), Arc::default());
    let count: Arc<AtomicUsize> = Arc::clone(&signed);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            let asked: Option<serde_json::Value> = loop {
                let mut piece = [0; 4096];
                let Ok(read @ 1..) = stream.read(&mut piece).await else { break None };
                request.extend_from_slice(&piece[..read]);
                let text = String::from_utf8_lossy(&request);
                let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
                if let Some(Ok(asked)) = body.map(serde_json::from_str) {
                    break Some(asked);
                }
            };
            let Some(asked) = asked else { continue };
            assert!(request.starts_with(b"POST /api/v1/cfssl/sign HTTP/1."));
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            let name = &asked["subject"]["names"][0];
            let role = if name["OU"] == "swarm-manager" { Role::Manager } else { Role::Worker };
            let (node, cluster) = (text(&asked["subject"]["CN"]), text(&name["O"]));
            let certificate = Signer::of(&root)
                .unwrap()
                .sign(
                    &text(&asked["certificate_request"]),
                    &node.parse().unwrap(),
                    role,
                    &cluster.parse().unwrap(),
                    HOUR,
                )
                .unwrap()
                .cert_pem;
            let body = serde_json::json!({ "success": true, "result": { "certificate": certificate }, "errors": [] })
                .to_string();
            let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
            signed.fetch_add(1, Ordering::Relaxed);
        }
    });
    (url, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_elsewhere_signs_for_the_swarm() {
    let hosts = cluster(1).await;
    let node = &hosts[0].node;
    let before = node.swarm_inspect().unwrap();
    let theirs = Signer::create_root().unwrap();
    let (url, signed) = cfssl(&theirs, &before.root_ca.cert_pem).await;
    let mut spec = before.spec.clone();
    spec.external_cas =
        vec![skep_model::cluster::ExternalCa { url, ca_cert_pem: theirs.cert_pem.clone(), ..Default::default() }];
    let root = RootRequest { cert_pem: theirs.cert_pem.clone(), key_pem: String::new() };
    node.swarm_update(before.meta.version, spec, RotateTokens::default(), root).await.unwrap();
    eventually("both have certificates of the other root", 15, || !rotating(node) && converged(node) == 2).await;
    let after = node.swarm_inspect().unwrap();
    assert_eq!((after.root_ca.digest, after.root_ca.key_pem.as_str()), (theirs.digest, ""));
    assert!(signed.load(Ordering::Relaxed) >= 2);

    // Without it nothing could be signed any more: it cannot be taken away.
    let mut spec = after.spec.clone();
    spec.external_cas.clear();
    let update = node.swarm_update(after.meta.version, spec, RotateTokens::default(), RootRequest::default());
    let error = update.await.unwrap_err().to_string();
    assert!(error.contains("external CA corresponding to the current CA certificate"), "{error}");
    let late = Host::new("late").await;
    late.join_as_worker(&hosts[0]).await;
    assert!(signed.load(Ordering::Relaxed) >= 3);
}
