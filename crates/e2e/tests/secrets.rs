//! Secrets and configs: what they may be, how they reach a container, who may not have them.

use std::time::Duration;

use serde_json::{Value, json};
use skep_e2e::api::{Answer, call};
use skep_e2e::service::Service;
use skep_e2e::{Lab, SOON, eventually};

const PAYLOAD: &str = "correct-horse-battery-staple";

fn make(lab: &Lab, kind: &str, name: &str, data: &[u8]) {
    lab.docker_with_input(1, &[kind, "create", name, "-"], data).ok();
}

#[test]
fn secrets_and_configs_have_limits_and_are_protected() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    let refused = |kind: &str, name: &str, data: &[u8], text: &str| {
        lab.docker_with_input(1, &[kind, "create", name, "-"], data).fails(text);
    };
    // conformance: works | docker secret create, docker config create | sizes and names are limited as Docker's
    for (kind, limit) in [("secret", 512_000), ("config", 1_024_000)] {
        let size = format!("{kind} data must be larger than 0 and less than {limit} bytes");
        refused(kind, "big", &vec![b'x'; limit], &size);
        let nothing = json!({"Name": "empty", "Data": ""});
        match call(lab.socket(1), "POST", &format!("/v1.41/{kind}s/create"), &nothing, SOON) {
            Answer::Given(400, body) => assert!(body["message"].as_str().is_some_and(|m| m.contains(&size)), "{body}"),
            other => panic!("{other:?}"),
        }
        make(&lab, kind, "large", &vec![b'x'; limit - 1]);
        let name = "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]";
        refused(kind, "dash-", b"x", name);
        refused(kind, "sla/sh", b"x", name);
        refused(kind, &"n".repeat(65), b"x", name);
        make(&lab, kind, &"n".repeat(64), b"x");
        make(&lab, kind, "one", PAYLOAD.as_bytes());
        refused(kind, "one", b"other", &format!("{kind} one already exists"));
        // conformance: works | docker secret ls, docker config ls
        let names = lab.docker_words(1, &[kind, "ls", "--format", "{{.Name}}", "--filter", "name=one"]).ok();
        assert_eq!(names, "one");
        lab.docker(1, &format!("{kind} inspect none")).fails("none");
    }
    // conformance: works | docker secret inspect, docker config inspect | a secret's data is never shown
    assert!(!lab.docker(1, "secret inspect one").ok().contains("Data"));
    assert!(lab.docker(1, "config inspect --pretty one").ok().contains(PAYLOAD));

    lab.docker(1, "service create --detach --no-resolve-image --name app --secret one --config one --stop-grace-period 10ms busybox sleep 1000").ok();
    lab.await_running("app", 1);
    for (kind, list) in [("secret", "secrets"), ("config", "configs")] {
        // conformance: works | docker secret rm, docker config rm | not while a service uses it
        lab.docker(1, &format!("{kind} rm one"))
            .fails(&format!("{kind} 'one' is in use by the following service: app"));
        // conformance: works | only labels of a secret or config can be changed
        let ask = |method: &str, path: &str, body: &Value| match call(lab.socket(1), method, path, body, SOON) {
            Answer::Given(status, body) => (status, body),
            Answer::Unsent | Answer::Lost => panic!("no answer"),
        };
        let (_, object) = ask("GET", &format!("/v1.41/{list}/one"), &Value::Null);
        let id = object["ID"].as_str().expect("an id").to_owned();
        let path = format!("/v1.41/{list}/{id}/update?version={}", object["Version"]["Index"]);
        let mut spec = object["Spec"].clone();
        spec["Data"] = json!("b3RoZXI=");
        let (status, body) = ask("POST", &path, &spec);
        assert_eq!(status, 400, "{body}");
        assert_eq!(body["message"], "rpc error: code = InvalidArgument desc = only updates to Labels are allowed");
        spec = object["Spec"].clone();
        spec["Name"] = json!("two");
        assert_eq!(ask("POST", &path, &spec).0, 400);
        assert_eq!(ask("GET", &format!("/v1.41/{list}/one"), &Value::Null).1, object);
        spec = object["Spec"].clone();
        spec["Labels"] = json!({"tier": "gold"});
        assert_eq!(ask("POST", &path, &spec).0, 200);
        let format = "{{.Spec.Labels.tier}}";
        assert_eq!(lab.docker_words(1, &[kind, "inspect", "-f", format, "one"]).ok(), "gold");
    }
    lab.docker(1, "service rm app").ok();
    for kind in ["secret", "config"] {
        lab.docker(1, &format!("{kind} rm one")).ok();
        lab.docker(1, &format!("{kind} inspect one")).fails("one");
    }
}

