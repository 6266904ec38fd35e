//! Situations and what is said of them.

use std::time::Duration;

use skep_model::ServiceId;
use skep_model::explain::{Explanation, Topic};
use skep_model::node::Availability;
use skep_model::service::{Mode, ServiceSpec};
use skep_model::task::{Placement, ResourceRequirements, Resources, RestartCondition, RestartPolicy};

use crate::tests::{World, replicas};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn world() -> World {
    let mut world = World::new(3);
    world.exits.insert("bad".into(), 3);
    world.exits.insert("done".into(), 0);
    world.missing.insert("gone".into());
    world
}

fn explain(world: &World, service: &ServiceId) -> Explanation {
    super::explain(world.view(), world.view().service(service).unwrap(), world.now)
}

/// Every finding with its advice, one a line.
#[track_caller]
fn check(world: &World, service: &ServiceId, summary: &str, findings: &[(Topic, &str, &str)]) {
    let told = explain(world, service);
    assert_eq!(told.summary, summary);
    let got: Vec<_> = told.findings.iter().map(|f| (f.about, f.says.as_str(), f.advice.as_str())).collect();
    assert_eq!(got, findings);
    assert_eq!(told.as_asked, findings.is_empty());
}

fn constrained(constraint: &str) -> Option<Placement> {
    Some(Placement { constraints: vec![constraint.into()], ..Placement::default() })
}

#[test]
fn what_is_as_asked_is_said_to_be() {
    let mut world = world();
    let web = world.create("web", |s| replicas(s, 3));
    let none = world.create("none", |s| replicas(s, 0));
    let all = world.create("all", |s| s.mode = Mode::Global);
    let job = world.create("job", |s| {
        s.mode = Mode::ReplicatedJob { max_concurrent: 1, total_completions: 2 };
        s.task.container.image = "done".into();
    });
    world.settle();
    check(&world, &web, "web: 3 of 3 replicas running, on n1, n2 and n3.", &[]);
    check(&world, &none, "none: asked to run nothing (0 replicas).", &[]);
    check(&world, &all, "all: running on 3 of 3 nodes, on n1, n2 and n3.", &[]);
    check(&world, &job, "job: 2 of 2 tasks complete, 0 running.", &[]);
}

#[test]
fn a_task_that_fits_nowhere_says_what_would_help() {
    let mut world = world();
    let reserve = |s: &mut ServiceSpec| {
        let reservations = Some(Resources { nano_cpus: 3_000_000_000, memory_bytes: 3 << 29, pids: 0 });
        s.task.resources = Some(ResourceRequirements { reservations, ..Default::default() });
        replicas(s, 5);
    };
    let big = world.create("big", reserve);
    let zone = world.create("zone", |s| s.task.placement = constrained("node.labels.zone == x"));
    world.settle();
    check(
        &world,
        &big,
        "big: 3 of 5 replicas running, on n1, n2 and n3.",
        &[(
            Topic::Placement,
            "big.3 and big.5 wait for a node: no suitable node (insufficient resources on 3 nodes).",
            "Each task reserves 3 CPUs and 1.5 GiB: reserve less, or free or add a node.",
        )],
    );
    world.availability("n3", Availability::Drain);
    world.kill("n2");
    world.settle();
    check(
        &world,
        &zone,
        "zone: 0 of 1 replica running.",
        &[(
            Topic::Placement,
            "zone.1 waits for a node: no suitable node (2 nodes not available for new tasks; scheduling constraints not satisfied on 1 node).",
            "Its constraints are `node.labels.zone == x`: label a node (`docker node update --label-add`) or change them. n2 is down and n3 is drained.",
        )],
    );
}

