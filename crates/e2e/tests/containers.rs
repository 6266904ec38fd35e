//! `docker run` and what people do with a container on one host.

use std::io::Write;
use std::process::{Command, Stdio};

use skep_e2e::{Following, Lab, SOON, eventually};

fn host() -> Lab {
    let lab = Lab::hosts(1);
    lab.give_busybox();
    lab
}

/// Runs a docker command line with a terminal, as `script` from util-linux gives one.
fn with_terminal(lab: &Lab, line: &str) -> String {
    let docker = format!("docker -H unix://{} {line}", lab.socket(1));
    let output =
        Command::new("script").args(["-qec", &docker, "/dev/null"]).stdin(Stdio::null()).output().expect("script runs");
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

#[test]
fn run_gives_output_exit_code_and_leaves_nothing_with_rm() {
    let lab = host();
    // conformance: works | docker run --rm
    let ran = lab.docker_words(1, &["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (7, "out\n", "err\n"));
    assert_eq!(lab.docker(1, "ps -aq").ok(), "");
    // conformance: works | docker run -i
    let echoed = lab.docker_with_input(1, &["run", "--rm", "-i", "busybox", "cat"], b"through and back\n").ok();
    assert_eq!(echoed, "through and back");
    // conformance: works | docker run -e -w -u --hostname --entrypoint
    let line = [
        "run",
        "--rm",
        "-e",
        "A=b c",
        "-w",
        "/tmp",
        "-u",
        "alice",
        "--hostname",
        "box",
        "busybox",
        "sh",
        "-c",
        "echo $A; pwd; id -un; id -Gn; hostname",
    ];
    assert_eq!(lab.docker_words(1, &line).ok(), "b c\n/tmp\nalice\nalice wheel\nbox");
    let line = ["run", "--rm", "--entrypoint", "/bin/echo", "busybox", "hello"];
    assert_eq!(lab.docker_words(1, &line).ok(), "hello");
    // conformance: works | docker run with a command that is not there: exit code 127
    let ran = lab.docker(1, "run --rm busybox /nope");
    assert_eq!(ran.code, 127, "{ran:?}");
    assert!(ran.stderr.contains("no such file or directory") || ran.stderr.contains("not found"), "{ran:?}");
    let ran = lab.docker(1, "run --rm busybox /etc/passwd");
    assert_eq!(ran.code, 126, "{ran:?}");
    assert_eq!(lab.docker(1, "ps -aq").ok(), "");
}

#[test]
fn a_container_lives_through_start_stop_restart_kill_and_rm() {
    let lab = host();
    // conformance: works | docker create, start, ps
    let id = lab.docker(1, "create --name box busybox sleep 1000").ok();
    assert_eq!(id.len(), 64);
    assert_eq!(lab.docker_words(1, &["ps", "-a", "--format", "{{.Names}} {{.Status}}"]).ok(), "box Created");
    assert_eq!(lab.docker(1, "start box").ok(), "box");
    assert!(
        lab.docker_words(1, &["ps", "--format", "{{.ID}} {{.Image}} {{.Command}} {{.Status}}"])
            .ok()
            .starts_with(&format!("{} busybox \"sleep 1000\" Up ", &id[..12]))
    );
    let inspect = |format: &str| lab.docker_words(1, &["inspect", "--format", format, "box"]).ok();
    // conformance: works | docker inspect
    assert_eq!(
        inspect("{{.State.Status}} {{.State.Running}} {{.Id}} {{.Name}} {{.Path}} {{.Args}}"),
        format!("running true {id} /box sleep [1000]")
    );
    // conformance: works | docker stop, kill, restart, wait, rm
    assert_eq!(lab.docker(1, "kill -s KILL box").ok(), "box");
    assert_eq!(lab.docker(1, "wait box").ok(), "137");
    assert_eq!(inspect("{{.State.Status}} {{.State.ExitCode}}"), "exited 137");
    assert_eq!(lab.docker(1, "restart -t 0 box").ok(), "box");
    assert_eq!(inspect("{{.State.Status}}"), "running");
    lab.docker(1, "rm box").fails("force remove");
    assert_eq!(lab.docker(1, "stop -t 0 box").ok(), "box");
    assert_eq!(inspect("{{.State.ExitCode}}"), "137");
    assert_eq!(lab.docker(1, "rename box bix").ok(), "");
    assert_eq!(lab.docker(1, "rm bix").ok(), "bix");
    lab.docker(1, "inspect bix").fails("No such object: bix");
    lab.docker(1, "start bix").fails("No such container: bix");
    // conformance: works | docker pause, unpause
    lab.docker(1, "run -d --name pau busybox sleep 1000").ok();
    lab.docker(1, "pause pau").ok();
    assert_eq!(lab.docker_words(1, &["inspect", "-f", "{{.State.Status}}", "pau"]).ok(), "paused");
    lab.docker(1, "unpause pau").ok();
    lab.docker(1, "rm -f pau").ok();
}

#[test]
fn exec_runs_beside_with_and_without_a_terminal() {
    let lab = host();
    lab.docker(1, "run -d --name box busybox sleep 1000").ok();
    // conformance: works | docker exec
    let ran = lab.docker_words(1, &["exec", "-e", "X=1", "-w", "/tmp", "box", "sh", "-c", "echo $X $(pwd) $$; exit 3"]);
    assert_eq!(ran.code, 3);
    assert!(ran.stdout.starts_with("1 /tmp "), "{ran:?}");
    // conformance: works | docker exec -i
    assert_eq!(lab.docker_with_input(1, &["exec", "-i", "box", "wc", "-c"], b"12345").ok(), "5");
    // conformance: works | docker exec -it
    let seen = with_terminal(&lab, "exec -it box sh -c 'tty; test -t 0 && echo terminal'");
    assert!(seen.contains("/dev/pts/") && seen.contains("terminal"), "{seen:?}");
    // conformance: works | docker run -it
    let seen = with_terminal(&lab, "run --rm -it busybox sh -c 'test -t 1 && echo terminal; exit 4'");
    assert!(seen.contains("terminal"), "{seen:?}");
    // conformance: works | docker exec -d
    lab.docker(1, "exec -d box touch /tmp/made").ok();
    eventually(SOON, "the detached exec ran", || lab.docker(1, "exec box ls /tmp/made").code == 0);
    // 126 until Docker 23, 127 since.
    assert!(matches!(lab.docker(1, "exec box /nope").code, 126 | 127));
    // conformance: works | docker top
    let top = lab.docker(1, "top box").ok();
    assert!(
        top.lines().next().is_some_and(|h| h.contains("PID") && h.contains("CMD")) && top.contains("sleep 1000"),
        "{top}"
    );
    // conformance: works | docker stats --no-stream
    let stats = lab.docker_words(1, &["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "box"]).ok();
    assert_eq!(stats, "box 1");
    lab.docker(1, "stop -t 0 box").ok();
    lab.docker(1, "exec box true").fails("is not running");
}

#[test]
fn the_same_privileges_for_run_and_exec_as_docker_gives() {
    let lab = host();
    lab.docker(1, "run -d --name box busybox sleep 1000").ok();
    let wanted = ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "NoNewPrivs:\t0", "Seccomp:\t2"];
    for line in ["run --rm busybox cat /proc/self/status", "exec box cat /proc/self/status"] {
        let status = lab.docker(1, line).ok();
        for want in wanted {
            assert!(status.contains(want), "{line}: {want} is not in\n{status}");
        }
    }
    // conformance: works | docker run --cap-add --cap-drop
    let status = lab.docker(1, "run --rm --cap-drop ALL --cap-add NET_ADMIN busybox cat /proc/self/status").ok();
    assert!(status.contains("CapEff:\t0000000000001000"), "{status}");
    // conformance: works | docker run --privileged
    let status = lab.docker(1, "run --rm --privileged busybox cat /proc/self/status");
    // dockerd asks for capabilities that this machine may not have to give.
    assert!(lab.is_dockerd() || status.ok().contains("Seccomp:\t0"));
    // Masked and read-only paths.
    let ran = lab.docker_words(
        1,
        &["run", "--rm", "busybox", "sh", "-c", "cat /proc/kcore | wc -c; echo 1 > /proc/sys/kernel/panic"],
    );
    assert!(ran.stdout.starts_with('0') && ran.stderr.contains("Read-only file system"), "{ran:?}");
    // conformance: works | docker run --read-only
    lab.docker(1, "run --rm --read-only busybox touch /x").fails("Read-only file system");
    // conformance: works | docker run --tmpfs
    lab.docker_words(1, &["run", "--rm", "--read-only", "--tmpfs", "/t", "busybox", "touch", "/t/x"]).ok();
}

#[test]
fn limits_are_enforced_and_an_oom_is_told() {
    let lab = host();
    // conformance: works | docker run --memory
    let ran = lab.docker_words(
        1,
        &[
            "run",
            "--name",
            "mem",
            "-m",
            "32m",
            "busybox",
            "sh",
            "-c",
            "x=$(head -c 100000000 /dev/zero | tr '\\0' a); echo survived",
        ],
    );
    assert!(!ran.stdout.contains("survived"), "{ran:?}");
    let state = lab.docker_words(1, &["inspect", "-f", "{{.State.OOMKilled}} {{.HostConfig.Memory}}", "mem"]).ok();
    assert_eq!(state, "true 33554432");
    // conformance: works | docker run --pids-limit
    let ran = lab.docker_words(
        1,
        &[
            "run",
            "--rm",
            "--pids-limit",
            "5",
            "busybox",
            "sh",
            "-c",
            "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo done",
        ],
    );
    assert!(ran.stderr.contains("can't fork"), "{ran:?}");
    // The daemon may open more for itself; containers get what it was started with.
    let started_with = lab.on(1, &["sh", "-c", "ulimit -Sn; ulimit -Hn"]).ok();
    assert_eq!(
        lab.docker_words(1, &["run", "--rm", "busybox", "sh", "-c", "ulimit -Sn; ulimit -Hn"]).ok(),
        started_with
    );
    // conformance: works | docker run --ulimit
    assert_eq!(
        lab.docker_words(1, &["run", "--rm", "--ulimit", "nofile=100:200", "busybox", "sh", "-c", "ulimit -n"]).ok(),
        "100"
    );
    lab.docker(1, "run --rm -m 1m busybox true").fails("Minimum memory limit allowed is 6MB");
}

#[test]
fn logs_are_kept_followed_and_cut() {
    let lab = host();
    lab.docker_words(
        1,
        &[
            "run",
            "-d",
            "--name",
            "box",
            "busybox",
            "sh",
            "-c",
            "for i in 1 2 3; do echo line $i; done; echo bad >&2; sleep 1000",
        ],
    )
    .ok();
    // conformance: works | docker logs
    eventually(SOON, "four lines", || {
        let ran = lab.docker(1, "logs box");
        ran.stdout == "line 1\nline 2\nline 3\n" && ran.stderr == "bad\n"
    });
    // conformance: works | docker logs --tail --timestamps
    let cut = lab.docker(1, "logs --tail 2 -t box");
    let lines: Vec<&str> = cut.stdout.lines().chain(cut.stderr.lines()).collect();
    assert!(lines.len() == 2 && lines.iter().all(|l| l.split_once("Z ").is_some()), "{cut:?}");
    // conformance: works | docker logs -f
    let mut follower = Following::start(lab.docker_command(1, &["logs", "-f", "box"]));
    follower.await_text("line 3\n");
    lab.docker_words(1, &["exec", "box", "sh", "-c", "echo followed > /proc/1/fd/1"]).ok();
    follower.await_text("followed\n");
    // It ends with the container.
    lab.docker(1, "rm -f box").ok();
    assert_eq!(follower.await_end(), 0);
    // conformance: works | docker attach
    lab.docker_words(1, &["run", "-d", "-i", "--name", "att", "busybox", "cat"]).ok();
    let watching = Following::start(lab.docker_command(1, &["attach", "--no-stdin", "att"]));
    let mut typing = lab
        .docker_command(1, &["attach", "att"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("docker runs");
    let mut keyboard = typing.stdin.take().expect("piped");
    eventually(SOON, "both see what is typed", || {
        keyboard.write_all(b"hello there\n").is_ok() && watching.seen().contains("hello there\n")
    });
    lab.docker(1, "rm -f att").ok();
    drop(keyboard);
    let _ = typing.wait();
}

#[test]
fn mounts_volumes_and_restart_policies() {
    let lab = host();
    // conformance: works | docker volume create, ls, inspect, rm
    assert_eq!(lab.docker(1, "volume create --label a=b vol").ok(), "vol");
    lab.docker_words(1, &["run", "--rm", "-v", "vol:/data", "busybox", "sh", "-c", "echo kept > /data/f"]).ok();
    // conformance: works | docker run -v name:/path
    assert_eq!(lab.docker(1, "run --rm -v vol:/data:ro busybox cat /data/f").ok(), "kept");
    lab.docker(1, "run --rm -v vol:/data:ro busybox touch /data/g").fails("Read-only file system");
    assert_eq!(lab.docker(1, "volume ls -q").ok(), "vol");
    lab.docker(1, "create --name holder -v vol:/d busybox").ok();
    lab.docker(1, "volume rm vol").fails("volume is in use");
    lab.docker(1, "rm holder").ok();
    assert_eq!(lab.docker(1, "volume rm vol").ok(), "vol");
    lab.docker(1, "volume inspect vol").fails("no such volume");
    // conformance: works | docker run -v /host:/path
    assert_eq!(lab.docker(1, "run --rm -v /etc/hostname:/h:ro busybox cat /h").ok(), "node1");
    // conformance: works | docker run --mount
    lab.docker(1, "run --rm --mount type=bind,src=/no/such/dir,dst=/x busybox true")
        .fails("bind source path does not exist: /no/such/dir");
    assert_eq!(
        lab.docker_words(
            1,
            &[
                "run",
                "--rm",
                "--mount",
                "type=tmpfs,dst=/x,tmpfs-size=1m",
                "busybox",
                "sh",
                "-c",
                "df -k /x | tail -1 | awk '{print $2}'"
            ]
        )
        .ok(),
        "1024"
    );
    // conformance: works | docker run --restart on-failure:N
    lab.docker_words(1, &["run", "-d", "--name", "res", "--restart", "on-failure:2", "busybox", "sh", "-c", "exit 1"])
        .ok();
    eventually(SOON, "two restarts", || {
        lab.docker_words(1, &["inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "res"]).ok() == "2 exited"
    });
}

#[test]
fn bad_input_is_answered_as_docker_answers() {
    let lab = host();
    lab.docker(1, "run -d --name box busybox sleep 1000").ok();
    lab.docker(1, "run --name box busybox true")
        .fails("Conflict. The container name \"/box\" is already in use by container");
    lab.docker(1, "run --name a/b busybox true")
        .fails("Invalid container name (a/b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed");
    lab.docker(1, "create Upper").fails("invalid reference format");
    lab.docker(1, "kill -s NOPE box").fails("Invalid signal: NOPE");
    lab.docker(1, "logs nobody").fails("No such container: nobody");
    lab.docker(1, "run --rm --network nowhere busybox true").fails("network nowhere not found");
    lab.docker(1, "run --rm --log-driver nope busybox true")
        .fails("error looking up logging plugin nope: plugin \"nope\" not found");
    // conformance: works | docker create --platform
    lab.docker(1, "create --name own --platform linux busybox").ok();
    lab.docker(1, "rm own").ok();
    lab.docker(1, "create --pull never --platform linux/s390x busybox")
        .fails("image with reference busybox was found but does not match the specified platform: wanted linux/s390x, actual: linux/");
    // Nothing half made is left.
    assert_eq!(lab.docker_words(1, &["ps", "-a", "--format", "{{.Names}}"]).ok(), "box");
}
