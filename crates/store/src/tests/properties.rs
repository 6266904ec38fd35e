//! Random changes, most of them nonsense: apply never panics, states only rise, indexes equal a recount.

use proptest::prelude::*;

use super::*;

fn id() -> impl Strategy<Value = String> {
    "[a-c]".prop_map(String::from)
}

fn state() -> impl Strategy<Value = TaskState> {
    prop::sample::select(vec![
        TaskState::New,
        TaskState::Pending,
        TaskState::Assigned,
        TaskState::Ready,
        TaskState::Running,
        TaskState::Complete,
        TaskState::Shutdown,
        TaskState::Failed,
        TaskState::Remove,
        TaskState::Orphaned,
    ])
}

fn change() -> impl Strategy<Value = Change> {
    let task = || id().prop_map(|id| id.parse::<TaskId>().unwrap());
    let service = || id().prop_map(|id| id.parse::<ServiceId>().unwrap());
    let node_id = || id().prop_map(|id| id.parse::<NodeId>().unwrap());
    prop_oneof![
        (id(), id()).prop_map(|(id, name)| create(&id, &name, |_| {})),
        (id(), id(), 0..3u16).prop_map(|(id, name, port)| {
            let mut spec = super::service(&id, &name).spec;
            let port = PortConfig { target_port: 80, published_port: 8080 + port, ..PortConfig::default() };
            spec.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
            Change::SetServiceSpec { service_id: id.parse().unwrap(), spec: Box::new(spec) }
        }),
        service().prop_map(|service_id| Change::RemoveService { service_id }),
        id().prop_map(|id| node(&id)),
        node_id().prop_map(|node_id| Change::RemoveNode { node_id }),
        (node_id(), 2..7u8).prop_map(|(node_id, n)| Change::AllocateNode {
            node_id,
            attachments: [("a".parse().unwrap(), [10, 0, 5, n].into())].into(),
            mesh_index: Some(u16::from(n)),
        }),
        prop::sample::select(vec!["a", "b"]).prop_map(|id| network(id, if id == "a" { "ingress" } else { "back" })),
        Just(allocation("a", "10.0.5.0/29", 4096)),
        Just(allocation("b", "10.0.6.0/29", 4097)),
        id().prop_map(|id| Change::RemoveNetwork { network_id: id.parse().unwrap() }),
        (id(), id(), node_id(), 0..8u8, id()).prop_map(|(network, container, node_id, address, name)| {
            Change::AttachContainer {
                network_id: network.parse().unwrap(),
                container_id: container.parse().unwrap(),
                attachment: Attachment { node_id, address: Some([10, 0, 6, address].into()), names: vec![name] },
            }
        }),
        (id(), id()).prop_map(|(network, container)| Change::DetachContainer {
            network_id: network.parse().unwrap(),
            container_id: container.parse().unwrap(),
        }),
        (id(), id(), 1..20u64, 0..7u8, state(), prop::option::of(node_id()), any::<bool>()).prop_map(
            |(id, service, version, address, state, node_id, restart)| {
                let networks =
                    if address == 0 { Vec::new() } else { vec![attachment("a", &format!("10.0.5.{address}/29"))] };
                Change::CreateTask(Box::new(NewTask {
                    networks,
                    state,
                    node_id,
                    restart,
                    ..new_task(&id, &service, version)
                }))
            }
        ),
        (task(), 1..8u8).prop_map(|(task_id, n)| Change::AllocateTask {
            task_id,
            networks: vec![attachment("a", &format!("10.0.5.{n}/29"))],
        }),
        (task(), node_id()).prop_map(|(task_id, node_id)| Change::AssignTask { task_id, node_id, generic: Vec::new() }),
        (task(), state()).prop_map(|(task_id, desired_state)| Change::SetTaskDesired { task_id, desired_state }),
        (task(), state()).prop_map(|(task_id, state)| {
            let status = TaskStatus { state, ..TaskStatus::default() };
            Change::SetTaskStatus(vec![TaskReport { task_id, status }])
        }),
        task().prop_map(|task_id| Change::RemoveTask { task_id }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_applied(batches in prop::collection::vec(prop::collection::vec(change(), 1..4), 0..60)) {
        let mut log = Log::new();
        for changes in batches {
            let batch = Batch::new(Timestamp::from_secs(1), changes);
            prop_assert_eq!(&Batch::decode(&batch.encode().unwrap()).unwrap(), &batch);
            let before = log.store.view();
            let twin = log.store.clone();
            let result = log.batch(&batch);
            let mut twin = twin;
            prop_assert_eq!(twin.apply(log.index, 5, &batch), result.clone(), "deterministic");
            for task in log.store.read().tasks() {
                if let Some(old) = before.task(&task.id)
                    && old.meta.created_at == task.meta.created_at
                    && !batch.changes.iter().any(|c| matches!(c, Change::CreateTask(_)))
                {
                    prop_assert!(task.status.state >= old.status.state && task.desired_state >= old.desired_state);
                }
            }
            let decoded = Store::decode(&log.store.encode().unwrap()).unwrap();
            prop_assert_eq!(&decoded, &log.store, "indexes equal a recount");
        }
    }

    #[test]
    fn no_bytes_panic_the_decoders(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Batch::decode(&bytes);
        let _ = Store::decode(&bytes);
        let mut snapshot = b"skepsnap\x01".to_vec();
        snapshot.extend(&bytes);
        let _ = Store::decode(&snapshot);
    }
}
