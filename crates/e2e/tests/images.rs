//! Images: import, load, save, tag, history, remove; push and pull through a real registry on one of the hosts.

use std::path::Path;

use skep_e2e::{Lab, Registry, busybox_tar};

#[test]
fn local_images_come_go_and_are_described() {
    let lab = Lab::hosts(1);
    // conformance: works | docker import
    let id = lab
        .docker_with_input(
            1,
            &["import", "--change", "CMD [\"echo\", \"imported\"]", "--message", "made here", "-", "busybox:1"],
            &busybox_tar(),
        )
        .ok();
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(lab.docker(1, "run --rm busybox:1").ok(), "imported");
    // conformance: works | docker tag, images
    lab.docker(1, "tag busybox:1 localhost:5000/example/echo:latest").ok();
    let listed =
        lab.docker_words(1, &["images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference=*/*/echo"]).ok();
    assert_eq!(listed, "localhost:5000/example/echo:latest");
    // conformance: works | docker history
    assert!(lab.docker(1, "history --no-trunc busybox:1").ok().contains("made here"));
    // conformance: works | docker image inspect
    assert_eq!(
        lab.docker_words(1, &["image", "inspect", "-f", "{{.Os}} {{.Config.Cmd}} {{.Id}}", "busybox:1"]).ok(),
        format!("linux [echo imported] {id}")
    );
    // conformance: works | docker save, load
    let saved = lab.docker_command(1, &["save", "busybox:1"]).output().expect("docker runs");
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    // conformance: works | docker rmi
    let removed = lab.docker(1, "rmi busybox:1 localhost:5000/example/echo:latest").ok();
    assert!(removed.contains("Untagged: busybox:1") && removed.contains(&format!("Deleted: {id}")), "{removed}");
    assert_eq!(lab.docker_with_input(1, &["load"], &saved.stdout).ok(), "Loaded image: busybox:1");
    assert_eq!(lab.docker(1, "run --rm busybox:1").ok(), "imported");
    lab.docker(1, "create --name box busybox:1").ok();
    lab.docker(1, "rmi busybox:1").fails("is using its referenced image");
    // A truncated archive is told and leaves nothing.
    lab.docker_with_input(1, &["load"], &saved.stdout[..saved.stdout.len() / 2]).fails("unexpected EOF");
    assert_eq!(
        lab.docker_words(1, &["images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference=busybox*"]).ok(),
        "busybox:1"
    );
    lab.docker(1, "image inspect nobody").fails("No such image: nobody");
    lab.docker(1, "tag nobody x").fails("No such image: nobody");
}

#[test]
fn images_go_through_a_registry_to_every_host() {
    let lab = Lab::up(&["--workers", "2", "--no-swarm", "--", "--insecure-registry", "node1:5000"]);
    let registry = Registry::start(&lab);
    lab.docker_with_input(
        1,
        &["import", "--change", "CMD [\"echo\", \"pulled\"]", "-", "example/echo:latest"],
        &busybox_tar(),
    )
    .ok();
    lab.docker(1, "image tag example/echo:latest localhost:5000/example/echo:latest").ok();
    // conformance: works | docker push
    let pushed = lab.docker(1, "image push localhost:5000/example/echo:latest").ok();
    assert!(pushed.contains("The push refers to repository [localhost:5000/example/echo]"), "{pushed}");
    assert!(pushed.contains("latest: digest: sha256:"), "{pushed}");
    assert!(lab.docker(1, "push localhost:5000/example/echo:latest").ok().contains("Layer already exists"));
    // conformance: works | docker pull
    let pulled = lab.docker(2, "image pull node1:5000/example/echo:latest").ok();
    assert!(pulled.contains("latest: Pulling from example/echo") && pulled.contains("Pull complete"), "{pulled}");
    assert!(pulled.contains("Status: Downloaded newer image for node1:5000/example/echo:latest"), "{pulled}");
    let again = lab.docker(2, "pull node1:5000/example/echo:latest").ok();
    assert!(again.contains("Status: Image is up to date for node1:5000/example/echo:latest"), "{again}");
    assert_eq!(lab.docker(2, "run --rm node1:5000/example/echo").ok(), "pulled");
    // `docker run` pulls by itself.
    assert_eq!(lab.docker(3, "run --rm node1:5000/example/echo").ok(), "pulled");
    // By digest.
    let digest =
        pushed.split("digest: ").nth(1).and_then(|t| t.split_whitespace().next()).expect("a digest").to_owned();
    lab.docker(3, &format!("pull node1:5000/example/echo@{digest}")).ok();
    // What is not there.
    lab.docker(2, "pull node1:5000/example/echo:nope")
        .fails("manifest for node1:5000/example/echo:nope not found: manifest unknown");
    lab.docker(2, "pull node1:5000/nobody").fails("manifest for node1:5000/nobody:latest not found: manifest unknown");
    let said = lab.docker(2, "pull node2:5999/x").fails("Get \"https://node2:5999/v2/\": dial tcp ");
    assert!(said.contains("connect: connection refused"), "{said}");
    lab.docker(2, "pull Bad/Ref").fails("invalid reference format");

    // A layer that is not what its digest says: refused, and nothing is left of it.
    lab.docker(2, "rmi -f node1:5000/example/echo:latest").ok();
    corrupt_largest_blob(registry.storage());
    lab.docker(2, "pull node1:5000/example/echo:latest")
        .fails("filesystem layer verification failed for digest sha256:");
    assert_eq!(lab.docker_words(2, &["images", "-q", "--filter", "reference=node1:5000/*/*"]).ok(), "");
}

fn corrupt_largest_blob(storage: &Path) {
    let mut blobs = Vec::new();
    let mut folders = vec![storage.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|n| n == "data") {
                blobs.push((entry.metadata().map_or(0, |m| m.len()), path));
            }
        }
    }
    blobs.sort();
    let (size, path) = blobs.pop().expect("the registry holds blobs");
    let mut bytes = std::fs::read(&path).expect("a blob");
    bytes[usize::try_from(size).expect("small") / 2] ^= 0xff;
    std::fs::write(path, bytes).expect("the blob is written");
}
