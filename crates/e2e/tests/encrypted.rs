//! Encrypted overlays, by what passes between the hosts. Not run against dockerd: it takes such a network, and without ESP in
//! the kernel, as here, runs no task on it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use skep_e2e::{Following, LATER, Lab, SOON, eventually};

const MARKER: &str = "what-nobody-between-may-read";
const VXLAN_PORT: u16 = 4789;
const SEALED_PORT: u16 = 4790;

/// `tcpdump` on a host's underlay, into a file.
struct Capture {
    file: PathBuf,
    _tcpdump: Following,
    _folder: tempfile::TempDir,
}

impl Capture {
    fn start(lab: &Lab, node: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("frames.pcap");
        let mut command = Command::new(skep_e2e::skep_binary());
        command.args(["lab", "exec", "--name", lab.name(), &format!("node{node}"), "--"]);
        command
            .args(["tcpdump", "--immediate-mode", "-Z", "root", "-i", "eth0", "-s", "0", "-U", "-w"])
            .arg(&file)
            .args(["not", "tcp", "port", "2377"]);
        command.stdin(Stdio::null());
        let tcpdump = Following::start(command);
        eventually(SOON, "tcpdump, which must be installed, listens", || file.exists());
        Self { file, _tcpdump: tcpdump, _folder: folder }
    }

    /// The frames so far.
    fn frames(&self) -> Vec<Vec<u8>> {
        frames_of(&self.file)
    }
}

/// Of a pcap file: a header of 24 bytes, then each frame after 16 bytes that say how long it is.
fn frames_of(file: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(file).expect("tcpdump wrote it");
    let mut rest = bytes.get(24..).unwrap_or_default();
    let mut frames = Vec::new();
    while let Some(head) = rest.get(8..12) {
        let length = u32::from_le_bytes(head.try_into().expect("four bytes")) as usize;
        let Some(frame) = rest.get(16..16 + length) else { break };
        frames.push(frame.to_vec());
        rest = &rest[16 + length..];
    }
    frames
}

/// Payload of a frame that is UDP to this port.
fn datagram(frame: &[u8], port: u16) -> Option<&[u8]> {
    let udp = frame.get(34..)?;
    (frame[12..14] == [8, 0] && frame[23] == 17 && udp.get(2..4)? == port.to_be_bytes()).then(|| &udp[8..])
}

fn generation(sealed: &[u8]) -> u32 {
    u32::from_be_bytes(sealed[4..8].try_into().expect("four bytes"))
}

/// A command in the running task of a service.
fn within(lab: &Lab, node: usize, service: &str, command: &[&str]) -> skep_e2e::Ran {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    let id = lab.docker_words(node, &["container", "ls", "-q", "--filter", &filter]).ok();
    lab.docker_words(node, &[&["exec", id.as_str()], command].concat())
}

