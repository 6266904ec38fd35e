//! `skep service explain`: why a service is not as asked, over the daemon's API.

use std::process::Command;

use skep_e2e::{LATER, Lab, eventually, skep_binary};

fn explain(lab: &Lab, node: usize, words: &[&str]) -> (bool, String) {
    let host = format!("unix://{}", lab.socket(node));
    let output = Command::new(skep_binary()).args(["service", "explain", "--host", &host]).args(words).output();
    let output = output.expect("skep runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[track_caller]
fn await_words(lab: &Lab, service: &str, words: &[&str]) {
    let mut seen = String::new();
    eventually(LATER, &format!("{words:?} about {service}"), || {
        let now = explain(lab, 1, &[service]).1;
        if now != seen {
            eprintln!("{now}");
            seen = now;
        }
        words.iter().all(|w| seen.contains(w))
    });
}

#[test]
fn a_service_that_is_not_as_asked_is_explained() {
    let lab = Lab::swarm(1, 1);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    let create =
        |line: &str| lab.docker(1, &format!("service create --stop-grace-period 100ms --detach --name {line}")).ok();
    create("fine --replicas 2 busybox sleep 1000");
    lab.await_running("fine", 2);
    await_words(&lab, "fine", &["fine: 2 of 2 replicas running, on node1 and node2.\nIt is as asked.\n"]);
    create("big --reserve-memory 900g busybox sleep 1000");
    await_words(
        &lab,
        "big",
        &["big.1 waits for a node", "insufficient resources on 2 nodes", "Each task reserves 900 GiB"],
    );
    create("ghost --no-resolve-image --restart-delay 1s node1:5999/ghost:1");
    await_words(&lab, "ghost", &["ghost.1 could not run on node", "No such image: node1:5999/ghost:1", "docker pull"]);
    create("crash --restart-delay 300ms busybox false");
    await_words(&lab, "crash", &["crash.1 ended on node", "task: non-zero exit (1)", "docker service logs crash"]);
    lab.docker(1, "service update --detach --update-delay 4s --args false fine").ok();
    await_words(&lab, "fine", &["Its update is paused with 1 task still as before", "docker service rollback fine"]);
    lab.docker(1, "service rollback --detach fine").ok();
    lab.await_running("fine", 2);
    lab.docker(1, "node update --availability drain node2").ok();
    create("there --constraint node.hostname==node2 busybox sleep 1000");
    await_words(&lab, "there", &["there.1 waits for a node", "`node.hostname==node2`", "node2 is drained"]);
    let (well, json) = explain(&lab, 1, &["--format", "json", "there"]);
    let told: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(well && told["AsAsked"] == false && told["Findings"][0]["About"] == "placement", "{json}");
    let (well, said) = explain(&lab, 1, &["nobody"]);
    assert!(!well && said.contains("service nobody not found"), "{said}");
    let (well, said) = explain(&lab, 2, &["fine"]);
    assert!(!well && said.contains("This node is not a swarm manager."), "{said}");
}
