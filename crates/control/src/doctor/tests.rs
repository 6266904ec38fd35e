//! What hosts found, and what is said of it.

use skep_model::doctor::{Diagnosis, Feature, ProbeReport};

use super::{Asked, diagnose, requests};
use crate::tests::World;

/// Three hosts between which everything gets through, changed by `amiss`: (host's place, its report, its clock).
fn told(world: &World, amiss: impl Fn(usize, &mut ProbeReport, &mut i64)) -> Diagnosis {
    let requests = requests(world.view(), 7);
    let asked: Vec<Asked> = requests
        .iter()
        .enumerate()
        .map(|(place, (host, request))| {
            let mut report = ProbeReport { kernel: "6.1".into(), ..ProbeReport::default() };
            for from in (0..request.hosts.len()).filter(|from| *from != place) {
                let from = u16::try_from(from).unwrap();
                report.heard.extend(request.udp.iter().map(|port| (from, *port, 100)));
                report.heard.extend(request.sizes.iter().map(|size| (from, request.udp[0], *size)));
            }
            let mut clock_ms = 3;
            amiss(place, &mut report, &mut clock_ms);
            Asked { answer: Ok((report, clock_ms)), ..host.clone() }
        })
        .collect();
    diagnose(world.view(), &asked)
}

fn says(diagnosis: &Diagnosis) -> Vec<&str> {
    diagnosis.findings.iter().map(|finding| finding.says.as_str()).collect()
}

#[test]
fn where_all_gets_through_nothing_is_said() {
    let world = World::new(3);
    let told = told(&world, |_, _, _| {});
    assert_eq!((says(&told), told.healthy, told.pairs.len()), (vec![], true, 6));
}

#[test]
fn a_closed_port_is_told_once_with_everybody_who_does_not_reach_it() {
    let world = World::new(3);
    let told = told(&world, |place, report, _| {
        if place == 1 {
            report.heard.retain(|(_, port, _)| *port != 4789);
        }
    });
    let expected = "Port 4789/udp of n2 is not reached from n1 and n3 (no packet arrives): containers on overlay networks do not \
                    reach one another between these hosts.";
    assert_eq!((says(&told), told.healthy), (vec![expected], false));
    assert!(told.findings[0].advice.starts_with("Let 4789/udp from the other hosts through the firewalls of n2"));
}

#[test]
fn a_host_that_nothing_reaches_is_told_once() {
    let world = World::new(3);
    let told = told(&world, |place, report, _| match place {
        2 => report.heard.clear(),
        _ => report.refused.extend([("192.168.0.3:7946".parse().unwrap(), "no answer".into())]),
    });
    assert_eq!(says(&told), ["Nothing gets from n1 and n2 to n3 (192.168.0.3), at none of the ports."]);
}

#[test]
fn a_way_that_is_too_narrow_is_told_with_the_mtu_that_fits() {
    let world = World::new(2);
    let told = told(&world, |place, report, _| {
        if place == 0 {
            report.heard.retain(|(_, _, size)| *size <= 1400);
        }
    });
    assert_eq!((says(&told).len(), told.healthy), (1, false));
    let expected =
        "From n2 to n1 packets of 1400 bytes get through whole and larger ones do not; networks with an MTU of 1450 ";
    assert!(told.findings[0].says.starts_with(expected), "{:?}", told.findings);
    assert!(told.findings[0].advice.ends_with("=1350."), "{:?}", told.findings);
}

#[test]
fn clocks_and_kernels_are_told_and_what_is_only_worth_knowing_is_not_wrong() {
    let world = World::new(2);
    let lacking = told(&world, |place, report, clock_ms| match place {
        0 => report.lacks = [Feature::Vxlan].into(),
        _ => *clock_ms = -3200,
    });
    assert_eq!(
        says(&lacking),
        [
            "The kernel of n1 (6.1) makes no VXLAN links: no overlay network works on it.",
            "The clock of n2 is 3.2 s behind this manager's: certificates may be refused, and times in logs mislead.",
        ]
    );
    let old = told(&world, |_, report, _| report.lacks = [Feature::WayBack].into());
    assert_eq!((old.findings.len(), old.healthy), (2, true));
}

#[test]
fn a_host_that_is_down_or_silent_is_told() {
    let mut world = World::new(3);
    world.kill("n3");
    let mut asked: Vec<Asked> = requests(world.view(), 7).into_iter().map(|(host, _)| host).collect();
    asked[0].answer = Ok(Default::default());
    let told = diagnose(world.view(), &asked);
    assert_eq!(
        says(&told),
        [
            "Host n3 is down and was not looked at: heartbeat failure.",
            "Host n2 could not be asked, so nothing is known of what reaches it: it was not asked.",
        ]
    );
    assert_eq!((told.hosts.len(), told.healthy), (2, false));
}
