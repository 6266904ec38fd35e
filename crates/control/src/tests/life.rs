//! Services through their lives, each test one story.

use skep_model::node::{Availability, ManagerInfo, NodeSpec};
use skep_model::service::{EndpointSpec, FailureAction, PortConfig, UpdateConfig, UpdateOrder, UpdateState};
use skep_model::task::{Placement, ResourceRequirements, Resources, RestartCondition, RestartPolicy, TaskStatus};

use super::*;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn restart(condition: RestartCondition, delay: u64, max_attempts: u64) -> Option<RestartPolicy> {
    Some(RestartPolicy { condition, delay: Some(secs(delay)), max_attempts, window: Duration::ZERO })
}

#[test]
fn a_new_swarm_has_its_ingress_network_and_its_nodes_have_legs() {
    let mut world = World::new(3);
    world.settle();
    let ingress = world.view().ingress_network().unwrap().clone();
    assert_eq!(ingress.allocation.as_ref().unwrap().subnet.to_string(), "10.0.0.0/24");
    assert_eq!(ingress.allocation.as_ref().unwrap().vni, 4096);
    let legs: Vec<_> = world.view().nodes().map(|n| (n.mesh_index, n.attachments[&ingress.id].to_string())).collect();
    assert_eq!(legs, [(Some(0), "10.0.0.2".into()), (Some(1), "10.0.0.3".into()), (Some(2), "10.0.0.4".into())]);
}

#[test]
fn replicas_are_assigned_in_one_log_entry_and_spread() {
    let mut world = World::new(3);
    world.settle();
    let before = world.entries;
    let web = world.create("web", |s| replicas(s, 6));
    world.lead();
    assert_eq!(world.entries - before, 2, "the service, and all of its tasks assigned");
    assert!(world.tasks(&web).iter().all(|t| t.status.state == TaskState::Assigned));
    world.settle();
    assert_eq!(world.spread(&web), "n1:2 n2:2 n3:2");
    assert_eq!(world.containers(), 6);
}

#[test]
fn a_settled_world_gives_an_empty_decision() {
    let mut world = World::new(2);
    world.create("web", |s| replicas(s, 3));
    world.create("all", |s| s.mode = Mode::Global);
    world.settle();
    let view = world.store.view();
    let decision =
        tick(&view, &Dirty::all(), &mut Ctx { now: world.now, steady_since: Timestamp::ZERO, ids: &mut SeededIds(1) });
    assert_eq!(decision.changes, []);
}

#[test]
fn scaling_adds_and_removes_slots() {
    let mut world = World::new(3);
    let web = world.create("web", |s| replicas(s, 2));
    world.settle();
    let kept: Vec<_> = world.running(&web).into_iter().map(|t| t.id).collect();
    world.update(&web, |s| replicas(s, 7));
    world.settle();
    assert_eq!(world.running(&web).len(), 7);
    assert!(kept.iter().all(|id| world.running(&web).iter().any(|t| t.id == *id)), "others are not touched");
    world.update(&web, |s| replicas(s, 3));
    world.settle();
    assert_eq!(world.spread(&web), "n1:1 n2:1 n3:1");
    assert_eq!((world.containers(), world.tasks(&web).len()), (3, 3));
    assert_eq!(world.view().service(&web).unwrap().update_status, None);
}

#[test]
fn a_removed_service_leaves_nothing() {
    let mut world = World::new(2);
    let web = world.create("web", |s| replicas(s, 4));
    world.settle();
    world.apply(vec![Change::RemoveService { service_id: web.clone() }]);
    world.settle();
    assert_eq!((world.containers(), world.tasks(&web).len(), world.view().tasks_len()), (0, 0, 0));
}

#[test]
fn a_removed_services_tasks_on_a_dead_node_go_at_once() {
    let mut world = World::new(2);
    let web = world.create("web", |s| replicas(s, 4));
    world.settle();
    world.kill("n1");
    world.apply(vec![Change::RemoveService { service_id: web.clone() }]);
    world.settle();
    assert_eq!(world.tasks(&web).len(), 0);
}