#[test]
fn secrets_and_configs_reach_the_container_and_nothing_else() {
    let lab = Lab::swarm(1, 1);
    lab.give_busybox();
    make(&lab, "secret", "pw", PAYLOAD.as_bytes());
    make(&lab, "secret", "pw2", b"second");
    make(&lab, "secret", "plain", b"plain");
    make(&lab, "config", "conf", b"setting=1");
    make(&lab, "config", "dflt", b"default");
    let template = "{{.Service.Name}} {{.Node.Hostname}} {{.Task.Slot}} {{secret \"db\"}} {{config \"/etc/app.conf\"}} {{env \"V\"}}{{if eq .Service.Name \"app\"}}!{{end}}";
    for kind in ["secret", "config"] {
        let line = [kind, "create", "--template-driver", "golang", "tpl", "-"];
        lab.docker_with_input(1, &line, template.as_bytes()).ok();
    }
    let app = Service::create(
        &lab,
        "app",
        "--constraint node.role==manager --secret source=pw,target=db,uid=1000,gid=10,mode=0400 --secret plain --config source=conf,target=/etc/app.conf,uid=1000,mode=0440 --config dflt --secret tpl --config source=tpl,target=/tpl.conf --env V=v --stop-grace-period 10ms busybox sleep 1000",
    );
    // conformance: works | docker service create --secret | source, target, uid, gid, mode; on tmpfs, read-only
    assert_eq!(app.says("cat /run/secrets/db"), PAYLOAD);
    assert_eq!(app.says("stat -c '%u %g %a' /run/secrets/db /run/secrets/plain"), "1000 10 400\n0 0 444");
    assert_eq!(app.says("stat -f -c %T /run/secrets/db"), "tmpfs");
    assert!(app.says("echo x 2>&1 >/run/secrets/db || true").contains("Read-only file system"));
    assert_eq!(app.says("echo mine > /run/secrets/own && cat /run/secrets/own"), "mine", "beside them there is room");
    // conformance: works | docker service create --config | source, target, uid, gid, mode
    assert_eq!(app.says("cat /etc/app.conf /dflt"), "setting=1default");
    assert_eq!(app.says("stat -c '%u %g %a' /etc/app.conf /dflt"), "1000 0 440\n0 0 444");
    // conformance: works | docker secret create --template-driver golang, docker config create --template-driver golang
    let node = if lab.is_dockerd() { "" } else { "node1" }; // which 20.10 leaves out
    let filled = format!("app {node} 1 {PAYLOAD} setting=1 v!");
    assert_eq!(app.says("cat /run/secrets/tpl"), filled);
    assert_eq!(app.says("cat /tpl.conf"), filled);
    let shown = lab.docker_words(1, &["secret", "inspect", "-f", "{{.Spec.Templating.Name}}", "tpl"]).ok();
    assert_eq!(shown, "golang");
    // conformance: works | a secret is in no file of any host
    for node in [1, 2] {
        let root = lab.data_root(node);
        let found = std::process::Command::new("grep").args(["-rlF", PAYLOAD]).arg(&root).output().expect("grep runs");
        assert_eq!(String::from_utf8_lossy(&found.stdout), "", "node{node}");
    }
    // conformance: works | docker service update --secret-add, --secret-rm, --config-add, --config-rm
    make(&lab, "config", "conf2", b"setting=2");
    app.update("--secret-rm pw --secret-add source=pw2,target=db --config-rm conf --config-rm dflt --config-add source=conf2,target=/etc/app.conf");
    assert_eq!(app.says("cat /run/secrets/db /etc/app.conf"), "secondsetting=2");
    assert_eq!(app.says("cat /run/secrets/tpl"), format!("app {node} 1 second setting=2 v!"));
    assert_eq!(app.says("test -e /dflt && echo there || echo gone"), "gone");
    lab.docker(1, "secret rm pw").ok();
    // A template that cannot be filled in is told where the task failed.
    lab.docker_with_input(
        1,
        &["config", "create", "--template-driver", "golang", "bad", "-"],
        b"{{secret \"nobody\"}}",
    )
    .ok();
    lab.docker(1, "service create --detach --no-resolve-image --name bad --config bad busybox sleep 1000").ok();
    eventually(Duration::from_secs(20), "the reason is told", || {
        lab.docker(1, "service ps --no-trunc bad").stdout.contains("secret target nobody not found")
    });
}
