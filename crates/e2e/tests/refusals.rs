//! Specs that are refused: Docker's status and words for each, and the service stays as it was.

use std::time::Duration;

use serde_json::{Value, json};
use skep_e2e::Lab;
use skep_e2e::api::{Answer, call};

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
