use std::sync::Arc;

use skep_model::network::NetworkSpec;
use skep_model::service::{NetworkAttachmentConfig, PortConfig};
use skep_model::task::{NetworkAttachment, TaskSpec, TaskState, TaskStatus};
use skep_model::{Meta, NetworkId, ServiceId, TaskId};

use super::*;

pub(crate) fn node() -> NodeFacts {
    NodeFacts {
        node_id: "nodea".parse().unwrap(),
        hostname: "node1".into(),
        os: "linux".into(),
        architecture: "x86_64".into(),
    }
}

pub(crate) fn task() -> Task {
    let id: TaskId = "task1".parse().unwrap();
    let service_id: ServiceId = "svc1".parse().unwrap();
    let mut spec = TaskSpec::default();
    spec.container.image = "nginx:1".into();
    Task {
        id,
        meta: Meta::default(),
        service_id,
        service_name: "web".into(),
        service_labels: Labels::from([("tier".into(), "front".into()), ("a.b".into(), "dots".into())]),
        slot: Some(3),
        node_id: Some("nodea".parse().unwrap()),
        spec: spec.into(),
        spec_version: 1,
        desired_state: TaskState::Running,
        status: TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() },
        networks: Vec::new(),
        ports: Vec::new(),
        start_after: None,
        replaces: None,
        job_iteration: None,
        ran_since: None,
        generic: Vec::new(),
    }
}

fn plan(task: &Task) -> ContainerPlan {
    container(task, &node(), &BTreeMap::new(), &BTreeMap::new(), &BTreeMap::new()).unwrap()
}

#[test]
fn a_plain_task_is_a_container_on_the_bridge() {
    let plan = plan(&task());
    assert_eq!(plan.name, "web.3.task1");
    assert_eq!(plan.host_config.network_mode, "bridge");
    assert_eq!(plan.host_config.restart_policy.name, "no");
    assert!(plan.endpoints.is_empty() && plan.files.is_empty());
    assert_eq!(plan.config.labels[LABEL_TASK_NAME], "web.3.task1");
    assert_eq!(plan.config.labels[LABEL_SERVICE_NAME], "web");
    assert_eq!(plan.config.labels[LABEL_NODE_ID], "nodea");
    assert_eq!((plan.config.cmd, plan.config.entrypoint), (None, None));
}

#[test]
fn labels_of_the_user_cannot_pass_for_ours() {
    let mut task = task();
    Arc::make_mut(&mut task.spec).container.labels.insert(LABEL_TASK_ID.into(), "other".into());
    assert_eq!(plan(&task).config.labels[LABEL_TASK_ID], "task1");
}

#[test]
fn a_task_on_overlays_has_their_addresses_and_a_way_out() {
    let mut task = task();
    let network: NetworkId = "net1".parse().unwrap();
    task.networks.push(NetworkAttachment {
        network_id: network.clone(),
        address: "10.0.1.5/24".parse().unwrap(),
        aliases: vec!["front".into()],
    });
    let plan = plan(&task);
    assert_eq!(plan.endpoints.len(), 2);
    assert_eq!(plan.endpoints[0].address, Some([10, 0, 1, 5].into()));
    assert_eq!(plan.endpoints[0].mac, Some([2, 0x42, 10, 0, 1, 5]));
    assert_eq!(plan.endpoints[0].aliases, ["front", "web"]);
    assert_eq!(plan.endpoints[1].network, GWBRIDGE_NETWORK_NAME);
}

#[test]
fn networks_that_the_host_makes_are_made_from_their_spec_and_lead_out() {
    let with = |targets: &[&str], overlay: bool| {
        let mut task = task();
        let asked = |target: &&str| NetworkAttachmentConfig {
            target: (*target).to_owned(),
            aliases: Vec::new(),
            driver_options: BTreeMap::new(),
        };
        Arc::make_mut(&mut task.spec).networks = targets.iter().map(asked).collect();
        if overlay {
            let (network_id, address) = ("net1".parse().unwrap(), "10.0.1.5/24".parse().unwrap());
            task.networks.push(NetworkAttachment { network_id, address, aliases: Vec::new() });
        }
        let spec = NetworkSpec { name: "wire".into(), driver: "macvlan".into(), ..NetworkSpec::default() };
        let networks = [("wire1".parse().unwrap(), spec)].into();
        container(&task, &node(), &BTreeMap::new(), &BTreeMap::new(), &networks).map(|plan| {
            let on: Vec<_> = plan.endpoints.iter().map(|e| (e.network.clone(), e.made_from.is_some())).collect();
            (plan.host_config.network_mode, on)
        })
    };
    let on = |networks: &[(&str, bool)]| networks.iter().map(|(n, made)| ((*n).to_owned(), *made)).collect::<Vec<_>>();
    assert_eq!(with(&["wire1"], false), Ok(("wire".into(), on(&[("wire1", true)]))));
    assert_eq!(with(&["wire1"], true), Ok(("net1".into(), on(&[("net1", false), ("wire1", true)]))));
    assert_eq!(with(&["bridge"], true), Ok(("net1".into(), on(&[("net1", false), ("bridge", false)]))));
    assert_eq!(with(&["host"], false), Ok(("host".into(), on(&[]))));
    assert!(with(&["host"], true).is_err() && with(&["host", "wire1"], false).is_err());
}

