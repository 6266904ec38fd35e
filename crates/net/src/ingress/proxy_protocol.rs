//! The header of the PROXY protocol, version 2 (haproxy, `doc/proxy-protocol.txt`, section 2.2).

use std::net::SocketAddr;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// What a TCP connection begins with: who opened it, and the address and port it was opened to.
pub(super) fn header(client: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.push(VERSION_AND_COMMAND);
    match (client, destination) {
        (SocketAddr::V4(client), SocketAddr::V4(destination)) => {
            bytes.extend([TCP_OVER_IPV4, 0, 12]);
            bytes.extend(client.ip().octets());
            bytes.extend(destination.ip().octets());
        }
        (client, destination) => {
            bytes.extend([TCP_OVER_IPV6, 0, 36]);
            for address in [client, destination] {
                let ip = match address.ip() {
                    std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    std::net::IpAddr::V6(ip) => ip,
                };
                bytes.extend(ip.octets());
            }
        }
    }
    bytes.extend(client.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::header;

    #[test]
    fn the_bytes_are_the_specifications() {
        let v4 = header("192.0.2.7:50000".parse().unwrap(), "198.51.100.1:443".parse().unwrap());
        assert_eq!(
            v4,
            [
                0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, // signature
                0x21, 0x11, 0x00, 0x0c, // version 2, PROXY, TCP over IPv4, 12 bytes
                192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x50, 0x01, 0xbb,
            ]
        );
        let v6 = header("[2001:db8::7]:50000".parse().unwrap(), "[::1]:443".parse().unwrap());
        assert_eq!((v6.len(), &v6[12..16], &v6[48..]), (52, &[0x21, 0x21, 0, 36][..], &[0xc3, 0x50, 0x01, 0xbb][..]));
        assert_eq!((&v6[16..20], v6[47]), (&[0x20, 0x01, 0x0d, 0xb8][..], 1));
    }
}
