//! When the keys of encrypted networks rotate. The secrets themselves are drawn by who performs it.

use std::time::Duration;

use skep_model::{NetworkId, Timestamp};
use skep_store::View;

/// A key is in use for so long (swarmkit's `DefaultKeyRotationInterval`).
pub const KEY_LIFE: Duration = Duration::from_hours(12);
/// After a node was removed its keys go as fast as all others can be told of the next ones.
pub const KEY_HURRY: Duration = Duration::from_secs(10);

/// Networks whose next key is due, with the generation of the one in use.
pub fn due_keys(view: &View, now: Timestamp) -> Vec<(NetworkId, u32)> {
    let networks = view.networks().filter_map(|network| Some((network, network.keys.as_ref()?)));
    networks
        .filter(|(_, keys)| {
            let life = if keys.hurried > 0 { KEY_HURRY } else { KEY_LIFE };
            now.since(keys.rotated_at) >= life
        })
        .map(|(network, keys)| (network.id.clone(), keys.current))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use skep_model::network::{Network, NetworkKeys, NetworkSpec};
    use skep_model::secret::SecretBytes;
    use skep_model::service::NetworkAttachmentConfig;
    use skep_model::task::Placement;
    use skep_store::Change;

    use super::super::assignments;
    use super::*;
    use crate::tests::{World, node_id};

    fn secret(byte: u8) -> SecretBytes {
        SecretBytes(vec![byte; 32])
    }

    fn create(world: &mut World) -> NetworkId {
        let id: NetworkId = "enc".parse().unwrap();
        let driver_options = BTreeMap::from([("encrypted".to_owned(), String::new())]);
        let spec = NetworkSpec { name: "enc".into(), driver: "overlay".into(), driver_options, ..Default::default() };
        let keys = Some(NetworkKeys::new(secret(1), secret(2), world.now));
        let network = Network { keys, ..Network::new(id.clone(), spec) };
        world.apply(vec![Change::CreateNetwork(Box::new(network))]);
        id
    }

    fn generations(world: &World, id: &NetworkId) -> Vec<u32> {
        let keys = world.view().network(id).unwrap().keys.clone().unwrap();
        keys.keys.iter().map(|key| key.generation).collect()
    }

    #[test]
    fn keys_rotate_twice_a_day_and_the_one_before_and_after_are_accepted() {
        let mut world = World::new(1);
        let id = create(&mut world);
        assert_eq!(due_keys(world.view(), world.now), []);
        for generation in 1..=4 {
            world.now = world.now.plus(KEY_LIFE - Duration::from_secs(1));
            assert_eq!(due_keys(world.view(), world.now), []);
            world.now = world.now.plus(Duration::from_secs(1));
            assert_eq!(due_keys(world.view(), world.now), [(id.clone(), generation)]);
            let rotate = Change::RotateNetworkKeys { network_id: id.clone(), from: generation, next: secret(9) };
            world.apply(vec![rotate.clone()]);
            assert_eq!(due_keys(world.view(), world.now), []);
            assert_eq!(generations(&world, &id), [generation, generation + 1, generation + 2]);
            // Decided once more by who has not seen it yet.
            assert!(world.try_apply(skep_store::Batch::new(world.now, vec![rotate])).is_err());
        }
    }

    #[test]
    fn what_a_removed_node_knew_is_soon_worth_nothing() {
        let mut world = World::new(2);
        let id = create(&mut world);
        let known = world.view().network(&id).unwrap().keys.clone().unwrap().keys;
        world.apply(vec![Change::RemoveNode { node_id: node_id("n2") }]);
        for round in 0..3 {
            assert_eq!(due_keys(world.view(), world.now), [], "the next key must have reached all first");
            world.now = world.now.plus(KEY_HURRY);
            let due = due_keys(world.view(), world.now);
            let [(network_id, from)] = due.try_into().unwrap();
            world.apply(vec![Change::RotateNetworkKeys { network_id, from, next: secret(10 + round) }]);
        }
        let keys = world.view().network(&id).unwrap().keys.clone().unwrap();
        assert!(!keys.keys.iter().any(|key| known.contains(key)));
        world.now = world.now.plus(KEY_HURRY);
        assert_eq!(due_keys(world.view(), world.now), [], "no longer in a hurry");
    }

    #[test]
    fn a_host_is_told_the_keys_of_the_networks_it_has_tasks_on_alone() {
        let mut world = World::new(2);
        let id = create(&mut world);
        world.settle();
        world.create("web", |s| {
            s.task.placement =
                Some(Placement { constraints: vec!["node.hostname == n1".into()], ..Placement::default() });
            s.task.networks.push(NetworkAttachmentConfig {
                target: id.to_string(),
                aliases: Vec::new(),
                driver_options: BTreeMap::new(),
            });
        });
        world.settle();
        let told = |name: &str| assignments(world.view(), &node_id(name)).networks.get(&id).map(|n| n.keys.is_some());
        assert_eq!(told("n1"), Some(true));
        assert_eq!(told("n2"), None);
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        let mut world = World::new(1);
        let network_id = create(&mut world);
        let next = SecretBytes(vec![1; 16]);
        let short = Change::RotateNetworkKeys { network_id, from: 1, next };
        assert!(world.try_apply(skep_store::Batch::new(world.now, vec![short])).is_err());
    }
}