#[test]
fn host_ports_are_published_and_ingress_ports_only_exposed() {
    let mut task = task();
    task.ports = vec![
        PortConfig { target_port: 80, published_port: 8080, ..PortConfig::default() },
        PortConfig { target_port: 90, published_port: 9090, mode: PublishMode::Host, ..PortConfig::default() },
    ];
    let plan = plan(&task);
    assert_eq!(plan.config.exposed_ports.keys().collect::<Vec<_>>(), ["80/tcp", "90/tcp"]);
    assert_eq!(plan.host_config.port_bindings.keys().collect::<Vec<_>>(), ["90/tcp"]);
}

#[test]
fn templates_reach_env_hostname_and_mounts() {
    let mut task = task();
    let spec = &mut Arc::make_mut(&mut task.spec).container;
    spec.hostname = "h-{{.Task.Slot}}".into();
    spec.env = vec!["N={{.Node.Hostname}}".into()];
    spec.mounts = vec![Mount { source: "{{.Service.Name}}-data".into(), target: "/d".into(), ..Mount::default() }];
    spec.hosts = vec!["10.0.0.1 a b".into()];
    let plan = plan(&task);
    assert_eq!(plan.config.hostname, "h-3");
    assert_eq!(plan.config.env, ["N=node1"]);
    assert_eq!(plan.host_config.mounts[0].source, "web-data");
    assert_eq!(plan.host_config.extra_hosts, ["a:10.0.0.1", "b:10.0.0.1"]);
}

#[test]
fn mounts_are_refused_in_dockers_words() {
    let refused = |kind, source: &str, target: &str| {
        let mut task = task();
        Arc::make_mut(&mut task.spec).container.mounts =
            vec![Mount { kind, source: source.into(), target: target.into(), ..Mount::default() }];
        container(&task, &node(), &BTreeMap::new(), &BTreeMap::new(), &BTreeMap::new()).err().unwrap_or_default()
    };
    let (bind, volume, tmpfs) = (MountKind::Bind, MountKind::Volume, MountKind::Tmpfs);
    assert_eq!(refused(volume, "v", "a"), "invalid mount target, must be an absolute path: a");
    assert_eq!(refused(bind, "rel", "/a"), "invalid bind mount source, must be an absolute path: rel");
    assert_eq!(refused(volume, "/v", "/a"), "invalid volume mount source, must not be an absolute path: /v");
    assert_eq!(refused(tmpfs, "x", "/a"), "invalid tmpfs source, source must be empty");
    assert_eq!(refused(bind, "/a", "/a") + &refused(volume, "", "/a") + &refused(tmpfs, "", "/a"), "");
}

#[test]
fn a_file_lies_where_its_target_leads() {
    let path = |folder, name: &str| {
        let target = FileTarget { name: name.into(), ..FileTarget::default() };
        file_mount(folder, &target, "key", SecretBytes(Vec::new())).unwrap().target
    };
    assert_eq!(path("/run/secrets", ""), "/run/secrets/key");
    assert_eq!(path("/run/secrets", "a/./b"), "/run/secrets/a/b");
    assert_eq!(path("/run/secrets", "../../etc/x"), "/etc/x");
    assert_eq!(path("", "../x"), "/x");
    assert_eq!(path("/run/secrets", "/own/key"), "/own/key");
}

#[test]
fn a_missing_secret_is_said() {
    let mut task = task();
    Arc::make_mut(&mut task.spec).container.secrets.push(skep_model::task::SecretReference {
        secret_id: "s1".parse().unwrap(),
        secret_name: "key".into(),
        file: FileTarget::default(),
    });
    let error = container(&task, &node(), &BTreeMap::new(), &BTreeMap::new(), &BTreeMap::new()).unwrap_err();
    assert_eq!(error, "secret key not found");
}

#[test]
fn only_the_builtin_image_is_told_who_it_is() {
    let mut task = task();
    Arc::make_mut(&mut task.spec).container.image = "skep/whoami:latest".into();
    assert_eq!(plan(&task).config.env, [format!("SKEP_TASK_NAME={}", task.name()), "SKEP_NODE=node1".into()]);
    Arc::make_mut(&mut task.spec).container.image = "other/whoami".into();
    assert!(plan(&task).config.env.is_empty());
}
