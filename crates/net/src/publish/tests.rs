use super::*;

fn request(port: (u16, u16), protocol: Protocol) -> PublishRequest {
    let host_ip = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    PublishRequest { container_port: 80, protocol, host_ip, host_ports: port }
}

fn publish(ports: &mut Ports, container: u128, requests: &[PublishRequest]) -> Result<Vec<PublishedPort>> {
    let target = Target {
        container: &ContainerId::from_bits([0, container]),
        name: "web",
        endpoint_id: &EndpointId::from_bits([0, 5]),
        address: Ipv4Addr::LOCALHOST,
        address6: None,
        binding: Ipv4Addr::UNSPECIFIED,
    };
    ports.publish(&target, requests)
}

#[tokio::test]
async fn a_port_is_given_once_and_comes_back() {
    let mut ports = Ports::new();
    let first = publish(&mut ports, 1, &[request((0, 0), Protocol::Tcp), request((0, 0), Protocol::Udp)]).unwrap();
    let port = first[0].host_port;
    assert!(port >= ports.ephemeral.0);
    let error = publish(&mut ports, 2, &[request((port, port), Protocol::Tcp)]).unwrap_err().to_string();
    let id = format!("{:064x}", 5);
    assert_eq!(
        error,
        format!(
            "driver failed programming external connectivity on endpoint web ({id}): Bind for 127.0.0.1:{port} failed: \
             port is already allocated"
        )
    );
    assert_eq!(ports.release(&ContainerId::from_bits([0, 1])).len(), 2);
    assert!(publish(&mut ports, 2, &[request((port, port), Protocol::Tcp)]).is_ok());
}

#[tokio::test]
async fn a_strangers_port_is_refused_and_nothing_is_kept() {
    let mut ports = Ports::new();
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = stranger.local_addr().unwrap().port();
    let requests = [request((0, 0), Protocol::Udp), request((port, port), Protocol::Tcp)];
    let error = publish(&mut ports, 1, &requests).unwrap_err().to_string();
    let text = format!("failed to bind host port for 127.0.0.1:{port}:127.0.0.1:80/tcp: address already in use");
    assert!(error.ends_with(&text), "{error}");
    assert_eq!(ports.published().count(), 0);
    let next = publish(&mut ports, 1, &[request((port, port.saturating_add(20)), Protocol::Tcp)]).unwrap();
    assert!(next[0].host_port > port);
}

#[tokio::test]
async fn what_is_not_served_is_refused() {
    let mut ports = Ports::new();
    let error = publish(&mut ports, 1, &[request((9, 9), Protocol::Sctp)]).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::NotImplemented);
}

/// A server at a port of 127.0.0.1 that answers with what it is sent.
async fn echo() -> u16 {
    let stream = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = stream.local_addr().unwrap().port();
    let datagrams = tokio::net::UdpSocket::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = stream.accept().await {
            let (mut from, mut to) = client.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
    });
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((length, client)) = datagrams.recv_from(&mut buffer).await {
            let _ = datagrams.send_to(&buffer[..length], client).await;
        }
    });
    port
}

#[tokio::test]
async fn a_port_on_ipv6_is_carried_to_the_container_and_ends_with_it() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut ports = Ports::new();
    let inside = echo().await;
    let asked = |protocol, host_ip| PublishRequest { container_port: inside, host_ip, ..request((0, 0), protocol) };
    let both = publish(&mut ports, 1, &[asked(Protocol::Tcp, None), asked(Protocol::Udp, None)]).unwrap();
    let hosts: Vec<_> = both.iter().map(|port| (port.protocol, port.host_ip.to_string())).collect();
    let of = |protocol, host: &str| (protocol, host.to_owned());
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    assert_eq!(hosts, [of(tcp, "0.0.0.0"), of(tcp, "::"), of(udp, "0.0.0.0"), of(udp, "::")]);
    assert_eq!(both[0].host_port, both[1].host_port);
    let six = Some("::1".parse().unwrap());
    let same = PublishRequest { host_ports: (both[1].host_port, both[1].host_port), ..asked(tcp, six) };
    let error = publish(&mut ports, 2, &[same]).unwrap_err().to_string();
    assert!(error.ends_with(&format!("Bind for [::1]:{} failed: port is already allocated", both[1].host_port)));

    let mut client = tokio::net::TcpStream::connect(("::1", both[1].host_port)).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "hello");

    let socket = tokio::net::UdpSocket::bind("[::1]:0").await.unwrap();
    socket.connect(("::1", both[3].host_port)).await.unwrap();
    let mut buffer = [0; 64];
    for _ in 0..2 {
        socket.send(b"datagram").await.unwrap();
        assert_eq!(socket.recv(&mut buffer).await.unwrap(), 8);
    }
    ports.release(&ContainerId::from_bits([0, 1]));
    let refused = async {
        while tokio::net::TcpStream::connect(("::1", both[1].host_port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), refused).await.unwrap();
}