#[test]
fn tasks_of_a_dead_node_run_elsewhere_at_once_and_stop_when_it_comes_back() {
    let mut world = World::new(3);
    let web = world.create("web", |s| replicas(s, 6));
    world.settle();
    let n1 = node_id("n1");
    // Only cut off: its containers go on.
    world.hosts.get_mut(&n1).unwrap().up = false;
    let down = membership::down(world.view(), &n1, "heartbeat failure", world.now).unwrap();
    world.apply(vec![down]);
    world.settle();
    assert_eq!(world.spread(&web), "n2:3 n3:3");
    assert_eq!(world.containers(), 8);
    world.come_up("n1");
    world.settle();
    assert_eq!(world.containers(), 6);
    assert_eq!(world.spread(&web), "n2:3 n3:3");
}

#[test]
fn tasks_of_a_node_down_for_a_day_are_orphaned() {
    let mut world = World::new(2);
    let web = world.create("web", |s| replicas(s, 2));
    world.settle();
    world.kill("n1");
    world.settle();
    let lost = || |t: &&Task| t.node_id == Some(node_id("n1"));
    assert_eq!(world.tasks(&web).iter().find(lost()).unwrap().status.state, TaskState::Running);
    world.pass(secs(24 * 3600 + 1));
    assert_eq!(world.tasks(&web).iter().find(lost()).unwrap().status.state, TaskState::Orphaned);
}

#[test]
fn a_drained_node_hands_its_tasks_over_and_a_paused_one_keeps_them() {
    let mut world = World::new(2);
    let web = world.create("web", |s| replicas(s, 4));
    world.settle();
    world.availability("n1", Availability::Drain);
    world.pass(secs(1));
    assert_eq!(world.spread(&web), "n2:4");
    world.availability("n1", Availability::Active);
    world.availability("n2", Availability::Pause);
    world.update(&web, |s| replicas(s, 6));
    world.settle();
    assert_eq!(world.spread(&web), "n1:2 n2:4");
}

#[test]
fn drained_the_replacement_starts_first_if_updates_do() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut world = World::new(3);
        let web = world.create("web", |s| {
            replicas(s, 3);
            s.update = Some(UpdateConfig { order, ..UpdateConfig::default() });
        });
        world.settle();
        let drained = |world: &World| {
            let on_n1 = |t: &&Task| t.node_id == Some(node_id("n1")) && t.desired_state == TaskState::Running;
            world.running(&web).iter().filter(on_n1).count()
        };
        // Nobody can take its place yet.
        world.availability("n2", Availability::Pause);
        world.availability("n3", Availability::Pause);
        world.availability("n1", Availability::Drain);
        world.settle();
        assert_eq!(drained(&world), usize::from(order == UpdateOrder::StartFirst), "{order:?}");
        world.availability("n2", Availability::Active);
        world.pass(secs(1));
        assert_eq!(world.spread(&web), "n2:2 n3:1", "{order:?}");
        assert_eq!(world.tasks(&web).iter().filter(|t| t.is_live()).count(), 3);
    }
}

#[test]
fn a_task_that_ends_is_restarted_after_the_delay() {
    let mut world = World::new(1);
    let web = world.create("web", |s| s.task.restart = restart(RestartCondition::Any, 5, 0));
    world.settle();
    let first = world.running(&web)[0].id.clone();
    world.exit(&first, 1);
    world.settle();
    let tasks = world.tasks(&web);
    assert_eq!(tasks.len(), 2);
    let second = tasks.iter().find(|t| t.id != first).unwrap();
    assert_eq!((second.desired_state, second.status.state), (TaskState::Ready, TaskState::Ready));
    assert_eq!(world.view().task(&first).unwrap().status.error, "task: non-zero exit (1)");
    world.pass(secs(4));
    assert_eq!(world.containers(), 0);
    world.pass(secs(1));
    assert_eq!(world.containers(), 1);
}

