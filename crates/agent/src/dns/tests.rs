use super::*;

fn zone(network: &str, internal: bool, names: &[(&str, &[u8])]) -> Zone {
    let mut zone = Zone { network_name: network.to_owned(), internal, ..Zone::default() };
    for (name, addresses) in names {
        let addresses: Vec<Ipv4Addr> = addresses.iter().map(|last| Ipv4Addr::new(10, 0, 1, *last)).collect();
        for address in &addresses {
            zone.addresses.entry(*address).or_default().push((*name).to_owned());
        }
        zone.names.insert((*name).to_owned(), addresses);
    }
    zone
}

fn ask(zones: &[Zone], name: &str) -> Answer {
    answer(&zones.iter().collect::<Vec<_>>(), &Question::A(name.to_owned()))
}

fn addresses(list: &[u8]) -> Answer {
    Answer::A(list.iter().map(|last| Ipv4Addr::new(10, 0, 1, *last)).collect())
}

#[test]
fn the_first_network_that_knows_a_name_wins_unless_one_is_named() {
    let zones = [zone("front", false, &[("web", &[2])]), zone("Back", false, &[("web", &[3]), ("db", &[4, 5])])];
    assert_eq!(ask(&zones, "web"), addresses(&[2]));
    assert_eq!(ask(&zones, "web.back"), addresses(&[3]));
    assert_eq!(ask(&zones, "WEB.front"), addresses(&[2]));
    assert_eq!(ask(&zones, "db"), addresses(&[4, 5]));
    assert_eq!(ask(&zones, "db.front"), Answer::Forward);
    assert_eq!(ask(&zones, "example.com"), Answer::Forward);
}

#[test]
fn names_and_networks_may_have_dots() {
    let zones = [zone("my.net", false, &[("tasks.web", &[2]), ("a.b", &[3])])];
    assert_eq!(ask(&zones, "tasks.web"), addresses(&[2]));
    assert_eq!(ask(&zones, "tasks.web.my.net"), addresses(&[2]));
    assert_eq!(ask(&zones, "a.b.my.net"), addresses(&[3]));
}

#[test]
fn a_name_of_ours_never_goes_upstream() {
    let zones = [zone("front", false, &[("web", &[2]), ("empty", &[])])];
    let list: Vec<&Zone> = zones.iter().collect();
    assert_eq!(ask(&zones, "empty"), Answer::NoData);
    assert_eq!(answer(&list, &Question::Aaaa("web".into())), Answer::NoData);
    assert_eq!(answer(&list, &Question::Other("web.front".into())), Answer::NoData);
    assert_eq!(answer(&list, &Question::Srv("_http._tcp.web".into())), Answer::NoData);
    assert_eq!(answer(&list, &Question::Srv("_http._tcp.example.com".into())), Answer::Forward);
    assert_eq!(answer(&list, &Question::Aaaa("example.com".into())), Answer::Forward);
}

#[test]
fn internal_networks_are_sealed_only_when_there_is_no_other() {
    let sealed = [zone("inner", true, &[("db", &[4])])];
    assert_eq!(ask(&sealed, "db"), addresses(&[4]));
    assert_eq!(ask(&sealed, "example.com"), Answer::NxDomain);
    assert_eq!(answer(&[&sealed[0]], &Question::Ptr([8, 8, 8, 8].into())), Answer::NxDomain);
    let open = [sealed[0].clone(), zone("outer", false, &[])];
    assert_eq!(ask(&open, "example.com"), Answer::Forward);
    assert_eq!(ask(&[], "example.com"), Answer::Forward);
}

#[test]
fn addresses_have_names_with_their_network() {
    let zones = [zone("front", false, &[("web", &[2])])];
    let list: Vec<&Zone> = zones.iter().collect();
    assert_eq!(answer(&list, &Question::Ptr([10, 0, 1, 2].into())), Answer::Ptr(vec!["web.front".into()]));
    assert_eq!(answer(&list, &Question::Ptr([10, 0, 1, 9].into())), Answer::Forward);
}

#[test]
fn ipv6_addresses_are_found_by_the_names_of_the_others() {
    let mut six = zone("six", false, &[("web", &[2]), ("db", &[4, 5]), ("none", &[])]);
    let of = |last: u8| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last));
    six.six = [2, 4, 5].map(|last| (Ipv4Addr::new(10, 0, 1, last), of(last))).into();
    let zones = [zone("four", false, &[("web", &[9]), ("old", &[8])]), six];
    let zones: Vec<&Zone> = zones.iter().collect();
    let asked = |name: &str| answer(&zones, &Question::Aaaa(name.to_owned()));
    assert_eq!(asked("db"), Answer::Aaaa(vec![of(4), of(5)]));
    assert_eq!(asked("web.six"), Answer::Aaaa(vec![of(2)]));
    // The first network that knows a name answers for both kinds of addresses, so that they are of one container.
    assert_eq!(asked("web"), Answer::NoData);
    assert_eq!((asked("old"), asked("none")), (Answer::NoData, Answer::NoData));
    assert_eq!(asked("example.com"), Answer::Forward);
    assert_eq!(answer(&zones, &Question::Ptr(of(4).into())), Answer::Ptr(vec!["db.six".into()]));
    assert_eq!(answer(&zones, &Question::Ptr(of(7).into())), Answer::Forward);
}
