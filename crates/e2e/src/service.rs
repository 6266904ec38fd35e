//! A service of one task on a lab of one host, looked at from all sides: its spec, its container, and inside.

use serde_json::Value;

use crate::{LATER, Lab, eventually};

/// Words of a line, as a shell splits them; single quotes hold a word together.
pub fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'').expect("a closing quote"),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(word);
        rest = after.trim_start();
    }
    words
}

pub struct Service<'a> {
    lab: &'a Lab,
    name: &'a str,
}

impl<'a> Service<'a> {
    /// One that is there already.
    pub fn of(lab: &'a Lab, name: &'a str) -> Self {
        Self { lab, name }
    }

    /// `docker service create --name NAME line`: flags, image, command.
    #[track_caller]
    pub fn create(lab: &'a Lab, name: &'a str, line: &str) -> Self {
        let mut all = vec!["service", "create", "--detach", "--no-resolve-image", "--name", name];
        all.extend(words(line));
        lab.docker_words(1, &all).ok();
        let service = Self { lab, name };
        service.container();
        service
    }

    /// The container of its running task, if it is not `old`.
    #[track_caller]
    fn await_container(&self, old: &str) -> String {
        let label = format!("label=com.docker.swarm.service.name={}", self.name);
        let mut found = String::new();
        let mut told = String::new();
        eventually(LATER, &format!("a new task of {} runs", self.name), || {
            found = self.lab.docker_words(1, &["ps", "-q", "--no-trunc", "--filter", &label]).ok();
            let done =
                !found.is_empty() && found != old && !found.contains('\n') && self.lab.running(self.name).len() == 1;
            let now = self.lab.docker_words(1, &["service", "ps", "--no-trunc", "--format", "{{.Error}}", self.name]);
            if !done && now.stdout.trim() != told {
                now.stdout.trim().clone_into(&mut told);
                eprintln!("{told}");
            }
            done
        });
        found
    }

    #[track_caller]
    pub fn container(&self) -> String {
        self.await_container("")
    }

    /// `docker service update flags… NAME`, and the new task's container.
    #[track_caller]
    pub fn update(&self, flags: &str) -> String {
        let old = self.container();
        let mut line = vec!["service", "update", "--detach", "--no-resolve-image"];
        line.extend(words(flags));
        line.push(self.name);
        self.lab.docker_words(1, &line).ok();
        self.await_container(&old)
    }

    /// What a shell in the container says.
    #[track_caller]
    pub fn says(&self, script: &str) -> String {
        let container = self.container();
        self.lab.docker_words(1, &["exec", &container, "sh", "-c", script]).ok()
    }

    /// A part of the container as `docker inspect` has it.
    #[track_caller]
    pub fn inspect(&self, path: &str) -> Value {
        let text = self.lab.docker_words(1, &["inspect", &self.container()]).ok();
        let all: Value = serde_json::from_str(&text).expect("JSON");
        all[0].pointer(path).cloned().unwrap_or(Value::Null)
    }

    /// A part of its spec as `docker service inspect` has it.
    #[track_caller]
    pub fn spec(&self, path: &str) -> Value {
        let text = self.lab.docker_words(1, &["service", "inspect", self.name]).ok();
        let all: Value = serde_json::from_str(&text).expect("JSON");
        all[0]["Spec"].pointer(path).cloned().unwrap_or(Value::Null)
    }

    #[track_caller]
    pub fn container_spec(&self, key: &str) -> Value {
        self.spec(&format!("/TaskTemplate/ContainerSpec/{key}"))
    }
}
