//! Whom the daemon gives a connection that it carries itself, as the rules give those that it does not.

use std::net::IpAddr;

use skep_model::plan::{Backend, Ring};

/// Backends that are tried for one connection.
const TRIES: usize = 3;

/// Whom to try for one connection, one after the other.
pub(crate) fn order(ring: &Ring<Backend>, turn: usize, client: IpAddr) -> Vec<Backend> {
    let length = ring.backends.len().max(1);
    let first = if ring.by_client { place(client) % length } else { turn % length };
    let mut order: Vec<Backend> = Vec::new();
    for backend in ring.backends[first..].iter().chain(&ring.backends[..first]) {
        if !order.contains(backend) {
            order.push(*backend);
        }
        if order.len() == TRIES {
            break;
        }
    }
    order
}

/// The same on every host: FNV-1a.
fn place(client: IpAddr) -> usize {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = match client {
        IpAddr::V4(ip) => ip.octets().iter().fold(0x811c_9dc5, step),
        IpAddr::V6(ip) => ip.octets().iter().fold(0x811c_9dc5, step),
    };
    (hash ^ (hash >> 15)) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;

    fn backend(last: u8) -> Backend {
        Backend { address: Ipv4Addr::new(127, 0, 0, last), port: 80 }
    }

    #[test]
    fn each_connection_begins_with_the_next_and_a_clients_always_with_the_same() {
        let client = "192.0.2.7".parse().unwrap();
        let mut ring = Ring::from(vec![backend(1), backend(2), backend(1), backend(3)]);
        assert_eq!(order(&ring, 1, client), [backend(2), backend(1), backend(3)]);
        assert_eq!(order(&ring, 6, client), [backend(1), backend(3), backend(2)]);
        ring.by_client = true;
        assert_eq!(order(&ring, 1, client), order(&ring, 2, client));
        let firsts: BTreeSet<_> =
            (1..50).map(|last| order(&ring, 1, Ipv4Addr::new(192, 0, 2, last).into())[0]).collect();
        assert_eq!(firsts.len(), 3, "other clients begin with others");
        assert!(order(&Ring::default(), 1, client).is_empty());
    }
}
