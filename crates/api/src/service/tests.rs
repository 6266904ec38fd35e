use serde_json::{Value, json};
use skep_model::service as model;

use super::*;
use crate::{ConvertError, go_json};

/// What `docker service create --name web --replicas 3 -p 8080:80 -e A=1 --mount … nginx` of CLI 28 sends.
fn cli_body() -> Value {
    json!({
        "Name": "web",
        "Labels": {"com.example": "x"},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "nginx:latest@sha256:0d17b565c37bcbd895e9d92315a05c1c3c9a29f762b011a10c54a66cd53c9b31",
                "Args": ["-g", "daemon off;"],
                "Env": ["A=1"],
                "Init": false,
                "Mounts": [
                    {"Type": "bind", "Source": "/tmp", "Target": "/h", "ReadOnly": true},
                    {"Type": "volume", "Source": "data", "Target": "/d", "VolumeOptions": {"NoCopy": true, "Labels": {"k": "v"}}},
                    {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1_048_576, "Mode": 1023}}
                ],
                "StopGracePeriod": 10_000_000_000_i64,
                "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 1_000_000_000},
                "DNSConfig": {},
                "Isolation": "default"
            },
            "Resources": {"Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864}, "Reservations": {"GenericResources": [{"NamedResourceSpec": {"Kind": "GPU", "Value": "a"}}, {"DiscreteResourceSpec": {"Kind": "SSD", "Value": 2}}]}},
            "RestartPolicy": {"Condition": "any", "Delay": 5_000_000_000_i64, "MaxAttempts": 0},
            "Placement": {
                "Constraints": ["node.role==worker"],
                "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
                "Platforms": [{"Architecture": "amd64", "OS": "linux"}]
            },
            "ForceUpdate": 0,
            "Runtime": "container"
        },
        "Mode": {"Replicated": {"Replicas": 3}},
        "UpdateConfig": {"Parallelism": 2, "Delay": 1_000_000_000, "FailureAction": "rollback", "Monitor": 5_000_000_000_i64, "MaxFailureRatio": 0.25, "Order": "start-first"},
        "RollbackConfig": {"Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_i64, "MaxFailureRatio": 0, "Order": "stop-first"},
        "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]}
    })
}

fn into_model(body: &Value) -> Result<model::ServiceSpec, ConvertError> {
    go_json::decode::<ServiceSpec>(body.to_string().as_bytes())?.try_into()
}

fn back(spec: &model::ServiceSpec) -> Value {
    serde_json::to_value(ServiceSpec::from(spec)).unwrap()
}

#[test]
fn what_the_cli_sends_comes_back_unchanged() {
    let body = cli_body();
    assert_eq!(back(&into_model(&body).unwrap()), body);
}

#[test]
fn privileges_and_mount_options_come_back_unchanged() {
    let mut body = cli_body();
    let container = &mut body["TaskTemplate"]["ContainerSpec"];
    container["Privileges"] = json!({
        "CredentialSpec": {"Config": "", "File": "spec.json", "Registry": ""},
        "SELinuxContext": {"Disable": true, "User": "u", "Role": "r", "Type": "t", "Level": "l"},
        "Seccomp": {"Mode": "custom", "Profile": "eyJkZWZhdWx0QWN0aW9uIjoiU0NNUF9BQ1RfQUxMT1cifQ=="},
        "AppArmor": {"Mode": "disabled"},
        "NoNewPrivileges": true,
    });
    container["Mounts"][0]["BindOptions"] =
        json!({"Propagation": "rslave", "NonRecursive": true, "ReadOnlyNonRecursive": true});
    container["Mounts"][1]["VolumeOptions"] =
        json!({"Subpath": "a/b", "DriverConfig": {"Name": "local", "Options": {"type": "tmpfs", "device": "tmpfs"}}});
    container["Mounts"][2]["TmpfsOptions"]["Options"] = json!([["noexec"], ["uid", "5"]]);
    body["TaskTemplate"]["Resources"]["SwapBytes"] = json!(-1);
    body["TaskTemplate"]["Resources"]["MemorySwappiness"] = json!(0);
    assert_eq!(back(&into_model(&body).unwrap()), body);
    // As `docker stack deploy` sends them, with nothing asked for.
    let empty = json!({"CredentialSpec": null, "SELinuxContext": null, "NoNewPrivileges": false});
    body["TaskTemplate"]["ContainerSpec"]["Privileges"] = empty;
    assert_eq!(back(&into_model(&body).unwrap()), body);
}

#[test]
fn bind_options_that_say_nothing_are_none() {
    let mut body = cli_body();
    body["TaskTemplate"]["ContainerSpec"]["Mounts"][0]["BindOptions"] = json!({});
    assert_eq!(back(&into_model(&body).unwrap()), cli_body());
    body["TaskTemplate"]["ContainerSpec"]["Mounts"][0]["BindOptions"] = json!({"NonRecursive": true});
    let shown = back(&into_model(&body).unwrap());
    assert_eq!(
        shown["TaskTemplate"]["ContainerSpec"]["Mounts"][0]["BindOptions"],
        json!({"Propagation": "rprivate", "NonRecursive": true})
    );
}

