use std::path::PathBuf;

use skep_model::Timestamp;

use super::*;
use crate::container::{LogsRequest, StdStream};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("skep-log-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn log(&self) -> PathBuf {
        self.0.join("x-json.log")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const ENDLESS: Rotation = Rotation { max_bytes: None, max_files: 1, compress: false };

fn all() -> LogsRequest {
    LogsRequest { stdout: true, stderr: true, ..LogsRequest::default() }
}

fn texts(path: &std::path::Path, request: &LogsRequest) -> Vec<String> {
    read(path, request).unwrap().0.iter().map(|r| String::from_utf8_lossy(&r.data).into_owned()).collect()
}

#[test]
fn the_format_is_dockers() {
    let folder = Folder::new("format");
    let mut writer = LogWriter::open(&folder.log(), ENDLESS).unwrap();
    writer.write(StdStream::Stdout, b"hel", Timestamp(1)).unwrap();
    writer.write(StdStream::Stderr, b"\"quoted\"\n", Timestamp(1_500_000_000_120_000_000)).unwrap();
    writer.write(StdStream::Stdout, b"lo\nend", Timestamp(1_500_000_000_000_000_000)).unwrap();
    writer.finish(StdStream::Stdout, Timestamp(1_500_000_000_000_000_000)).unwrap();
    let text = std::fs::read_to_string(folder.log()).unwrap();
    assert_eq!(
        text,
        "{\"log\":\"\\\"quoted\\\"\\n\",\"stream\":\"stderr\",\"time\":\"2017-07-14T02:40:00.12Z\"}\n\
         {\"log\":\"hello\\n\",\"stream\":\"stdout\",\"time\":\"2017-07-14T02:40:00Z\"}\n\
         {\"log\":\"end\",\"stream\":\"stdout\",\"time\":\"2017-07-14T02:40:00Z\"}\n"
    );
    assert_eq!(texts(&folder.log(), &all()), ["\"quoted\"\n", "hello\n", "end"]);
    assert_eq!(texts(&folder.log(), &LogsRequest { stderr: false, ..all() }), ["hello\n", "end"]);
    assert_eq!(texts(&folder.log(), &LogsRequest { tail: Some(1), ..all() }), ["end"]);
    assert_eq!(texts(&folder.log(), &LogsRequest { tail: Some(0), ..all() }), [""; 0]);
    let since = Some(Timestamp(1_500_000_000_100_000_000));
    assert_eq!(texts(&folder.log(), &LogsRequest { since, ..all() }), ["\"quoted\"\n"]);
}

/// A pipe with something in it.
fn pipe(text: &[u8]) -> std::os::fd::OwnedFd {
    let (read, write) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&write, text).unwrap();
    read
}

#[test]
fn a_daemon_killed_at_any_step_neither_loses_nor_doubles() {
    let folder = Folder::new("spool");
    let (log, path) = (folder.log(), folder.0.join("spool"));
    let stream = StdStream::Stdout;
    let now = Timestamp(1);
    let open = || {
        let mut writer = LogWriter::open(&log, ENDLESS).unwrap();
        let spool = Spool::open(&path, stream, &mut writer, now).unwrap();
        (writer, spool)
    };
    let (mut writer, mut spool) = open();
    spool.take(pipe(b"one\ntw"), &mut writer, now, |_| {}).unwrap();
    // Killed in peace: half a line is kept.
    let (mut writer, mut spool) = open();
    spool.take(pipe(b"o\nthree\nfo"), &mut writer, now, |_| {}).unwrap();
    assert_eq!(texts(&log, &all()), ["one\n", "two\n", "three\n"]);
    // Killed after the bytes came, before the log was written.
    let before = (std::fs::read(&log).unwrap(), std::fs::read(&path).unwrap());
    spool.take(pipe(b"ur\nfive\nsi"), &mut writer, now, |_| {}).unwrap();
    let after = (std::fs::read(&log).unwrap(), std::fs::read(&path).unwrap());
    let came: Vec<u8> = before.1[..16].iter().chain(&after.1[16..]).copied().collect();
    std::fs::write(&path, &came).unwrap();
    std::fs::write(&log, &before.0).unwrap();
    let (_, _) = open();
    assert_eq!(texts(&log, &all()), ["one\n", "two\n", "three\n", "four\n", "five\n"]);
    // Killed after half of the log was written.
    std::fs::write(&path, &came).unwrap();
    std::fs::write(&log, &after.0[..after.0.len() - 30]).unwrap();
    let (_, _) = open();
    assert_eq!(texts(&log, &all()), ["one\n", "two\n", "three\n", "four\n", "five\n"]);
    // Killed after the log was written, before the spool was moved on.
    std::fs::write(&path, &came).unwrap();
    std::fs::write(&log, &after.0).unwrap();
    let (mut writer, mut spool) = open();
    spool.take(pipe(b"x\n"), &mut writer, now, |_| {}).unwrap();
    assert_eq!(texts(&log, &all()), ["one\n", "two\n", "three\n", "four\n", "five\n", "six\n"]);
}

