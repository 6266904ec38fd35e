//! The flags of `docker service create` and `update`: each seen from inside the task's container, and read back as it was given.

use serde_json::{Value, json};
use skep_e2e::api::{Answer, call};
use skep_e2e::service::{Service, words};
use skep_e2e::{LATER, Lab, SOON, eventually};

#[test]
fn flags_of_the_process() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("env");
    std::fs::write(&file, "# a comment\nFROM_FILE=yes\nA=file\n").expect("a file");
    let file = file.to_str().expect("a path").to_owned();
    let script = "trap \"exit 5\" USR1; while :; do sleep 0.1; done";
    let service = Service::create(
        &lab,
        "proc",
        &format!(
            "--hostname 'box-{{{{.Task.Slot}}}}' --workdir /var --user 1000:12 --group 13 --group wheel --env-file {file} --env A=1 --env 'B={{{{.Service.Name}}}}' --tty --init --read-only --stop-signal SIGUSR1 --stop-grace-period 20s --entrypoint 'sh -c' busybox '{script}'"
        ),
    );
    // conformance: works | docker service create --user --group
    assert_eq!(service.says("id -u; id -G"), "1000\n12 10 13");
    assert_eq!(service.container_spec("User"), "1000:12");
    assert_eq!(service.container_spec("Groups"), json!(["13", "wheel"]));
    // conformance: works | docker service create --hostname | with templates
    assert_eq!(service.says("hostname"), "box-1");
    assert_eq!(service.container_spec("Hostname"), "box-{{.Task.Slot}}");
    // conformance: works | docker service create --workdir
    assert_eq!(service.says("pwd"), "/var");
    // conformance: works | docker service create --env --env-file | with templates
    assert_eq!(service.says("echo $A $B $FROM_FILE"), "1 proc yes");
    assert_eq!(service.container_spec("Env"), json!(["FROM_FILE=yes", "A=1", "B={{.Service.Name}}"]));
    // conformance: works | docker service create --tty
    assert_ne!(service.says("cut -d' ' -f7 /proc/1/stat"), "0");
    // conformance: works | docker service create --init
    assert!(service.says("cat /proc/1/comm").contains("init"));
    // conformance: works | docker service create --read-only
    assert!(service.says("touch /tmp/x 2>&1 || true").contains("Read-only file system"));
    // conformance: works | docker service create --entrypoint
    assert_eq!(service.container_spec("Command"), json!(["sh", "-c"]));
    assert_eq!(service.container_spec("Args"), json!([script]));
    // conformance: works | docker service update of nothing leaves the task as it is
    let before = service.container();
    lab.docker(1, "service update --detach --no-resolve-image proc").ok();
    lab.docker(1, "service update --detach --no-resolve-image --label-add note=1 proc").ok();
    assert_eq!(service.spec("/Labels/note"), "1");
    eventually(SOON, "the update is over", || service.container() == before);

    // conformance: works | docker service update --env-add, --env-rm, --group-add, --group-rm
    // conformance: works | docker service update --user, --hostname, --workdir, --tty, --init, --read-only, --stop-grace-period
    service.update("--env-rm A --env-add B=2 --env-add C=3 --group-rm 13 --group-add 14 --user 1001 --hostname other --workdir /tmp --tty=false --init=false --read-only=false --stop-grace-period 10ms");
    let env = service.container_spec("Env");
    let mut env: Vec<&str> = env.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    env.sort_unstable(); // the CLI keeps no order
    assert_eq!(env, ["B=2", "C=3", "FROM_FILE=yes"]);
    assert_eq!(service.container_spec("Groups"), json!(["14", "wheel"]));
    assert_eq!(service.container_spec("StopGracePeriod"), 10_000_000);
    assert_eq!(service.container_spec("Init"), false);
    assert_eq!(
        service.says(
            "id -u; id -G; hostname; pwd; echo $A$B$C; touch /tmp/x 2>&1 | grep -c denied; cut -d' ' -f7 /proc/1/stat"
        ),
        "1001\n0 10 14\nother\n/tmp\n23\n1\n0"
    );
    // conformance: works | docker service create --stop-signal --stop-grace-period
    let label = "label=com.docker.swarm.service.name=proc";
    let ended = lab
        .docker_words(1, &["ps", "-a", "--filter", label, "--filter", "status=exited", "--format", "{{.Status}}"])
        .ok();
    assert!(ended.starts_with("Exited (5)"), "the first task got its signal: {ended}");
    // conformance: works | docker service update --args, --entrypoint, --image, --stop-signal, --force
    lab.docker(1, "tag busybox box:2").ok();
    service.update("--args 'sleep 500' --entrypoint /bin/busybox --image box:2 --stop-signal 9");
    assert_eq!(service.inspect("/Config/Image"), "box:2");
    assert_eq!(service.inspect("/Config/StopSignal"), "9");
    assert_eq!(service.says("tr '\\0' ' ' </proc/1/cmdline"), "/bin/busybox sleep 500 ".trim_end());
    service.update("--force");
    assert_eq!(service.spec("/TaskTemplate/ForceUpdate"), 1);
}

