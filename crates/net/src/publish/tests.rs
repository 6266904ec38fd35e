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
        address: Ipv4Addr::new(172, 17, 0, 2),
        binding: Ipv4Addr::UNSPECIFIED,
    };
    ports.publish(&target, requests)
}

#[test]
fn a_port_is_given_once_and_comes_back() {
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

#[test]
fn a_strangers_port_is_refused_and_nothing_is_kept() {
    let mut ports = Ports::new();
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = stranger.local_addr().unwrap().port();
    let requests = [request((0, 0), Protocol::Udp), request((port, port), Protocol::Tcp)];
    let error = publish(&mut ports, 1, &requests).unwrap_err().to_string();
    let text = format!("failed to bind host port for 127.0.0.1:{port}:172.17.0.2:80/tcp: address already in use");
    assert!(error.ends_with(&text), "{error}");
    assert_eq!(ports.published().count(), 0);
    let next = publish(&mut ports, 1, &[request((port, port.saturating_add(20)), Protocol::Tcp)]).unwrap();
    assert!(next[0].host_port > port);
}

#[test]
fn what_is_not_served_is_refused() {
    let mut ports = Ports::new();
    let error = publish(&mut ports, 1, &[request((9, 9), Protocol::Sctp)]).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::NotImplemented);
    let v6 = PublishRequest { host_ip: Some("::1".parse().unwrap()), ..request((9, 9), Protocol::Tcp) };
    assert_eq!(publish(&mut ports, 1, &[v6]).unwrap_err().kind(), crate::ErrorKind::NotImplemented);
}
