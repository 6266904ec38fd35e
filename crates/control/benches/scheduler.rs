//! How long it takes to place many tasks on many nodes: from a store with tasks that wait to one where all are assigned,
//! without consensus. `cargo xtask bench scheduler` runs it and compares with swarmkit's recorded times.
//!
//! Prints one line of JSON a case.

use std::time::{Duration, Instant};

use skep_control::{Ctx, Dirty, SeededIds, membership, split, tick};
use skep_model::cluster::Cluster;
use skep_model::node::{Availability, NodeDescription, Role};
use skep_model::service::{Mode, Service, ServiceSpec};
use skep_model::task::{ResourceRequirements, Resources, TaskState};
use skep_model::{ClusterId, MAX_CHANGES_PER_BATCH, NodeId, ServiceId, TaskId, Timestamp};
use skep_store::{Batch, Change, NewTask, Store};

/// Nodes, services, tasks a service; and what swarmkit took (`6e9e7b8e`, in memory, on a machine like this one).
const CASES: [(usize, usize, u64, Duration); 4] = [
    (1000, 10, 1000, Duration::from_millis(570)),
    (1000, 1000, 10, Duration::from_millis(710)),
    (1000, 100, 1000, Duration::from_millis(8000)),
    (5000, 100, 1000, Duration::from_millis(11_400)),
];

struct World {
    store: Store,
    ids: SeededIds,
    index: u64,
    now: Timestamp,
}

impl World {
    fn apply(&mut self, changes: Vec<Change>) {
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let batch = Batch::new(self.now, changes.by_ref().take(MAX_CHANGES_PER_BATCH).collect());
            self.index += 1;
            self.store.apply(self.index, 1, &batch).expect("the batch applies");
        }
    }

    fn id(&mut self) -> u128 {
        skep_control::IdSource::next_id(&mut self.ids)
    }

    fn new(nodes: usize, services: usize, tasks: u64) -> Self {
        let now = Timestamp::from_secs(1000);
        let mut world = Self { store: Store::new(), ids: SeededIds(7), index: 0, now };
        let begin = membership::found(Cluster::new(ClusterId::from_bits(1)), &mut world.ids);
        world.apply(begin);
        for number in 0..nodes {
            let id = NodeId::from_bits(world.id());
            let name = format!("node{number}");
            let view = world.store.view();
            let admitted = membership::admit(&view, &id, Role::Worker, Availability::Active, &name, now);
            world.apply(admitted.into_iter().collect());
            let description = NodeDescription {
                hostname: name,
                os: "linux".into(),
                architecture: "x86_64".into(),
                nano_cpus: 64_000_000_000,
                memory_bytes: 256 << 30,
                ..NodeDescription::default()
            };
            let address = Some(std::net::Ipv4Addr::from(0x0a00_0001 + u32::try_from(number).expect("few")).into());
            let ready = membership::ready(&world.store.view(), &id, &description, address, now);
            world.apply(ready);
        }
        for number in 0..services {
            world.service(number, tasks);
        }
        world
    }

    fn service(&mut self, number: usize, tasks: u64) {
        let id = ServiceId::from_bits(self.id());
        let mut spec = ServiceSpec { name: format!("service{number}"), ..ServiceSpec::default() };
        spec.mode = Mode::Replicated { replicas: tasks };
        spec.task.container.image = "nginx:1.27".into();
        let reservations = Some(Resources { nano_cpus: 10_000_000, memory_bytes: 4 << 20, pids: 0 });
        spec.task.resources = Some(ResourceRequirements { reservations, ..ResourceRequirements::default() });
        self.apply(vec![Change::CreateService(Box::new(Service::new(id.clone(), spec)))]);
        let spec_version = self.store.read().service(&id).expect("it was made").spec_version;
        let tasks = (1..=tasks).map(|slot| {
            Change::CreateTask(Box::new(NewTask {
                id: TaskId::from_bits(skep_control::IdSource::next_id(&mut self.ids)),
                service_id: id.clone(),
                spec_version,
                slot: Some(slot),
                node_id: None,
                desired_state: TaskState::Running,
                state: TaskState::Pending,
                message: "pending task scheduling".into(),
                networks: Vec::new(),
                start_after: None,
                replaces: None,
                restart: false,
                generic: Vec::new(),
            }))
        });
        let tasks = tasks.collect();
        self.apply(tasks);
    }
}

fn main() {
    // `cargo test --benches` builds and runs this, too: the smallest case is enough to see that it works.
    let smoke = !std::env::args().any(|word| word == "--bench");
    for (nodes, services, tasks, theirs) in CASES {
        let (nodes, services) = if smoke { (10, 2) } else { (nodes, services) };
        let mut world = World::new(nodes, services, tasks);
        let started = Instant::now();
        let view = world.store.view();
        let decision = tick(
            &view,
            &Dirty::default(),
            &mut Ctx { now: world.now, steady_since: Timestamp::ZERO, ids: &mut world.ids },
        );
        let decided = started.elapsed();
        for batch in split(decision.changes, world.now, 0) {
            world.index += 1;
            world.store.apply(world.index, 0, &batch).expect("the batch applies");
        }
        let took = started.elapsed();
        let all = usize::try_from(tasks).expect("few") * services;
        assert_eq!(world.store.read().tasks().filter(|t| t.status.state == TaskState::Assigned).count(), all);
        println!(
            "{{\"nodes\":{nodes},\"services\":{services},\"tasks\":{all},\"decided_ms\":{},\"ms\":{},\"swarmkit_ms\":{}}}",
            decided.as_millis(),
            took.as_millis(),
            theirs.as_millis()
        );
        if smoke {
            return;
        }
    }
}
