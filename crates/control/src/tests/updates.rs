//! Updates that go wrong, as tables: what swarmkit's updater does, and says.

use skep_model::service::{FailureAction, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus};
use skep_model::task::Placement;
use skep_model::validate::UPDATE_DEADLINE_LABEL;

use super::*;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A service of so many replicas that runs `ok`; containers of `bad` exit at once, `gone` cannot be pulled.
fn web(replicas: u64, update: UpdateConfig) -> (World, ServiceId) {
    let mut world = World::new(2);
    world.exits.insert("bad".into(), 1);
    world.missing.insert("gone".into());
    let web = world.create("web", |s| {
        super::replicas(s, replicas);
        s.update = Some(update);
    });
    world.pass(secs(100));
    (world, web)
}

fn image(world: &mut World, web: &ServiceId, image: &str) {
    world.update(web, |s| s.task.container.image = image.into());
}

fn status(world: &World, web: &ServiceId) -> UpdateStatus {
    world.view().service(web).unwrap().update_status.clone().unwrap()
}

fn running(world: &World, web: &ServiceId, image: &str) -> usize {
    world.running(web).iter().filter(|t| t.spec.container.image == image).count()
}

/// State and message, the message without its last word if that is a task.
fn said(world: &World, web: &ServiceId) -> (UpdateState, String) {
    let UpdateStatus { state, message, .. } = status(world, web);
    let text = message.split_once(" of task ").map_or(message.as_str(), |(text, _)| text).to_owned();
    (state, text)
}

fn roll_back(world: &mut World, web: &ServiceId) {
    let status = UpdateStatus {
        state: UpdateState::RollbackStarted,
        started_at: world.now,
        completed_at: None,
        message: "manually requested rollback".into(),
    };
    world.apply(vec![Change::RollbackService { service_id: web.clone(), status, automatic: false }]);
}

#[test]
fn what_becomes_of_a_failing_update() {
    let config = UpdateConfig::default();
    let failed = "due to failure or early termination";
    let paused = (UpdateState::Paused, format!("update paused {failed}"));
    let completed = (UpdateState::Completed, "update completed".to_owned());
    let rolled_back = (UpdateState::RollbackCompleted, "rollback completed".to_owned());
    for (config, bad, expected, old_left) in [
        (config, "bad", &paused, 3),
        (config, "gone", &paused, 3),
        (UpdateConfig { order: UpdateOrder::StartFirst, ..config }, "bad", &paused, 4),
        // Every slot is tried once.
        (UpdateConfig { failure_action: FailureAction::Continue, ..config }, "bad", &completed, 0),
        // The old ones stay where the new ones never ran.
        (
            UpdateConfig { failure_action: FailureAction::Continue, order: UpdateOrder::StartFirst, ..config },
            "bad",
            &completed,
            4,
        ),
        // One of four is borne, and two are too many.
        (UpdateConfig { max_failure_ratio: 0.25, ..config }, "bad", &paused, 2),
        (UpdateConfig { max_failure_ratio: 0.5, ..config }, "bad", &paused, 1),
        (UpdateConfig { max_failure_ratio: 1.0, ..config }, "bad", &completed, 0),
        (UpdateConfig { parallelism: 0, ..config }, "bad", &paused, 0),
        (UpdateConfig { failure_action: FailureAction::Rollback, ..config }, "bad", &rolled_back, 4),
        (UpdateConfig { failure_action: FailureAction::Rollback, ..config }, "gone", &rolled_back, 4),
    ] {
        for forgetful in [false, true] {
            let (mut world, web) = web(4, config);
            world.forgetful = forgetful;
            image(&mut world, &web, bad);
            world.pass(secs(60));
            assert_eq!((&said(&world, &web), running(&world, &web, "ok")), (expected, old_left), "{config:?} {bad}");
            let status = status(&world, &web);
            assert_eq!(status.completed_at.is_some(), expected != &paused, "{config:?}");
            // No storm of attempts.
            assert!(world.tasks(&web).len() <= 4 * 6, "{config:?}: {} tasks", world.tasks(&web).len());
        }
    }
}

#[test]
fn a_failure_counts_while_the_task_is_monitored_and_not_after() {
    for (monitor, after, state) in [
        (None, 4, UpdateState::Paused),
        (None, 6, UpdateState::Updating),
        (Some(secs(20)), 19, UpdateState::Paused),
        (Some(secs(20)), 21, UpdateState::Updating),
    ] {
        let (mut world, web) = web(2, UpdateConfig { monitor, delay: secs(60), ..UpdateConfig::default() });
        image(&mut world, &web, "new");
        world.pass(secs(after));
        let first = world.running(&web).into_iter().find(|t| t.spec.container.image == "new").unwrap();
        // A clean end is an early termination, too.
        world.exit(&first.id, 0);
        world.settle();
        assert_eq!(status(&world, &web).state, state, "{monitor:?} {after}");
    }
}

