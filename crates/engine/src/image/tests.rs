//! The store as a whole, as root on a real directory: archives, names, removal, and a real registry.

mod archives;
mod registry;
mod removal;

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::*;

/// A store on a directory of its own, with the events it told.
struct Fixture {
    dir: tempfile::TempDir,
    store: ImageStore,
    events: Arc<Mutex<Vec<String>>>,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = events.clone();
        let sink: EventSink = Arc::new(move |event: ObjectEvent| {
            told.lock().unwrap().push(format!(
                "{} {}",
                event.action,
                event.attributes.get("name").cloned().unwrap_or_default()
            ));
        });
        let store = ImageStore::open(ImageStoreConfig::new(dir.path(), sink)).await.unwrap();
        Self { dir, store, events }
    }

    async fn reopen(&self) -> ImageStore {
        ImageStore::open(ImageStoreConfig::new(self.dir.path(), no_events())).await.unwrap()
    }

    fn events(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    /// How many layers, configs and manifests are on disk, and that nothing half-made is.
    fn on_disk(&self) -> (usize, usize, usize) {
        let names = |path: &str| -> Vec<String> {
            let entries = std::fs::read_dir(self.dir.path().join(path)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        assert_eq!(names("layers/tmp"), [""; 0], "scratch directories are gone");
        (names("layers").len() - 1, names("images/configs").len(), names("images/manifests").len())
    }

    async fn import(&self, reference: &str, files: &[(&str, &str)], changes: &[&str]) -> ImageId {
        let options = ImportOptions {
            reference: Some(reference.to_owned()),
            changes: changes.iter().map(|&change| change.to_owned()).collect(),
            ..ImportOptions::default()
        };
        self.store.import(body(tar_of(files)), options).await.unwrap()
    }
}

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_mtime(1);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A request body in odd pieces.
fn body(bytes: Vec<u8>) -> ByteStream {
    let pieces: Vec<_> = bytes.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    Box::pin(futures_util::stream::iter(pieces))
}

async fn collect(mut stream: ByteStream) -> Vec<u8> {
    use futures_util::StreamExt as _;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    bytes
}

/// Runs an operation and gives the lines it told.
async fn lines<T>(run: impl AsyncFnOnce(ProgressSender) -> T) -> (T, Vec<String>) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(10_000);
    let outcome = run(ProgressSender::new(sender)).await;
    let mut told = Vec::new();
    while let Ok(item) = receiver.try_recv() {
        let id = item.id.map(|id| format!("{id}: ")).unwrap_or_default();
        told.push(format!("{id}{}", item.status.or(item.stream).unwrap_or_default()).trim_end().to_owned());
    }
    (outcome, told)
}

#[tokio::test]
async fn an_imported_image_is_there_after_a_restart() {
    let fixture = Fixture::new().await;
    let id = fixture
        .import(
            "hive/app:1",
            &[("bin/app", "run"), ("etc/x", "y")],
            &["CMD [\"/bin/app\"]", "ENV A=b", "EXPOSE 80", "LABEL l=m"],
        )
        .await;
    assert_eq!(fixture.events(), ["tag hive/app:1", "import hive/app:1"]);
    let store = fixture.reopen().await;
    for name in ["hive/app:1", "docker.io/hive/app:1", id.as_str(), id.hex(), &id.hex()[..6]] {
        assert_eq!(store.resolve(name).unwrap(), id, "{name}");
    }
    let file = store.image_config("hive/app:1").unwrap();
    assert_eq!(file.config.cmd.as_ref().unwrap().0, ["/bin/app"]);
    let layers = store.rootfs_layers(&id).unwrap();
    assert_eq!(std::fs::read_to_string(layers[0].join("bin/app")).unwrap(), "run");
    let details = store.inspect("hive/app:1").unwrap();
    assert_eq!((details.summary.size_bytes, details.summary.repo_tags), (4, vec!["hive/app:1".to_owned()]));
    let history = store.history("hive/app:1").unwrap();
    assert_eq!((history.len(), history[0].comment.as_str(), history[0].size_bytes), (1, "Imported from -", 4));
    for (name, text) in [
        ("hive/app", "No such image: hive/app:latest"),
        ("nothing:1", "No such image: nothing:1"),
        ("Bad Name", "invalid reference format"),
    ] {
        assert!(store.resolve(name).unwrap_err().to_string().starts_with(text), "{name}");
    }
}

#[tokio::test]
async fn lists_are_filtered() {
    let fixture = Fixture::new().await;
    fixture.import("a/web:1", &[("a", "1")], &["LABEL tier=front"]).await;
    let db = fixture.import("a/db:1", &[("b", "1")], &[]).await;
    fixture.import("a/db:1", &[("b", "2")], &[]).await;
    let names = |pairs: &[(&str, &str)]| -> Vec<String> {
        let mut filters = Filters::new();
        for &(key, value) in pairs {
            filters.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        let list = fixture.store.list(&filters, false).unwrap();
        list.into_iter().map(|i| i.repo_tags.first().cloned().unwrap_or_else(|| "<none>".into())).collect()
    };
    assert_eq!(names(&[]), ["a/db:1", "<none>", "a/web:1"], "newest first");
    assert_eq!(names(&[("label", "tier=front")]), ["a/web:1"]);
    assert_eq!(names(&[("reference", "a/w*")]), ["a/web:1"]);
    assert_eq!(names(&[("reference", "*/*:1")]), ["a/db:1", "a/web:1"]);
    assert_eq!(names(&[("dangling", "true")]), ["<none>"]);
    assert_eq!(names(&[("before", db.as_str())]), ["a/web:1"]);
    assert_eq!(names(&[("since", "a/web:1")]), ["a/db:1", "<none>"]);
    let bad = Filters::from([("colour".to_owned(), vec!["red".to_owned()])]);
    assert_eq!(fixture.store.list(&bad, false).unwrap_err().to_string(), "invalid filter 'colour'");
}

#[tokio::test]
async fn the_builtin_image_is_made_once_and_the_same_everywhere() {
    let (one, two) = (Fixture::new().await, Fixture::new().await);
    let exe = one.dir.path().join("skep-binary");
    std::fs::write(&exe, vec![7; 3_000_000]).unwrap();
    std::fs::set_permissions(&exe, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let copy = two.dir.path().join("elsewhere");
    std::fs::write(&copy, vec![7; 3_000_000]).unwrap();
    let name = "skep/whoami:latest";
    let id = one.store.ensure_builtin(name, &exe).await.unwrap();
    assert_eq!(two.store.ensure_builtin(name, &copy).await.unwrap(), id, "also from a copy of another mode");
    assert_eq!(one.reopen().await.ensure_builtin(name, &exe).await.unwrap(), id);
    let file = &one.store.rootfs_layers(&id).unwrap()[0].join("skep");
    use std::os::unix::fs::MetadataExt as _;
    let (linked, binary) = (std::fs::metadata(file).unwrap(), std::fs::metadata(&exe).unwrap());
    assert_eq!(linked.ino(), binary.ino(), "one inode, so one copy in memory");
    assert_eq!(
        std::fs::metadata(two.store.rootfs_layers(&id).unwrap()[0].join("skep")).unwrap().mode() & 0o7777,
        0o755
    );

    let (pulled, told) = lines(async |p| one.store.pull(name, PullOptions::default(), p).await).await;
    assert_eq!(pulled.unwrap(), id);
    assert_eq!(told.last().unwrap(), "Status: Image is up to date for skep/whoami:latest");
    assert_eq!(one.store.distribution_inspect(name, None).await.unwrap().digest, None);

    // No prune takes it, and after a removal a pull makes it again.
    let all = Filters::from([("dangling".to_owned(), vec!["false".to_owned()])]);
    assert!(one.store.prune(&all, |_| vec![]).await.unwrap().items.is_empty());
    one.store.remove(name, RemoveOptions::default(), |_| vec![]).await.unwrap();
    assert!(one.store.resolve(name).is_err());
    assert_eq!(one.store.pull(name, PullOptions::default(), ProgressSender::silent()).await.unwrap(), id);

    // Another binary takes the name; the old image goes.
    std::fs::remove_file(&exe).unwrap();
    std::fs::write(&exe, vec![8; 1000]).unwrap();
    let store = one.reopen().await;
    let next = store.ensure_builtin(name, &exe).await.unwrap();
    assert_ne!(next, id);
    store.sweep().await.unwrap();
    assert!(store.image_config(id.as_str()).is_err());
    assert_eq!(one.on_disk().0, 1);
}

#[tokio::test]
async fn a_start_clears_what_was_half_made() {
    let fixture = Fixture::new().await;
    let id = fixture.import("a:1", &[("a", "1")], &[]).await;
    let layers = fixture.dir.path().join("layers");
    std::fs::create_dir_all(layers.join("tmp/7/diff/x")).unwrap();
    std::fs::create_dir_all(layers.join("f".repeat(64)).join("diff")).unwrap();
    std::fs::write(fixture.dir.path().join("images/configs").join("e".repeat(64)), "{}").unwrap();
    std::fs::write(fixture.dir.path().join("images/state.json.9.tmp"), "{").unwrap();
    let store = fixture.reopen().await;
    assert_eq!(store.resolve("a:1").unwrap(), id);
    assert_eq!(fixture.on_disk(), (1, 1, 0));
    assert!(!fixture.dir.path().join("images/state.json.9.tmp").exists());
}

#[tokio::test]
async fn the_builtin_image_is_quick() {
    let fixture = Fixture::new().await;
    let exe = fixture.dir.path().join("skep-binary");
    std::fs::write(&exe, vec![1; 20_000_000]).unwrap();
    let started = std::time::Instant::now();
    fixture.store.ensure_builtin("skep/whoami:latest", &exe).await.unwrap();
    let first = started.elapsed();
    let started = std::time::Instant::now();
    fixture.store.ensure_builtin("skep/whoami:latest", &exe).await.unwrap();
    let again = started.elapsed();
    eprintln!("made in {first:?}, found in {again:?}");
    // Generous, since the machine may be busy and the build unoptimised; the second must not read the file.
    assert!(again < std::time::Duration::from_millis(200) || again < first / 2, "{first:?} {again:?}");
}
