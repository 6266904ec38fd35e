//! Names, conflicts and what goes with an image.

use super::*;

fn nobody(_: &ImageId) -> Vec<ContainerUse> {
    Vec::new()
}

fn by(running: bool) -> impl Fn(&ImageId) -> Vec<ContainerUse> + Send {
    move |_| vec![ContainerUse { container_id: "c0ffee0123456789".into(), running }]
}

const FORCE: RemoveOptions = RemoveOptions { force: true, no_prune: false };
const PLAIN: RemoveOptions = RemoveOptions { force: false, no_prune: false };

#[tokio::test]
async fn an_image_goes_with_its_last_name() {
    let fixture = Fixture::new().await;
    let id = fixture.import("a:1", &[("a", "1")], &[]).await;
    fixture.store.tag("a:1", "b:2").await.unwrap();
    fixture.events();
    let items = fixture.store.remove("a:1", PLAIN, nobody).await.unwrap();
    assert_eq!(items, [RemovedItem::Untagged("a:1".into())]);
    let layer = fixture.store.image_config("b:2").unwrap().rootfs.diff_ids[0].clone();
    let items = fixture.store.remove("b:2", PLAIN, nobody).await.unwrap();
    assert_eq!(
        items,
        [RemovedItem::Untagged("b:2".into()), RemovedItem::Deleted(id.clone()), RemovedItem::Deleted(layer)]
    );
    assert_eq!(fixture.events(), [format!("untag {id}"), format!("untag {id}"), format!("delete {id}")]);
    assert_eq!(fixture.on_disk(), (0, 0, 0));
    let error = fixture.store.remove("b:2", PLAIN, nobody).await.unwrap_err();
    assert_eq!(error.to_string(), "No such image: b:2");
}

#[tokio::test]
async fn shared_layers_stay_for_the_other() {
    let fixture = Fixture::new().await;
    fixture.import("a:1", &[("a", "1")], &["CMD a"]).await;
    fixture.import("b:1", &[("a", "1")], &["CMD b"]).await;
    assert_eq!(fixture.on_disk(), (1, 2, 0));
    let items = fixture.store.remove("a:1", PLAIN, nobody).await.unwrap();
    assert_eq!(items.len(), 2, "no layer went: {items:?}");
    assert_eq!(fixture.store.rootfs_layers(&fixture.store.resolve("b:1").unwrap()).unwrap().len(), 1);
}

#[tokio::test]
async fn conflicts_are_told_as_docker_tells_them() {
    let fixture = Fixture::new().await;
    let id = fixture.import("a:1", &[("a", "1")], &[]).await;
    let refused = async |name: &str, options, running| {
        let error = fixture.store.remove(name, options, by(running)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        error.to_string()
    };
    let short = id.short();
    assert_eq!(
        refused("a:1", PLAIN, false).await,
        format!(
            "conflict: unable to remove repository reference \"a:1\" (must force) - container c0ffee012345 is using its \
             referenced image {short}"
        )
    );
    assert_eq!(
        refused(id.hex(), PLAIN, false).await,
        format!(
            "conflict: unable to delete {short} (must be forced) - image is being used by stopped container c0ffee012345"
        )
    );
    assert_eq!(
        refused(id.hex(), FORCE, true).await,
        format!(
            "conflict: unable to delete {short} (cannot be forced) - image is being used by running container c0ffee012345"
        )
    );
    fixture.store.tag("a:1", "b/c:1").await.unwrap();
    assert_eq!(
        refused(short, PLAIN, false).await,
        format!("conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories")
    );
    let items = fixture.store.remove(short, FORCE, by(false)).await.unwrap();
    assert_eq!(items[..2], [RemovedItem::Untagged("b/c:1".into()), RemovedItem::Untagged("a:1".into())]);
}

#[tokio::test]
async fn a_forced_removal_leaves_containers_their_layers() {
    let fixture = Fixture::new().await;
    let id = fixture.import("a:1", &[("a", "1")], &[]).await;
    let layers = fixture.store.hold("c1", &id).unwrap();
    fixture.store.remove("a:1", FORCE, by(false)).await.unwrap();
    assert!(layers[0].join("a").exists());
    // Also over a restart, once the engine has told its containers again.
    let store = fixture.reopen().await;
    assert_eq!(store.hold("c1", &id).unwrap(), layers);
    store.sweep().await.unwrap();
    assert!(layers[0].join("a").exists());
    store.release("c1");
    store.sweep().await.unwrap();
    assert!(!layers[0].exists());
    assert!(store.hold("c2", &id).is_err());
}

#[tokio::test]
async fn prune_takes_what_nobody_names_or_uses() {
    let fixture = Fixture::new().await;
    let old = fixture.import("a:1", &[("a", "12345")], &[]).await;
    fixture.import("a:1", &[("b", "1")], &["LABEL keep=yes"]).await;
    let report = fixture.store.prune(&Filters::new(), nobody).await.unwrap();
    assert_eq!(report.reclaimed_bytes, 5);
    assert_eq!(report.items[0], RemovedItem::Deleted(old));
    let all = Filters::from([("dangling".to_owned(), vec!["false".to_owned()])]);
    assert!(fixture.store.prune(&all, by(false)).await.unwrap().items.is_empty(), "in use");
    let mut labelled = all.clone();
    labelled.insert("label!".to_owned(), vec!["keep".to_owned()]);
    assert!(fixture.store.prune(&labelled, nobody).await.unwrap().items.is_empty());
    assert_eq!(fixture.store.prune(&all, nobody).await.unwrap().items[0], RemovedItem::Untagged("a:1".into()));
    assert_eq!(fixture.on_disk(), (0, 0, 0));
}
