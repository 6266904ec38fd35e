//! `--log-driver` and `--log-opt`: what each option does, and what is refused, in Docker's words.

use std::path::Path;

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

/// What came, one datagram or piece of a stream after the other.
fn listen(receive: impl Fn(&mut [u8]) -> std::io::Result<usize> + Send + 'static) -> std::sync::mpsc::Receiver<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok(got) = receive(&mut buffer) {
            if got == 0 || sender.send(String::from_utf8_lossy(&buffer[..got]).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Everything until `text` is in it.
fn heard(receiver: &std::sync::mpsc::Receiver<String>, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        all += &receiver.recv_timeout(SOON).unwrap_or_else(|_| panic!("never heard {text:?}, but {all:?}"));
    }
    all
}

#[test]
fn logs_go_to_syslog_and_the_journal() {
    use std::io::Read;
    use std::os::unix::net::{UnixDatagram, UnixListener};
    let lab = Lab::swarm(1, 0);
    lab.give_busybox();
    // Which the hosts see at the same path.
    let folder = lab.data_root(1);
    let here = lab.address(1).rsplit_once('.').map(|(net, _)| format!("{net}.254")).expect("an address");
    let run = |flags: &str| {
        let mut all = vec!["run", "--name", "box"];
        all.extend(words(flags));
        all.extend(["busybox", "sh", "-c", "echo said; echo wrong >&2; sleep 0.1; printf end"]);
        let ran = lab.docker_words(1, &all);
        let id = lab.docker(1, "ps -aq").ok();
        let kept = lab.docker(1, "logs box");
        lab.docker(1, "rm box").ok();
        (ran.ok(), id, kept)
    };
    // The last number of a priority is 6 for what was said on stdout, and 3 for stderr.
    // conformance: works | docker run --log-driver syslog --log-opt syslog-address=udp://…, tcp://…, unix://…, unixgram://…
    let udp = std::net::UdpSocket::bind((here.as_str(), 0)).expect("a port");
    let port = udp.local_addr().expect("an address").port();
    let datagrams = listen(move |buffer| udp.recv(buffer));
    // conformance: works | docker logs of a container with --log-driver syslog, journald | kept on the host as well, and read there
    let (_, id, kept) = run(&format!("--log-driver syslog --log-opt syslog-address=udp://{here}:{port}"));
    let said = heard(&datagrams, "end");
    assert!(said.contains(&format!(" {id}[")) && said.contains("]: said\n"), "{said}");
    assert!(said.lines().all(|l| l.starts_with(if l.ends_with("wrong") { "<27>" } else { "<30>" })), "{said}");
    assert_eq!((kept.stdout.as_str(), kept.stderr.as_str()), ("said\nend", "wrong\n"));
    let tcp = std::net::TcpListener::bind((here.as_str(), port)).expect("a port");
    let stream = std::thread::spawn(move || {
        let mut all = String::new();
        tcp.accept().expect("a connection").0.read_to_string(&mut all).expect("lines");
        all
    });
    // conformance: works | docker run --log-opt syslog-format=rfc3164, rfc5424, rfc5424micro; syslog-facility; tag
    let options = "--log-opt syslog-format=rfc5424 --log-opt syslog-facility=local3 --log-opt 'tag={{.Name}}/x'";
    run(&format!("--log-driver syslog --log-opt syslog-address=tcp://{here}:{port} {options}"));
    let said = stream.join().expect("the whole stream");
    let first = said.lines().find(|l| l.ends_with("said")).expect("the line");
    let words: Vec<&str> = first.split(' ').collect();
    let [head, _time, "node1", "box/x", _pid, "box/x", "-", "said"] = words[..] else { panic!("{first}") };
    assert_eq!((head, said.lines().count()), ("<158>1", 3), "{said}");
    for (format, end) in [("rfc3164", " node1 box["), ("rfc5424micro", " node1 box ")] {
        run(&format!(
            "--log-driver syslog --log-opt syslog-address=udp://{here}:{port} --log-opt tag=box --log-opt syslog-format={format}"
        ));
        let said = heard(&datagrams, "end");
        assert!(said.lines().all(|l| l.contains(end)), "{said}");
    }
    let path = folder.join("stream.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let stream = std::thread::spawn(move || {
        let mut all = String::new();
        listener.accept().expect("a connection").0.read_to_string(&mut all).expect("lines");
        all
    });
    run(&format!("--log-driver syslog --log-opt syslog-address=unix://{}", path.display()));
    assert_eq!(stream.join().expect("the whole stream").lines().count(), 3);
    let path = folder.join("datagram.sock");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    let datagrams = listen(move |buffer| socket.recv(buffer));
    // conformance: works | docker run --log-opt cache-disabled=true
    let (_, _, kept) = run(&format!(
        "--log-driver syslog --log-opt cache-disabled=true --log-opt syslog-address=unixgram://{}",
        path.display()
    ));
    heard(&datagrams, "end");
    kept.fails("configured logging driver does not support reading");
    // conformance: works | docker service create --log-driver syslog
    let service = format!(
        "service create --detach --no-resolve-image --name far --log-driver syslog --log-opt syslog-address=unixgram://{} --log-opt tag={{{{.Name}}}} busybox sh -c",
        path.display()
    );
    let mut all: Vec<&str> = service.split(' ').collect();
    all.push("echo from afar; sleep 1000");
    lab.docker_words(1, &all).ok();
    assert!(heard(&datagrams, "from afar").contains(" far.1."));
    eventually(LATER, "the service's log has it too", || {
        lab.docker(1, "service logs --raw far").stdout.contains("from afar")
    });
    lab.docker(1, "service rm far").ok();
    // conformance: works | docker run --log-driver syslog, refusals | an address, facility or format that is none; nobody there
    for (options, text) in [
        ("--log-opt fish=1", "unknown log opt 'fish' for syslog log driver"),
        ("--log-opt syslog-address=foo", "syslog-address should be in form proto://address, got foo"),
        ("--log-opt syslog-address=unix:///nope", "stat /nope: no such file or directory"),
        ("--log-opt syslog-facility=fish", "invalid syslog facility"),
        ("--log-opt syslog-format=fish", "Invalid syslog format"),
    ] {
        lab.docker(1, &format!("create --log-driver syslog {options} busybox")).fails(text);
    }
    lab.docker(1, "create --log-driver journald --log-opt fish=1 busybox")
        .fails("unknown log opt 'fish' for journald log driver");
    for (driver, text) in [
        ("syslog", "failed to initialize logging driver: Unix syslog delivery error"),
        ("syslog --log-opt syslog-address=tcp://127.0.0.1:1", "dial tcp 127.0.0.1:1: connect: connection refused"),
        ("journald", "failed to initialize logging driver: journald is not enabled on this host"),
    ] {
        lab.docker(1, &format!("run --rm --log-driver {driver} busybox true")).fails(text);
    }
    // conformance: works | docker run --log-driver journald | with labels, env and tag; fields named as Docker's
    let journal = Path::new(lab.socket(1)).with_file_name("systemd").join("journal");
    std::fs::create_dir_all(&journal).expect("a folder");
    let socket = UnixDatagram::bind(journal.join("socket")).expect("a socket");
    let entries = listen(move |buffer| socket.recv(buffer));
    run("--log-driver journald --log-opt tag={{.Name}} --log-opt labels=a.b --label a.b=5");
    let said = heard(&entries, "MESSAGE=end\n");
    for field in ["CONTAINER_ID", "CONTAINER_ID_FULL"] {
        assert!(said.contains(&format!("\n{field}=")), "{field}: {said}");
    }
    for line in ["PRIORITY=3\nMESSAGE=wrong\n", "PRIORITY=6\nMESSAGE=said\n", "\nCONTAINER_PARTIAL_MESSAGE=true\n"] {
        assert!(said.contains(line), "{line:?}: {said}");
    }
    for line in [
        "\nCONTAINER_NAME=box\n",
        "\nCONTAINER_TAG=box\n",
        "\nIMAGE_NAME=busybox\n",
        "\nSYSLOG_IDENTIFIER=box\n",
        "\nA_B=5\n",
    ] {
        assert!(said.contains(line), "{line:?}: {said}");
    }
    if lab.is_dockerd() {
        return;
    }
    // conformance: absent | docker run --log-opt syslog-address=tcp+tls://… | 501
    lab.docker(1, "create --log-driver syslog --log-opt syslog-address=tcp+tls://127.0.0.1:1 busybox")
        .fails("syslog over TLS is not supported yet");
}