#[test]
fn restarts_stop_at_max_attempts_and_a_new_template_starts_again() {
    let mut world = World::new(1);
    world.exits.insert("crash".into(), 3);
    let web = world.create("web", |s| {
        s.task.container.image = "crash".into();
        s.task.restart = restart(RestartCondition::OnFailure, 1, 3);
    });
    world.pass(secs(60));
    assert_eq!(world.tasks(&web).len(), 4, "one and three restarts");
    world.forgetful = true;
    world.pass(secs(60));
    assert_eq!(world.tasks(&web).len(), 4, "a new leader does not forget");
    world.update(&web, |s| s.task.container.image = "ok".into());
    world.pass(secs(60));
    assert_eq!(world.running(&web).len(), 1);
}

#[test]
fn what_takes_the_place_of_another_template_is_no_restart() {
    let mut world = World::new(1);
    world.missing.insert("missing".into());
    world.exits.insert("crash".into(), 3);
    let web = world.create("web", |s| {
        s.task.container.image = "missing".into();
        s.task.restart = restart(RestartCondition::OnFailure, 1, 1);
    });
    world.lead();
    world.work();
    // Rejected, and updated before the leader has looked.
    world.update(&web, |s| s.task.container.image = "crash".into());
    world.pass(secs(60));
    let crashed = world.tasks(&web).into_iter().filter(|t| t.spec.container.image == "crash").count();
    assert_eq!(crashed, 2, "one and a restart");
}

#[test]
fn a_word_of_the_worker_it_was_takes_no_vote_from_a_manager() {
    let mut world = World::new(1);
    let node = world.view().nodes().next().unwrap().clone();
    let spec = NodeSpec { role: Role::Manager, ..node.spec.clone() };
    let manager = Some(ManagerInfo { raft_id: 7, address: ([192, 168, 0, 1], 2377).into() });
    world.apply(vec![
        Change::SetNodeSpec { node_id: node.id.clone(), spec },
        Change::SetNodeManager { node_id: node.id.clone(), manager: manager.clone() },
    ]);
    let late = membership::carries_role(world.view(), &node.id, Role::Worker);
    world.apply(late);
    assert_eq!(world.view().node(&node.id).unwrap().manager, manager);
}

#[test]
fn what_finished_stays_finished() {
    for (condition, code) in
        [(RestartCondition::None, 0), (RestartCondition::None, 1), (RestartCondition::OnFailure, 0)]
    {
        let mut world = World::new(1);
        world.exits.insert("once".into(), code);
        let web = world.create("web", |s| {
            s.task.container.image = "once".into();
            s.task.restart = restart(condition, 1, 0);
        });
        world.pass(secs(3600));
        assert_eq!(world.tasks(&web).len(), 1, "{condition:?} {code}");
        assert_eq!(world.tasks(&web)[0].desired_state, TaskState::Shutdown);
    }
}

#[test]
fn history_is_kept_as_long_as_asked() {
    let mut world = World::new(1);
    world.exits.insert("crash".into(), 1);
    let web = world.create("web", |s| {
        s.task.container.image = "crash".into();
        s.task.restart = restart(RestartCondition::Any, 1, 0);
    });
    world.pass(secs(100));
    assert_eq!(world.tasks(&web).len(), 5);
}

#[test]
fn a_missing_image_is_rejected_and_tried_again() {
    let mut world = World::new(1);
    world.missing.insert("nope:latest".into());
    let web = world.create("web", |s| s.task.container.image = "nope:latest".into());
    world.settle();
    let rejected = world.tasks(&web).into_iter().find(|t| t.status.state == TaskState::Rejected).unwrap();
    assert_eq!(rejected.status.error, "No such image: nope:latest");
    world.missing.clear();
    world.pass(secs(11));
    assert_eq!(world.running(&web).len(), 1);
}

