//! Who belongs to the swarm: the root is rotated, tokens end, a removed node is out, and it is all on record.

use std::path::Path;
use std::process::Command;

use skep_e2e::{LATER, Lab, Ran, SOON, eventually};

#[test]
fn the_root_is_rotated_under_a_running_swarm() {
    let lab = Lab::swarm(1, 1);
    // conformance: works | docker swarm ca
    let before = lab.docker(1, "swarm ca").ok();
    assert!(before.starts_with("-----BEGIN CERTIFICATE-----"), "{before}");
    let token = lab.docker(1, "swarm join-token -q worker").ok();
    lab.docker(1, "swarm ca --cert-expiry 48h").fails("flag requires the `--rotate` flag");
    lab.docker(1, "swarm ca --rotate --cert-expiry 30m").fails("minimum certificate expiry time");
    assert_eq!(lab.docker(1, "swarm ca").ok(), before, "what was refused changed nothing");
    // conformance: works | docker swarm ca --rotate, --cert-expiry | with the CLI's progress; certificates change, tasks and streams go on
    let said = lab.docker(1, "swarm ca --rotate --cert-expiry 48h").ok();
    assert!(said.contains("desired root digest: sha256:"), "{said}");
    let after = lab.docker(1, "swarm ca").ok();
    assert_ne!(after, before);
    assert!(said.ends_with(&after), "the new root is shown at the end: {said}");
    let told = "{{.Swarm.Cluster.RootRotationInProgress}} {{.Swarm.Cluster.Spec.CAConfig.ForceRotate}} \
                {{.Swarm.Cluster.Spec.CAConfig.NodeCertExpiry}}";
    assert_eq!(lab.docker_words(1, &["info", "-f", told]).ok(), "false 1 48h0m0s");
    eventually(LATER, "no node needs rotation", || {
        lab.docker_words(1, &["node", "ls", "--format", "{{.Status}} {{.TLSStatus}}"])
            .stdout
            .lines()
            .eq(["Ready Ready", "Ready Ready"])
    });
    // The tokens pin the new root.
    assert_ne!(lab.docker(1, "swarm join-token -q worker").ok(), token);
    let remote = format!("{}:2377", lab.address(1));
    lab.docker(2, "swarm leave").ok();
    lab.docker(2, &format!("swarm join --token {token} {remote}")).fails("remote CA does not match fingerprint");
    let fresh = lab.docker(1, "swarm join-token -q worker").ok();
    lab.docker(2, &format!("swarm join --token {fresh} {remote}")).ok();
    // conformance: works | docker swarm ca --rotate --ca-cert, --ca-key | refused if they do not fit together
    let file = std::env::temp_dir().join(format!("skep-e2e-root-{}", std::process::id()));
    std::fs::write(&file, &before).expect("a temporary file");
    let path = file.to_str().expect("a path in UTF-8");
    lab.docker_words(1, &["swarm", "ca", "--rotate", "--ca-cert", path, "--ca-key", path]).fails("CA key");
    // conformance: works | docker swarm ca --rotate --external-ca | one that does not answer is refused; a CFSSL server that signs is in the tests of `node`
    let nowhere = format!("protocol=cfssl,url=https://127.0.0.1:1/api/v1/cfssl/sign,cacert={path}");
    lab.docker_words(1, &["swarm", "ca", "--rotate", "--ca-cert", path, "--external-ca", &nowhere])
        .fails("there must be at least one valid, reachable external CA corresponding to the desired CA certificate");
    let _ = std::fs::remove_file(&file);
    assert_eq!(lab.docker(1, "swarm ca").ok(), after);
}

/// `skep swarm join-token …` against host `node`.
fn join_token(lab: &Lab, node: usize, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(skep_e2e::skep_binary());
    command.args(["swarm", "--host", &format!("unix://{}", lab.socket(node)), "join-token"]).args(words);
    let output = command.output().expect("skep runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).trim_end().to_owned())
}

#[test]
fn tokens_end_and_removed_nodes_are_out() {
    let lab = Lab::hosts(3);
    if lab.is_dockerd() {
        return;
    }
    lab.docker(1, &format!("swarm init --advertise-addr {}", lab.address(1))).ok();
    let (made, said) = join_token(&lab, 1, &["create", "--role", "worker", "--ttl", "1h", "--uses", "1"]);
    assert!(made, "{said}");
    let line =
        said.lines().map(str::trim).find(|l| l.starts_with("docker swarm join --token SWMTKN-1-")).expect("a line");
    let line = line.trim_start_matches("docker ");
    let join = |node: usize| -> Ran { lab.docker(node, line) };
    // conformance: works | docker swarm join with a token that ends | skep swarm join-token create --ttl, --uses
    assert_eq!(join(2).ok(), "This node joined a swarm as a worker.");
    let refused = join(3).fails("the join token was good for 1 joins, all used");
    assert!(refused.contains("skep swarm join-token create --role worker"), "{refused}");
    assert_eq!(lab.docker_words(3, &["info", "-f", "{{.Swarm.LocalNodeState}}"]).ok(), "inactive");
    let (_, table) = join_token(&lab, 1, &["ls"]);
    let row: Vec<&str> = table.lines().nth(1).expect("one token").split_whitespace().collect();
    assert_eq!((row[1], row[2], row[4]), ("worker", "1/1", "ended"), "{table}");
    assert_eq!(join_token(&lab, 1, &["rm", row[0]]), (true, row[0].to_owned()));
    assert!(join_token(&lab, 2, &["ls"]).1.contains("This node is not a swarm manager."));

    // conformance: works | docker node rm --force of a living node | its certificate is refused from then on
    let count = || lab.docker(1, "node ls -q").stdout.lines().count();
    eventually(SOON, "two nodes", || count() == 2);
    lab.docker(1, "node rm node2").fails("is not down and can't be removed");
    assert_eq!(lab.docker(1, "node rm --force node2").ok(), "node2");
    assert_eq!(count(), 1);
    lab.docker(2, "swarm leave --force").ok();
    let token = lab.docker(1, "swarm join-token -q worker").ok();
    lab.docker(2, &format!("swarm join --token {token} {}:2377", lab.address(1))).ok();

    // Every change asked for is on record, and no token is.
    let folder = Path::new(lab.socket(1)).ancestors().nth(2).expect("a host has a folder");
    let log = std::fs::read_to_string(folder.join("data/audit.log")).expect("an audit log");
    for what in ["swarm.init", "swarm.join-token.create", "swarm.join-token.use", "node.join", "node.remove"] {
        assert!(log.lines().any(|l| l.contains(&format!("\"what\":\"{what}\""))), "{what} is not in {log}");
    }
    assert!(log.contains("\"who\":\"unix uid=0 pid="), "{log}");
    assert!(!log.contains("SWMTKN"), "{log}");
}
