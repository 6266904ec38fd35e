//! What breaks: a host, a daemon, a link. Every test ends with the replicas that were asked for.

use std::time::Duration;

use skep_e2e::{Following, LATER, Lab, SOON, eventually};

#[test]
fn a_dead_hosts_tasks_run_elsewhere_and_nothing_is_doubled_when_it_returns() {
    let lab = Lab::swarm(1, 2);
    lab.give_busybox();
    lab.docker(1, "service create --stop-grace-period 100ms --detach --name web --replicas 6 busybox sleep 1000").ok();
    lab.await_running("web", 6);
    lab.lab(&["kill", "node3"]).ok();
    // conformance: works | tasks of a dead host run elsewhere
    eventually(LATER, "six tasks on two hosts", || {
        let running = lab.running("web");
        running.len() == 6 && running.iter().all(|(node, _)| node != "node3")
    });
    assert_eq!(lab.docker_words(1, &["node", "ls", "--filter", "name=node3", "--format", "{{.Status}}"]).ok(), "Down");
    lab.lab(&["start", "node3"]).ok();
    eventually(LATER, "the host is back", || {
        lab.docker_words(1, &["node", "ls", "--filter", "name=node3", "--format", "{{.Status}}"]).stdout.trim()
            == "Ready"
    });
    eventually(LATER, "no container of the old tasks runs", || lab.docker(3, "ps -q").ok().is_empty());
    assert_eq!(lab.running("web").len(), 6);
    // And it takes new ones.
    lab.docker(1, "service scale --detach web=9").ok();
    eventually(LATER, "the returned host takes tasks", || lab.running("web").iter().any(|(n, _)| n == "node3"));
}

#[test]
fn a_host_that_is_cut_off_and_comes_back_keeps_nothing_it_should_not() {
    let lab = Lab::swarm(1, 2);
    lab.give_busybox();
    lab.docker(1, "service create --stop-grace-period 100ms --detach --name web --replicas 6 busybox sleep 1000").ok();
    lab.await_running("web", 6);
    lab.lab(&["partition", "node2"]).ok();
    eventually(LATER, "six tasks on the two hosts that are reached", || {
        let running = lab.running("web");
        running.len() == 6 && running.iter().all(|(node, _)| node != "node2")
    });
    lab.lab(&["heal"]).ok();
    eventually(LATER, "the old tasks have been stopped", || lab.docker(2, "ps -q").ok().is_empty());
    assert_eq!(lab.running("web").len(), 6);
}

