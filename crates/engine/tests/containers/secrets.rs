//! Secrets as files of a task's container.

use std::path::PathBuf;

use skep_engine::container::{CreateRequest, RemoveOptions, TaskExtras, TaskFile};
use skep_model::container::{ContainerConfig, HostConfig, StringOrList};

use crate::host::Host;

fn secret(target: &str, uid: u32, mode: u32, text: &str) -> TaskFile {
    let data = skep_model::secret::SecretBytes(text.as_bytes().to_vec());
    TaskFile { target: PathBuf::from(target), uid, gid: 10, mode, data }
}

async fn start(host: &Host, user: &str, host_config: HostConfig) -> String {
    let request = CreateRequest {
        config: ContainerConfig {
            image: "busybox".into(),
            cmd: Some(StringOrList(vec!["sleep".into(), "1000".into()])),
            user: user.into(),
            ..Default::default()
        },
        host_config: HostConfig { network_mode: "none".into(), ..host_config },
        task: Some(TaskExtras {
            task_id: "x".into(),
            files: vec![
                secret("/run/secrets/honey", 1000, 0o440, "sweet"),
                secret("/run/secrets/deep/down/wax", 0, 0o444, "yellow"),
                secret("/etc/app.conf", 0, 0o644, "set"),
            ],
        }),
        ..CreateRequest::default()
    };
    let id = host.engine.create(request).await.unwrap().id.to_string();
    host.engine.start(&id).await.unwrap();
    id
}

const OWNERS: &str = "cd /run/secrets; busybox stat -c '%n %u %g %a' honey deep deep/down deep/down/wax; cat honey \
                      deep/down/wax /etc/app.conf; busybox stat -f -c %T honey deep/down/wax /etc/app.conf";
const OWNED: &str = "honey 1000 10 440\ndeep 0 0 755\ndeep/down 0 0 755\ndeep/down/wax 0 10 444\nsweetyellowsettmpfs\n\
                     tmpfs\ntmpfs\n";
/// What root in the container may try; counts what the kernel refuses.
const ATTACK: &str = "cd /run/secrets; for f in honey deep/down/wax /etc/app.conf; do (echo x >$f) 2>&1; for c in 'chmod 777' \
                      'rm -f'; do busybox $c $f 2>&1; done; busybox ln -f $f /run/other 2>&1; done | \
                      grep -cE 'Read-only|busy|ross-device'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_read_only_and_beside_them_is_room() {
    let host = Host::new().await;
    let id = start(&host, "", HostConfig::default()).await;
    let (_, said) = host.exec(&id, &["sh", "-c", OWNERS], |_| {}).await;
    assert_eq!(said, OWNED);
    let (_, said) = host.exec(&id, &["sh", "-c", &format!("{ATTACK}; {OWNERS}")], |_| {}).await;
    assert_eq!(said, format!("12\n{OWNED}"), "root changed nothing");
    let (_, said) =
        host.exec(&id, &["sh", "-c", "cd /run/secrets; echo mine >own && cat own deep/../own"], |_| {}).await;
    assert_eq!(said, "mine\nmine\n");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&format!("{id}/secrets")), "the host has no mount of them");
    host.engine.remove(&id, RemoveOptions { force: true, volumes: false }).await.unwrap();
    assert_eq!(std::fs::read_dir(host.folder().join("run/bundles")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_of_a_user_without_rights_are_read_only_from_the_first_moment() {
    let host = Host::new().await;
    let id = start(&host, "1000:10", HostConfig { cap_drop: vec!["ALL".into()], ..Default::default() }).await;
    let (_, said) = host.exec(&id, &["sh", "-c", OWNERS], |_| {}).await;
    assert_eq!(said, OWNED);
    let (_, said) = host.exec(&id, &["sh", "-c", "(echo x >/run/secrets/honey) 2>&1"], |_| {}).await;
    assert!(said.contains("Read-only file system"), "{said}");
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", host.engine.inspect(&id).unwrap().state.pid));
    let mounts = mounts.unwrap();
    let of = |path: &str| {
        let line = mounts.lines().find(|l| l.split(' ').nth(4) == Some(path)).unwrap_or_default();
        line.split(' ').nth(5).unwrap_or_default().to_owned()
    };
    assert!(of("/run/secrets/honey").starts_with("ro,nosuid,nodev,noexec"), "{mounts}");
    assert!(of("/run/secrets/deep/down/wax").starts_with("ro,nosuid,nodev,noexec"), "{mounts}");
}

/// There each has a mount of its own, and nothing that was there is hidden.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_beside_what_the_user_put_there() {
    let host = Host::new().await;
    let theirs = host.folder().join("theirs");
    std::fs::create_dir_all(&theirs).unwrap();
    std::fs::write(theirs.join("kept"), "kept").unwrap();
    let binds = vec![format!("{}:/run/secrets", theirs.display())];
    let id = start(&host, "", HostConfig { binds, ..Default::default() }).await;
    let (_, said) = host.exec(&id, &["sh", "-c", &format!("{OWNERS}; cat /run/secrets/kept")], |_| {}).await;
    assert_eq!(said, format!("{OWNED}kept"));
    let (_, said) = host.exec(&id, &["sh", "-c", ATTACK], |_| {}).await;
    assert_eq!(said, "12\n");
    host.engine.remove(&id, RemoveOptions { force: true, volumes: false }).await.unwrap();
    assert_eq!(std::fs::read_to_string(theirs.join("honey")).unwrap(), "", "the host's file is only their place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_on_a_read_only_root_have_no_room_beside_them() {
    let host = Host::new().await;
    let id = start(&host, "", HostConfig { readonly_rootfs: true, ..Default::default() }).await;
    let (_, said) = host.exec(&id, &["sh", "-c", OWNERS], |_| {}).await;
    assert_eq!(said, OWNED);
    let (_, said) =
        host.exec(&id, &["sh", "-c", "cd /run/secrets; (echo x >own) 2>&1; (echo x >honey) 2>&1"], |_| {}).await;
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
}