#[test]
fn flags_of_the_kernel_and_of_resources() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    let newer = if lab.speaks(46) { "--oom-score-adj 100 " } else { "" };
    let flags = "--cap-add NET_ADMIN --cap-add CAP_SYS_TIME --cap-drop MKNOD --sysctl net.core.somaxconn=777 --ulimit nofile=1000:2000 --ulimit nproc=3000 --limit-pids 99 --limit-cpu 0.5 --limit-memory 64m --reserve-cpu 0.1 --reserve-memory 32m --stop-grace-period 10ms";
    let service = Service::create(&lab, "kern", &format!("{flags} {newer}busybox sleep 1000"));
    let capability = |bit: u32| {
        let text = service.says("grep CapBnd /proc/1/status | cut -f2");
        u64::from_str_radix(&text, 16).expect("a mask") >> bit & 1 == 1
    };
    let (net_admin, sys_time, mknod) = (12, 25, 27);
    // conformance: works | docker service create --cap-add --cap-drop
    assert!(capability(net_admin) && capability(sys_time) && !capability(mknod));
    assert_eq!(service.container_spec("CapabilityAdd"), json!(["CAP_NET_ADMIN", "CAP_SYS_TIME"]));
    assert_eq!(service.container_spec("CapabilityDrop"), json!(["CAP_MKNOD"]));
    // conformance: works | docker service create --sysctl
    assert_eq!(service.says("cat /proc/sys/net/core/somaxconn"), "777");
    assert_eq!(service.container_spec("Sysctls"), json!({"net.core.somaxconn": "777"}));
    // conformance: works | docker service create --ulimit
    assert_eq!(service.says("grep 'open files' /proc/1/limits | tr -s ' ' | cut -d' ' -f4,5"), "1000 2000");
    assert_eq!(service.says("grep 'Max processes' /proc/1/limits | tr -s ' ' | cut -d' ' -f3,4"), "3000 3000");
    let ulimits =
        json!([{"Name": "nofile", "Soft": 1000, "Hard": 2000}, {"Name": "nproc", "Soft": 3000, "Hard": 3000}]);
    assert_eq!(service.container_spec("Ulimits"), ulimits);
    // conformance: works | docker service create --limit-pids
    assert_eq!(service.says("cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max"), "99");
    // conformance: works | docker service create --limit-cpu --reserve-cpu
    let quota = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max";
    assert_eq!(service.says(quota), "50000");
    // conformance: works | docker service create --limit-memory --reserve-memory
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(service.says(limit), (64 << 20).to_string());
    let resources = json!({
        "Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 64 << 20, "Pids": 99},
        "Reservations": {"NanoCPUs": 100_000_000, "MemoryBytes": 32 << 20},
    });
    assert_eq!(service.spec("/TaskTemplate/Resources"), resources);
    if lab.speaks(46) {
        // conformance: works | docker service create --oom-score-adj
        assert_eq!(service.says("cat /proc/1/oom_score_adj"), "100");
        assert_eq!(service.container_spec("OomScoreAdj"), 100);
    }

    // conformance: works | docker service update --cap-add, --cap-drop | each takes back the other
    // conformance: works | docker service update --sysctl-add, --sysctl-rm, --ulimit-add, --ulimit-rm
    // conformance: works | docker service update --limit-cpu, --limit-memory, --limit-pids, --reserve-cpu, --reserve-memory
    service.update("--cap-drop NET_ADMIN --cap-add MKNOD --sysctl-rm net.core.somaxconn --sysctl-add net.ipv4.ip_unprivileged_port_start=5 --ulimit-rm nproc --ulimit-add nofile=500 --limit-pids 77 --limit-cpu 0.25 --limit-memory 0 --reserve-cpu 0 --reserve-memory 0");
    assert!(!capability(net_admin) && capability(sys_time) && capability(mknod));
    assert_eq!(service.container_spec("CapabilityAdd"), json!(["CAP_SYS_TIME"]));
    assert_eq!(service.container_spec("CapabilityDrop"), Value::Null);
    assert_ne!(service.says("cat /proc/sys/net/core/somaxconn"), "777");
    assert_eq!(service.says("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "5");
    assert_eq!(service.says("grep 'open files' /proc/1/limits | tr -s ' ' | cut -d' ' -f4,5"), "500 500");
    assert_eq!(service.says(quota), "25000");
    assert_ne!(service.says(limit), (64 << 20).to_string());
    assert_eq!(
        service.spec("/TaskTemplate/Resources"),
        json!({"Limits": {"NanoCPUs": 250_000_000, "Pids": 77}, "Reservations": {}})
    );
}

#[test]
fn flags_of_networks_names_and_ports() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    let service = Service::create(
        &lab,
        "net",
        "--host db:10.1.2.3 --host db2:10.1.2.3 --host six:fd00::1 --dns 9.9.9.9 --dns-search example.org --dns-option ndots:3 --stop-grace-period 10ms busybox sleep 1000",
    );
    // conformance: works | docker service create --host
    let hosts = service.says("cat /etc/hosts");
    for (address, name) in [("10.1.2.3", "db"), ("10.1.2.3", "db2"), ("fd00::1", "six")] {
        assert!(hosts.lines().any(|l| l.split_whitespace().eq([address, name])), "{hosts}");
    }
    assert_eq!(service.container_spec("Hosts"), json!(["10.1.2.3 db", "10.1.2.3 db2", "fd00::1 six"]));
    // conformance: works | docker service create --dns --dns-search --dns-option
    let resolver = service.says("cat /etc/resolv.conf");
    for line in ["nameserver 9.9.9.9", "search example.org", "options ndots:3"] {
        assert!(resolver.lines().any(|l| l == line), "{resolver}");
    }
    let dns = json!({"Nameservers": ["9.9.9.9"], "Search": ["example.org"], "Options": ["ndots:3"]});
    assert_eq!(service.container_spec("DNSConfig"), dns);
    // conformance: works | docker service update --host-add, --host-rm, --dns-add, --dns-rm, --dns-search-add, --dns-search-rm, --dns-option-add, --dns-option-rm
    service.update("--host-rm db --host-add new:10.9.9.9 --dns-rm 9.9.9.9 --dns-add 8.8.4.4 --dns-search-rm example.org --dns-search-add example.com --dns-option-rm ndots:3 --dns-option-add timeout:2");
    assert_eq!(service.container_spec("Hosts"), json!(["10.1.2.3 db2", "fd00::1 six", "10.9.9.9 new"]));
    let resolver = service.says("cat /etc/resolv.conf");
    for line in ["nameserver 8.8.4.4", "search example.com", "options timeout:2"] {
        assert!(resolver.lines().any(|l| l == line), "{resolver}");
    }
    assert!(service.says("cat /etc/hosts").contains("10.9.9.9\tnew"));

    lab.docker(1, "network create --driver overlay red").ok();
    lab.docker(1, "network create --driver overlay blue").ok();
    let id = |name: &str| lab.docker_words(1, &["network", "inspect", "-f", "{{.Id}}", name]).ok();
    // conformance: works | docker service update --network-add, --network-rm | with aliases
    service.update("--network-add name=red,alias=cherry");
    assert_eq!(service.spec("/TaskTemplate/Networks"), json!([{"Target": id("red"), "Aliases": ["cherry"]}]));
    assert!(service.says("nslookup cherry. 2>&1").contains("Address"));
    service.update("--network-rm red --network-add blue");
    assert_eq!(service.spec("/TaskTemplate/Networks"), json!([{"Target": id("blue")}]));
    assert!(
        service.inspect("/NetworkSettings/Networks/red").is_null()
            && service.inspect("/NetworkSettings/Networks/blue").is_object()
    );
    // conformance: works | docker service create --network host, bridge
    let on_host = Service::create(&lab, "onhost", "--network host --stop-grace-period 10ms busybox sleep 1000");
    let namespace = "readlink /proc/self/ns/net";
    assert_eq!(on_host.says(namespace), lab.on(1, &["readlink", "/proc/self/ns/net"]).ok());
    lab.docker(1, "service rm onhost").ok();
    let on_bridge = Service::create(&lab, "onbridge", "--network bridge --stop-grace-period 10ms busybox sleep 1000");
    assert!(on_bridge.inspect("/NetworkSettings/Networks/bridge").is_object());
    lab.docker(1, "service rm onbridge").ok();
    // conformance: works | docker service create --network, of another network of one host, is refused
    lab.docker(1, "network create own").ok();
    lab.docker(1, "service create --detach --network own busybox").fails("network own not found");
    let spec = json!({"Name": "own", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}, "Networks": [{"Target": "own"}]}});
    let Answer::Given(status, body) = call(lab.socket(1), "POST", "/v1.41/services/create", &spec, SOON) else {
        panic!("no answer")
    };
    let said = body["message"].as_str().unwrap_or_default();
    assert!(
        status == 403 && said.starts_with("The network own cannot be used with services. Only networks "),
        "{said}"
    );
    // conformance: works | docker service update --publish-add, --publish-rm, --endpoint-mode
    service
        .update("--publish-add published=8070,target=70 --publish-add published=8071,target=71,protocol=udp,mode=host");
    let port = |target: u16, protocol: &str, mode: &str| json!({"Protocol": protocol, "TargetPort": target, "PublishedPort": target + 8000, "PublishMode": mode});
    assert_eq!(
        service.spec("/EndpointSpec"),
        json!({"Mode": "vip", "Ports": [port(70, "tcp", "ingress"), port(71, "udp", "host")]})
    );
    service.update("--publish-rm 70");
    assert_eq!(service.inspect("/HostConfig/PortBindings/71~1udp/0/HostPort"), "8071");
    lab.docker(1, "service update --detach --endpoint-mode dnsrr net").ok();
    assert_eq!(service.spec("/EndpointSpec"), json!({"Mode": "dnsrr", "Ports": [port(71, "udp", "host")]}));
    let published = lab.docker(1, "service update --detach --publish-add 90:90 net");
    if lab.is_dockerd() {
        published.fails("port published with ingress mode can't be used with dnsrr mode");
    } else {
        published.ok();
    }
}