#[test]
fn containers_and_their_logs_survive_kill_9_of_the_daemon() {
    let lab = Lab::swarm(1, 0);
    if lab.is_dockerd() {
        return; // dockerd needs --live-restore for this, which it refuses in a swarm.
    }
    lab.give_busybox();
    // Published: whether it runs is then seen without the daemon.
    lab.docker_words(
        1,
        &[
            "run",
            "-d",
            "--name",
            "count",
            "-p",
            "8081:80",
            "busybox",
            "sh",
            "-c",
            "httpd -h /etc; i=0; while true; do echo $i; i=$((i+1)); sleep 0.01; done",
        ],
    )
    .ok();
    lab.docker(1, "service create --detach --name web --replicas 2 --publish 8080:80 skep/whoami").ok();
    lab.await_running("web", 2);
    lab.docker(1, "service create --detach --name once --restart-condition on-failure busybox true").ok();
    let once = || lab.docker_words(1, &["service", "ps", "--format", "{{.ID}} {{.CurrentState}}", "once"]).ok();
    eventually(SOON, "it is complete", || once().contains("Complete"));
    let complete = lab.docker(1, "service ps -q once").ok();
    let pids = || lab.docker_words(1, &["inspect", "-f", "{{.State.Pid}}", "count"]).ok();
    let before = pids();
    let tasks = lab.docker(1, "service ps -q web").ok();
    let daemon = lab.on(1, &["cat", "/run/skep.pid"]).ok();
    for _ in 0..3 {
        let now = lab.on(1, &["cat", "/run/skep.pid"]).ok();
        lab.on(1, &["kill", "-9", &now]).ok();
        // The containers answer while there is no daemon.
        assert_eq!(lab.curl(&format!("http://{}:8081/hostname", lab.address(1))).code, 0);
        eventually(LATER, "the daemon is back", || {
            lab.docker(1, "ps").code == 0 && lab.on(1, &["cat", "/run/skep.pid"]).stdout.trim() != now
        });
    }
    assert_ne!(lab.on(1, &["cat", "/run/skep.pid"]).ok(), daemon);
    // conformance: works | containers outlive the daemon
    assert_eq!(pids(), before, "the same process");
    lab.await_running("web", 2);
    assert_eq!(lab.docker(1, "service ps -q web").ok(), tasks, "no task was replaced");
    assert!(once().contains("Complete"), "{}", once());
    assert_eq!(lab.docker(1, "service ps -q once").ok(), complete, "what was complete does not run again");
    assert_eq!(lab.curl(&format!("http://{}:8080", lab.address(1))).code, 0);
    // Not a line is missing or doubled.
    eventually(SOON, "a hundred lines", || lab.docker(1, "logs count").ok().lines().count() > 100);
    let lines: Vec<u64> = lab.docker(1, "logs count").ok().lines().map(|l| l.parse().expect("a number")).collect();
    assert!(lines.iter().enumerate().all(|(i, n)| i as u64 == *n), "the log is unbroken");
    // And it is still followed, executed in, and stopped.
    let follower = Following::start(lab.docker_command(1, &["logs", "-f", "--tail", "1", "count"]));
    eventually(SOON, "new lines come", || follower.seen().lines().count() > 10);
    assert_eq!(lab.docker(1, "exec count echo in").ok(), "in");
    lab.docker(1, "stop -t 0 count").ok();
    assert_eq!(lab.docker_words(1, &["inspect", "-f", "{{.State.ExitCode}}", "count"]).ok(), "137");
}

#[test]
fn an_exit_while_the_daemon_is_away_is_known_when_it_is_back() {
    let lab = Lab::hosts(1);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    lab.docker_words(
        1,
        &[
            "run",
            "-d",
            "--name",
            "brief",
            "busybox",
            "sh",
            "-c",
            "while [ ! -e /tmp/go ]; do sleep 0.01; done; echo last words; exit 42",
        ],
    )
    .ok();
    let pid = lab.on(1, &["cat", "/run/skep.pid"]).ok();
    lab.on(1, &["sh", "-c", &format!("kill -STOP {pid}")]).ok();
    let init = lab.on(1, &["pgrep", "-f", "last words"]).ok();
    let init = init.lines().next().expect("its pid").to_owned();
    lab.on(1, &["touch", &format!("/proc/{init}/root/tmp/go")]).ok();
    eventually(SOON, "it has ended", || lab.on(1, &["test", "-d", &format!("/proc/{init}")]).code != 0);
    lab.on(1, &["kill", "-9", &pid]).ok();
    eventually(LATER, "the exit code is known", || {
        lab.docker_words(1, &["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "brief"]).stdout.trim()
            == "exited 42"
    });
    assert_eq!(lab.docker(1, "logs brief").ok(), "last words");
}

#[test]
fn sigterm_stops_the_daemon_in_order() {
    let lab = Lab::hosts(1);
    if lab.is_dockerd() {
        return;
    }
    let pid = lab.on(1, &["cat", "/run/skep.pid"]).ok();
    lab.on(1, &["kill", "-TERM", &pid]).ok();
    eventually(Duration::from_secs(5), "it is gone, and its pid file with it", || {
        lab.on(1, &["test", "-e", "/run/skep.pid"]).code != 0
    });
}