#[test]
fn tasks_reach_one_another_and_nothing_is_clear_while_keys_rotate_and_a_daemon_restarts() {
    let lab = Lab::swarm(1, 3);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    // conformance: differs | docker network create --opt encrypted | sealed by the daemon over UDP on the port after VXLAN's, on any kernel, instead of ESP; MTU 1390
    lab.docker(1, "network create --driver overlay --attachable --opt encrypted vault").ok();
    let options = || lab.docker_words(1, &["network", "inspect", "-f", "{{json .Options}}", "vault"]).ok();
    let expected = r#"{"com.docker.network.driver.overlay.vxlanid_list":"4097","encrypted":""}"#;
    eventually(SOON, "it has its number", || options() == expected);
    let serve = format!("mkdir /www; for i in $(seq 2000); do echo {MARKER}; done > /www/index.html; httpd -f -h /www");
    let place = |node: usize| format!("node.hostname==node{node}");
    for (name, node, script) in [("server", 2, serve.as_str()), ("client", 3, "exec sleep 100000")] {
        let words = ["service", "create", "--detach", "--name", name, "--network", "vault", "--constraint"];
        lab.docker_words(1, &[&words[..], &[&place(node), "busybox", "sh", "-c", script]].concat()).ok();
        lab.await_running(name, 1);
    }
    let capture = Capture::start(&lab, 2);
    // By the service's name and by its task's.
    let fetch = |name: &str| within(&lab, 3, "client", &["timeout", "5", "wget", "-qO-", &format!("http://{name}/")]);
    let reached = |name: &str| fetch(name).stdout.lines().filter(|line| *line == MARKER).count() == 2000;
    eventually(LATER, "the server by its name", || reached("server"));
    eventually(SOON, "the server's task by its name", || reached("tasks.server"));
    assert!(within(&lab, 3, "client", &["ip", "link"]).ok().contains("mtu 1390"));

    // A node that is removed takes no key along that is still good: all of them go, one after the other.
    lab.docker(4, "swarm leave").ok();
    eventually(LATER, "node4 is removed", || lab.docker(1, "node rm --force node4").code == 0);
    let newest = || {
        let frames = capture.frames();
        frames.iter().filter_map(|frame| datagram(frame, SEALED_PORT)).map(generation).max().unwrap_or_default()
    };
    eventually(LATER * 2, "three rotations", || {
        assert!(reached("server"), "traffic goes on while keys rotate");
        newest() >= 4
    });

    // The server's host forgets all it had in memory; its task goes on.
    let task = lab.running("server");
    let container = lab.docker(2, "ps -q").ok();
    let daemon = lab.on(2, &["cat", "/run/skep.pid"]).ok();
    lab.on(2, &["kill", "-9", &daemon]).ok();
    let _ = fetch("server");
    eventually(LATER, "the server again", || reached("server"));
    assert_eq!(lab.running("server"), task);
    assert_eq!(lab.docker(2, "ps -q").ok(), container, "its container is the same");
    assert!(reached("server") && reached("tasks.server"));

    let frames = capture.frames();
    let clear = |frame: &&Vec<u8>| frame.windows(MARKER.len()).any(|part| part == MARKER.as_bytes());
    assert_eq!(frames.iter().filter(clear).count(), 0, "in the clear");
    let vnis: Vec<&[u8]> = frames.iter().filter_map(|f| datagram(f, VXLAN_PORT)).map(|vxlan| &vxlan[4..7]).collect();
    assert!(!vnis.contains(&&[0, 16, 1][..]), "of this network by VXLAN");
    let sealed = frames.iter().filter_map(|frame| datagram(frame, SEALED_PORT));
    assert!(sealed.map(<[u8]>::len).sum::<usize>() > 6 * 2000 * MARKER.len(), "it did go this way");
}

#[test]
fn the_mesh_runs_over_an_encrypted_ingress_network() {
    let lab = Lab::swarm(1, 1);
    if lab.is_dockerd() {
        return;
    }
    // conformance: works | docker network rm ingress, create --ingress --opt encrypted
    lab.docker_with_input(1, &["network", "rm", "ingress"], b"y\n").ok();
    lab.docker(1, "network create --driver overlay --ingress --opt encrypted entrance").ok();
    lab.docker(1, "service create --detach --name web --replicas 2 --publish 8080:80 skep/whoami").ok();
    lab.await_running("web", 2);
    let capture = Capture::start(&lab, 2);
    let machine =
        lab.address(1).rsplit_once('.').map(|(net, _)| format!("RemoteAddr: {net}.254:")).expect("an address");
    for node in [1, 2] {
        let mut seen = std::collections::BTreeSet::new();
        eventually(LATER, "both tasks through this host", || {
            let answer = lab.curl(&format!("http://{}:8080/{MARKER}", lab.address(node))).stdout;
            seen.extend(answer.lines().find(|line| line.starts_with("Hostname:")).map(str::to_owned));
            assert!(answer.is_empty() || answer.contains(&machine), "the client is who it is: {answer}");
            seen.len() == 2
        });
    }
    let mut frames = Vec::new();
    eventually(SOON, "sealed frames", || {
        frames = capture.frames();
        frames.iter().any(|frame| datagram(frame, SEALED_PORT).is_some())
    });
    assert!(!frames.iter().any(|frame| datagram(frame, VXLAN_PORT).is_some()), "no network but an encrypted one");
}
