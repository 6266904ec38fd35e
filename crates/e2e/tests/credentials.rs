//! A registry that asks who is there.

use std::time::Duration;

use serde_json::{Value, json};
use skep_e2e::api::{Answer, call};
use skep_e2e::token::TokenRegistry;
use skep_e2e::{LATER, Lab, Registry, busybox_tar, eventually};

#[test]
fn a_private_registry_is_used_with_the_users_credentials() {
    let lab = Lab::up(&["--managers", "1", "--workers", "1", "--", "--insecure-registry", "node1:5000"]);
    let _registry = Registry::start_private(&lab);
    let image = "node1:5000/example/sleep:1";
    let command = ["import", "--change", "CMD [\"sleep\", \"1000\"]", "-", image];
    lab.docker_with_input(1, &command, &busybox_tar()).ok();
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!("--config {}", folder.path().display());
    // conformance: works | docker login, refusals | wrong credentials
    let login = |password: &str| lab.docker(1, &format!("{config} login -u bee -p {password} node1:5000"));
    login("wax").fails("login attempt to http://node1:5000/v2/ failed with status: 401 Unauthorized");
    // conformance: works | docker push, pull, run without the credentials the registry asks for | refused
    lab.docker(1, &format!("push {image}")).fails("no basic auth credentials");
    // conformance: works | docker login, push, pull, run with credentials
    assert!(login("honey").ok().contains("Login Succeeded"));
    let pushed = lab.docker(1, &format!("{config} push {image}")).ok();
    let digest = pushed.split("digest: ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a digest").to_owned();
    lab.docker(2, &format!("pull {image}")).fails("/manifests/1\": no basic auth credentials");
    lab.docker(2, &format!("run --rm {image} true")).fails("no basic auth credentials");
    lab.docker(2, &format!("{config} pull {image}")).ok();
    lab.docker(2, &format!("rmi {image}")).ok();
    lab.docker(2, &format!("{config} run --rm {image} true")).ok();
    lab.docker(2, &format!("rmi {image}")).ok();
    // conformance: works | docker service create of a private image without --with-registry-auth | rejected where the image is not
    let there = "--detach --constraint node.role==worker --restart-condition none";
    lab.docker(1, &format!("{config} service create {there} --name alone {image}")).ok();
    eventually(LATER, "the task says why", || {
        let told = lab.docker(1, "service ps --no-trunc --format {{.CurrentState}}|{{.Error}} alone").stdout;
        told.contains("Rejected") && told.contains(&format!("No such image: {image}"))
    });
    // conformance: works | docker service create --with-registry-auth | to every node that pulls
    lab.docker(1, &format!("{config} service create {there} --with-registry-auth --name held {image}")).ok();
    lab.await_running("held", 1);
    let ask = |path: &str, body: &Value| match call(lab.socket(1), "POST", path, body, Duration::from_secs(20)) {
        Answer::Given(status, body) => (status, body),
        Answer::Unsent | Answer::Lost => panic!("{path} was not answered"),
    };
    let inspect = |what: &str| lab.docker_words(1, &["service", "inspect", "-f", what, "held"]).ok();
    let update = |query: &str| {
        let spec = json!({"Name": "held", "TaskTemplate": {"ContainerSpec": {"Image": image}}});
        ask(&format!("/v1.29/services/held/update?version={}{query}", inspect("{{.Version.Index}}")), &spec)
    };
    // conformance: works | a service update that takes credentials from a spec that was never | an error
    let (status, body) = update("&registryAuthFrom=previous-spec");
    assert_eq!((status, &body["message"]), (500, &json!("service does not have a previous spec")));
    // conformance: works | a service update by a client older than API 1.30 without credentials | pins the digest with the service's own
    let (status, body) = update("");
    assert_eq!((status, body["Warnings"].as_array().map_or(0, Vec::len)), (200, 0), "{body}");
    assert_eq!(inspect("{{.Spec.TaskTemplate.ContainerSpec.Image}}"), format!("{image}@{digest}"));
}