#[test]
fn what_fits_nowhere_waits_and_says_why() {
    let mut world = World::new(2);
    let big = world.create("big", |s| {
        replicas(s, 3);
        let reservations = Some(Resources { nano_cpus: 3_000_000_000, ..Resources::default() });
        s.task.resources = Some(ResourceRequirements { reservations, ..ResourceRequirements::default() });
    });
    world.settle();
    assert_eq!(world.running(&big).len(), 2);
    let waiting = world.tasks(&big).into_iter().find(|t| t.node_id.is_none()).unwrap();
    assert_eq!(waiting.status.error, "no suitable node (insufficient resources on 2 nodes)");
    world.join("n3");
    world.settle();
    assert_eq!(world.running(&big).len(), 3);
    assert!(world.running(&big).iter().all(|t| t.status.error.is_empty()));
}

#[test]
fn global_services_are_on_every_node_that_fits() {
    let mut world = World::new(2);
    let all = world.create("all", |s| s.mode = Mode::Global);
    let one = world.create("one", |s| {
        s.mode = Mode::Global;
        s.task.placement = Some(Placement { constraints: vec!["node.hostname == n2".into()], ..Placement::default() });
    });
    world.settle();
    world.join("n3");
    world.settle();
    assert_eq!((world.spread(&all), world.spread(&one)), ("n1:1 n2:1 n3:1".into(), "n2:1".into()));
    world.availability("n2", Availability::Drain);
    world.pass(secs(1));
    assert_eq!((world.spread(&all), world.spread(&one)), ("n1:1 n3:1".into(), String::new()));
    world.availability("n2", Availability::Active);
    world.pass(secs(1));
    assert_eq!((world.spread(&all), world.spread(&one)), ("n1:1 n2:1 n3:1".into(), "n2:1".into()));
}

#[test]
fn a_published_service_has_a_vip_a_port_and_tasks_on_the_mesh() {
    let mut world = World::new(2);
    let port = |published| PortConfig { target_port: 80, published_port: published, ..PortConfig::default() };
    let endpoint = |published| Some(EndpointSpec { ports: vec![port(published)], ..EndpointSpec::default() });
    let web = world.create("web", |s| s.endpoint = endpoint(8080));
    let auto = world.create("auto", |s| s.endpoint = endpoint(0));
    world.settle();
    let given = |id| world.view().service(id).unwrap().endpoint.clone().unwrap();
    assert_eq!((given(&web).ports[0].published_port, given(&auto).ports[0].published_port), (8080, 30000));
    let ingress = world.view().ingress_network().unwrap().id.clone();
    assert_eq!(given(&web).virtual_ips[0].network_id, ingress);
    assert_eq!(world.running(&web)[0].networks[0].network_id, ingress);
    let set = crate::dispatch::assignments(world.view(), &node_id("n2"));
    assert_eq!(set.endpoints.values().filter(|e| e.serving).count(), 2);
    let plan = skep_agent::dataplane::plan(&set, &node_id("n2"), 4789);
    let backends = &plan.ingress.unwrap().ports[&(skep_model::service::Protocol::Tcp, 8080)];
    assert_eq!(backends.ring.backends[0].address, world.running(&web)[0].networks[0].address.addr());
}

fn rolling(order: UpdateOrder) -> impl Fn(&mut ServiceSpec) {
    move |s| {
        replicas(s, 4);
        s.update = Some(UpdateConfig { parallelism: 2, delay: secs(10), order, ..UpdateConfig::default() });
    }
}

