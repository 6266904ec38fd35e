//! Load, save, import and commit.

use std::io::Write as _;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn members(archive: &[u8]) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        found.insert(entry.path().unwrap().display().to_string(), bytes);
    }
    found
}

fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A config for layers with these tars.
fn config_of(tars: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar)).collect();
    let file = ImageFile {
        os: "linux".into(),
        architecture: "amd64".into(),
        rootfs: RootFs { kind: "layers".into(), diff_ids },
        ..ImageFile::default()
    };
    serde_json::to_vec(&file).unwrap()
}

#[tokio::test]
async fn what_is_saved_is_loaded_elsewhere() {
    let (one, two) = (Fixture::new().await, Fixture::new().await);
    let id = one.import("hive/app:1", &[("a", "1")], &["CMD x"]).await;
    one.store.tag("hive/app:1", "localhost:5000/other").await.unwrap();
    let names = ["hive/app".to_owned(), "localhost:5000/other:latest".to_owned(), id.to_string()];
    let saved = collect(one.store.save(&names).await.unwrap()).await;
    assert_eq!(saved, collect(one.store.save(&names).await.unwrap()).await, "the same bytes each time");
    let (loaded, told) = lines(async |p| two.store.load(body(saved.clone()), p).await).await;
    assert_eq!(loaded.unwrap(), std::slice::from_ref(&id));
    let told: Vec<_> = told.into_iter().filter(|line| line.starts_with("Loaded")).collect();
    assert_eq!(told, ["Loaded image: hive/app:1", "Loaded image: localhost:5000/other:latest"]);
    assert_eq!(two.store.resolve("localhost:5000/other").unwrap(), id);
    assert_eq!(saved, collect(two.store.save(&names).await.unwrap()).await, "unchanged by the way");

    // As an OCI layout: without Docker's list, compressed as a whole.
    let three = Fixture::new().await;
    let layout = members(&saved);
    let layout: Vec<_> =
        layout.iter().filter(|(name, _)| *name != "manifest.json").map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    let loaded = three.store.load(body(gzip(&archive(&layout))), ProgressSender::silent()).await.unwrap();
    assert_eq!(loaded, std::slice::from_ref(&id));
    assert_eq!(three.store.resolve("hive/app:1").unwrap(), id);

    let error = one.store.save(&["no/such:1".to_owned()]).await.err().unwrap();
    assert_eq!(error.to_string(), "No such image: no/such:1");
}

#[tokio::test]
async fn an_old_archive_with_shared_layers_is_loaded() {
    let fixture = Fixture::new().await;
    let (base, top) = (tar_of(&[("base", "b")]), tar_of(&[("top", "t")]));
    let (first, second) = (config_of(&[&base]), config_of(&[&base, &top]));
    let list = serde_json::json!([
        { "Config": "one.json", "RepoTags": ["one:1"], "Layers": ["aa/layer.tar"] },
        { "Config": "two.json", "RepoTags": null, "Layers": ["bb/layer.tar", "cc/layer.tar"] },
    ]);
    let list = serde_json::to_vec(&list).unwrap();
    let mut builder = tar::Builder::new(archive(&[
        ("one.json", &first),
        ("two.json", &second),
        ("aa/layer.tar", &base),
        ("cc/layer.tar", &gzip(&top)),
        ("manifest.json", &list),
    ]));
    // Takes the end marker away to go on, as an appended archive would be.
    let whole = builder.get_ref().len() - 1024;
    builder.get_mut().truncate(whole);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "bb/layer.tar", "../aa/layer.tar").unwrap();
    let (ids, told) = lines(async |p| fixture.store.load(body(builder.into_inner().unwrap()), p).await).await;
    let ids = ids.unwrap();
    assert_eq!(ids, [Digest::of(&first), Digest::of(&second)]);
    assert!(told.contains(&format!("Loaded image ID: {}", ids[1])), "{told:?}");
    assert_eq!(fixture.store.rootfs_layers(&ids[1]).unwrap().len(), 2);
    assert_eq!(fixture.on_disk().0, 2, "the shared layer is there once");
}