#[test]
fn an_update_is_watched_after_its_last_task() {
    for (delay, monitor, watched) in [(0, 5, 5), (2, 5, 5), (5, 5, 6), (30, 5, 31), (0, 60, 60)] {
        let config = UpdateConfig { delay: secs(delay), monitor: Some(secs(monitor)), ..UpdateConfig::default() };
        let (mut world, web) = web(1, config);
        image(&mut world, &web, "new");
        world.pass(secs(watched - 1));
        assert_eq!(status(&world, &web).state, UpdateState::Updating, "{delay} {monitor}");
        world.pass(secs(1));
        let UpdateStatus { state, started_at, completed_at, .. } = status(&world, &web);
        assert_eq!((state, completed_at), (UpdateState::Completed, Some(started_at.plus(secs(watched)))));
    }
}

#[test]
fn a_paused_update_goes_on_when_it_is_updated_again() {
    let (mut world, web) = web(3, UpdateConfig::default());
    image(&mut world, &web, "bad");
    world.pass(secs(60));
    assert_eq!((said(&world, &web).0, running(&world, &web, "ok")), (UpdateState::Paused, 2));
    // The same spec once more, and the image is well now.
    world.exits.clear();
    world.update(&web, |_| {});
    world.pass(secs(60));
    assert_eq!((said(&world, &web).0, running(&world, &web, "bad")), (UpdateState::Completed, 3));
}

#[test]
fn rollbacks_go_back_one_level_and_forth() {
    let (mut world, web) = web(3, UpdateConfig::default());
    image(&mut world, &web, "two");
    world.pass(secs(60));
    for expected in ["ok", "two", "ok"] {
        roll_back(&mut world, &web);
        world.settle();
        assert_eq!(said(&world, &web), (UpdateState::RollbackStarted, "manually requested rollback".into()));
        world.pass(secs(60));
        assert_eq!(said(&world, &web), (UpdateState::RollbackCompleted, "rollback completed".into()));
        assert_eq!(running(&world, &web, expected), 3);
    }
}

#[test]
fn after_a_rollback_on_failure_there_is_nothing_to_go_back_to() {
    let config = UpdateConfig { failure_action: FailureAction::Rollback, ..UpdateConfig::default() };
    let (mut world, web) = web(3, config);
    image(&mut world, &web, "bad");
    let begun = world.now;
    world.settle();
    assert_eq!(
        said(&world, &web),
        (UpdateState::RollbackStarted, "update rolled back due to failure or early termination".into())
    );
    world.pass(secs(60));
    let service = world.view().service(&web).unwrap();
    assert_eq!((service.spec.task.container.image.as_str(), &service.previous_spec), ("ok", &None));
    assert_eq!(status(&world, &web).started_at, begun);
}

#[test]
fn a_rollback_is_never_rolled_back() {
    for (action, message) in [
        (FailureAction::Pause, "update paused due to failure or early termination"),
        (FailureAction::Rollback, "rollback paused due to failure or early termination"),
    ] {
        let (mut world, web) = web(3, UpdateConfig::default());
        world.update(&web, |s| s.rollback = Some(UpdateConfig { failure_action: action, ..UpdateConfig::default() }));
        world.update(&web, |s| s.task.container.image = "new".into());
        world.pass(secs(60));
        world.exits.insert("ok".into(), 1);
        roll_back(&mut world, &web);
        world.pass(secs(60));
        assert_eq!(said(&world, &web), (UpdateState::RollbackPaused, message.into()));
        assert_eq!(running(&world, &web, "new"), 2);
    }
}

#[test]
fn a_rollback_counts_its_failures_among_what_it_has_to_undo() {
    let (mut world, web) = web(5, UpdateConfig::default());
    world.update(&web, |s| s.rollback = Some(UpdateConfig { max_failure_ratio: 0.5, ..UpdateConfig::default() }));
    image(&mut world, &web, "bad");
    world.pass(secs(60));
    assert_eq!(said(&world, &web).0, UpdateState::Paused);
    world.exits.insert("ok".into(), 1);
    roll_back(&mut world, &web);
    world.pass(secs(60));
    assert_eq!(said(&world, &web).0, UpdateState::RollbackPaused, "one of one slot failed");
}

#[test]
fn a_stuck_update_has_a_deadline() {
    for (label, deadline) in [(None, 600), (Some("30s"), 30)] {
        for forgetful in [false, true] {
            let (mut world, web) = web(3, UpdateConfig::default());
            world.forgetful = forgetful;
            world.update(&web, |s| {
                s.labels.extend(label.map(|text| (UPDATE_DEADLINE_LABEL.to_owned(), text.to_owned())));
                let constraints = vec!["node.labels.no == where".into()];
                s.task.placement = Some(Placement { constraints, ..Placement::default() });
            });
            world.pass(secs(deadline - 1));
            assert_eq!((status(&world, &web).state, world.running(&web).len()), (UpdateState::Updating, 2));
            world.pass(secs(1));
            let UpdateStatus { state, message, .. } = status(&world, &web);
            let stuck = world.tasks(&web).into_iter().find(|t| t.status.state == TaskState::Pending).unwrap();
            assert_eq!(
                (state, message),
                (UpdateState::Paused, format!("update paused due to task {} not running in time", stuck.id))
            );
            assert_eq!(world.running(&web).len(), 2);
        }
    }
}

