//! A container's sockets, seen from outside: whether it listens yet, and whether it still has clients.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Packets that were on their way when the last balancer left it off are there by then. On a busy host some take tens of
/// milliseconds.
const QUIET: Duration = Duration::from_millis(100);
/// Between looks at all sockets of a namespace, for which the kernel walks a table of the whole host.
const PAUSE: Duration = Duration::from_millis(20);

/// Returns when no connection is under way to a container, or after `at_most`. `pid` is any of its processes.
pub(super) async fn quiet(pid: i32, at_most: Duration) {
    let begun = Instant::now();
    let mut last_client = begun;
    while begun.elapsed() < at_most && last_client.elapsed() < QUIET {
        let asleep = Instant::now();
        sleep(PAUSE).await;
        // Where we wake up late, packets are late, too.
        let overslept = asleep.elapsed() > 2 * PAUSE;
        if overslept || has_clients(&tables(pid)) {
            last_client = Instant::now();
        }
    }
}

/// Returns when the container listens on one of the ports, does not run any more, or after `at_most`.
pub(super) async fn listening(pid: i32, ports: &[u16], at_most: Duration, runs: impl Fn() -> bool) {
    let deadline = Instant::now() + at_most;
    while !listens(&tables(pid), ports) && runs() && Instant::now() < deadline {
        sleep(LOOK).await;
    }
}

/// A program that listens at once does so within a few milliseconds.
const LOOK: Duration = Duration::from_millis(5);

/// Lines of `/proc/net/tcp` in the container's namespace.
fn tables(pid: i32) -> String {
    let read = |name: &&str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).ok();
    ["tcp", "tcp6"].iter().filter_map(read).collect()
}

/// On an address that others reach.
fn listens(tables: &str, ports: &[u16]) -> bool {
    tables.lines().any(|line| {
        let loopback = line.contains(" 0100007F:") || line.contains(" 00000000000000000000000001000000:");
        let port =
            socket(line).filter(|(_, state)| *state == LISTEN).and_then(|(p, _)| u16::from_str_radix(p, 16).ok());
        !loopback && port.is_some_and(|port| ports.contains(&port))
    })
}

/// Of the kernel's `tcp_states.h`.
const LISTEN: u8 = 0x0a;
/// Established, a handshake that is not over, and everything in which this side has not sent or not yet been acknowledged
/// all: SYN_RECV, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, CLOSING, NEW_SYN_RECV.
const UNDER_WAY: [u8; 7] = [0x01, 0x03, 0x04, 0x08, 0x09, 0x0b, 0x0c];

fn has_clients(tables: &str) -> bool {
    let sockets: Vec<(&str, u8)> = tables.lines().filter_map(socket).collect();
    let listening: BTreeSet<&str> =
        sockets.iter().filter(|(_, state)| *state == LISTEN).map(|(port, _)| *port).collect();
    sockets.iter().any(|(port, state)| UNDER_WAY.contains(state) && listening.contains(port))
}

/// The local port in hex, and the state.
fn socket(line: &str) -> Option<(&str, u8)> {
    let mut words = line.split_whitespace().skip(1);
    let (_, port) = words.next()?.rsplit_once(':')?;
    Some((port, u8::from_str_radix(words.nth(1)?, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::{has_clients, listens};

    const LISTENS: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n";

    #[test]
    fn it_listens_where_others_reach_it() {
        assert!(listens(LISTENS, &[443, 80]) && !listens(LISTENS, &[443]) && !listens("", &[80]));
        assert!(!listens(&LISTENS.replace("00000000:0050", "0100007F:0050"), &[80]));
    }

    #[test]
    fn only_what_a_listening_socket_took_counts_and_only_until_it_is_answered() {
        let with = |line: &str| has_clients(&format!("{LISTENS}{line}"));
        assert!(!with(""));
        assert!(with("   1: 0F02000A:0050 FE02000A:C001 01 00000000:00000000 00:00000000 00000000 0 0 2"));
        assert!(with("   1: 0F02000A:0050 FE02000A:C001 03 00000000:00000000 00:00000000 00000000 0 0 2"));
        assert!(
            !with("   1: 0F02000A:0050 FE02000A:C001 06 00000000:00000000 00:00000000 00000000 0 0 2"),
            "TIME_WAIT"
        );
        assert!(!with("   1: 0F02000A:C050 FE02000A:0050 01 00000000:00000000 00:00000000 00000000 0 0 2"), "its own");
    }
}