#[test]
fn flags_of_health_and_labels() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    let newer = if lab.speaks(44) { "--health-start-interval 100ms " } else { "" };
    let flags = "--health-cmd 'test -e /tmp/fine' --health-interval 200ms --health-timeout 5s --health-retries 500 --health-start-period 1s --stop-grace-period 10ms --label a=1 --label b=2 --container-label c=3 --container-label 'd={{.Service.Name}}'";
    let line = format!("service create --detach --no-resolve-image --name well {flags} {newer}busybox sleep 1000");
    lab.docker_words(1, &words(&line)).ok();
    let service = Service::of(&lab, "well");
    let mut container = String::new();
    eventually(LATER, "its container", || {
        container = lab.docker(1, "ps -q").ok();
        !container.is_empty()
    });
    // conformance: works | docker service create --health-cmd --health-interval --health-timeout --health-retries --health-start-period | a task runs once it is healthy
    let state = || lab.docker_words(1, &["service", "ps", "--format", "{{.CurrentState}}", "well"]).ok();
    eventually(SOON, "it is starting", || state().starts_with("Starting"));
    lab.docker_words(1, &["exec", &container, "touch", "/tmp/fine"]).ok();
    lab.await_running("well", 1);
    let mut health = json!({
        "Test": ["CMD-SHELL", "test -e /tmp/fine"], "Interval": 200_000_000, "Timeout": 5_000_000_000_i64, "StartPeriod": 1_000_000_000, "Retries": 500,
    });
    if lab.speaks(44) {
        // conformance: works | docker service create --health-start-interval
        health["StartInterval"] = json!(100_000_000);
    }
    assert_eq!(service.container_spec("Healthcheck"), health);
    assert_eq!(service.inspect("/State/Health/Status"), "healthy");
    // conformance: works | docker service create --label --container-label
    assert_eq!(service.spec("/Labels"), json!({"a": "1", "b": "2"}));
    assert_eq!(service.container_spec("Labels"), json!({"c": "3", "d": "{{.Service.Name}}"}));
    assert_eq!([service.inspect("/Config/Labels/c"), service.inspect("/Config/Labels/a")], [json!("3"), Value::Null]);
    // No template is filled in here, as in Docker.
    assert_eq!(service.inspect("/Config/Labels/d"), "{{.Service.Name}}");
    // conformance: works | docker service update --label-add, --label-rm | tasks stay as they are
    lab.docker(1, "service update --detach --label-rm a --label-add b=3 --label-add e=5 well").ok();
    assert_eq!(service.spec("/Labels"), json!({"b": "3", "e": "5"}));
    assert!(service.container().starts_with(&container));
    // conformance: works | docker service update --container-label-add, --container-label-rm, --no-healthcheck
    service.update("--container-label-rm c --container-label-add f=6 --no-healthcheck");
    assert_eq!([service.inspect("/Config/Labels/c"), service.inspect("/Config/Labels/f")], [Value::Null, json!("6")]);
    assert_eq!(service.container_spec("Healthcheck"), json!({"Test": ["NONE"]}));
    assert_eq!(service.inspect("/State/Health"), Value::Null);
    // conformance: works | docker service update --health-cmd
    service.update("--health-cmd true --health-interval 300ms");
    assert_eq!(service.container_spec("Healthcheck"), json!({"Test": ["CMD-SHELL", "true"], "Interval": 300_000_000}));
}

