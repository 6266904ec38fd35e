//! `skep lab` itself: it comes up quickly, shows what it has, and leaves nothing.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use skep_e2e::{LATER, Lab, eventually};

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
