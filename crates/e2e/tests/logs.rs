//! `--log-driver` and `--log-opt`: what each option does, and what is refused, in Docker's words.

use skep_e2e::service::words;
use skep_e2e::{LATER, Lab, SOON, eventually};

/// `docker create` with these flags; the container is named `box`.
fn create(lab: &Lab, flags: &str) -> skep_e2e::Ran {
    let mut all = vec!["create", "--name", "box"];
    all.extend(words(flags));
    all.extend(["busybox", "sh", "-c", "echo said; echo wrong >&2"]);
    lab.docker_words(1, &all)
}

#[test]
fn what_log_options_say_is_done_or_refused() {
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    // conformance: works | docker create --log-opt of a name the driver does not know, of a mode that is not there | Docker's 400
    for (flags, text) in [
        ("--log-opt fish=1", "Error response from daemon: unknown log opt 'fish' for json-file log driver"),
        ("--log-driver local --log-opt fish=1", "unknown log opt 'fish' for log driver local"),
        ("--log-driver fish", r#"error looking up logging plugin fish: plugin "fish" not found"#),
        ("--log-opt mode=odd", "logger: logging mode not supported: odd"),
        ("--log-opt max-buffer-size=1m", "logger: max-buffer-size option is only supported with 'mode=non-blocking'"),
        (
            "--log-opt mode=non-blocking --log-opt max-buffer-size=x",
            "error parsing option max-buffer-size: invalid size: 'x'",
        ),
        ("--log-opt cache-disabled=x", "invalid value for option cache-disabled: x"),
    ] {
        create(&lab, flags).fails(text);
        assert_eq!(lab.docker(1, "ps -aq").ok(), "", "{flags}");
    }
    // conformance: works | docker start of a container whose --log-opt has a value that is none | Docker's 500, at the start
    for (flags, text) in [
        ("--log-opt max-size=x", "failed to initialize logging driver: invalid size: 'x'"),
        ("--log-opt max-size=-1", "failed to initialize logging driver: invalid size: '-1'"),
        ("--log-opt max-size=0", "failed to initialize logging driver: max-size must be a positive number"),
        ("--log-opt max-file=x", r#"initialize logging driver: strconv.Atoi: parsing "x": invalid syntax"#),
        ("--log-opt max-file=0", "failed to initialize logging driver: max-file cannot be less than 1"),
        ("--log-opt compress=x", r#"logging driver: strconv.ParseBool: parsing "x": invalid syntax"#),
        ("--log-opt compress=true", "compress cannot be true when max-file is less than 2 or max-size is not set"),
        ("--log-opt 'env-regex=('", "failed to initialize logging driver: error parsing regexp: "),
        ("--log-opt tag={{.Name", "failed to initialize logging driver: template: log-tag:1: unclosed action"),
        (
            "--log-opt tag={{.Nope}}",
            r#"template: log-tag:1:2: executing "log-tag" at <.Nope>: can't evaluate field Nope in type *logger.Info"#,
        ),
        ("--log-driver local --log-opt max-size=x", "invalid value for max-size: x: invalid size: 'x'"),
        ("--log-driver local --log-opt max-file=-1", "max file count cannot be less than 0"),
        ("--log-driver local --log-opt max-file=1", "compression cannot be enabled when max file count is 1"),
        ("--log-driver local --log-opt compress=x", "error reading compress log option: strconv.ParseBool"),
    ] {
        create(&lab, flags).ok();
        lab.docker(1, "start box").fails(text);
        lab.docker(1, "rm box").ok();
    }
    let details = |flags: &str| {
        create(&lab, flags).ok();
        lab.docker(1, "start --attach box").ok();
        let said = lab.docker(1, "logs --details box").ok();
        let id = lab.docker(1, "ps -aq").ok();
        lab.docker(1, "rm box").ok();
        said.lines().next().expect("a line").replace(&id, "ID")
    };
    // conformance: works | docker run --log-opt labels, labels-regex, env, env-regex, tag | of json-file; shown by docker logs --details
    let container = "--label a=1 --label c=2 -e E=5 -e G=6";
    assert_eq!(details(&format!("{container} --log-opt labels=a,b --log-opt env=E,F")), "E=5,a=1 said");
    assert_eq!(details(&format!("{container} --log-opt labels-regex=^c --log-opt env-regex=^G$")), "G=6,c=2 said");
    assert_eq!(details("--log-opt 'tag={{.Name}} {{ .ID }}/{{.ImageName}}'"), "tag=box+ID%2Fbusybox said");
    // conformance: works | docker run --log-opt mode=non-blocking, max-buffer-size | of json-file and local, where nothing is ever held up
    assert_eq!(details("--log-opt mode=non-blocking --log-opt max-buffer-size=1m"), " said");
    // conformance: works | docker run --log-opt compress | of json-file, and of local, which compresses unless told not to
    let line = "i=0; while [ $i -lt 300 ]; do echo line $i of a log that grows beyond its size; i=$((i+1)); sleep 0.01; done; sleep 1000";
    for (driver, options) in [
        ("json-file", &["--log-opt", "compress=true", "--log-opt", "max-file=4"][..]),
        ("local", &["--log-opt", "max-file=4"][..]),
    ] {
        let mut all = vec!["run", "-d", "--name", "box", "--log-driver", driver, "--log-opt", "max-size=8k"];
        all.extend(options);
        all.extend(["busybox", "sh", "-c", line]);
        let id = lab.docker_words(1, &all).ok();
        let folder = lab.data_root(1).join("containers").join(&id);
        let packed = || {
            let list = std::process::Command::new("find").arg(&folder).args(["-name", "*.gz"]).output().expect("find");
            list.stdout.iter().filter(|b| **b == b'\n').count()
        };
        eventually(LATER, "full files are packed", || packed() >= 2);
        eventually(SOON, "and read back in order", || {
            let said = lab.docker(1, "logs box").ok();
            let first = said.lines().next().and_then(|l| l.split(' ').nth(1)?.parse::<usize>().ok());
            let whole =
                said.lines().enumerate().all(|(i, l)| l.starts_with(&format!("line {} ", first.unwrap_or(0) + i)));
            whole && said.lines().count() > 150 && said.contains("line 299 ")
        });
        lab.docker(1, "rm -f box").ok();
    }
}
