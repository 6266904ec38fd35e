//! Updates: what becomes of those that fail, rollbacks by hand and by themselves, and what is said about it.

use skep_e2e::{LATER, Lab, eventually};

/// With a delay: a task that ends at once has run, too, and the next one is not to be begun before that is seen.
const QUICK: &str = "--stop-grace-period 100ms --restart-delay 200ms --update-monitor 3s --rollback-monitor 3s \
    --update-delay 2s --rollback-delay 2s";

fn create(lab: &Lab, name: &str, flags: &str) {
    let line =
        format!("service create --detach --name {name} --replicas 3 {QUICK} {flags} --env V=1 busybox sleep 1000");
    lab.docker(1, &line).ok();
    lab.await_running(name, 3);
}

fn status(lab: &Lab, service: &str) -> (String, String) {
    let format = "{{with .UpdateStatus}}{{.State}}|{{.Message}}{{end}}";
    let said = lab.docker_words(1, &["service", "inspect", "-f", format, service]).ok();
    let (state, message) = said.split_once('|').unwrap_or_default();
    (state.to_owned(), message.to_owned())
}

#[track_caller]
fn await_state(lab: &Lab, service: &str, state: &str) -> String {
    let mut seen = Default::default();
    eventually(LATER, &format!("{service} is {state}"), || {
        let now = status(lab, service);
        if now != seen {
            eprintln!("{service}: {now:?}");
            seen = now;
        }
        seen.0 == state
    });
    status(lab, service).1
}

/// How many running tasks have this among their spec's words.
fn running_with(lab: &Lab, service: &str, word: &str) -> usize {
    let listed = lab.docker(1, &format!("service ps -q --no-trunc --filter desired-state=running {service}")).ok();
    let format = "{{.Status.State}} {{.Spec.ContainerSpec.Env}} {{.Spec.ContainerSpec.Args}}";
    let mut words = vec!["inspect", "--type", "task", "-f", format];
    words.extend(listed.lines());
    let tasks = lab.docker_words(1, &words).stdout;
    tasks.lines().filter(|t| t.starts_with("running ") && t.contains(word)).count()
}

