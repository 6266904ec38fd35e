//! Locked managers, a swarm that goes on from one manager, and backups.

use std::process::Command;
use std::time::Instant;

use skep_e2e::{LATER, Lab, SOON, eventually, skep_binary};

fn key_in(said: &str) -> String {
    let line = said.lines().map(str::trim).find(|line| line.starts_with("SWMKEY-1-"));
    line.unwrap_or_else(|| panic!("no unlock key in {said}")).to_owned()
}

/// The daemon of a host dies and comes back; its containers go on.
fn restart_daemon(lab: &Lab, node: usize) {
    let now = lab.on(node, &["cat", "/run/skep.pid"]).ok();
    lab.on(node, &["kill", "-9", &now]).ok();
    eventually(LATER, "the daemon is back", || {
        lab.docker(node, "ps").code == 0 && lab.on(node, &["cat", "/run/skep.pid"]).stdout.trim() != now
    });
}

#[test]
fn a_locked_manager_is_unlocked_with_the_key_and_its_containers_go_on() {
    let lab = Lab::swarm(1, 0);
    if lab.is_dockerd() {
        return; // Its containers end with the daemon.
    }
    lab.give_busybox();
    lab.docker(1, "service create --detach --name web --replicas 2 busybox sleep 1000").ok();
    lab.await_running("web", 2);
    lab.docker(1, "swarm unlock").fails("swarm is not locked");
    // conformance: works | docker swarm update --autolock
    let key = key_in(&lab.docker(1, "swarm update --autolock=true").ok());
    // conformance: works | docker swarm unlock-key
    assert_eq!(lab.docker(1, "swarm unlock-key -q").ok(), key);
    let containers = lab.docker(1, "ps -q").ok();
    assert_eq!(containers.lines().count(), 2);

    restart_daemon(&lab, 1);
    // conformance: works | docker info (Swarm: locked)
    eventually(SOON, "the manager is locked", || {
        lab.docker_words(1, &["info", "--format", "{{.Swarm.LocalNodeState}}"]).stdout.trim() == "locked"
    });
    lab.docker(1, "node ls").fails("Swarm is encrypted and needs to be unlocked before it can be used.");
    lab.docker(1, "swarm leave").fails("Swarm is encrypted and locked. Please unlock it first or use `--force`");
    assert_eq!(lab.docker(1, "ps -q").ok(), containers);
    // conformance: works | docker swarm unlock
    let wrong = format!("SWMKEY-1-{}\n", "A".repeat(43));
    lab.docker_with_input(1, &["swarm", "unlock"], wrong.as_bytes())
        .fails("swarm could not be unlocked: invalid key provided");
    lab.docker_with_input(1, &["swarm", "unlock"], b"nonsense\n").fails("invalid key string");
    lab.docker_with_input(1, &["swarm", "unlock"], format!("{key}\n").as_bytes()).ok();
    lab.await_running("web", 2);
    assert_eq!(lab.docker(1, "ps -q").ok(), containers);

    // conformance: works | docker swarm unlock-key --rotate
    let next = lab.docker(1, "swarm unlock-key --rotate -q").ok();
    assert!(next.starts_with("SWMKEY-1-") && next != key, "{next}");
    lab.docker(1, "swarm update --autolock=false").ok();
    lab.docker(1, "swarm unlock-key").fails("no unlock key is set");
    restart_daemon(&lab, 1);
    lab.await_running("web", 2);
}