#[test]
fn failing_tasks_are_told_together_with_their_error() {
    let mut world = world();
    let web = world.create("web", |s| {
        replicas(s, 2);
        s.task.container.image = "bad".into();
    });
    let once = world.create("once", |s| {
        s.task.container.image = "bad".into();
        s.task.restart = Some(RestartPolicy { condition: RestartCondition::None, ..RestartPolicy::default() });
    });
    let ghost = world.create("ghost", |s| s.task.container.image = "gone".into());
    world.pass(secs(12));
    let told = explain(&world, &web);
    assert_eq!(told.findings[0].about, Topic::Failing);
    assert_eq!(
        told.findings[0].says,
        "web.1 and web.2 ended on n1 and n2: task: non-zero exit (3) (6 known failures, the last one 2 seconds ago)."
    );
    assert_eq!(told.findings[0].advice, "See what it wrote: `docker service logs web`.");
    assert!(told.findings.iter().any(|f| f.says.ends_with("in 3 seconds (the restart delay).")), "{told:?}");
    check(
        &world,
        &once,
        "once: 0 of 1 replica running.",
        &[(
            Topic::Failing,
            "once.1 ended on n1: task: non-zero exit (3) (1 known failure, the last one 12 seconds ago). It is not started again: the restart condition is none.",
            "See what it wrote: `docker service logs once`. Try again with `docker service update --force once`.",
        )],
    );
    let told = explain(&world, &ghost);
    assert_eq!(told.findings[0].about, Topic::Image);
    assert!(told.findings[0].says.contains("No such image: gone"), "{told:?}");
    assert!(told.findings[0].advice.contains("docker pull gone"), "{told:?}");
}

#[test]
fn a_paused_update_says_how_to_go_on_and_how_to_go_back() {
    let mut world = world();
    let web = world.create("web", |s| replicas(s, 3));
    world.settle();
    world.update(&web, |s| s.task.container.image = "bad".into());
    world.pass(secs(2));
    let told = explain(&world, &web);
    assert_eq!(told.findings[0].about, Topic::Update);
    assert!(
        told.findings[0]
            .says
            .starts_with("Its update is paused with 2 tasks still as before: update paused due to failure"),
        "{told:?}"
    );
    assert!(
        told.findings[0]
            .advice
            .starts_with("Go back with `docker service rollback web`, or mend what failed and go on with"),
        "{told:?}"
    );
    // Under way, and waiting for something that will not come.
    world.update(&web, |s| s.task.placement = constrained("node.id == nobody"));
    world.settle();
    let told = explain(&world, &web);
    assert_eq!(told.findings[0].about, Topic::Update);
    assert!(told.findings[0].says.contains("it waits for web."), "{told:?}");
    assert!(told.findings[0].says.ends_with("to run, for 10 minutes at the most."), "{told:?}");
}

#[test]
fn a_service_nobody_can_run_names_the_nodes() {
    let mut world = World::new(1);
    let all = world.create("all", |s| s.mode = Mode::Global);
    world.settle();
    world.availability("n1", Availability::Drain);
    world.pass(secs(1));
    check(
        &world,
        &all,
        "all: running nowhere; no node that takes tasks satisfies its constraints.",
        &[(
            Topic::Node,
            "n1 is drained.",
            "Make a node active again: `docker node update --availability active NODE`.",
        )],
    );
}

#[test]
fn explaining_never_fails_whatever_the_world_is_like() {
    let mut world = world();
    let mut services = Vec::new();
    for (number, image) in ["ok", "bad", "gone", "done"].into_iter().enumerate() {
        for mode in [
            Mode::Replicated { replicas: 4 },
            Mode::Global,
            Mode::GlobalJob,
            Mode::ReplicatedJob { max_concurrent: 2, total_completions: 3 },
        ] {
            services.push(world.create(&format!("s{number}-{}", services.len()), |s| {
                s.mode = mode;
                s.task.container.image = image.into();
            }));
        }
    }
    for step in 0..12 {
        match step % 4 {
            0 => world.kill("n2"),
            1 => world.availability("n1", Availability::Pause),
            2 => world.come_up("n2"),
            _ => world.availability("n1", Availability::Active),
        }
        world.pass(secs(3));
        for service in &services {
            let told = explain(&world, service);
            assert!(told.as_asked == told.findings.is_empty() && told.summary.ends_with('.'), "{told:?}");
            assert!(told.findings.iter().all(|f| !f.says.contains("  ") && f.says.ends_with('.')), "{told:?}");
        }
    }
}
