//! A daemon that dies while a container is being started, and the next one.

use super::*;
use crate::supervisor::protocol::Request;

/// One that listens nowhere, in a folder of its own.
fn server(folder: &Path) -> Server {
    let listener = packet::listen(&folder.join("sock")).unwrap();
    let lock = std::fs::File::open("/dev/null").unwrap().into();
    Server::new(folder.to_owned(), folder.to_owned(), listener, block_signals().unwrap(), lock)
}

/// A start that a daemon asked for as its request 1; what a helper would write to says when it is done.
fn starting(server: &mut Server, id: &str) -> OwnedFd {
    let (ours, theirs) = packet::pair().unwrap();
    let launch = Launch { id: id.into(), ..Launch::default() };
    server.jobs.push(Job { seq: Some(1), launch, result: ours, stdin: None, stdout: None, stderr: None });
    theirs
}

/// A process that can be killed, as the one a helper started.
fn process() -> std::process::Child {
    std::process::Command::new("sleep").arg("1000").spawn().unwrap()
}

fn connects(server: &mut Server, folder: &Path) -> OwnedFd {
    let daemon = packet::connect(&folder.join("sock")).unwrap();
    server.accept();
    server.handle(Request { seq: 1, op: Op::Hello });
    server.greet();
    daemon
}

fn hears(daemon: &OwnedFd) -> Vec<Packet> {
    let mut buffer = vec![0; MAX_PACKET];
    let mut heard = Vec::new();
    while rustix::event::poll(&mut [PollFd::new(daemon, PollFlags::IN)], Some(&rustix::event::Timespec::default()))
        .is_ok_and(|ready| ready > 0)
    {
        let (len, _) = packet::receive(daemon, &mut buffer).unwrap().unwrap();
        heard.push(serde_json::from_slice(&buffer[..len]).unwrap());
    }
    heard
}

fn is_done(server: &mut Server, helper: &OwnedFd, pid: i32) {
    let outcome = serde_json::to_vec(&Outcome::Started { pid }).unwrap();
    packet::send(helper, &outcome, &[]).unwrap();
    let job = server.jobs.remove(0);
    server.finish(job);
    server.greet();
}

#[test]
fn a_new_daemon_hears_of_what_the_one_before_it_was_starting() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = server(folder.path());
    drop(connects(&mut server, folder.path()));
    let helper = starting(&mut server, "box");
    let daemon = connects(&mut server, folder.path());
    assert!(hears(&daemon).is_empty(), "it is kept waiting");
    let mut child = process();
    let pid = i32::try_from(child.id()).unwrap();
    is_done(&mut server, &helper, pid);
    // Not `Started`, which it would take for the answer to its own first request.
    let heard = hears(&daemon);
    assert!(
        matches!(&heard[..], [
            Packet::Notice(Notice::Known { id, pid: known, exit: None, .. }),
            Packet::Answer { seq: 1, answer: Answer::Hello { .. } },
        ] if id == "box" && *known == pid),
        "{heard:?}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_takes_longer_to_start_than_a_new_daemon_waits_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = server(folder.path());
    let helper = starting(&mut server, "box");
    let daemon = connects(&mut server, folder.path());
    server.greeting = server.greeting.map(|(seq, _)| (seq, Instant::now()));
    server.greet();
    assert!(matches!(hears(&daemon)[..], [Packet::Answer { seq: 1, answer: Answer::Hello { .. } }]));
    let mut child = process();
    is_done(&mut server, &helper, i32::try_from(child.id()).unwrap());
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(libc::SIGKILL));
    assert!(hears(&daemon).is_empty() && server.processes.is_empty());
}

#[test]
fn a_supervisor_of_an_older_build_does_not_seal() {
    let said = r#"{"answer":"hello","protocol":1,"version":"0.1.0","pid":7}"#;
    assert!(matches!(serde_json::from_str(said).unwrap(), Answer::Hello { seals: false, .. }));
}
