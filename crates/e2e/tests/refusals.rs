//! Specs that are refused: Docker's status and words for each, and the service stays as it was.

use std::time::Duration;

use serde_json::{Value, json};
use skep_e2e::api::{Answer, call};
use skep_e2e::{Lab, SOON, eventually};

struct Web<'a> {
    lab: &'a Lab,
    service: Value,
}

impl Web<'_> {
    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        match call(self.lab.socket(1), method, &format!("/v1.41{path}"), body, Duration::from_secs(20)) {
            Answer::Given(status, body) => (status, body),
            Answer::Unsent | Answer::Lost => panic!("{method} {path} was not answered"),
        }
    }

    fn now(&self) -> Value {
        self.ask("GET", "/services/web", &Value::Null).1
    }

    /// An update to the spec with `value` at `path` must be answered so, and a service must not be made of it either.
    #[track_caller]
    fn refused(&self, path: &str, value: Value, status: u16, text: &str) {
        let mut spec = self.service["Spec"].clone();
        let (parent, key) = path.rsplit_once('/').expect("a path");
        let mut place = &mut spec;
        for part in parent.split('/').filter(|p| !p.is_empty()) {
            place = &mut place[part];
        }
        place[key] = value;
        let version = &self.service["Version"]["Index"];
        let (got, body) = self.ask("POST", &format!("/services/web/update?version={version}"), &spec);
        let said = body["message"].as_str().unwrap_or_default();
        assert!(got == status && said.contains(text), "update with {path}: {got} {said:?}, expected {status} {text:?}");
        if status == 501 {
            return; // a change that is refused, not a spec
        }
        if spec["Name"] == "web" {
            spec["Name"] = json!("other");
        }
        let (got, body) = self.ask("POST", "/services/create", &spec);
        let said = body["message"].as_str().unwrap_or_default();
        assert!(got == status && said.contains(text), "create with {path}: {got} {said:?}, expected {status} {text:?}");
    }
}

