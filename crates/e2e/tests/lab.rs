//! `skep lab` itself: it comes up quickly, shows what it has, and leaves nothing.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use skep_e2e::{LATER, Lab, SOON, eventually};

/// Everything on this machine that carries the lab's name, or would be left by it.
fn traces(name: &str) -> String {
    let script = format!(
        "ls /run/netns 2>/dev/null | grep skep-{name}; grep skep-lab/{name} /proc/mounts; find /sys/fs/cgroup -path '*skep-lab/{name}*' -type d; \
         pgrep -af 'skep-lab/{name}/' ; ls -d /var/lib/skep-lab/{name} 2>/dev/null; true"
    );
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh runs");
    String::from_utf8_lossy(&output.stdout).lines().filter(|l| !l.contains("pgrep")).collect::<Vec<_>>().join("\n")
}

#[test]
fn five_hosts_come_up_and_go_without_a_trace() {
    let begun = Instant::now();
    let lab = Lab::swarm(1, 4);
    let took = begun.elapsed();
    // The bar is three seconds on two quiet cores; a test only keeps it from becoming absurd.
    assert!(took < Duration::from_secs(20), "{took:?}");
    lab.give_busybox();
    lab.docker(1, "service create --stop-grace-period 100ms --detach --name web --replicas 5 busybox sleep 1000").ok();
    lab.await_running("web", 5);
    let listed: Vec<Value> = serde_json::from_str(&lab.lab(&["ls", "--format", "json"]).ok()).expect("JSON");
    assert_eq!(listed.len(), 5);
    for key in ["name", "role", "address", "docker_host", "state"] {
        assert!(listed.iter().all(|row| row[key].is_string()), "{key}");
    }
    assert_eq!((&listed[0]["role"], &listed[4]["role"]), (&Value::from("manager"), &Value::from("worker")));
    assert_eq!(lab.on(3, &["hostname"]).ok(), "node3");
    assert_eq!(lab.on(3, &["sh", "-c", "exit 5"]).code, 5);
    lab.lab(&["kill", "node9"]).fails("no host named \"node9\"");
    lab.lab(&["start", "node2"]).fails("running already");
    lab.lab(&["kill", "node5"]).ok();
    lab.lab(&["exec", "node5", "--", "true"]).fails("is not running");
    let name = lab.name().to_owned();
    assert!(!traces(&name).is_empty(), "the check sees a lab that is up");
    drop(lab);
    eventually(LATER, "nothing is left", || {
        let left = traces(&name);
        if !left.is_empty() {
            eprintln!("left: {left}");
        }
        left.is_empty()
    });
}

/// `ip netns add` lays a mount over the folder of namespaces if it is the first on its machine.
#[test]
fn a_lab_goes_also_after_the_first_ip_netns_add() {
    let name = format!("e2e-{}", std::process::id());
    let script = format!(
        "umount -l /run/netns 2>/dev/null; \"$1\" lab up --name {name} --managers 1 --workers 0 --no-swarm || exit
         ip netns add {name}-probe; ip netns del {name}-probe; \"$1\" lab down --name {name}"
    );
    // A mount namespace of its own stands for the machine.
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(skep_e2e::skep_binary())
        .output()
        .expect("unshare runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(traces(&name), "");
}

#[test]
fn daemons_are_paused_packets_are_lost_and_disks_fill() {
    let lab = Lab::up(&["--workers", "1", "--no-swarm", "--disk", "256M"]);
    let row = |node: usize| {
        let listed: Vec<Value> = serde_json::from_str(&lab.lab(&["ls", "--format", "json"]).ok()).expect("JSON");
        listed[node - 1].clone()
    };
    // A paused daemon takes connections and answers nothing; then it does.
    lab.lab(&["pause", "node2"]).ok();
    assert_eq!(row(2)["state"], "paused");
    let ping = || {
        Command::new("curl")
            .args(["-sS", "--max-time", "1", "--unix-socket", lab.socket(2), "http://d/_ping"])
            .status()
            .expect("curl runs")
    };
    assert_eq!(ping().code(), Some(28), "no answer in time");
    lab.lab(&["resume", "node2"]).ok();
    assert!(ping().success() && row(2)["state"] == "running");
    // Packets, in one direction and by chance.
    let answered = |count: &str| {
        let said = lab.on(1, &["busybox", "ping", "-i", "0.02", "-c", count, "-W", "1", lab.address(2)]).stdout;
        let words = said.split_whitespace().collect::<Vec<_>>();
        let at = words.windows(2).position(|w| w == ["packets", "received,"]).expect("a summary");
        words[at - 1].parse::<u32>().expect("a number")
    };
    assert_eq!(answered("20"), 20);
    lab.lab(&["loss", "node2", "30"]).ok();
    assert_eq!((&row(2)["to_host_percent"], &row(2)["from_host_percent"]), (&Value::from(30), &Value::from(30)));
    // About half of the echoes: each way loses three of ten. Far from none and from all.
    assert!((1..40).contains(&answered("40")));
    lab.lab(&["loss", "node2", "100", "--from"]).ok();
    let heard = |node: usize| {
        let path = "/sys/class/net/eth0/statistics/rx_packets";
        lab.on(node, &["cat", path]).ok().parse::<u64>().expect("a number")
    };
    let before = heard(2);
    assert_eq!(answered("2"), 0);
    assert!(heard(2) > before, "the other direction goes on");
    // A host that starts again has the cable it had; healing ends every loss.
    lab.lab(&["kill", "node2"]).ok();
    lab.lab(&["start", "node2"]).ok();
    assert_eq!(answered("2"), 0);
    lab.lab(&["heal"]).ok();
    // Nobody asks at once for an address that did not answer.
    eventually(SOON, "every packet arrives", || answered("5") == 5);
    lab.lab(&["loss", "node2", "101"]).fails("101 is not in 0..=100");
    // A disk of its own: full without this machine's being so, and kept when the host dies.
    assert_eq!(row(1)["disk_bytes"], 256_u64 << 20);
    let root = lab.data_root(1);
    let disk = root.to_str().expect("a path");
    lab.on(1, &["dd", "if=/dev/zero", &format!("of={disk}/fill"), "bs=1M"]).fails("No space left on device");
    lab.lab(&["kill", "node1"]).ok();
    std::fs::remove_file(root.join("fill")).expect("the disk is there without the host");
    lab.lab(&["start", "node1"]).ok();
    let name = lab.name().to_owned();
    drop(lab);
    eventually(LATER, "nothing is left", || traces(&name).is_empty());
}
