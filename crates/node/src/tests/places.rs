//! Containers that are no tasks, on networks of the swarm.

use skep_model::ContainerId;
use skep_model::network::NetworkSpec;
use skep_store::{Batch, Change};

use super::cluster::cluster;
use crate::clock::now;
use crate::transport::message::AttachCall;

/// A container that stopped and starts again while the manager is still writing that it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_not_promised_while_it_is_being_taken_away() {
    let hosts = cluster(0).await;
    let node = &hosts[0].node;
    let (name, driver) = ("net".to_owned(), "overlay".to_owned());
    let spec = NetworkSpec { name, driver, attachable: true, ..NetworkSpec::default() };
    let network_id = node.network_create(spec).await.unwrap();
    let (manager, node_id) = (node.inner.manager().unwrap(), node.info().node_id.unwrap());
    let container_id: ContainerId = "c".repeat(64).parse().unwrap();
    let (network, names) = (network_id.to_string(), vec!["c".to_owned()]);
    let call = AttachCall { network, container_id: container_id.clone(), names, address: None, address6: None };
    super::cluster::eventually("it has a place", 10, || {
        manager.view().network(&network_id).is_some_and(|network| network.allocation.is_some())
    })
    .await;
    manager.attach(&node_id, &call).await.unwrap();
    for round in 0..100 {
        let gone = Change::DetachContainer { network_id: network_id.clone(), container_id: container_id.clone() };
        let gone = manager.settle(Batch::new(now(), vec![gone]));
        let (gone, promised) = tokio::join!(gone, manager.attach(&node_id, &call));
        gone.unwrap();
        let view = manager.view();
        let there = view.network(&network_id).unwrap().attachments.get(&container_id);
        assert_eq!(there.map(|there| there.address), Some(promised.unwrap().address), "round {round}");
    }
}