#[test]
fn an_update_walks_through_the_slots() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        for forgetful in [false, true] {
            let mut world = World::new(2);
            world.forgetful = forgetful;
            let web = world.create("web", rolling(order));
            world.settle();
            world.update(&web, |s| s.task.container.image = "new".into());
            world.settle();
            let new = |world: &World| world.running(&web).iter().filter(|t| t.spec.container.image == "new").count();
            assert_eq!((new(&world), world.running(&web).len()), (2, 4), "{order:?}");
            let state = |world: &World| world.view().service(&web).unwrap().update_status.clone().unwrap();
            assert_eq!(state(&world).state, UpdateState::Updating);
            world.pass(secs(9));
            assert_eq!(new(&world), 2);
            world.pass(secs(1));
            assert_eq!(new(&world), 4);
            world.pass(secs(16));
            assert_eq!(
                (state(&world).state, state(&world).message.as_str()),
                (UpdateState::Completed, "update completed")
            );
            assert_eq!(world.running(&web).len(), 4);
            assert_eq!(world.containers(), 4);
        }
    }
}

#[test]
fn a_failing_update_pauses_and_can_be_rolled_back() {
    let mut world = World::new(2);
    world.exits.insert("bad".into(), 1);
    let web = world.create("web", |s| replicas(s, 3));
    world.settle();
    world.update(&web, |s| s.task.container.image = "bad".into());
    world.pass(secs(30));
    let status = world.view().service(&web).unwrap().update_status.clone().unwrap();
    assert_eq!(status.state, UpdateState::Paused);
    assert!(status.message.starts_with("update paused due to failure or early termination of task "));
    assert_eq!(world.running(&web).len(), 2, "the others are left alone");
    let begin = skep_model::service::UpdateStatus {
        state: UpdateState::RollbackStarted,
        started_at: world.now,
        completed_at: None,
        message: "manually requested rollback".into(),
    };
    world.apply(vec![Change::RollbackService { service_id: web.clone(), status: begin, automatic: false }]);
    world.pass(secs(60));
    let status = world.view().service(&web).unwrap().update_status.clone().unwrap();
    assert_eq!((status.state, status.message.as_str()), (UpdateState::RollbackCompleted, "rollback completed"));
    assert!(world.running(&web).iter().all(|t| t.spec.container.image == "ok"));
    assert_eq!(world.running(&web).len(), 3);
}

#[test]
fn a_failing_update_rolls_back_by_itself_if_asked() {
    let mut world = World::new(2);
    world.missing.insert("gone".into());
    let web = world.create("web", |s| {
        replicas(s, 3);
        s.update = Some(UpdateConfig { failure_action: FailureAction::Rollback, ..UpdateConfig::default() });
    });
    world.settle();
    world.update(&web, |s| s.task.container.image = "gone".into());
    world.pass(secs(60));
    let status = world.view().service(&web).unwrap().update_status.clone().unwrap();
    assert_eq!(status.state, UpdateState::RollbackCompleted, "{}", status.message);
    assert_eq!(world.running(&web).len(), 3);
    assert!(world.running(&web).iter().all(|t| t.spec.container.image == "ok"));
}

#[test]
fn networks_get_subnets_and_tasks_addresses_that_are_not_given_again_at_once() {
    let mut world = World::new(1);
    world.apply(vec![overlay("net1", "back", "10.9.0.0/29")]);
    let web = world.create("web", |s| join(s, "net1"));
    world.settle();
    let address = |world: &World, id| world.running(id)[0].networks[0].address.to_string();
    assert_eq!(address(&world, &web), "10.9.0.3/29", "after the gateway and the VIP");
    world.update(&web, |s| s.task.container.image = "new".into());
    world.pass(secs(60));
    assert_eq!(address(&world, &web), "10.9.0.4/29");
    // Six hosts: a gateway, a VIP, one task. The next service takes a VIP and two of three.
    let more = world.create("more", |s| {
        join(s, "net1");
        replicas(s, 3);
    });
    world.settle();
    assert_eq!(world.running(&more).len(), 2);
    let waiting = world.tasks(&more).into_iter().find(|t| t.node_id.is_none()).unwrap();
    assert_eq!(waiting.status.error, "could not find an available IP on network back");
    assert_eq!(waiting.status.state, TaskState::New);
    world.apply(vec![Change::RemoveService { service_id: web }]);
    world.settle();
    assert_eq!(world.running(&more).len(), 3);
    let refused =
        world.try_apply(Batch::new(world.now, vec![Change::RemoveNetwork { network_id: "net1".parse().unwrap() }]));
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .starts_with("rpc error: code = FailedPrecondition desc = network net1 is in use by service ")
    );
}