#[tokio::test]
async fn a_broken_archive_leaves_nothing() {
    let fixture = Fixture::new().await;
    let (good, other) = (tar_of(&[("a", "1")]), tar_of(&[("a", "2")]));
    let list = |layers: &[&str]| {
        serde_json::to_vec(&serde_json::json!([{ "Config": "c.json", "RepoTags": ["x:1"], "Layers": layers }])).unwrap()
    };
    let compressed = gzip(&good);
    let cut = &compressed[..compressed.len() - 10];
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (archive(&[("x", b"y")]), "neither manifest.json"),
        (archive(&[("manifest.json", b"nonsense")]), "manifest.json cannot be read"),
        (archive(&[("manifest.json", &list(&["l"])), ("c.json", &config_of(&[&good]))]), "it has no l"),
        (
            archive(&[("manifest.json", &list(&["l"])), ("c.json", &config_of(&[&good])), ("l", &other)]),
            "layer does not match its diff id",
        ),
        (
            archive(&[("manifest.json", &list(&["l"])), ("c.json", &config_of(&[&good])), ("l", cut)]),
            "failed to register layer",
        ),
        (
            archive(&[("manifest.json", &list(&["l"])), ("c.json", &config_of(&[&good])), ("l", &good[..700])]),
            "failed to register layer",
        ),
        (
            // The first layer is fine, the second is not: both go.
            archive(&[
                ("manifest.json", &list(&["g", "l"])),
                ("c.json", &config_of(&[&good, &other])),
                ("g", &good),
                ("l", b"rubbish"),
            ]),
            "failed to register layer",
        ),
        (
            archive(&[("manifest.json", &list(&["l"])), ("c.json", &config_of(&[])), ("l", &good)]),
            "layers length mismatch",
        ),
        (archive(&[("manifest.json", &list(&[]))])[..600].to_vec(), "the archive cannot be read"),
    ];
    for (bytes, text) in cases {
        let error = fixture.store.load(body(bytes), ProgressSender::silent()).await.unwrap_err().sentence();
        assert!(error.contains(text), "{text}: {error}");
        assert_eq!(fixture.on_disk(), (0, 0, 0), "{text}");
    }
    assert!(fixture.store.list(&Filters::new(), true).unwrap().is_empty());
}

#[tokio::test]
async fn a_commit_holds_the_changes() {
    let fixture = Fixture::new().await;
    let base = fixture.import("base:1", &[("etc/old", "o"), ("gone", "g")], &[]).await;
    let upper = fixture.dir.path().join("upper");
    std::fs::create_dir_all(upper.join("etc")).unwrap();
    std::fs::write(upper.join("etc/new"), "n").unwrap();
    std::fs::hard_link(upper.join("etc/new"), upper.join("etc/same")).unwrap();
    std::os::unix::fs::symlink("../../../etc", upper.join("way")).unwrap();
    let whiteout = rustix::fs::mknodat(
        rustix::fs::CWD,
        upper.join("gone"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    );
    whiteout.unwrap();
    let options = CommitOptions {
        reference: Some("changed:1".into()),
        parent: Some(base.clone()),
        upper_dir: upper,
        changes: vec!["CMD [\"sh\"]".into()],
        comment: "new".into(),
        ..CommitOptions::default()
    };
    let id = fixture.store.commit(options).await.unwrap();
    let layers = fixture.store.rootfs_layers(&id).unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(std::fs::read_to_string(layers[0].join("etc/same")).unwrap(), "n");
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    assert_eq!(std::fs::read_link(layers[0].join("way")).unwrap(), std::path::Path::new("../../../etc"));
    let gone = std::fs::symlink_metadata(layers[0].join("gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(fixture.store.history("changed:1").unwrap()[0].comment, "new");

    // The parent is needed by its child.
    let error = fixture.store.remove(base.as_str(), RemoveOptions { force: true, no_prune: false }, |_| vec![]).await;
    assert!(error.unwrap_err().to_string().contains("(cannot be forced) - image has dependent child images"));
}