/// As Docker Hub's: the registry names a token server, which gives tokens for scopes, for a while.
#[test]
fn a_registry_with_a_token_server_is_used_with_the_users_credentials() {
    let lab = Lab::up(&["--managers", "1", "--workers", "1", "--", "--insecure-registry", "0.0.0.0/0"]);
    let registry = TokenRegistry::start(&lab);
    let image = &format!("{}/example/sleep:1", registry.name());
    let command = ["import", "--change", "CMD [\"sleep\", \"1000\"]", "-", image];
    lab.docker_with_input(1, &command, &busybox_tar()).ok();
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!("--config {}", folder.path().display());
    // conformance: works | docker login to a registry with a token server
    let login = |password: &str| lab.docker(1, &format!("{config} login -u bee -p {password} {}", registry.name()));
    login("wax")
        .fails(&format!("Get \"http://{}/v2/\": unauthorized: incorrect username or password", registry.name()));
    assert!(login("honey").ok().contains("Login Succeeded"));
    // conformance: works | docker push, pull without credentials, where strangers are given tokens that grant nothing | refused
    lab.docker(1, &format!("push {image}")).fails("denied: requested access to the resource is denied");
    lab.docker(2, &format!("pull {image}")).fails(&format!(
        "pull access denied for {}/example/sleep, repository does not exist or may require 'docker login': denied: requested \
         access to the resource is denied",
        registry.name()
    ));
    // conformance: works | docker push, pull with wrong credentials, of a registry with a token server | the token server's words
    let wrong = tempfile::tempdir().expect("a folder");
    let auth = json!({"auths": {registry.name(): {"auth": "YmVlOndheA=="}}});
    std::fs::write(wrong.path().join("config.json"), auth.to_string()).expect("a file");
    let words = "unauthorized: incorrect username or password";
    lab.docker(1, &format!("--config {} push {image}", wrong.path().display())).fails(words);
    lab.docker(2, &format!("--config {} pull {image}", wrong.path().display()))
        .fails(&format!("Head \"http://{}/v2/example/sleep/manifests/1\": {words}", registry.name()));
    // conformance: works | docker push, pull with a token server | asks for what is done, no more
    registry.granted();
    lab.docker(1, &format!("{config} push {image}")).ok();
    let scopes = registry.granted();
    let [scope] = &scopes[..] else { panic!("{scopes:?}") };
    let actions = scope.strip_prefix("repository:example/sleep:").map(|a| a.split(',').collect::<Vec<_>>());
    assert!(actions.is_some_and(|a| a.len() == 2 && a.contains(&"pull") && a.contains(&"push")), "{scope}");
    lab.docker(2, &format!("{config} pull {image}")).ok();
    assert_eq!(registry.granted(), ["repository:example/sleep:pull"]);
    lab.docker(2, "image prune --all --force").ok();
    // conformance: works | docker service create --with-registry-auth, with a token server
    let there = "--detach --constraint node.role==worker --restart-condition none";
    lab.docker(1, &format!("{config} service create {there} --with-registry-auth --name held {image}")).ok();
    lab.await_running("held", 1);
    if lab.is_dockerd() {
        return;
    }
    lab.docker(1, "service rm held").ok();
    eventually(LATER, "nothing runs", || lab.docker(2, "ps -aq").ok().is_empty());
    lab.docker(2, "image prune --all --force").ok();
    // conformance: differs | docker push, pull while a token ends before it said it would | another is asked for; Docker's fail
    registry.tokens_end_after(1);
    let other = &format!("{}/example/other:1", registry.name());
    lab.docker(1, &format!("tag {image} {other}")).ok();
    registry.granted();
    lab.docker(1, &format!("{config} push {other}")).ok();
    let pushed = registry.granted().len();
    lab.docker(2, &format!("{config} pull {other}")).ok();
    let pulled = registry.granted().len();
    assert!(pushed > 3 && pulled > 2, "a token for each request: {pushed} {pulled}");
}
