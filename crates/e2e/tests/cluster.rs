//! Several managers: the swarm survives the loss of any minority of them in the middle of a deploy, and what runs in the end is
//! exactly what was asked for, on every host, down to the last link. Not run against dockerd, which takes minutes to see a
//! host as dead after it lost its leader.

use skep_e2e::{LATER, Lab, eventually};

const WEB: &str = "service create --detach --name web --replicas 4 --stop-grace-period 100ms --update-parallelism 1 \
                   --update-monitor 100ms --update-order start-first busybox sleep 1000";

fn deploy(lab: &Lab) {
    lab.give_busybox();
    lab.docker(1, WEB).ok();
    lab.await_exact(1, &[("web", 4)]);
}

/// Begins a rolling update and waits until it is under way.
fn begin_update(lab: &Lab, through: usize, step: &str) {
    lab.change(through, &format!("service update --detach --env-add STEP={step} web"));
    eventually(LATER, "the update has begun", || {
        let words = ["service", "inspect", "-f", "{{.UpdateStatus.State}}", "web"];
        matches!(lab.docker_words(through, &words).stdout.trim(), "updating" | "completed")
    });
}

/// Waits until every task that is to run is of this step. (Scaling clears what the service says of its update, as in Docker.)
fn await_updated(lab: &Lab, through: usize, step: &str) {
    eventually(LATER * 2, "every task is of the new specification", || {
        let listed = lab.docker(through, "service ps -q --no-trunc --filter desired-state=running web").stdout;
        let mut words = vec!["inspect", "--type", "task", "-f", "{{.Spec.ContainerSpec.Env}}"];
        words.extend(listed.lines());
        let specs = lab.docker_words(through, &words);
        !listed.is_empty() && specs.code == 0 && specs.stdout.lines().all(|env| env == format!("[STEP={step}]"))
    });
}

/// What is to befall a host, who it is, and what undoes it.
fn befall(lab: &Lab, fault: &str, victim: usize) {
    let name = format!("node{victim}");
    lab.lab(&[fault, &name]).ok();
}

fn undo(lab: &Lab, fault: &str, victim: usize) {
    match fault {
        "kill" => drop(lab.lab(&["start", &format!("node{victim}")]).ok()),
        _ => drop(lab.lab(&["heal"]).ok()),
    }
    let nodes = lab.size();
    let through = if victim == 1 { 2 } else { 1 };
    eventually(LATER, "every node is ready", || {
        let listed = lab.docker_words(through, &["node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}"]).stdout;
        listed.lines().filter(|l| l.starts_with("Ready") && !l.contains("Unreachable")).count() == nodes
    });
}

/// One after the other, each in the middle of a rolling update, a leader, a follower and a worker.
fn each_kind_of_host(fault: &str) {
    let lab = Lab::swarm(3, 2);
    if lab.is_dockerd() {
        return;
    }
    deploy(&lab);
    for (step, kind) in ["leader", "follower", "worker"].into_iter().enumerate() {
        let leader = lab.await_leader(1);
        let victim = match kind {
            "leader" => leader,
            "follower" => leader % 3 + 1,
            _ => 4,
        };
        let through = (1..=3).find(|node| *node != victim).expect("three managers");
        eprintln!("{fault} the {kind}, node{victim}, asking node{through}");
        begin_update(&lab, through, &step.to_string());
        befall(&lab, fault, victim);
        // A write in the midst of it is carried out, by whoever leads then.
        let replicas = 5 + step;
        lab.scale(through, "web", replicas);
        lab.await_exact(through, &[("web", replicas)]);
        await_updated(&lab, through, &step.to_string());
        undo(&lab, fault, victim);
        // Who comes back brings nothing with it.
        lab.await_exact(through, &[("web", replicas)]);
        lab.await_exact(victim.min(3), &[("web", replicas)]);
    }
    lab.docker(1, "service rm web").ok();
    lab.await_exact(1, &[]);
}

#[test]
fn killed_in_the_middle_of_a_deploy_each_kind_of_host_leaves_exactly_what_was_asked_for() {
    each_kind_of_host("kill");
}

#[test]
fn cut_off_in_the_middle_of_a_deploy_each_kind_of_host_leaves_exactly_what_was_asked_for() {
    each_kind_of_host("partition");
}

#[test]
fn a_daemon_that_stands_still_for_three_seconds_costs_no_task() {
    let lab = Lab::swarm(3, 2);
    if lab.is_dockerd() {
        return;
    }
    deploy(&lab);
    for (step, victim) in [lab.await_leader(1), lab.await_leader(1) % 3 + 1, 5].into_iter().enumerate() {
        let through = (1..=3).find(|node| *node != victim).expect("three managers");
        begin_update(&lab, through, &step.to_string());
        befall(&lab, "pause", victim);
        // The length of the pause is the fault.
        std::thread::sleep(std::time::Duration::from_secs(3));
        lab.lab(&["resume", &format!("node{victim}")]).ok();
        await_updated(&lab, through, &step.to_string());
        lab.await_exact(through, &[("web", 4)]);
    }
}