#[test]
fn one_manager_of_three_goes_on_alone() {
    let lab = Lab::swarm(3, 1);
    lab.give_busybox();
    lab.docker(1, "service create --detach --name web --replicas 4 busybox sleep 1000").ok();
    lab.await_running("web", 4);
    lab.lab(&["kill", "node2"]).ok();
    lab.lab(&["kill", "node3"]).ok();
    let begun = Instant::now();
    // conformance: works | docker swarm init --force-new-cluster
    // conformance: differs | docker swarm init --force-new-cluster (other managers) | they are listed as workers that are down; one that comes back is a worker
    lab.docker(1, &format!("swarm init --force-new-cluster --advertise-addr {}", lab.address(1))).ok();
    println!("alone after {:?}", begun.elapsed());
    let format = "{{.Hostname}} {{.Status}} {{.ManagerStatus}}";
    eventually(LATER, "the others are down, the worker is back", || {
        lab.docker_words(1, &["node", "ls", "--format", format]).stdout.lines().map(str::trim).collect::<Vec<_>>()
            == ["node1 Ready Leader", "node2 Down", "node3 Down", "node4 Ready"]
    });
    eventually(LATER, "all runs on the two that are left", || {
        let running = lab.running("web");
        running.len() == 4 && running.iter().all(|(node, _)| node == "node1" || node == "node4")
    });
    lab.docker(1, "service scale --detach web=5").ok();
    lab.await_running("web", 5);
    lab.lab(&["start", "node2"]).ok();
    if !lab.is_dockerd() {
        eventually(LATER, "a lost manager comes back as a worker", || {
            lab.docker_words(1, &["node", "ls", "--format", format]).stdout.contains("node2 Ready")
        });
        eventually(LATER, "and may be promoted again", || lab.docker(1, "node promote node2").code == 0);
    }
}

/// `skep swarm …` against host `node`: exit code, and what it said.
fn skep(lab: &Lab, node: usize, words: &[&str]) -> (i32, String) {
    let mut command = Command::new(skep_binary());
    command.arg("swarm").args(words).env("DOCKER_HOST", format!("unix://{}", lab.socket(node)));
    let output = command.output().expect("skep runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_backup_is_restored_on_another_host() {
    let lab = Lab::hosts(2);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    lab.docker(1, &format!("swarm init --advertise-addr {}", lab.address(1))).ok();
    lab.docker_with_input(1, &["secret", "create", "password", "-"], b"horse").ok();
    lab.docker(1, "service create --detach --name web --secret password busybox sleep 1000").ok();
    lab.await_running("web", 1);
    let token = lab.docker(1, "swarm join-token -q worker").ok();
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(file("passphrase"), "correct horse\n").expect("written");
    let (whole, cut) = (file("swarm.backup"), file("cut.backup"));
    let (code, said) = skep(&lab, 1, &["backup", &whole, "--passphrase-file", &file("passphrase")]);
    assert!(code == 0 && said.contains("Sealed with the passphrase."), "{said}");
    let bytes = std::fs::read(&whole).expect("the backup");
    assert!(!bytes.windows(5).any(|window| window == b"horse"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&whole).expect("the backup").permissions());
    assert_eq!(mode & 0o777, 0o600);

    std::fs::write(&cut, &bytes[..bytes.len() - 100]).expect("written");
    let (code, said) = skep(&lab, 2, &["restore", &cut, "--passphrase-file", &file("passphrase")]);
    assert!(code == 1 && said.contains("cannot restore: the backup is truncated"), "{said}");
    assert_eq!(lab.docker_words(2, &["info", "--format", "{{.Swarm.LocalNodeState}}"]).ok(), "inactive");

    lab.lab(&["kill", "node1"]).ok();
    let with = ["--passphrase-file", &file("passphrase"), "--advertise-addr", lab.address(2)];
    let (code, said) = skep(&lab, 2, &[["restore", whole.as_str()].as_slice(), &with].concat());
    assert!(code == 0 && said.contains("is its only manager"), "{said}");
    assert_eq!(lab.docker(2, "swarm join-token -q worker").ok(), token);
    eventually(LATER, "the service runs here, with its secret", || {
        let id = lab.docker(2, "ps -q --filter status=running").ok();
        !id.is_empty() && lab.docker(2, &format!("exec {id} cat /run/secrets/password")).stdout == "horse"
    });
    let (code, said) = skep(&lab, 2, &["restore", &whole]);
    assert!(code == 1 && said.contains("use --force"), "{said}");
}