#[test]
fn specs_are_refused_in_dockers_words_and_change_nothing() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    lab.docker(1, "service create --detach --no-resolve-image --name web --env A=1 busybox sleep 1000").ok();
    lab.await_running("web", 1);
    let mut web = Web { lab: &lab, service: Value::Null };
    web.service = web.now();
    let container = |key: &str| format!("/TaskTemplate/ContainerSpec/{key}");
    let invalid = |text: &str| format!("rpc error: code = InvalidArgument desc = {text}");

    // conformance: works | bad names and images of services | 400 and Docker's words, as for all that is refused
    web.refused("/Name", json!("a b"), 400, &invalid("name must be valid as a DNS name component"));
    web.refused(&container("Image"), json!(""), 400, &invalid("ContainerSpec: image reference must be provided"));
    web.refused(
        &container("Image"),
        json!("A B"),
        400,
        &invalid("ContainerSpec: \"A B\" is not a valid repository/tag"),
    );
    // conformance: works | bad resources of services
    for kind in ["Limits", "Reservations"] {
        let path = format!("/TaskTemplate/Resources/{kind}");
        web.refused(&path, json!({"NanoCPUs": 1}), 400, &invalid("invalid cpu value 1e-09: Must be at least 0.001"));
        web.refused(
            &path,
            json!({"NanoCPUs": 500_000}),
            400,
            &invalid("invalid cpu value 0.0005: Must be at least 0.001"),
        );
        web.refused(&path, json!({"MemoryBytes": 1}), 400, &invalid("invalid memory value 1: Must be at least 4MiB"));
    }
    // conformance: works | bad restart and update policies of services
    let restart = "/TaskTemplate/RestartPolicy";
    web.refused(restart, json!({"Condition": "maybe"}), 400, "invalid RestartCondition: \"maybe\"");
    web.refused(restart, json!({"Delay": -1}), 400, &invalid("TaskSpec: restart-delay cannot be negative"));
    web.refused(restart, json!({"Window": -1}), 400, &invalid("TaskSpec: restart-window cannot be negative"));
    let update = "/UpdateConfig";
    web.refused(update, json!({"Delay": -1}), 400, &invalid("TaskSpec: update-delay cannot be negative"));
    web.refused(update, json!({"Monitor": -1}), 400, &invalid("TaskSpec: update-monitor cannot be negative"));
    let ratio = "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1";
    web.refused(update, json!({"MaxFailureRatio": 2}), 400, &invalid(ratio));
    web.refused(update, json!({"FailureAction": "explode"}), 400, "unrecognized update failure action explode");
    web.refused(update, json!({"Order": "sideways"}), 400, "unrecognized update order sideways");
    // conformance: works | bad mounts of services
    let mounts = container("Mounts");
    let twice = json!([{"Type": "volume", "Source": "a", "Target": "/a"}, {"Type": "tmpfs", "Target": "/a"}]);
    web.refused(&mounts, twice, 400, &invalid("ContainerSpec: duplicate mount point: /a"));
    web.refused(&mounts, json!([{"Type": "floppy", "Target": "/a"}]), 400, "invalid MountType: \"floppy\"");
    let far = json!([{"Type": "bind", "Source": "/a", "Target": "/a", "BindOptions": {"Propagation": "far"}}]);
    web.refused(&mounts, far, 400, "invalid MountPropagation: \"far\"");
    // conformance: works | bad health checks of services
    let health = container("Healthcheck");
    for (key, name) in [("Interval", "Interval"), ("Timeout", "Timeout"), ("StartPeriod", "StartPeriod")] {
        let text = format!("ContainerSpec: {name} in HealthConfig cannot be less than 1ms");
        web.refused(&health, json!({"Test": ["CMD", "true"], key: 1}), 400, &invalid(&text));
    }
    let retries = "ContainerSpec: Retries in HealthConfig cannot be negative";
    web.refused(&health, json!({"Test": ["CMD", "true"], "Retries": -1}), 400, &invalid(retries));
    // conformance: works | bad ports of services
    let ports = |mode: &str, b: &Value| json!({"Mode": mode, "Ports": [{"TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress", "Protocol": "tcp"}, b]});
    let same = json!({"TargetPort": 81, "PublishedPort": 8080, "PublishMode": "host", "Protocol": "tcp"});
    web.refused(
        "/EndpointSpec",
        ports("vip", &same),
        400,
        &invalid("EndpointSpec: duplicate published ports provided"),
    );
    let dnsrr = "EndpointSpec: port published with ingress mode can't be used with dnsrr mode";
    if lab.is_dockerd() {
        web.refused("/EndpointSpec", ports("dnsrr", &json!({"TargetPort": 1})), 400, &invalid(dnsrr));
    }
    web.refused("/EndpointSpec", json!({"Mode": "best"}), 400, "invalid resolution mode: \"best\"");
    // conformance: works | bad secret and config references of services
    for (list, kind) in [("Secrets", "secret"), ("Configs", "config")] {
        let (id, name) = (format!("{}ID", &list[..6]), format!("{}Name", &list[..6]));
        let list = container(list);
        let file = |name: &str| json!({"Name": name, "UID": "0", "GID": "0", "Mode": 292});
        let nobody = json!([{&id: "", &name: "", "File": file("x")}]);
        web.refused(&list, nobody, 400, &invalid(&format!("malformed {kind} reference")));
        let nowhere = json!([{&id: "a", &name: "b", "File": file("")}]);
        let text = format!("malformed file {kind} reference, invalid target file name provided");
        web.refused(&list, nowhere, 400, &invalid(&text));
        let absent =
            json!([{&id: "nope", &name: "lost", "File": file("x")}, {&id: "nope2", &name: "gone", "File": file("y")}]);
        web.refused(&list, absent, 400, &invalid(&format!("{kind}s not found: lost, gone")));
        let twice = json!([{&id: "a", &name: "one", "File": file("x")}, {&id: "b", &name: "two", "File": file("x")}]);
        let text = format!("{kind} references 'one' and 'two' have a conflicting target: 'x'");
        web.refused(&list, twice, 400, &invalid(&text));
    }
    // conformance: works | bad credential specs of services
    let privileges = container("Privileges");
    web.refused(
        &privileges,
        json!({"CredentialSpec": {}}),
        400,
        "must either provide \"file\", \"registry\", or \"config\" for credential spec",
    );
    let both = json!({"CredentialSpec": {"File": "a", "Registry": "b"}});
    web.refused(&privileges, both, 400, "cannot specify both \"file\" and \"registry\" credential specs");
    let config = "CredentialSpec references config 'a', but that config isn't in config references with RuntimeTarget";
    web.refused(&privileges, json!({"CredentialSpec": {"Config": "a"}}), 400, &invalid(config));
    // conformance: works | bad templates of services
    web.refused(&container("Env"), json!(["A={{.Nope}}"]), 400, &invalid("expanding env failed: "));
    web.refused(&container("Hostname"), json!("{{nope}}"), 400, &invalid("expanding hostname failed: "));
    let mount = json!([{"Type": "volume", "Source": "{{.Task.Nope}}", "Target": "/a"}]);
    web.refused(&mounts, mount, 400, &invalid("expanding mounts failed: "));
    // conformance: works | networks that are not there, and other bad references of services
    let mut spec = web.service["Spec"].clone();
    (spec["Name"], spec["TaskTemplate"]["Networks"]) = (json!("other"), json!([{"Target": "nowhere"}]));
    let nowhere = json!({"message": "network nowhere not found"});
    let status = if lab.is_dockerd() { 500 } else { 404 }; // what is not there is 404 everywhere else
    assert_eq!(web.ask("POST", "/services/create", &spec), (status, nowhere));
    // conformance: works | renaming a service or changing its mode is refused
    web.refused(
        "/Name",
        json!("fresh"),
        501,
        "rpc error: code = Unimplemented desc = renaming services is not supported",
    );
    web.refused(
        "/Mode",
        json!({"Global": {}}),
        501,
        "rpc error: code = Unimplemented desc = service mode change is not allowed",
    );
    // conformance: works | an update of an old version is refused
    let old = web.ask("POST", "/services/web/update?version=1", &web.service["Spec"]);
    assert_eq!(old, (500, json!({"message": "rpc error: code = Unknown desc = update out of sequence"})));
    assert_eq!(web.now(), web.service);
    assert_eq!(lab.docker_words(1, &["service", "ls", "--format", "{{.Name}} {{.Replicas}}"]).ok(), "web 1/1");
}

