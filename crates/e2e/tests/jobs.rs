//! Jobs: run to completion, once, and again when asked.

use std::time::Duration;

use serde_json::json;
use skep_e2e::api::{Answer, call};
use skep_e2e::{LATER, Lab, eventually};

/// `(node, state)` of the tasks of a job's present run.
fn run_of(lab: &Lab, job: &str) -> Vec<(String, String)> {
    let iteration = lab.docker_words(1, &["service", "inspect", "-f", "{{.JobStatus.JobIteration.Index}}", job]).ok();
    let ids = lab.docker(1, &format!("service ps -q --no-trunc {job}")).ok();
    let tasks = ids.lines().filter_map(|id| {
        let format = "{{.JobIteration.Index}} {{.Status.State}} {{.NodeID}}";
        let said = lab.docker_words(1, &["inspect", "--type", "task", "-f", format, id]).stdout;
        let mut words = said.split_whitespace().map(str::to_owned);
        (words.next()? == iteration).then_some(())?;
        let state = words.next()?;
        Some((words.next().unwrap_or_default(), state))
    });
    tasks.collect()
}

fn complete(lab: &Lab, job: &str) -> usize {
    run_of(lab, job).iter().filter(|(_, state)| state == "complete").count()
}

fn replicas(lab: &Lab, job: &str) -> String {
    lab.docker_words(1, &["service", "ls", "--filter", &format!("name={job}"), "--format", "{{.Mode}} {{.Replicas}}"])
        .ok()
}

#[test]
fn jobs_run_to_completion_and_again_when_asked() {
    let lab = Lab::swarm(1, 2);
    lab.give_busybox();
    // conformance: works | docker service create --mode replicated-job --replicas --max-concurrent (with progress)
    let create = "service create --name job --mode replicated-job --replicas 5 --max-concurrent 2 busybox sleep 1";
    let said = lab.docker(1, create).ok();
    assert!(said.contains("active tasks: 2 out of 2 tasks") && said.ends_with("job complete"), "{said}");
    // conformance: works | docker service ls of jobs (completed tasks)
    assert_eq!(replicas(&lab, "job"), "replicated job 0/2 (5/5 completed)");
    let tasks = lab
        .docker_words(1, &["service", "ps", "--format", "{{.Name}} {{.DesiredState}} {{.CurrentState}}", "job"])
        .ok();
    let first: Vec<_> = tasks.lines().map(|l| l.split(" Complete Complete ").next().expect("a name")).collect();
    assert_eq!(first.len(), 5, "{tasks}");
    // Slot 0 has no number, as in Docker.
    assert!((1..=4).all(|slot| first.contains(&format!("job.{slot}").as_str())), "{tasks}");
    let status = |job: &str| {
        let format = "{{.JobStatus.JobIteration.Index}} {{.JobStatus.LastExecution.IsZero}} {{.UpdateStatus}}";
        lab.docker_words(1, &["service", "inspect", "-f", format, job]).ok()
    };
    assert_eq!(status("job"), "0 false <nil>");
    // conformance: works | docker service update --force of a job runs it again
    let said = lab.docker(1, "service update --force job").ok();
    assert!(said.ends_with("job complete"), "{said}");
    assert_eq!((status("job").as_str(), complete(&lab, "job")), ("1 false <nil>", 5));
    assert_eq!(replicas(&lab, "job"), "replicated job 0/2 (5/5 completed)");
    // conformance: works | docker service scale of a job
    lab.docker(1, "service scale job=3").ok();
    assert_eq!((status("job").as_str(), complete(&lab, "job")), ("2 false <nil>", 3));

    // conformance: works | docker service create --mode global-job (with progress)
    let said = lab.docker(1, "service create --name all --mode global-job busybox true").ok();
    assert!(said.ends_with("job complete"), "{said}");
    assert_eq!(replicas(&lab, "all"), "global job 0/0 (3/3 completed)");
    let mut nodes: Vec<_> = run_of(&lab, "all").into_iter().map(|(node, _)| node).collect();
    nodes.sort();
    nodes.dedup();
    assert_eq!(nodes.len(), 3);

    // conformance: works | docker service create --mode replicated-job --restart-condition none: one attempt
    lab.docker(1, "service create --detach --name once --mode replicated-job --restart-condition none busybox false")
        .ok();
    let words =
        "service create --detach --name thrice --mode replicated-job --restart-max-attempts 2 --restart-delay 10ms";
    lab.docker(1, &format!("{words} busybox false")).ok();
    let failed = |job: &str| run_of(&lab, job).iter().filter(|(_, state)| state == "failed").count();
    eventually(LATER, "the first attempt and two more", || failed("thrice") == 3);
    // A failure is tried again, and an end is not: each attempt leaves a mark, and the third is content.
    let attempt = "echo x >> /data/marks; test $(wc -l < /data/marks) -ge 3";
    let mut words: Vec<&str> =
        "service create --name tries --mode replicated-job --restart-delay 10ms".split(' ').collect();
    words.extend(["--constraint", "node.hostname==node2", "--mount", "type=volume,source=marks,target=/data"]);
    words.extend(["busybox", "sh", "-c", attempt]);
    assert!(lab.docker_words(1, &words).ok().ends_with("job complete"));
    assert_eq!((failed("tries"), complete(&lab, "tries")), (2, 1));
    assert_eq!((failed("once"), failed("thrice")), (1, 3));

    // conformance: works | jobs with an update config are refused
    let body = json!({
        "Name": "bad", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}, "Mode": {"ReplicatedJob": {}},
        "UpdateConfig": {"Parallelism": 1}
    });
    match call(lab.socket(1), "POST", "/v1.41/services/create", &body, Duration::from_secs(10)) {
        Answer::Given(400, said) => {
            assert_eq!(said["message"], "rpc error: code = InvalidArgument desc = Jobs may not have an update config");
        }
        other => panic!("{other:?}"),
    }
    lab.docker(1, "service create --detach --mode replicated-job --update-delay 1s busybox")
        .fails("update and rollback configuration is not supported for jobs");
    lab.docker(1, "service update --detach --replicas 2 all").fails("replicas can only be used with replicated");
    if !lab.is_dockerd() {
        // conformance: differs | docker service rollback of a job | refused; Docker runs it again with the spec before and leaves it in "rollback_started"
        let before = (status("job"), complete(&lab, "job"));
        lab.docker(1, "service rollback --detach job").fails("a job cannot be rolled back");
        assert_eq!((status("job"), complete(&lab, "job")), before);
    }
    lab.docker(1, "service rm job all once thrice tries").ok();
    // Docker leaves those of jobs behind.
    if !lab.is_dockerd() {
        eventually(LATER, "the containers are removed", || {
            (1..=3).all(|node| lab.docker_words(node, &["ps", "-aq"]).ok().is_empty())
        });
    }
}

