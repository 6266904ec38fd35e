//! The store on a real directory, with real mounts (as root).

use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::image::no_events;

async fn store() -> (tempfile::TempDir, VolumeStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(dir.path(), no_events()).await.unwrap();
    (dir, store)
}

fn named(name: &str) -> VolumeSpec {
    VolumeSpec { name: name.to_owned(), ..VolumeSpec::default() }
}

fn filters(pairs: &[(&str, &str)]) -> Filters {
    let mut filters = Filters::new();
    for &(key, value) in pairs {
        filters.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    filters
}

#[tokio::test]
async fn volumes_survive_a_restart_with_their_description() {
    let (dir, store) = store().await;
    let spec = VolumeSpec { labels: Labels::from([("a".into(), "b".into())]), ..named("data") };
    let made = store.create(spec).await.unwrap();
    std::fs::write(made.mountpoint.join("file"), "honey").unwrap();
    let anonymous = store.create(VolumeSpec::default()).await.unwrap();
    assert!(anonymous.anonymous && anonymous.name.len() == 64);

    let again = VolumeStore::open(dir.path(), no_events()).await.unwrap();
    assert_eq!(again.inspect("data").unwrap(), made);
    assert_eq!(again.create(named("data")).await.unwrap(), made, "an existing volume is given back");
    assert_eq!(again.list(&filters(&[("label", "a=b")])).unwrap(), [made]);
    assert_eq!(again.list(&filters(&[("name", &anonymous.name[..9])])).unwrap(), [anonymous]);
    assert_eq!(again.usage("data").await.unwrap().size_bytes, 5);
}

#[tokio::test]
async fn errors_are_told_as_moby_tells_them() {
    let (_dir, store) = store().await;
    let refused = async |spec: VolumeSpec| store.create(spec).await.unwrap_err().to_string();
    assert!(
        refused(named("a/b"))
            .await
            .starts_with("create a/b: \"a/b\" includes invalid characters for a local volume name")
    );
    assert!(refused(named("..")).await.contains("includes invalid characters"));
    assert!(refused(named("x")).await.contains("too short"));
    let other = VolumeSpec { driver: "rexray".into(), ..named("vol") };
    assert_eq!(refused(other).await, "create vol: error looking up volume plugin rexray: plugin \"rexray\" not found");
    assert_eq!(store.inspect("nope").unwrap_err().to_string(), "get nope: no such volume");
    store.remove("nope", true).await.unwrap();

    store.create_referenced(named("vol"), "c1").await.unwrap();
    let error = store.remove("vol", true).await.unwrap_err();
    assert_eq!(error.to_string(), "remove vol: volume is in use - [c1]");
    assert_eq!(error.kind(), crate::error::ErrorKind::Conflict);
    store.dereference("c1");
    store.remove("vol", false).await.unwrap();
    assert!(store.inspect("vol").is_err());
}

#[tokio::test]
async fn prune_takes_what_nobody_uses() {
    let (_dir, store) = store().await;
    for name in ["named", "used"] {
        store.create(named(name)).await.unwrap();
    }
    store.reference("used", "c1").unwrap();
    let anonymous = store.create(VolumeSpec::default()).await.unwrap();
    std::fs::write(anonymous.mountpoint.join("f"), "12345").unwrap();
    let report = store.prune(&Filters::new()).await.unwrap();
    assert_eq!(report, VolumePruneReport { deleted: vec![anonymous.name], reclaimed_bytes: 5 });
    assert_eq!(store.prune(&filters(&[("all", "true")])).await.unwrap().deleted, ["named"]);
    assert_eq!(store.list(&Filters::new()).unwrap().len(), 1);
    assert!(store.prune(&filters(&[("name", "x")])).await.is_err());
}

#[tokio::test]
async fn options_are_mounted_while_someone_uses_them() {
    let (_dir, store) = store().await;
    let options = [("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,mode=1770")];
    let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    store.create(VolumeSpec { options, ..named("mem") }).await.unwrap();
    let path = store.mount("mem", "c1", None).await.unwrap();
    store.mount("mem", "c2", None).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o1770);
    assert!(local::is_mount_point(&path));
    store.unmount("mem", "c1").await.unwrap();
    assert!(local::is_mount_point(&path));
    assert!(store.remove("mem", false).await.is_err(), "in use");
    store.unmount("mem", "c2").await.unwrap();
    assert!(!local::is_mount_point(&path));
    store.remove("mem", false).await.unwrap();

    let options = [("type", "none"), ("device", "/nowhere/at/all"), ("o", "bind")];
    let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    store.create(VolumeSpec { options, ..named("bad") }).await.unwrap();
    let error = store.mount("bad", "c1", None).await.unwrap_err().to_string();
    assert!(error.contains("no such file or directory"), "{error}");
}

#[tokio::test]
async fn an_empty_volume_takes_the_images_content() {
    let (dir, store) = store().await;
    let rootfs = dir.path().join("rootfs");
    std::fs::create_dir_all(rootfs.join("srv/www/sub")).unwrap();
    std::fs::write(rootfs.join("srv/www/index"), "hive").unwrap();
    std::os::unix::fs::symlink("index", rootfs.join("srv/www/link")).unwrap();
    std::os::unix::fs::chown(rootfs.join("srv/www"), Some(33), Some(34)).unwrap();
    std::fs::set_permissions(rootfs.join("srv/www"), fs::Permissions::from_mode(0o750)).unwrap();
    // Points out of the root; must be followed inside it only.
    std::os::unix::fs::symlink("/srv/www", rootfs.join("out")).unwrap();
    store.create(named("web")).await.unwrap();
    let from = Populate { rootfs: rootfs.clone(), target: "/out".into() };
    let path = store.mount("web", "c1", Some(from.clone())).await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("link")).unwrap(), "hive");
    assert!(path.join("sub").is_dir());
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (33, 34, 0o750));

    std::fs::remove_file(path.join("link")).unwrap();
    store.mount("web", "c2", Some(from)).await.unwrap();
    assert!(!path.join("link").exists(), "what has content is left alone");
    store.create(named("none")).await.unwrap();
    let missing = Populate { rootfs, target: "/not/there".into() };
    assert!(copy::is_empty(&store.mount("none", "c1", Some(missing)).await.unwrap()).unwrap());
}
