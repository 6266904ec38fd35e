//! What is not there answers with a sentence that says so, status 501, and changes nothing.

use skep_e2e::Lab;

#[test]
fn what_is_absent_says_so() {
    let lab = Lab::swarm(1, 0);
    if lab.is_dockerd() {
        return;
    }
    lab.give_busybox();
    lab.docker(1, "create --name box busybox true").ok();
    lab.docker(1, "network create --driver overlay --attachable over").ok();
    // conformance: absent | docker cp | 501: copying files into and out of a container
    // conformance: absent | docker export | 501
    // conformance: absent | docker diff | 501
    // conformance: absent | docker search | 501
    // conformance: absent | docker service create --log-driver gelf, fluentd, … | 501
    // conformance: absent | docker service create --publish …/sctp | 501
    // conformance: absent | docker secret create --driver | 501
    // conformance: absent | docker network create --driver ipvlan | 501
    // conformance: absent | docker network create --driver overlay with two IPv4 subnets, --config-from, --ipam-driver, --ipam-opt | 501
    // conformance: absent | docker run -p …/sctp | refused: tcp and udp are served
    // conformance: absent | docker run --gpus | 501
    // conformance: absent | docker run --link | 501
    // conformance: absent | docker run --cgroup-parent | 501
    // conformance: absent | docker run --storage-opt | 501
    for line in [
        "cp box:/etc/passwd /tmp/skep-e2e-never",
        "export -o /tmp/skep-e2e-never box",
        "diff box",
        "search anything",
        "service create --detach --name sys --log-driver gelf busybox",
        "service create --detach --name sctp --publish 80:80/sctp busybox",
        "secret create --driver vault key",
        "network create --driver ipvlan ip",
        "network create --driver overlay --subnet 10.51.0.0/24 --subnet 10.52.0.0/24 two",
        "network create --driver overlay --config-from plan from",
        "network create --driver overlay --ipam-driver mine driven",
        "network create --driver overlay --ipam-opt a=b opted",
        "run --rm --gpus all busybox true",
        "run --rm --link box:b busybox true",
        "run --rm --cgroup-parent /x busybox true",
        "run --rm --storage-opt size=1G busybox true",
    ] {
        let ran = lab.docker(1, line);
        assert!(ran.code != 0, "{line} succeeded: {}", ran.stdout);
        let says_so = ["is not served yet", "not implemented yet", "not there yet", "not supported"];
        assert!(says_so.iter().any(|words| ran.stderr.contains(words)), "{line}: {}", ran.stderr);
    }
    lab.docker(1, "run --rm -p 9031:80/sctp busybox true").fails("ports cannot be published with SCTP: use tcp or udp");
    assert_eq!(lab.docker_words(1, &["ps", "-a", "--format", "{{.Names}}"]).ok(), "box");
    assert_eq!(lab.docker(1, "service ls -q").ok(), "");
    assert_eq!(lab.docker(1, "secret ls -q").ok(), "");
    // conformance: differs | docker service create --isolation process, --stop-grace-period -1s | refused; Docker's tasks are
    lab.docker(1, "service create --detach --isolation process busybox").fails("Unsupported isolation: \"process\"");
    lab.docker(1, "service create --detach --stop-grace-period -1s busybox")
        .fails("stop-grace-period cannot be negative");
    // conformance: differs | docker secret create --template-driver of what is none | refused; Docker's tasks are
    lab.docker(1, "secret create --template-driver none key /etc/hostname").fails("unrecognized template type");
    assert_eq!(lab.docker_words(1, &["network", "ls", "-q", "--filter", "driver=overlay"]).ok().lines().count(), 2);
}