#[test]
fn a_job_is_not_run_again_by_another_leader_or_a_host_that_returns() {
    let lab = Lab::swarm(3, 1);
    lab.give_busybox();
    lab.docker(1, "service create --name done --mode replicated-job --replicas 4 busybox true").ok();
    lab.docker(1, "service create --name every --mode global-job busybox true").ok();
    // Not on the host that is lost: Docker does not run those elsewhere.
    lab.docker(
        1,
        "service create --detach --name long --mode replicated-job --replicas 4 --max-concurrent 4 --constraint node.hostname!=node1 busybox sleep 8",
    )
    .ok();
    eventually(LATER, "the long job runs", || {
        lab.docker(1, "service ps --format {{.CurrentState}} long").stdout.matches("Running").count() == 4
    });
    let ids = |node: usize, job: &str| {
        let mut ids: Vec<String> =
            lab.docker(node, &format!("service ps -q --no-trunc {job}")).ok().lines().map(str::to_owned).collect();
        ids.sort();
        ids
    };
    let before = (ids(1, "done"), ids(1, "every"));
    lab.lab(&["kill", "node1"]).ok();
    eventually(LATER, "another manager leads", || lab.docker(2, "node ls").stdout.contains("Leader"));
    let completed = |job: &str| {
        let format = "{{.Replicas}}";
        lab.docker_words(2, &["service", "ls", "--filter", &format!("name={job}"), "--format", format]).stdout
    };
    eventually(LATER, "the job under way is completed", || completed("long").contains("(4/4 completed)"));
    lab.lab(&["start", "node1"]).ok();
    eventually(LATER, "the host is back", || lab.docker(2, "node ls").stdout.matches("Ready").count() == 4);
    lab.docker(2, "service create --name after --mode replicated-job busybox true").ok();
    assert_eq!((ids(2, "done"), ids(2, "every")), before);
}
