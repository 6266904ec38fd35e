//! Mounts of services: volumes with options, binds, tmpfs, and parts of volumes.

use std::time::Duration;

use serde_json::{Value, json};
use skep_e2e::service::Service;
use skep_e2e::{LATER, Lab, eventually};

#[test]
fn volumes_of_services_are_made_as_asked() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    let service = Service::create(
        &lab,
        "vol",
        "--mount type=volume,source=ram,target=/ram,volume-driver=local,volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-opt=o=size=1m \
         --mount 'type=volume,source=data-{{.Task.Slot}},target=/{{.Service.Name}},volume-label=of={{.Service.Name}}' \
         --mount type=volume,source=copied,target=/usr --mount type=volume,source=bare,target=/etc,volume-nocopy \
         --mount type=volume,source=fixed,target=/fixed,readonly --mount type=volume,target=/anonymous \
         --mount type=tmpfs,target=/scratch,tmpfs-size=1m,tmpfs-mode=1770 --stop-grace-period 10ms busybox sleep 1000",
    );
    // conformance: works | docker service create --mount volume-driver, volume-opt | the local driver's tmpfs
    assert_eq!(service.says("stat -f -c %T /ram; df -k /ram | tail -1 | tr -s ' ' | cut -d' ' -f2"), "tmpfs\n1024");
    let options = lab.docker_words(1, &["volume", "inspect", "-f", "{{json .Options}}", "ram"]).ok();
    assert_eq!(options, r#"{"device":"tmpfs","o":"size=1m","type":"tmpfs"}"#);
    // conformance: works | docker service create --mount volume-label | templates in source, target and labels
    assert_eq!(service.says("test -d /vol && echo there"), "there");
    assert_eq!(lab.docker_words(1, &["volume", "inspect", "-f", "{{json .Labels}}", "data-1"]).ok(), r#"{"of":"vol"}"#);
    // conformance: works | docker service create --mount volume-nocopy
    assert_eq!(service.says("test -d /usr/bin && echo copied; test -e /etc/passwd || echo bare"), "copied\nbare");
    // conformance: works | docker service create --mount readonly
    assert!(service.says("touch /fixed/x 2>&1 || true").contains("Read-only file system"));
    // conformance: works | docker service create --mount type=tmpfs | tmpfs-size, tmpfs-mode
    assert_eq!(service.says("stat -c %a /scratch; df -k /scratch | tail -1 | tr -s ' ' | cut -d' ' -f2"), "1770\n1024");
    let mounts = service.container_spec("Mounts");
    let driver = json!({"Name": "local", "Options": {"device": "tmpfs", "o": "size=1m", "type": "tmpfs"}});
    assert_eq!(
        mounts[0],
        json!({"Type": "volume", "Source": "ram", "Target": "/ram", "VolumeOptions": {"DriverConfig": driver}})
    );
    assert_eq!(mounts[3]["VolumeOptions"]["NoCopy"], true);
    let size = json!({"SizeBytes": 1 << 20, "Mode": 0o1770});
    assert_eq!(mounts[6], json!({"Type": "tmpfs", "Target": "/scratch", "TmpfsOptions": size}));
    // conformance: works | docker service update --mount-add, --mount-rm | a volume outlives the task
    service.says("echo kept >/vol/file");
    service.update("--mount-rm /ram --mount-rm /{{.Service.Name}} --mount-add type=volume,source=data-1,target=/again");
    assert_eq!(service.says("cat /again/file; test -e /vol/file || echo gone"), "kept\ngone");
    // conformance: works | docker service create --mount volume-opt=type=nfs | shown up to the kernel's mount call
    lab.docker(1, "service create --detach --no-resolve-image --name far --mount type=volume,source=far,target=/far,volume-opt=type=nfs,volume-opt=device=:/export,volume-opt=o=addr=127.0.0.1 busybox sleep 1000").ok();
    eventually(LATER, "the task says why", || {
        let said = lab.docker(1, "service ps --no-trunc far").stdout;
        said.contains("failed to mount local volume: mount :/export:") && said.contains("data: addr=127.0.0.1")
    });
}

#[test]
fn binds_of_services_propagate_and_are_read_only_as_asked() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    let host = |script: &str| lab.on(1, &["sh", "-c", script]).ok();
    host("mkdir -p /run/share && mount -t tmpfs share /run/share && mount --make-shared /run/share");
    host(
        "mkdir -p /run/share/inner /run/share/later && mount -t tmpfs inner /run/share/inner && touch /run/share/inner/x",
    );
    let service = Service::create(
        &lab,
        "bind",
        "--mount type=bind,source=/run/share,target=/slave,bind-propagation=rslave --mount type=bind,source=/run/share,target=/private \
         --mount type=bind,source=/run/share,target=/flat,bind-nonrecursive --stop-grace-period 10ms busybox sleep 1000",
    );
    // conformance: works | docker service create --mount bind-propagation
    host("mount -t tmpfs later /run/share/later && touch /run/share/later/y");
    assert_eq!(service.says("ls /slave/later /private/later"), "/private/later:\n\n/slave/later:\ny");
    // conformance: works | docker service create --mount bind-nonrecursive
    assert_eq!(service.says("ls /slave/inner /flat/inner"), "/flat/inner:\n\n/slave/inner:\nx");
    let bind = |target: &str, options: Value| json!({"Type": "bind", "Source": "/run/share", "Target": target, "BindOptions": options});
    let mounts = service.container_spec("Mounts");
    assert_eq!(mounts[0], bind("/slave", json!({"Propagation": "rslave"})));
    assert_eq!(mounts[1], json!({"Type": "bind", "Source": "/run/share", "Target": "/private"}));
    assert_eq!(mounts[2], bind("/flat", json!({"Propagation": "rprivate", "NonRecursive": true})));
    lab.docker(1, "service create --detach --no-resolve-image --name none --mount type=bind,source=/nowhere,target=/a busybox true").ok();
    eventually(Duration::from_secs(20), "the task says why", || {
        let said = lab.docker(1, "service ps --no-trunc none").stdout;
        said.contains("invalid mount config for type \"bind\": bind source path does not exist: /nowhere")
    });
    if !lab.speaks(45) {
        return;
    }
    service.update(
        "--mount-rm /slave --mount-rm /private --mount-rm /flat --mount-add type=bind,source=/run/share,target=/ro,readonly \
         --mount-add type=bind,source=/run/share,target=/half,readonly,bind-recursive=writable",
    );
    // conformance: works | docker service create --mount bind-recursive | read-only to the bottom unless said otherwise
    assert!(service.says("touch /ro/inner/x 2>&1 || true").contains("Read-only file system"));
    assert!(service.says("touch /half/x 2>&1 || true").contains("Read-only file system"));
    assert_eq!(service.says("touch /half/inner/x && echo written"), "written");
    // conformance: works | docker service create --mount volume-subpath
    let fill = "mkdir -p /d/part/deep; echo inside >/d/part/deep/f; ln -s / /d/out; echo secret >/d/other";
    lab.docker_words(1, &["run", "--rm", "-v", "whole:/d", "busybox", "sh", "-c", fill]).ok();
    service.update(
        "--mount-rm /ro --mount-rm /half --mount-add type=volume,source=whole,target=/part,volume-subpath=part/deep \
         --mount-add type=volume,source=whole,target=/file,volume-subpath=other --mount-add type=volume,source=whole,target=/out,volume-subpath=out",
    );
    assert_eq!(
        service.says("cat /part/f /file; ls /part /out"),
        "inside\nsecret\n/out:\nother\nout\npart\n\n/part:\nf"
    );
    let mounts = service.container_spec("Mounts");
    let out = mounts.as_array().into_iter().flatten().find(|m| m["Target"] == "/out").expect("the mount");
    assert_eq!(out["VolumeOptions"]["Subpath"], "out");
    lab.docker(1, "service create --detach --no-resolve-image --name lost --mount type=volume,source=whole,target=/a,volume-subpath=nope busybox true").ok();
    eventually(Duration::from_secs(20), "the task says why", || {
        let said = lab.docker(1, "service ps --no-trunc lost").stdout;
        said.contains("cannot access path") && said.contains("/whole/_data/nope")
    });
    // conformance: absent | docker service create --mount type=npipe, cluster, image | 501: pipes of Windows, CSI volumes, images as mounts
    for kind in ["npipe,source=a", "cluster,source=a", "image,source=busybox"] {
        let line = format!("service create --detach --no-resolve-image --mount type={kind},target=/a busybox true");
        lab.docker(1, &line).fails("is not served yet");
    }
}