#[test]
fn a_removed_nodes_tasks_are_forgotten_or_replaced() {
    let mut world = World::new(2);
    let all = world.create("all", |s| s.mode = Mode::Global);
    let web = world.create("web", |s| replicas(s, 2));
    world.settle();
    world.kill("n2");
    world.apply(vec![Change::RemoveNode { node_id: node_id("n2") }]);
    world.hosts.remove(&node_id("n2"));
    world.pass(secs(1));
    assert_eq!((world.spread(&all), world.spread(&web)), ("n1:1".into(), "n1:2".into()));
    assert_eq!(world.tasks(&all).len(), 1);
    let n1 = Some(node_id("n1"));
    assert!(world.tasks(&web).iter().all(|t| t.node_id == n1 || t.status.state == TaskState::Orphaned));
}

/// Found by the simulator: the report of its end came after the node was given up and before it was ready again.
#[test]
fn a_global_task_that_ended_on_a_lost_node_is_made_again_when_the_node_is_back() {
    let mut world = World::new(2);
    let all = world.create("all", |s| s.mode = Mode::Global);
    world.settle();
    let lost = world.running(&all).into_iter().find(|t| t.node_id == Some(node_id("n2"))).unwrap();
    let down = membership::down(world.view(), &node_id("n2"), "heartbeat failure", world.now);
    world.apply(down.into_iter().collect());
    world.lead();
    let status = TaskStatus { state: TaskState::Failed, at: world.now, ..TaskStatus::default() };
    world.apply(vec![Change::SetTaskStatus(vec![TaskReport { task_id: lost.id, status }])]);
    world.come_up("n2");
    world.settle();
    assert_eq!(world.spread(&all), "n1:1 n2:1");
}

/// Found by the simulator: a global task keeps its node before it is assigned, and nobody would ever report it stopped.
#[test]
fn a_task_that_waits_for_its_node_goes_with_its_service() {
    let mut world = World::new(2);
    let all = world.create("all", |s| {
        s.mode = Mode::Global;
        s.task.restart = restart(RestartCondition::Any, 0, 0);
    });
    world.settle();
    world.availability("n2", Availability::Pause);
    let there = world.running(&all).into_iter().find(|t| t.node_id == Some(node_id("n2"))).unwrap();
    world.exit(&there.id, 1);
    world.settle();
    assert!(world.tasks(&all).iter().any(|t| t.status.state == TaskState::Pending), "it waits");
    world.apply(vec![Change::RemoveService { service_id: all.clone() }]);
    world.settle();
    assert_eq!(world.tasks(&all), []);
}

/// Found by the simulator: the old task was stopped, the new one could not be placed, and the update never ended.
#[test]
fn an_update_of_a_global_service_leaves_paused_nodes_alone() {
    let mut world = World::new(2);
    let all = world.create("all", |s| {
        s.mode = Mode::Global;
        s.update = Some(UpdateConfig { monitor: Some(secs(1)), ..UpdateConfig::default() });
    });
    world.settle();
    world.availability("n2", Availability::Pause);
    world.update(&all, |s| s.task.container.image = "ok:2".into());
    world.pass(secs(10));
    assert_eq!(world.spread(&all), "n1:1 n2:1");
    let update = world.view().service(&all).unwrap().update_status.clone();
    assert_eq!(update.map(|u| u.state), Some(UpdateState::Completed));
    world.availability("n2", Availability::Active);
    world.pass(secs(10));
    assert!(world.running(&all).iter().all(|t| t.spec.container.image == "ok:2"));
}
