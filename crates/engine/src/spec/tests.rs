use super::*;

fn check(change: impl Fn(&mut HostConfig, &mut HostFeatures)) -> Value {
    let config = ContainerConfig { working_dir: "/srv".into(), ..ContainerConfig::default() };
    let mut host_config = HostConfig::default();
    let mut features = HostFeatures::default();
    change(&mut host_config, &mut features);
    build(&SpecInput {
        config: &config,
        host_config: &host_config,
        features: &features,
        rootfs: Path::new("/r"),
        hostname: "h",
        args: vec!["sh".into()],
        env: vec!["PATH=/bin".into()],
        user: ResolvedUser::default(),
        cgroup: "/skep-ab12/x".into(),
        cgroup_view: (!features.cgroup_v2).then(|| "/run/view".into()),
        network: Namespace::Path("/run/ns/x".into()),
        pid: Namespace::Private,
        ipc: Namespace::Private,
        uts: Namespace::Private,
        mounts: Vec::new(),
        devices: Vec::new(),
    })
}

fn mount<'a>(spec: &'a Value, destination: &str) -> Option<&'a Value> {
    spec["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == destination)
}

#[test]
fn what_the_executor_does_is_not_in_the_spec() {
    let spec = check(|_, _| {});
    for absent in ["capabilities", "rlimits", "noNewPrivileges"] {
        assert!(spec["process"].get(absent).is_none(), "{absent}");
    }
    assert!(spec["linux"].get("seccomp").is_none());
    assert_eq!(spec["linux"]["cgroupsPath"], "/skep-ab12/x", "absolute, or libcontainer makes up its own");
    assert_eq!(spec["process"]["oomScoreAdj"], 0, "not the supervisor's -999");
    serde_json::from_value::<oci_spec::runtime::Spec>(spec).expect("a spec that libcontainer reads");
}

#[test]
fn v1_cgroups_are_read_only_binds_and_no_cgroup_mount() {
    let spec = check(|_, _| {});
    assert!(spec["mounts"].as_array().unwrap().iter().all(|m| m["type"] != "cgroup"));
    let view = mount(&spec, "/sys/fs/cgroup").unwrap();
    assert_eq!(view["source"], "/run/view");
    assert!(view["options"].as_array().unwrap().iter().any(|o| o == "ro"));
    let spec = check(|_, features| features.cgroup_v2 = true);
    assert_eq!(mount(&spec, "/sys/fs/cgroup").unwrap()["type"], "cgroup");
    assert!(spec["linux"]["namespaces"].as_array().unwrap().iter().any(|n| n["type"] == "cgroup"));
}

#[test]
fn limits_are_as_asked_for() {
    let spec = check(|host, features| {
        features.swap_limit = true;
        host.memory = 64 << 20;
        host.nano_cpus = 500_000_000;
        host.pids_limit = Some(10);
        host.cpuset_cpus = "0".into();
    });
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["memory"], json!({ "limit": 64 << 20, "swap": 128 << 20 }));
    assert_eq!(resources["cpu"], json!({ "period": 100_000, "quota": 50_000, "cpus": "0" }));
    assert_eq!(resources["pids"], json!({ "limit": 10 }));
    assert!(check(|_, _| {})["linux"]["resources"].get("memory").is_none());
}

#[test]
fn a_privileged_container_hides_nothing() {
    let spec = check(|host, _| host.privileged = true);
    assert_eq!(spec["linux"]["maskedPaths"], json!([]));
    assert!(mount(&spec, "/sys").unwrap()["options"].as_array().unwrap().iter().any(|o| o == "rw"));
    assert_eq!(check(|_, _| {})["linux"]["maskedPaths"].as_array().unwrap().len(), MASKED_PATHS.len());
}

#[test]
fn a_device_rule_that_cannot_be_read_is_refused() {
    let host = |rule: &str| HostConfig { device_cgroup_rules: vec![rule.to_owned()], ..HostConfig::default() };
    assert!(super::limits::validate(&host("c 42:* rmw")).is_ok());
    for bad in ["b foo:* rwm", "x 1:1 r", "c 1 r", "c 1:1"] {
        let said = super::limits::validate(&host(bad)).unwrap_err().to_string();
        assert_eq!(said, format!("invalid device cgroup rule format: '{bad}'"));
    }
}