/// What only a node can tell: the service is there, and its task says why it does not run.
#[test]
fn what_a_node_refuses_is_told_in_dockers_words() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    let told = |name: &str, flags: &str, text: &str| {
        let line = format!("service create --detach --no-resolve-image --restart-condition none --name {name} {flags}");
        lab.docker(1, &line).ok();
        let format = "{{printf \"%.6s\" .CurrentState}} {{.Error}}";
        let ps = || lab.docker_words(1, &["service", "ps", "--no-trunc", "--format", format, name]).ok();
        eventually(SOON, &format!("{name}: {text}"), || ps().contains(text));
        lab.docker(1, &format!("service rm {name}")).ok();
    };
    // conformance: works | docker service create --mount, refused by the node
    told(
        "target",
        "--mount type=volume,source=v,target=a busybox true",
        "Reject \"invalid mount target, must be an absolute path: a\"",
    );
    told(
        "bind",
        "--mount type=bind,source=a,target=/a busybox true",
        "Reject \"invalid bind mount source, must be an absolute path: a\"",
    );
    told(
        "volume",
        "--mount type=volume,source=/a,target=/a busybox true",
        "Reject \"invalid volume mount source, must not be an absolute path: /a\"",
    );
    told(
        "tmpfs",
        "--mount type=tmpfs,source=a,target=/a busybox true",
        "Reject \"invalid tmpfs source, source must be empty\"",
    );
    told(
        "root",
        "--mount type=volume,source=vol,target=/a/.. busybox true",
        "Reject \"invalid mount config for type \"volume\": invalid specification: destination can't be '/'\"",
    );
    // conformance: works | docker service create --cap-add of what is no capability, --oom-score-adj out of range
    told("cap", "--cap-add fly busybox true", "Reject \"invalid CapAdd: unknown capability: \"CAP_FLY\"\"");
    if lab.speaks(46) {
        told(
            "oom",
            "--oom-score-adj 5000 busybox true",
            "Reject \"Invalid value 5000, range for oom score adj is [-1000, 1000]\"",
        );
    }
    lab.docker(1, "run --rm --cap-drop fly busybox true").fails("invalid CapDrop: unknown capability: \"CAP_FLY\"");
    lab.docker(1, "run --rm --oom-score-adj -2000 busybox true")
        .fails("Invalid value -2000, range for oom score adj is [-1000, 1000]");
    lab.docker(1, "run --rm --mount type=tmpfs,source=a,target=/a busybox true")
        .fails("invalid mount config for type \"tmpfs\": field Source must not be specified");
    lab.docker(1, "run --rm --mount type=bind,source=a,target=/a busybox true")
        .fails("invalid mount config for type \"bind\": invalid mount path: 'a' mount path must be absolute");
    if !lab.is_dockerd() {
        // conformance: differs | docker service ps, of a task that was killed for its memory | "task: non-zero exit (137): OOM killed"; Docker's says the exit code only
        told("mem", "--limit-memory 6M busybox tail /dev/zero", "Failed \"task: non-zero exit (137): OOM killed\"");
    }
    // conformance: works | docker service ps, of a task whose container does not start
    told("user", "--user nobodyy busybox true", "Failed \"starting container failed: unable to find user nobodyy: ");
    told("program", "--entrypoint /nope busybox", "Failed \"starting container failed: failed to create ");
}

