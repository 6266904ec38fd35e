//! Whatever happens in whatever order: the world comes to rest with what was asked for, and the leader's memory is not needed.

use proptest::prelude::*;
use skep_model::node::Availability;
use skep_model::service::{EndpointSpec, PortConfig, UpdateConfig, UpdateOrder};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Scale(u8),
    Image(u8),
    Kill(u8),
    Up(u8),
    Drain(u8),
    Activate(u8),
    Exit(u8),
    Lead,
    Work,
    Pass(u8),
    OtherService(u8),
    RemoveOther,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..8u8).prop_map(Step::Scale),
        (0..4u8).prop_map(Step::Image),
        (1..4u8).prop_map(Step::Kill),
        (1..4u8).prop_map(Step::Up),
        (1..4u8).prop_map(Step::Drain),
        (1..4u8).prop_map(Step::Activate),
        any::<u8>().prop_map(Step::Exit),
        Just(Step::Lead),
        Just(Step::Lead),
        Just(Step::Work),
        Just(Step::Work),
        (0..20u8).prop_map(Step::Pass),
        (0..4u8).prop_map(Step::OtherService),
        Just(Step::RemoveOther),
    ]
}

struct Run {
    world: World,
    web: ServiceId,
    other: Option<ServiceId>,
}

impl Run {
    fn new(forgetful: bool, start_first: bool) -> Self {
        let mut world = World::new(3);
        world.forgetful = forgetful;
        let order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let web = world.create("web", |s| {
            replicas(s, 3);
            let port = PortConfig { target_port: 80, published_port: 8080, ..PortConfig::default() };
            s.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
            s.update = Some(UpdateConfig { parallelism: 2, order, ..UpdateConfig::default() });
        });
        Self { world, web, other: None }
    }

    fn step(&mut self, step: &Step) {
        let world = &mut self.world;
        let name = |n: &u8| format!("n{n}");
        match step {
            Step::Scale(n) => world.update(&self.web, |s| replicas(s, u64::from(*n))),
            Step::Image(n) => world.update(&self.web, |s| s.task.container.image = format!("v{n}")),
            Step::Kill(n) => world.kill(&name(n)),
            Step::Up(n) => world.come_up(&name(n)),
            Step::Drain(n) => world.availability(&name(n), Availability::Drain),
            Step::Activate(n) => world.availability(&name(n), Availability::Active),
            Step::Exit(n) => {
                let hosts = world.hosts.values().filter(|h| h.up);
                let running: Vec<_> = hosts.flat_map(|h| h.running.iter().cloned()).collect();
                if let Some(task) = running.get(usize::from(*n) % running.len().max(1))
                    && world.view().task(task).is_some()
                {
                    world.exit(task, i64::from(n % 2));
                }
            }
            Step::Lead => {
                world.lead();
            }
            Step::Work => {
                world.work();
            }
            Step::Pass(n) => world.pass(Duration::from_secs(u64::from(*n))),
            Step::OtherService(n) => match &self.other {
                Some(other) => world.update(other, |s| replicas(s, u64::from(*n))),
                None => self.other = Some(world.create("other", |s| replicas(s, u64::from(*n)))),
            },
            Step::RemoveOther => {
                if let Some(service_id) = self.other.take() {
                    world.apply(vec![Change::RemoveService { service_id }]);
                }
            }
        }
    }

    /// All faults lifted, time to recover: exactly what was asked for.
    fn heal(&mut self) {
        for n in 1..=3 {
            self.step(&Step::Activate(n));
            self.step(&Step::Up(n));
        }
        self.world.pass(Duration::from_secs(600));
        // A failure may have paused an update; the user tries again.
        self.world.update(&self.web, |s| s.task.force_update += 1);
        self.world.pass(Duration::from_secs(600));
        let mut expected = 0;
        for id in [Some(&self.web), self.other.as_ref()].into_iter().flatten() {
            let service = self.world.view().service(id).unwrap().clone();
            let Mode::Replicated { replicas } = service.spec.mode else { unreachable!() };
            let running = self.world.running(id);
            assert_eq!(running.len() as u64, replicas, "{}", service.spec.name);
            assert!(running.iter().all(|t| t.spec.container.image == service.spec.task.container.image));
            let slots: BTreeSet<_> = running.iter().map(|t| t.slot).collect();
            assert_eq!(slots.len(), running.len(), "one task a slot");
            expected += running.len();
        }
        assert_eq!(self.world.containers(), expected, "nothing else runs");
        let view = self.world.store.view();
        let decision = tick(
            &view,
            &Dirty::all(),
            &mut Ctx { now: self.world.now, steady_since: Timestamp::ZERO, ids: &mut SeededIds(1) },
        );
        assert_eq!(decision.changes, [], "at rest");
        assert_eq!(Store::decode(&view.encode().unwrap()).unwrap().view(), view, "indexes equal a recount");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_world_heals(steps in prop::collection::vec(step(), 0..40), forgetful: bool, start_first: bool) {
        let mut run = Run::new(forgetful, start_first);
        for step in &steps {
            run.step(step);
        }
        run.heal();
    }

    /// `tick(apply(tick(v)))` is empty: what is decided is decided once.
    #[test]
    fn deciding_twice_changes_nothing(steps in prop::collection::vec(step(), 0..30)) {
        let mut run = Run::new(false, false);
        for step in &steps {
            run.step(step);
        }
        run.world.forgetful = true;
        // What begins now is told from what was made before.
        run.world.now = run.world.now.plus(Duration::from_nanos(1));
        run.world.lead();
        let view = run.world.store.view();
        let again = tick(&view, &Dirty::all(), &mut Ctx { now: run.world.now, steady_since: Timestamp::ZERO, ids: &mut SeededIds(1) });
        prop_assert_eq!(again.changes, []);
    }
}
