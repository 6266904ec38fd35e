//! `skep network doctor`: what gets from host to host, and what to do where it does not.

use std::process::Command;

use skep_e2e::{LATER, Lab, eventually, skep_binary};

fn doctor(lab: &Lab, words: &[&str]) -> (bool, String) {
    let host = format!("unix://{}", lab.socket(1));
    let output = Command::new(skep_binary()).args(["network", "doctor", "--host", &host]).args(words).output();
    let output = output.expect("skep runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[track_caller]
fn finds(lab: &Lab, words: &[&str]) -> String {
    let (healthy, text) = doctor(lab, &[]);
    assert!(!healthy && words.iter().all(|word| text.contains(word)), "{text}");
    text
}

#[test]
fn what_does_not_get_from_host_to_host_is_told() {
    let lab = Lab::swarm(1, 2);
    if lab.is_dockerd() {
        return;
    }
    let mut seen = String::new();
    eventually(LATER, "everything gets through between new hosts", || {
        let (healthy, text) = doctor(&lab, &[]);
        seen = text;
        healthy
    });
    assert!(seen.ends_with("\nNothing is wrong.\n") && seen.contains("4789/UDP"), "{seen}");

    let nft = |words: &[&str]| lab.on(2, &[&["nft"], words].concat()).ok();
    nft(&["add", "table", "inet", "fw"]);
    nft(&["add", "chain", "inet", "fw", "in", "{ type filter hook input priority 0; }"]);
    nft(&["add", "rule", "inet", "fw", "in", "udp", "dport", "4789", "drop"]);
    let told = finds(&lab, &["Port 4789/udp of node2 is not reached from node1 and node3 (no packet arrives)"]);
    assert!(!told.contains("of node1 is not reached") && !told.contains("of node3 is not reached"), "{told}");
    nft(&["flush", "chain", "inet", "fw", "in"]);
    // An encrypted network has a port of its own.
    lab.docker(1, "network create --driver overlay --opt encrypted sealed").ok();
    nft(&["add", "rule", "inet", "fw", "in", "udp", "dport", "4790", "drop"]);
    finds(&lab, &["Port 4790/udp of node2 is not reached from node1 and node3"]);
    nft(&["delete", "table", "inet", "fw"]);

    lab.on(3, &["ip", "link", "set", "eth0", "mtu", "1400"]).ok();
    let told = finds(&lab, &["packets of 1400 bytes get through whole and larger ones do not", "driver.mtu=1350."]);
    assert!(told.contains("node1 to node3") && !told.contains("node1 to node2"), "{told}");
    lab.on(3, &["ip", "link", "set", "eth0", "mtu", "1500"]).ok();

    let (healthy, json) = doctor(&lab, &["--format", "json"]);
    let told: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (healthy, told["Healthy"].as_bool(), told["Pairs"].as_array().map(Vec::len)),
        (true, Some(true), Some(6))
    );

    lab.lab(&["partition", "node3"]).ok();
    eventually(LATER, "a host that is cut off is told", || {
        let (healthy, text) = doctor(&lab, &[]);
        !healthy && text.contains("Host node3 is down and was not looked at")
    });
}

#[test]
fn an_overlay_is_as_wide_as_the_narrowest_host() {
    let lab = Lab::hosts(2);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    let width = |mtu: &str| lab.on(2, &["ip", "link", "set", "eth0", "mtu", mtu]).ok();
    width("1400");
    lab.docker(1, &format!("swarm init --advertise-addr {}", lab.address(1))).ok();
    let token = lab.docker(1, "swarm join-token -q worker").ok();
    lab.docker(2, &format!("swarm join --token {token} {}:2377", lab.address(1))).ok();
    lab.docker(1, "network create --driver overlay narrow").ok();
    lab.docker(1, "service create --detach --name wide --mode global --network narrow busybox sleep 1000").ok();
    lab.await_running("wide", 2);
    for node in 1..=2 {
        let container = lab.docker(node, "ps -q --filter name=wide").ok();
        let mtu = lab.docker_words(node, &["exec", &container, "cat", "/sys/class/net/eth0/mtu"]).ok();
        assert_eq!(mtu, "1350", "on host {node}");
    }
    // A host that is not as it said says so again; what is there stays as it is.
    width("1380");
    eventually(LATER, "networks made from now on fit the link", || {
        lab.docker(1, "network create --driver overlay --attachable later").ok();
        let mtu = lab.docker(1, "run --rm --network later busybox cat /sys/class/net/eth0/mtu").ok();
        lab.docker(1, "network rm later").ok();
        mtu == "1330"
    });
}