#[test]
fn what_selects_nothing_there_can_be_is_refused() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    let create = "service create --detach --no-resolve-image";
    lab.docker(1, &format!("{create} --name web busybox sleep 1000")).ok();
    lab.docker(1, &format!("{create} --name nowhere --constraint node.id==no busybox true")).ok();
    lab.await_running("web", 1);
    // conformance: works | docker service ps, node ls, node ps --filter of what cannot be
    lab.docker(1, "service ps web --filter node=none").fails("node none not found");
    lab.docker(1, "service ps web --filter desired-state=none").fails("Invalid desired-state filter: 'none'");
    lab.docker(1, "node ps --filter desired-state=none").fails("Invalid desired-state filter: 'none'");
    assert_eq!(lab.docker(1, "service ps web -q --filter desired-state=rejected").ok(), "");
    lab.docker(1, "node ls --filter role=none").fails("Invalid role filter: 'none'");
    lab.docker(1, "node ls --filter membership=none").fails("Invalid membership filter: 'none'");
    // conformance: works | docker service logs --tail of what is no number
    lab.docker(1, "service logs --tail none web").fails("tail value must be a positive integer or \"all\"");
    lab.docker(1, "service logs --tail=-1 web").fails("negative tail values not supported");
    // conformance: works | docker service logs of a task without a node
    let task = lab.docker(1, "service ps -q --no-trunc nowhere").ok();
    lab.docker(1, &format!("service logs {task}")).fails(&format!("task {task} has not been scheduled"));
    assert_eq!(lab.docker(1, "service logs nowhere").ok(), "");
    // conformance: works | docker secret create, docker config create without a name
    for kind in ["secret", "config"] {
        lab.docker_words(1, &[kind, "create", "", "/etc/hostname"])
            .fails("rpc error: code = InvalidArgument desc = name must be provided");
    }
}