#[test]
fn a_bare_spec_comes_back_as_moby_gives_it() {
    let body = json!({"Name": "a", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}});
    let got = back(&into_model(&body).unwrap());
    let want = json!({
        "Name": "a",
        "Labels": {},
        "TaskTemplate": {"ContainerSpec": {"Image": "busybox", "Isolation": "default"}, "ForceUpdate": 0, "Runtime": "container"},
        "Mode": {"Replicated": {"Replicas": 1}}
    });
    assert_eq!(got, want);
}

#[test]
fn null_is_the_same_as_absent() {
    let mut body = cli_body();
    body["TaskTemplate"]["ContainerSpec"]["Secrets"] = Value::Null;
    body["TaskTemplate"]["Networks"] = Value::Null;
    body["Networks"] = Value::Null;
    assert_eq!(into_model(&body).unwrap(), into_model(&cli_body()).unwrap());
}

#[test]
fn keys_in_another_case_are_read() {
    let body = json!({"name": "a", "labels": {"Key": "V"}, "tasktemplate": {"containerspec": {"image": "busybox", "tty": true}}});
    let spec = into_model(&body).unwrap();
    assert_eq!((spec.name.as_str(), spec.task.container.tty), ("a", true));
    assert!(spec.labels.contains_key("Key"));
}

#[test]
fn what_is_not_served_is_refused_aloud() {
    let with = |path: &str, value: Value| {
        let mut body = cli_body();
        *body.pointer_mut(path).unwrap() = value;
        into_model(&body)
    };
    let unserved = |result: Result<model::ServiceSpec, ConvertError>| {
        assert!(matches!(result, Err(ConvertError::Unserved(_))), "{result:?}");
    };
    unserved(with("/TaskTemplate/Runtime", json!("plugin")));
    unserved(with("/TaskTemplate/ContainerSpec/Mounts/0/Type", json!("cluster")));
    let mut body = cli_body();
    body["TaskTemplate"]["LogDriver"] = json!({"Name": "fluentd"});
    unserved(into_model(&body));
}

#[test]
fn what_is_wrong_is_refused_as_wrong() {
    let refused = |change: &dyn Fn(&mut Value), text: &str| {
        let mut body = cli_body();
        change(&mut body);
        assert_eq!(into_model(&body).unwrap_err().to_string(), text);
    };
    refused(&|b| b["Mode"]["Global"] = json!({}), "must specify only one service mode");
    refused(&|b| b["UpdateConfig"]["FailureAction"] = json!("explode"), "unrecognized update failure action explode");
    let privileges = |b: &mut Value, value: Value| b["TaskTemplate"]["ContainerSpec"]["Privileges"] = value;
    refused(
        &|b| privileges(b, json!({"CredentialSpec": {}})),
        "invalid CredentialSpec: must either provide \"file\", \"registry\", or \"config\" for credential spec",
    );
    refused(
        &|b| privileges(b, json!({"CredentialSpec": {"File": "a", "Registry": "b"}})),
        "invalid CredentialSpec: cannot specify both \"file\" and \"registry\" credential specs",
    );
    refused(
        &|b| privileges(b, json!({"Seccomp": {"Mode": "custom"}})),
        "Privileges.Seccomp.Profile must hold a profile in base64 in mode \"custom\"",
    );
    refused(
        &|b| b["TaskTemplate"]["ContainerSpec"]["Mounts"][0]["BindOptions"] = json!({"Propagation": "far"}),
        "invalid MountPropagation: \"far\"",
    );
    refused(
        &|b| b["TaskTemplate"]["ContainerSpec"] = Value::Null,
        "invalid service spec: TaskTemplate.ContainerSpec is required",
    );
    refused(
        &|b| b["UpdateConfig"]["Delay"] = json!(-1),
        "rpc error: code = InvalidArgument desc = TaskSpec: update-delay cannot be negative",
    );
}

#[test]
fn defaults_are_inserted_only_where_the_spec_is_silent() {
    let body = json!({"Name": "a", "TaskTemplate": {"ContainerSpec": {"Image": "busybox", "StopGracePeriod": 1}}});
    let service = Service { spec: (&into_model(&body).unwrap()).into(), ..Default::default() }.with_defaults();
    let spec = serde_json::to_value(&service.spec).unwrap();
    assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"], json!(1));
    assert_eq!(
        spec["TaskTemplate"]["RestartPolicy"],
        json!({"Condition": "any", "Delay": 5_000_000_000_i64, "MaxAttempts": 0})
    );
    assert_eq!(spec["UpdateConfig"]["Monitor"], json!(5_000_000_000_i64));
    assert_eq!(spec["EndpointSpec"], json!({"Mode": "vip"}));
}
