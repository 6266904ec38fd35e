//! Jobs: each slot or node completed once a run, and never again without being asked.

use skep_model::service::UpdateConfig;
use skep_model::task::{RestartCondition, RestartPolicy};

use super::*;

fn job(world: &mut World, max_concurrent: u64, total_completions: u64, image: &str) -> ServiceId {
    world.create("job", |s| {
        s.mode = Mode::ReplicatedJob { max_concurrent, total_completions };
        s.task.container.image = image.into();
    })
}

fn complete(world: &World, job: &ServiceId) -> usize {
    let iteration = world.view().service(job).unwrap().job_iteration();
    let done = |t: &&Task| t.status.state == TaskState::Complete && t.job_iteration == iteration;
    world.tasks(job).iter().filter(done).count()
}

fn live(world: &World, job: &ServiceId) -> Vec<Task> {
    world.tasks(job).into_iter().filter(Task::is_live).collect()
}

#[test]
fn a_job_runs_so_many_at_a_time_until_all_are_complete() {
    let mut world = World::new(2);
    let job = job(&mut world, 2, 5, "ok");
    world.settle();
    let mut slots = Vec::new();
    for left in (1..=5).rev() {
        let running = live(&world, &job);
        assert_eq!(running.len(), left.min(2));
        assert!(running.iter().all(|t| t.desired_state == TaskState::Complete));
        slots.push(running[0].slot.unwrap());
        world.exit(&running[0].id, 0);
        world.settle();
    }
    slots.sort_unstable();
    assert_eq!((complete(&world, &job), slots), (5, vec![0, 1, 2, 3, 4]));
    world.pass(Duration::from_secs(600));
    assert_eq!(world.tasks(&job).len(), 5);
}

#[test]
fn a_failure_is_tried_again_and_an_end_is_not() {
    let mut world = World::new(1);
    let job = job(&mut world, 1, 1, "ok");
    world.settle();
    world.exit(&live(&world, &job)[0].id, 3);
    world.settle();
    let retry = live(&world, &job).remove(0);
    assert_eq!((retry.slot, retry.desired_state, retry.status.state), (Some(0), TaskState::Ready, TaskState::Ready));
    world.pass(Duration::from_secs(5));
    let retry = live(&world, &job).remove(0);
    assert_eq!((retry.desired_state, retry.status.state), (TaskState::Complete, TaskState::Running));
    world.exit(&retry.id, 0);
    world.pass(Duration::from_secs(60));
    assert_eq!((complete(&world, &job), live(&world, &job).len()), (1, 0));
}

#[test]
fn a_slot_that_failed_for_good_is_left_at_that() {
    for policy in [
        RestartPolicy { condition: RestartCondition::None, ..RestartPolicy::default() },
        RestartPolicy { max_attempts: 2, ..RestartPolicy::default() },
    ] {
        let mut world = World::new(1);
        world.exits.insert("bad".into(), 1);
        let job = job(&mut world, 1, 2, "bad");
        world.update(&job, |s| s.task.restart = Some(policy));
        world.pass(Duration::from_secs(600));
        let failed = world.tasks(&job).iter().filter(|t| t.status.state == TaskState::Failed).count();
        let tries = usize::try_from(policy.max_attempts).unwrap() + 1;
        assert_eq!((failed, live(&world, &job).len()), (2 * tries, 0), "{policy:?}");
    }
}

#[test]
fn what_was_complete_on_a_lost_host_is_complete_though_it_is_heard_late() {
    let mut world = World::new(2);
    let job = job(&mut world, 1, 1, "ok");
    world.settle();
    let first = live(&world, &job).remove(0);
    let node = first.node_id.clone().unwrap();
    world.hosts.get_mut(&node).unwrap().up = false;
    let down = membership::down(world.view(), &node, "heartbeat failure", world.now);
    world.apply(down.into_iter().collect());
    world.settle();
    let second = live(&world, &job).into_iter().find(|t| t.id != first.id).unwrap();
    let status = skep_model::task::TaskStatus { state: TaskState::Complete, ..first.status };
    world.apply(vec![Change::SetTaskStatus(vec![TaskReport { task_id: first.id, status }])]);
    world.kill(second.node_id.unwrap().as_str());
    world.come_up(node.as_str());
    world.pass(Duration::from_secs(60));
    assert_eq!((complete(&world, &job), world.tasks(&job).len()), (1, 2));
}