#[test]
fn long_lines_are_split_and_put_together_again() {
    let folder = Folder::new("long");
    let mut writer = LogWriter::open(&folder.log(), ENDLESS).unwrap();
    let line = "ü".repeat(40_000) + "\n";
    for chunk in line.as_bytes().chunks(7_001) {
        writer.write(StdStream::Stdout, chunk, Timestamp(1)).unwrap();
    }
    let got = texts(&folder.log(), &all());
    assert_eq!(got.concat(), line);
    assert!(got.len() == 5 && got.iter().all(|t| t.len() <= MAX_LINE), "{}", got.len());
}

#[test]
fn rotation_keeps_so_many_files_and_the_reader_follows() {
    let folder = Folder::new("rotation");
    let rotation = Rotation { max_bytes: Some(400), max_files: 3, compress: false };
    let mut writer = LogWriter::open(&folder.log(), rotation).unwrap();
    let (_, mut reader) = read(&folder.log(), &all()).unwrap();
    let mut followed = Vec::new();
    for n in 0..40 {
        writer.write(StdStream::Stdout, format!("line {n}\n").as_bytes(), Timestamp(n)).unwrap();
        while reader.next(&mut followed).unwrap() {}
    }
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 3);
    assert_eq!(followed.len(), 40);
    let kept = texts(&folder.log(), &all());
    assert!(kept.len() < 40 && kept.last().unwrap() == "line 39\n");
    let tail = texts(&folder.log(), &LogsRequest { tail: Some(8), ..all() });
    assert_eq!(tail, (32..40).map(|n| format!("line {n}\n")).collect::<Vec<_>>());
}

#[test]
fn full_files_are_packed_and_read_back() {
    let folder = Folder::new("packed");
    let rotation = Rotation { max_bytes: Some(500), max_files: 4, compress: true };
    let mut writer = LogWriter::open(&folder.log(), rotation).unwrap();
    for n in 0..40 {
        writer.write(StdStream::Stdout, format!("line {n}\n").as_bytes(), Timestamp(n)).unwrap();
    }
    // The present file is empty: those before it are read whole, and once.
    while writer.size() > 0 {
        writer.write(StdStream::Stdout, b"more\n", Timestamp(41)).unwrap();
        writer.rotate_if_full().unwrap();
    }
    drop(writer);
    assert!(texts(&folder.log(), &all()).ends_with(&["more\n".to_owned()]));
    let mut writer = LogWriter::open(&folder.log(), rotation).unwrap();
    writer.write(StdStream::Stdout, b"last\n", Timestamp(42)).unwrap();
    drop(writer);
    let mut names: Vec<_> =
        std::fs::read_dir(&folder.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["x-json.log", "x-json.log.1.gz", "x-json.log.2.gz", "x-json.log.3.gz"]);
    let kept = texts(&folder.log(), &all());
    assert!(kept.contains(&"line 39\n".to_owned()) && kept.ends_with(&["last\n".to_owned()]), "{kept:?}");
    // As a daemon leaves it that was killed between the two, or that begins to compress.
    std::fs::write(folder.0.join("x-json.log.1"), "").unwrap();
    let mut writer =
        LogWriter::open(&folder.log(), Rotation { compress: false, max_bytes: Some(1), ..rotation }).unwrap();
    for n in 40..43 {
        writer.write(StdStream::Stdout, format!("line {n}\n").as_bytes(), Timestamp(n)).unwrap();
    }
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 4);
    assert_eq!(texts(&folder.log(), &LogsRequest { tail: Some(3), ..all() }), ["line 40\n", "line 41\n", "line 42\n"]);
}

#[test]
fn attributes_stand_beside_every_line() {
    let folder = Folder::new("attributes");
    let attributes: BTreeMap<String, String> = [("tag".to_owned(), "a \"b\"".to_owned())].into();
    let mut writer = LogWriter::open(&folder.log(), ENDLESS).unwrap().with_attributes(attributes.clone());
    writer.write(StdStream::Stdout, b"x\n", Timestamp(1_500_000_000_000_000_000)).unwrap();
    assert_eq!(
        std::fs::read_to_string(folder.log()).unwrap(),
        "{\"log\":\"x\\n\",\"stream\":\"stdout\",\"attrs\":{\"tag\":\"a \\\"b\\\"\"},\"time\":\"2017-07-14T02:40:00Z\"}\n"
    );
    assert_eq!(read(&folder.log(), &all()).unwrap().0[0].attributes, attributes);
}