#[test]
fn privileges_and_swap_as_the_api_has_them() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    // conformance: works | docker service create --credential-spec | accepted, and the task is rejected: Linux has none
    lab.docker(
        1,
        "service create --detach --no-resolve-image --name cred --credential-spec file://a.json busybox true",
    )
    .ok();
    eventually(LATER, "the task says why", || {
        let said = lab.docker(1, "service ps --no-trunc cred").stdout;
        said.contains("Rejected") && said.contains("invalid --security-opt 2: \"credentialspec=file://a.json\"")
    });
    // conformance: works | docker service create --isolation
    lab.docker(1, "service create --detach --no-resolve-image --name iso --isolation default busybox sleep 1000").ok();
    if lab.is_dockerd() {
        return; // what follows needs a Docker younger than the one the tests are proved on
    }
    let made = |name: &'static str, privileges: Value, resources: Value| {
        let container = json!({
            "Image": "busybox:latest", "Command": ["sleep", "1000"], "Privileges": privileges, "StopGracePeriod": 10_000_000,
            "Mounts": [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"Options": [["exec"]]}}],
        });
        let spec = json!({"Name": name, "TaskTemplate": {"ContainerSpec": container, "Resources": resources}});
        match call(lab.socket(1), "POST", "/v1.47/services/create", &spec, SOON) {
            Answer::Given(201, _) => {}
            other => panic!("{other:?}"),
        }
        let service = Service::of(&lab, name);
        service.container();
        let mut shown = service.container_spec("Privileges");
        for absent in ["CredentialSpec", "SELinuxContext", "NoNewPrivileges"] {
            if privileges.get(absent).is_none() {
                shown.as_object_mut().expect("an object").remove(absent);
            }
        }
        assert_eq!(shown, privileges, "it comes back as it was given");
        service
    };
    let status = |service: &Service<'_>, key: &str| service.says(&format!("grep {key}: /proc/1/status | cut -f2"));
    // conformance: works | Privileges.NoNewPrivileges of a service (API)
    // conformance: works | Privileges.AppArmor of a service (API) | there is no profile either way: containers run unconfined by AppArmor
    let strict = made(
        "strict",
        json!({"NoNewPrivileges": true, "AppArmor": {"Mode": "disabled"}, "Seccomp": {"Mode": "default"}}),
        Value::Null,
    );
    assert_eq!((status(&strict, "NoNewPrivs").as_str(), status(&strict, "Seccomp").as_str()), ("1", "2"));
    // conformance: works | TmpfsOptions.Options of a mount (API)
    assert!(!strict.says("grep ' /t ' /proc/mounts").contains("noexec"));
    // conformance: works | Privileges.Seccomp of a service (API) | default, unconfined, custom
    let resources = json!({"Limits": {"MemoryBytes": 64 << 20}, "SwapBytes": 16 << 20, "MemorySwappiness": 10});
    let open = made(
        "open",
        json!({"Seccomp": {"Mode": "unconfined"}, "SELinuxContext": {"Disable": true, "User": "", "Role": "", "Type": "", "Level": ""}}),
        resources.clone(),
    );
    assert_eq!((status(&open, "NoNewPrivs").as_str(), status(&open, "Seccomp").as_str()), ("0", "0"));
    // conformance: works | Resources.SwapBytes, MemorySwappiness of a service (API)
    // The CLI drops what it does not know.
    let Answer::Given(200, shown) = call(lab.socket(1), "GET", "/v1.47/services/open", &Value::Null, SOON) else {
        panic!("no answer")
    };
    assert_eq!(shown["Spec"]["TaskTemplate"]["Resources"], resources);
    assert_eq!(
        (open.inspect("/HostConfig/MemorySwap"), open.inspect("/HostConfig/MemorySwappiness")),
        (json!(80 << 20), json!(10))
    );
    // {"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}
    let profile = "eyJkZWZhdWx0QWN0aW9uIjoiU0NNUF9BQ1RfQUxMT1ciLCJzeXNjYWxscyI6W3sibmFtZXMiOlsibWtkaXIiLCJta2RpcmF0Il0sImFjdGlvbiI6IlNDTVBfQUNUX0VSUk5PIiwiZXJybm9SZXQiOjEzfV19";
    let own = made("own", json!({"Seccomp": {"Mode": "custom", "Profile": profile}}), Value::Null);
    assert!(own.says("mkdir /tmp/x 2>&1 || true").contains("Permission denied"));
    assert_eq!(own.says("touch /tmp/y && echo made"), "made");
}

