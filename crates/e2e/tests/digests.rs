//! Which image a service means: the digest that a registry named when it was made.

use std::time::Duration;

use serde_json::{Value, json};
use skep_e2e::api::{Answer, call};
use skep_e2e::{Lab, Registry, busybox_tar};

#[test]
fn images_of_services_are_pinned_to_what_the_registry_has() {
    let lab = Lab::up(&["--managers", "1", "--workers", "1", "--", "--insecure-registry", "node1:5000"]);
    let _registry = Registry::start(&lab);
    let image = "node1:5000/example/sleep:1";
    let command = ["import", "--change", "CMD [\"sleep\", \"1000\"]", "-", image];
    lab.docker_with_input(1, &command, &busybox_tar()).ok();
    let pushed = lab.docker(1, &format!("push {image}")).ok();
    let digest = pushed.split("digest: ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a digest").to_owned();
    let ask =
        |method: &str, path: &str, body: &Value| match call(lab.socket(1), method, path, body, Duration::from_secs(20))
        {
            Answer::Given(status, body) => (status, body),
            Answer::Unsent | Answer::Lost => panic!("{path} was not answered"),
        };
    // conformance: works | GET /distribution/{name}/json
    let (status, found) = ask("GET", &format!("/v1.41/distribution/{image}/json"), &Value::Null);
    assert_eq!((status, &found["Descriptor"]["digest"]), (200, &json!(digest)));
    assert_eq!(found["Platforms"][0]["os"], "linux");
    let image_of = |service: &str| {
        let format = "{{.Spec.TaskTemplate.ContainerSpec.Image}}";
        lab.docker_words(1, &["service", "inspect", "-f", format, service]).ok()
    };
    // conformance: works | docker service create of an image with a tag pins its digest
    lab.docker(1, &format!("service create --detach --name pinned --with-registry-auth --replicas 2 {image}")).ok();
    assert_eq!(image_of("pinned"), format!("{image}@{digest}"));
    lab.await_running("pinned", 2);
    // conformance: works | docker service create --no-resolve-image
    lab.docker(1, &format!("service create --detach --no-resolve-image --name loose {image}")).ok();
    assert_eq!(image_of("loose"), image);
    // conformance: works | docker service update --image | pins the digest anew
    lab.docker(1, &format!("service update --detach --image {image} loose")).ok();
    assert_eq!(image_of("loose"), format!("{image}@{digest}"));
    // conformance: works | docker service create of an image that no registry has | a warning
    let ran = lab.docker(1, "service create --detach --name ghost node1:5000/nobody/has:1");
    let warning = "image node1:5000/nobody/has:1 could not be accessed on a registry to record\nits digest.";
    assert!(ran.code == 0 && ran.stderr.contains(warning), "{ran:?}");
    assert_eq!(image_of("ghost"), "node1:5000/nobody/has:1");
    // conformance: works | a client older than API 1.30 leaves the digest to the daemon
    let spec = |name: &str, image: &str| json!({"Name": name, "TaskTemplate": {"ContainerSpec": {"Image": image}}});
    let (status, _) = ask("POST", "/v1.29/services/create", &spec("old", image));
    assert_eq!((status, image_of("old")), (201, format!("{image}@{digest}")));
    let (status, body) = ask("POST", "/v1.29/services/create", &spec("lost", "node1:5000/nobody/has:2"));
    let said = body["Warnings"][0].as_str().or(body["Warning"].as_str()).unwrap_or_default();
    assert!(status == 201 && said.contains("could not be accessed on a registry"), "{body}");
    // conformance: works | docker service create --quiet
    let said = lab.docker(1, &format!("service create --quiet --name calm {image}")).ok();
    assert!(!said.contains("overall progress") && said.lines().count() == 1, "{said}");
}
