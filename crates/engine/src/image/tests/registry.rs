//! Against Debian's docker-registry on a loopback port; and against answers no real registry gives.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// A registry process with its own directory; ends with the value.
struct Registry {
    child: Child,
    address: String,
    dir: tempfile::TempDir,
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"{address}\"}}\n",
            dir.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("/usr/bin/docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { child, address, dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// The file in which the registry keeps a blob.
    fn blob(&self, digest: &Digest) -> std::path::PathBuf {
        let hex = digest.hex();
        self.dir.path().join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn push(store: &ImageStore, name: &str) -> (Result<()>, Vec<String>) {
    lines(async |p| store.push(name, None, p).await).await
}

async fn pull(store: &ImageStore, name: &str) -> (Result<ImageId>, Vec<String>) {
    lines(async |p| store.pull(name, PullOptions::default(), p).await).await
}

#[tokio::test]
async fn an_image_goes_round_through_a_registry() {
    let registry = Registry::start();
    let (one, two) = (Fixture::new().await, Fixture::new().await);
    let name = format!("{}/hive/app:1", registry.address);
    let id = one.import(&name, &[("a", &"honey".repeat(100_000)), ("b", "2")], &["CMD [\"x\"]"]).await;
    one.events();
    let (outcome, told) = push(&one.store, &name).await;
    outcome.unwrap();
    assert_eq!(told[0], format!("The push refers to repository [{}/hive/app]", registry.address));
    let layer = one.store.image_config(&name).unwrap().rootfs.diff_ids[0].short().to_owned();
    assert_eq!(told[1], format!("{layer}: Preparing"));
    assert!(told.contains(&format!("{layer}: Pushed")), "{told:?}");
    assert!(told.iter().any(|line| line.starts_with("1: digest: sha256:")), "{told:?}");
    assert_eq!(one.events(), [format!("push {}/hive/app", registry.address)]);
    let (_, told) = push(&one.store, &name).await;
    assert!(told.contains(&format!("{layer}: Layer already exists")), "{told:?}");

    let (pulled, told) = pull(&two.store, &name).await;
    assert_eq!(pulled.unwrap(), id);
    assert_eq!(told[0], "1: Pulling from hive/app");
    for word in ["Pulling fs layer", "Verifying Checksum", "Download complete", "Pull complete"] {
        assert!(told.iter().any(|line| line.ends_with(word)), "{word}: {told:?}");
    }
    assert_eq!(told.last().unwrap(), &format!("Status: Downloaded newer image for {name}"));
    let digest = &two.store.inspect(&name).unwrap().summary.repo_digests[0];
    assert!(told[told.len() - 2].ends_with(digest.split_once('@').unwrap().1));
    assert_eq!(two.events(), [format!("pull {}/hive/app", registry.address)]);
    let (again, told) = pull(&two.store, &name).await;
    assert_eq!(again.unwrap(), id);
    assert_eq!(told.last().unwrap(), &format!("Status: Image is up to date for {name}"));
    // By digest, into an empty store; and it resolves by digest.
    let three = Fixture::new().await;
    assert_eq!(pull(&three.store, digest).await.0.unwrap(), id);
    assert_eq!(three.store.resolve(digest).unwrap(), id);
    let found = three.store.distribution_inspect(&name, None).await.unwrap();
    assert_eq!(Some(found.digest.as_ref().unwrap().as_str()), digest.split_once('@').map(|(_, d)| d));
    assert_eq!((found.platforms[0].os.as_str(), found.platforms.len()), ("linux", 1));

    // What was pulled is pushed with the same manifest.
    let other = format!("{}/copy:1", registry.address);
    two.store.tag(&name, &other).await.unwrap();
    push(&two.store, &other).await.0.unwrap();
    let copied = two.store.distribution_inspect(&other, None).await.unwrap();
    assert_eq!(copied.digest, found.digest);

    // Two at once fetch once; both see it.
    let four = Fixture::new().await;
    let (a, b) = tokio::join!(pull(&four.store, &name), pull(&four.store, &name));
    assert_eq!((a.0.unwrap(), b.0.unwrap()), (id.clone(), id));
    let complete = |told: &[String]| told.iter().filter(|line| line.ends_with("Download complete")).count();
    assert_eq!(complete(&a.1) + complete(&b.1), 1);
    assert_eq!(four.on_disk(), (1, 1, 1));
}

#[tokio::test]
async fn failures_are_told_as_docker_tells_them_and_leave_nothing() {
    let registry = Registry::start();
    let (one, two) = (Fixture::new().await, Fixture::new().await);
    let address = &registry.address;
    let name = format!("{address}/app:1");
    one.import(&name, &[("a", "honey")], &[]).await;
    push(&one.store, &name).await.0.unwrap();

    for missing in [format!("{address}/app:2"), format!("{address}/none:1")] {
        let (outcome, told) = pull(&two.store, &missing).await;
        let error = outcome.unwrap_err();
        assert_eq!(error.to_string(), format!("manifest for {missing} not found: manifest unknown: manifest unknown"));
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(told.is_empty(), "an error before the stream");
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = pull(&two.store, &format!("127.0.0.1:{port}/x")).await.0.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("Get \"http://127.0.0.1:{port}/v2/\": dial tcp 127.0.0.1:{port}: connect: connection refused")
    );
    let error = pull(&two.store, "no-such-registry.invalid/x:1").await.0.unwrap_err().to_string();
    assert!(
        error.starts_with("Get \"https://no-such-registry.invalid/v2/\": dial tcp: lookup no-such-registry.invalid"),
        "{error}"
    );
    let error = push(&two.store, &format!("{address}/absent:1")).await.0.unwrap_err().to_string();
    assert_eq!(error, format!("An image does not exist locally with the tag: {address}/absent"));

    // Bytes that are not what the manifest says: flipped, cut short.
    let details = one.store.inspect(&name).unwrap();
    let manifest = details.summary.repo_digests[0].split_once('@').unwrap().1.parse::<Digest>().unwrap();
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(registry.blob(&manifest)).unwrap()).unwrap();
    let layer: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let whole = std::fs::read(registry.blob(&layer)).unwrap();
    let mut flipped = whole.clone();
    flipped[40] ^= 1;
    std::fs::write(registry.blob(&layer), &flipped).unwrap();
    let error = pull(&two.store, &name).await.0.unwrap_err().to_string();
    assert!(error.starts_with(&format!("filesystem layer verification failed for digest {layer}")), "{error}");
    assert_eq!(two.on_disk(), (0, 0, 0));
    std::fs::write(registry.blob(&layer), &whole[..whole.len() - 5]).unwrap();
    let error = pull(&two.store, &name).await.0.unwrap_err().to_string();
    assert!(error.contains("unexpected EOF"), "{error}");
    assert_eq!(two.on_disk(), (0, 0, 0));
    std::fs::write(registry.blob(&layer), whole).unwrap();
    pull(&two.store, &name).await.0.unwrap();
}

/// Serves one answer a path, over and over; counts requests. Ends with the process: it is a thread on a loopback socket.
fn serve(answer: impl Fn(&str, usize) -> String + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut count = 0;
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut buffer = [0; 8192];
            let n = stream.read(&mut buffer).unwrap_or(0);
            let request = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if !request.starts_with("GET ") && !request.starts_with("HEAD ") {
                continue; // a TLS greeting
            }
            count += 1;
            let _ = stream.write_all(answer(&request, count).as_bytes());
        }
    });
    address
}

fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn tokens_are_fetched_with_credentials() {
    let fixture = Fixture::new().await;
    let address = serve(|request, _| {
        let host = request.lines().find_map(|l| l.strip_prefix("host: ")).unwrap_or_default();
        if request.starts_with("GET /token") {
            // bee:honey
            assert!(request.contains("service=hive") && request.contains("scope=repository%3Aapp%3Apull"), "{request}");
            return if request.contains("authorization: Basic YmVlOmhvbmV5") {
                response("200 OK", "", r#"{"token":"t0ken"}"#)
            } else {
                response("401 Unauthorized", "", r#"{"details":"incorrect username or password"}"#)
            };
        }
        if !request.contains("authorization: Bearer t0ken") {
            let challenge = format!("www-authenticate: Bearer realm=\"http://{host}/token\",service=\"hive\"\r\n");
            return response("401 Unauthorized", &challenge, "");
        }
        let body = r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
        response("403 Forbidden", "", body)
    });
    let name = format!("{address}/app:1");
    let auth = |password: &str| {
        Some(RegistryAuth { username: "bee".into(), password: password.into(), ..RegistryAuth::default() })
    };
    let options = |password: &str| PullOptions { auth: auth(password), platform: None };
    let error = fixture.store.pull(&name, options("honey"), ProgressSender::silent()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "pull access denied for {address}/app, repository does not exist or may require 'docker login': denied: requested \
             access to the resource is denied"
        )
    );
    let error = fixture.store.pull(&name, options("wax"), ProgressSender::silent()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Head \"http://{address}/v2/app/manifests/1\": unauthorized: incorrect username or password")
    );
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let fixture = Fixture::new().await;
    let address = serve(|request, count| {
        if request.starts_with("GET /v2/ ") {
            return response("200 OK", "", "{}");
        }
        match count {
            2 => response("503 Service Unavailable", "", ""),
            3 => response("429 Too Many Requests", "retry-after: 0\r\n", ""),
            _ => response(
                "404 Not Found",
                "",
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
            ),
        }
    });
    let error = pull(&fixture.store, &format!("{address}/app:1")).await.0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn basic_credentials_are_asked_for() {
    let fixture = Fixture::new().await;
    let address = serve(|request, _| {
        if request.contains("authorization: Basic YmVlOmhvbmV5") {
            response("200 OK", "", "{}")
        } else {
            response("401 Unauthorized", "www-authenticate: Basic realm=\"x\"\r\n", "")
        }
    });
    let error = pull(&fixture.store, &format!("{address}/app:1")).await.0.unwrap_err();
    assert_eq!(error.to_string(), format!("Head \"http://{address}/v2/app/manifests/1\": no basic auth credentials"));
    let auth = |password: &str| RegistryAuth {
        username: "bee".into(),
        password: password.into(),
        serveraddress: format!("http://{address}"),
        ..RegistryAuth::default()
    };
    assert_eq!(fixture.store.login(auth("honey")).await.unwrap(), "Login Succeeded");
    assert!(fixture.store.login(auth("wax")).await.unwrap_err().to_string().contains("401 Unauthorized"));
}

#[tokio::test]
async fn a_broken_download_is_taken_up_where_it_broke() {
    let fixture = Fixture::new().await;
    let layer = tar_of(&[("big", &"x".repeat(200_000))]);
    let config = serde_json::to_vec(&ImageFile {
        os: "linux".into(),
        rootfs: RootFs { kind: "layers".into(), diff_ids: vec![Digest::of(&layer)] },
        ..ImageFile::default()
    })
    .unwrap();
    let (id, blob) = (Digest::of(&config), Digest::of(&layer));
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": { "mediaType": "x", "size": config.len(), "digest": id },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "size": layer.len(), "digest": blob }],
    })
    .to_string();
    let (config, layer) = (String::from_utf8(config).unwrap(), String::from_utf8(layer).unwrap());
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let seen = ranges.clone();
    let address = serve(move |request, _| {
        if request.starts_with("GET /v2/app/manifests/") {
            return response("200 OK", "", &manifest);
        }
        if request.contains(id.as_str()) {
            return response("200 OK", "", &config);
        }
        if !request.contains(blob.as_str()) {
            return response("200 OK", "", "{}");
        }
        let from = request.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
        seen.lock().unwrap().push(from);
        let rest = &layer[from.unwrap_or(0)..];
        let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
        let whole = response(status, "", rest);
        // Says the whole length and closes after a third.
        if from.is_none_or(|from| from < 100_000) { whole[..whole.len() / 3].to_owned() } else { whole }
    });
    let pulled = pull(&fixture.store, &format!("{address}/app:1")).await.0.unwrap();
    assert!(fixture.store.rootfs_layers(&pulled).unwrap()[0].join("big").exists());
    let ranges = ranges.lock().unwrap().clone();
    assert!(ranges.len() >= 2 && ranges[0].is_none() && ranges[1..].iter().all(Option::is_some), "{ranges:?}");
}