#[test]
fn flags_of_logs() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    let line = "i=0; while [ $i -lt 300 ]; do echo line $i of a log that grows beyond its size; i=$((i+1)); sleep 0.01; done; sleep 1000";
    let create = |name: &'static str, driver: &str| {
        Service::create(&lab, name, &format!("{driver} --stop-grace-period 10ms busybox sh -c '{line}'"))
    };
    // conformance: works | docker service create --log-driver json-file --log-opt max-size, max-file
    let json_file = create("file", "--log-driver json-file --log-opt max-size=10k --log-opt max-file=2");
    let driver = json!({"Name": "json-file", "Options": {"max-file": "2", "max-size": "10k"}});
    assert_eq!(json_file.spec("/TaskTemplate/LogDriver"), driver);
    let logs = |service: &Service<'_>| lab.docker_words(1, &["logs", &service.container()]).stdout;
    eventually(LATER * 2, "the last line is kept, the first is not", || {
        logs(&json_file).contains("line 299 ") && !logs(&json_file).contains("line 0 ")
    });
    // conformance: works | docker service create --log-driver local
    let local = create("local", "--log-driver local");
    eventually(LATER * 2, "every line", || logs(&local).lines().count() == 300);
    // conformance: works | docker service create --log-driver none
    let none = create("none", "--log-driver none");
    lab.docker_words(1, &["logs", &none.container()]).fails("configured logging driver does not support reading");
    // conformance: works | docker service update --log-driver, --log-opt
    none.update("--log-driver json-file --log-opt max-size=1m");
    assert_eq!(none.spec("/TaskTemplate/LogDriver"), json!({"Name": "json-file", "Options": {"max-size": "1m"}}));
    eventually(LATER * 2, "every line", || logs(&none).lines().count() == 300);
    lab.docker(
        1,
        "service create --detach --no-resolve-image --name odd --log-driver json-file --log-opt fish=1 busybox true",
    )
    .ok();
    eventually(LATER, "the task says why", || {
        lab.docker(1, "service ps --no-trunc odd").stdout.contains("unknown log opt 'fish' for json-file log driver")
    });
}