#[test]
fn an_update_runs_a_job_again_and_nothing_else_does() {
    let mut world = World::new(3);
    world.exits.insert("done".into(), 0);
    let job = job(&mut world, 3, 3, "done");
    world.settle();
    let before = world.tasks(&job);
    assert_eq!(complete(&world, &job), 3);
    world.forgetful = true;
    world.kill("n1");
    world.availability("n2", Availability::Drain);
    world.pass(Duration::from_secs(600));
    world.come_up("n1");
    world.availability("n2", Availability::Active);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.tasks(&job), before);
    world.update(&job, |s| s.task.force_update += 1);
    world.settle();
    let status = world.view().service(&job).unwrap().job_status.unwrap();
    assert_eq!((status.iteration, status.last_execution, complete(&world, &job)), (1, world.now, 3));
    assert_eq!(world.tasks(&job).len(), 6);
}

#[test]
fn a_new_run_ends_what_is_left_of_the_old() {
    let mut world = World::new(2);
    let job = job(&mut world, 2, 4, "ok");
    world.settle();
    world.exit(&live(&world, &job)[0].id, 0);
    world.settle();
    world.update(&job, |s| s.task.container.image = "other".into());
    world.settle();
    let running = live(&world, &job);
    assert_eq!(running.iter().map(|t| (t.job_iteration, t.slot)).collect::<Vec<_>>().len(), 2);
    assert!(running.iter().all(|t| t.job_iteration == Some(1) && t.spec.container.image == "other"));
    assert_eq!((world.containers(), complete(&world, &job)), (2, 0));
}

#[test]
fn a_run_cut_short_by_a_lost_host_goes_on_elsewhere() {
    let mut world = World::new(2);
    let job = job(&mut world, 4, 4, "ok");
    world.settle();
    let there: Vec<_> = live(&world, &job).into_iter().filter(|t| t.node_id == Some(node_id("n1"))).collect();
    world.exit(&there[0].id, 0);
    world.settle();
    world.kill("n1");
    world.settle();
    let running = live(&world, &job);
    assert_eq!(running.len(), 3);
    assert!(running.iter().all(|t| t.node_id == Some(node_id("n2"))));
}

#[test]
fn a_global_job_runs_once_on_every_node_there_was() {
    let mut world = World::new(3);
    world.exits.insert("done".into(), 0);
    world.pass(Duration::from_secs(1));
    let all = world.create("all", |s| {
        s.mode = Mode::GlobalJob;
        s.task.container.image = "done".into();
        s.task.placement = Some(skep_model::task::Placement {
            constraints: vec!["node.hostname != n3".into()],
            ..skep_model::task::Placement::default()
        });
    });
    world.settle();
    assert_eq!(complete(&world, &all), 2);
    world.join("n4");
    world.availability("n1", Availability::Drain);
    world.pass(Duration::from_secs(100));
    world.availability("n1", Availability::Active);
    world.pass(Duration::from_secs(100));
    assert_eq!(world.tasks(&all).len(), 2);
    world.update(&all, |s| s.task.force_update += 1);
    world.settle();
    assert_eq!(complete(&world, &all), 3);
}

#[test]
fn what_jobs_cannot_have_is_refused() {
    let mut world = World::new(1);
    let job = job(&mut world, 1, 1, "ok");
    world.update(&job, |s| s.task.force_update += 1);
    let service = world.view().service(&job).unwrap().clone();
    let status = skep_model::service::UpdateStatus {
        state: skep_model::service::UpdateState::RollbackStarted,
        started_at: world.now,
        completed_at: None,
        message: String::new(),
    };
    let refused = world
        .try_apply(Batch::new(world.now, vec![Change::RollbackService { service_id: job, status, automatic: false }]));
    assert!(refused.unwrap_err().to_string().contains("cannot be rolled back"));
    let spec = ServiceSpec { update: Some(UpdateConfig::default()), ..service.spec.clone() };
    let said = skep_model::validate::service(&spec).unwrap_err().to_string();
    assert_eq!(said, "Jobs may not have an update config");
}