#[test]
fn updates_that_fail_and_rollbacks() {
    let lab = Lab::swarm(1, 1);
    lab.give_busybox();
    let failed = "due to failure or early termination of task ";

    // conformance: works | docker service update --update-failure-action pause: a failing update is paused and says so
    create(&lab, "web", "");
    assert_eq!(status(&lab, "web").0, "");
    let said = lab.docker(1, "service update --args false web");
    assert!(
        said.code != 0 && said.stderr.contains(&format!("service update paused: update paused {failed}")),
        "{said:?}"
    );
    let (state, message) = status(&lab, "web");
    assert!(state == "paused" && message.starts_with(&format!("update paused {failed}")), "{message}");
    eventually(LATER, "the others run as before", || running_with(&lab, "web", "sleep") == 2);
    let times = "{{.UpdateStatus.StartedAt.IsZero}} {{.UpdateStatus.CompletedAt}}";
    assert_eq!(lab.docker_words(1, &["service", "inspect", "-f", times, "web"]).ok(), "false <nil>");
    // conformance: works | docker service inspect --pretty of an update that is paused
    let pretty = lab.docker(1, "service inspect --pretty web").ok();
    assert!(pretty.contains("UpdateStatus:\n State:\t\tpaused") && pretty.contains(failed), "{pretty}");

    // conformance: works | a paused update goes on with another update
    lab.docker_words(1, &["service", "update", "--detach", "--args", "sleep 1001", "web"]).ok();
    await_state(&lab, "web", "completed");
    assert_eq!(running_with(&lab, "web", "1001"), 3);

    // conformance: works | docker service rollback (with progress), and once more
    lab.docker(1, "service update --env-add V=2 web").ok();
    let said = lab.docker(1, "service rollback web").ok();
    assert!(said.contains("rollback: manually requested rollback"), "{said}");
    // Where the client's patience is shorter than the monitoring of the last task, it is not complete yet.
    assert_eq!(await_state(&lab, "web", "rollback_completed"), "rollback completed");
    assert_eq!(running_with(&lab, "web", "V=1"), 3);
    lab.docker(1, "service rollback --detach web").ok();
    await_state(&lab, "web", "rollback_completed");
    assert_eq!(running_with(&lab, "web", "V=2"), 3);
    // conformance: works | docker service update --rollback
    lab.docker(1, "service update --detach --rollback web").ok();
    await_state(&lab, "web", "rollback_completed");
    assert_eq!(running_with(&lab, "web", "V=1"), 3);

    // conformance: works | docker service update --update-failure-action rollback: back by itself, and only once
    create(&lab, "back", "--update-failure-action rollback --update-order start-first");
    lab.docker(1, "service rollback back").fails("does not have a previous spec");
    lab.docker(1, "service update --detach --args false back").ok();
    await_state(&lab, "back", "rollback_completed");
    eventually(LATER, "all run as before", || running_with(&lab, "back", "sleep") == 3);
    lab.docker(1, "service rollback back").fails("does not have a previous spec");

    // conformance: works | docker service update --rollback-failure-action: a rollback is never rolled back
    create(
        &lab,
        "worse",
        "--rollback-failure-action pause --constraint node.hostname==node1 --mount type=bind,source=/tmp,target=/host",
    );
    let trap = "test ! -e /host/trap && sleep 1000";
    lab.docker_words(1, &["service", "update", "--args", &format!("sh -c '{trap}'"), "worse"]).ok();
    lab.docker_words(1, &["service", "update", "--env-add", "V=2", "--args", "sleep 1000", "worse"]).ok();
    lab.on(1, &["touch", "/tmp/trap"]).ok();
    lab.docker(1, "service rollback --detach worse").ok();
    let message = await_state(&lab, "worse", "rollback_paused");
    assert!(message.contains("paused due to failure or early termination of task "), "{message}");
    assert_eq!(running_with(&lab, "worse", "V=2"), 2);
    lab.on(1, &["rm", "/tmp/trap"]).ok();

    // conformance: works | docker service update --update-failure-action continue
    create(&lab, "on", "--update-failure-action continue");
    lab.docker(1, "service update --detach --args false on").ok();
    await_state(&lab, "on", "completed");
    assert_eq!(running_with(&lab, "on", "sleep"), 0);

    // conformance: works | docker service update --update-max-failure-ratio
    create(&lab, "ratio", "--update-max-failure-ratio 0.4");
    lab.docker(1, "service update --detach --args false ratio").ok();
    await_state(&lab, "ratio", "paused");
    assert_eq!(running_with(&lab, "ratio", "sleep"), 1);

    // conformance: works | docker service update --update-order start-first: what runs goes on until the new one runs
    create(&lab, "first", "--update-order start-first");
    lab.docker(1, "service update --detach --image node1:5999/nothing:1 --no-resolve-image first").ok();
    await_state(&lab, "first", "paused");
    assert_eq!(lab.running("first").len(), 3);

    if !lab.is_dockerd() {
        // conformance: differs | an update that never gets to run | paused after 10 minutes, or what --label skep.update-deadline says; Docker waits for ever
        create(&lab, "stuck", "--label skep.update-deadline=2s");
        lab.docker(1, "service update --detach --constraint-add node.labels.no==where stuck").ok();
        let message = await_state(&lab, "stuck", "paused");
        assert!(
            message.starts_with("update paused due to task ") && message.ends_with(" not running in time"),
            "{message}"
        );
        assert_eq!(lab.running("stuck").len(), 2);
        lab.docker(1, "service create --detach --label skep.update-deadline=soon busybox")
            .fails("label skep.update-deadline=soon: must be a duration from 1s to 168h");
    }
}