#[test]
fn an_update_that_makes_no_task_has_no_status() {
    let (mut world, web) = web(2, UpdateConfig::default());
    image(&mut world, &web, "new");
    world.pass(secs(60));
    world.update(&web, |s| {
        super::replicas(s, 4);
        s.labels.insert("a".into(), "b".into());
    });
    world.pass(secs(60));
    assert_eq!(world.view().service(&web).unwrap().update_status, None);
    assert_eq!(running(&world, &web, "new"), 4);
}

/// A task that fails again and again is forgotten but for the last few; when the slot was given up is not.
#[test]
fn an_update_ends_though_its_tasks_fail_all_the_time() {
    let config = UpdateConfig {
        failure_action: FailureAction::Continue,
        delay: secs(4),
        monitor: Some(secs(6)),
        ..UpdateConfig::default()
    };
    let (mut world, web) = web(3, config);
    world.update(&web, |s| {
        s.task.container.image = "bad".into();
        let delay = Some(Duration::from_millis(200));
        s.task.restart = Some(skep_model::task::RestartPolicy { delay, ..Default::default() });
    });
    world.pass(secs(3));
    assert_eq!(running(&world, &web, "ok"), 2);
    world.pass(secs(12));
    assert_eq!((said(&world, &web).0, running(&world, &web, "ok")), (UpdateState::Completed, 0));
}

/// Update to `image`, stopped where a new task runs and the leader has not heard of it yet.
fn until_two_run(world: &mut World, web: &ServiceId, image: &str) {
    self::image(world, web, image);
    while world.running(web).iter().all(|t| t.spec.container.image != image) {
        world.lead();
        world.work();
    }
}

#[test]
fn what_was_started_first_takes_over_whatever_comes_between() {
    let config = UpdateConfig { order: UpdateOrder::StartFirst, ..UpdateConfig::default() };
    type Deed = fn(&mut World, &ServiceId);
    let deeds: [(&str, Deed); 2] = [
        ("another update, which fails and is paused", |world, web| image(world, web, "bad")),
        ("another update, of no image", |world, web| image(world, web, "gone")),
    ];
    for (what, deed) in deeds {
        let (mut world, web) = web(2, config);
        until_two_run(&mut world, &web, "new");
        deed(&mut world, &web);
        world.pass(secs(60));
        let slots: BTreeSet<_> = world.running(&web).iter().map(|t| t.slot).collect();
        assert_eq!((world.running(&web).len(), slots.len()), (2, 2), "{what}");
        assert_eq!(running(&world, &web, "new"), 1, "{what}: the newer one stays");
    }

    // The new one has to go elsewhere at once.
    let (mut world, web) = web(2, config);
    world.join("n3");
    until_two_run(&mut world, &web, "new");
    let node = world.running(&web).into_iter().find(|t| t.spec.container.image == "new").unwrap().node_id.unwrap();
    world.availability(&node.to_string(), Availability::Drain);
    world.pass(secs(60));
    let slots: BTreeSet<_> = world.running(&web).iter().map(|t| t.slot).collect();
    assert_eq!((world.running(&web).len(), slots.len(), running(&world, &web, "new")), (2, 2, 2));

    // A global service's place takes no new task any more.
    let mut world = World::new(1);
    let agent = world.create("agent", |s| (s.mode, s.update) = (Mode::Global, Some(config)));
    world.settle();
    until_two_run(&mut world, &agent, "new");
    world.availability("n1", Availability::Pause);
    world.pass(secs(60));
    assert_eq!((world.running(&agent).len(), running(&world, &agent, "new")), (1, 1));
}

#[test]
fn an_update_that_cannot_be_rolled_back_is_paused_and_says_why() {
    let config = UpdateConfig { parallelism: 0, failure_action: FailureAction::Rollback, ..UpdateConfig::default() };
    let (mut world, web) = web(2, config);
    world.apply(vec![overlay("net1", "back", "10.9.0.0/24")]);
    world.update(&web, |s| join(s, "net1"));
    world.pass(secs(60));
    world.update(&web, |s| (s.task.container.image, s.task.networks) = ("bad".into(), Vec::new()));
    while world
        .try_apply(Batch::new(world.now, vec![Change::RemoveNetwork { network_id: "net1".parse().unwrap() }]))
        .is_err()
    {
        world.lead();
        world.work();
    }
    world.pass(secs(60));
    let (state, _) = said(&world, &web);
    let message = status(&world, &web).message;
    assert_eq!(state, UpdateState::Paused, "{message}");
    assert!(message.ends_with("; what the previous spec needs is not there any more"), "{message}");
}