#[test]
fn of_five_managers_two_may_be_lost_and_without_a_third_nothing_changes_until_it_is_back() {
    let lab = Lab::swarm(5, 0);
    if lab.is_dockerd() {
        return;
    }
    deploy(&lab);
    lab.docker(1, "service create --detach --name site --mode global --publish 8080:80 skep/whoami").ok();
    lab.await_exact(1, &[("web", 4), ("site", 5)]);
    let leader = lab.await_leader(1);
    let others: Vec<usize> = (1..=5).filter(|node| *node != leader).collect();
    let (second, third, through, last) = (others[0], others[1], others[2], others[3]);
    // conformance: works | two of five managers are lost, the leader among them
    begin_update(&lab, through, "1");
    lab.lab(&["kill", &format!("node{leader}"), &format!("node{second}")]).ok();
    lab.scale(through, "web", 6);
    lab.await_exact(through, &[("web", 6), ("site", 3)]);
    await_updated(&lab, through, "1");
    // conformance: works | quorum lost: reads are answered, writes are refused, tasks go on
    lab.lab(&["partition", &format!("node{third}")]).ok();
    eventually(LATER, "a write is refused, and why is told", || {
        let said = lab.docker(through, "service scale --detach web=9").fails("");
        said.contains("The swarm does not have a leader. It's possible that too few managers are online.")
            && said.contains("Make sure more than half of the managers are online.")
    });
    for node in [through, last] {
        assert_eq!(lab.docker(node, "service ls -q").ok().lines().count(), 2, "reads are answered");
        // A task on the host that is cut off is still one of those asked: nobody can take it out.
        let url = format!("http://{}:8080", lab.address(node));
        eventually(LATER, "what runs is reached", || lab.curl(&url).code == 0);
        assert!(!lab.docker(node, "ps -q").ok().is_empty());
    }
    lab.lab(&["heal"]).ok();
    eventually(LATER, "writes are taken again", || lab.docker(through, "service scale --detach web=7").code == 0);
    lab.await_exact(last, &[("web", 7), ("site", 3)]);
    lab.lab(&["start", &format!("node{leader}"), &format!("node{second}")]).ok();
    lab.await_exact(leader, &[("web", 7), ("site", 5)]);
    for node in 1..=5 {
        let url = format!("http://{}:8080", lab.address(node));
        eventually(LATER, "every host answers", || lab.curl(&url).code == 0);
    }
}

#[test]
fn a_manager_whose_disk_is_full_says_so_and_the_others_go_on() {
    let lab = Lab::up(&["--managers", "3", "--workers", "0", "--disk", "512M"]);
    if lab.is_dockerd() {
        return;
    }
    deploy(&lab);
    let leader = lab.await_leader(1);
    let mut replicas = 4;
    for victim in [leader % 3 + 1, leader] {
        let through = (1..=3).find(|node| *node != victim).expect("three managers");
        let fill = lab.data_root(victim).join("fill");
        let fill = fill.to_str().expect("a path");
        lab.on(victim, &["dd", "if=/dev/zero", &format!("of={fill}"), "bs=4k"]).fails("No space left on device");
        // Writes go on through the others, whoever led before. More of them than the log has place for in its file.
        let label = format!("filled={}", "x".repeat(60_000));
        for _ in 0..20 {
            let words = ["node", "update", "--label-add", &label, "self"];
            eventually(LATER, "a write through another manager", || lab.docker_words(through, &words).code == 0);
        }
        // It says why: in its log, and to whoever writes through it and is not served by the others.
        let log = lab.data_root(victim).parent().expect("the host's folder").join("daemon.log");
        eventually(LATER, "the full manager says why", || {
            std::fs::read_to_string(&log).unwrap_or_default().to_lowercase().contains("no space left on device")
        });
        let hostname = format!("node{victim}");
        let shown = ["node", "inspect", "--format", "{{.ManagerStatus.Reachability}}", &hostname];
        eventually(LATER, "the full manager is missed", || lab.docker_words(through, &shown).ok() == "unreachable");
        // With room again it goes on.
        lab.on(victim, &["rm", fill]).ok();
        replicas += 1;
        lab.scale(through, "web", replicas);
        eventually(LATER, "a write through the manager that was full", || {
            lab.docker(victim, "node update --label-add freed=yes self").code == 0
        });
        lab.await_exact(victim, &[("web", replicas)]);
    }
}
