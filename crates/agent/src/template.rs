//! Go templates as Docker allows them in a service's env, hostname and mounts, and in the payload of secrets and configs
//! that were made with `--template-driver golang`.
//!
//! Fields, strings, numbers, pipelines, parentheses, `if`, comments, trimming, and the functions in `call`; what a
//! template has beyond that (`range`, `with`, `define`, variables) is an error that names it. Pure: what a template can
//! see is `Context`.

mod lex;

use std::collections::BTreeMap;

use skep_model::secret::{Config, Secret};
use skep_model::service::ServiceSpec;
use skep_model::task::{ContainerSpec, Task};
use skep_model::{ConfigId, Labels, SecretId};

use crate::spec::NodeFacts;
use lex::{Piece, Token, failed, pieces};

/// What a template sees.
pub(crate) struct Context<'a> {
    container: &'a ContainerSpec,
    service_id: String,
    service_name: &'a str,
    service_labels: &'a Labels,
    task_id: String,
    task_name: String,
    slot: String,
    node: &'a NodeFacts,
    /// For payloads only: what `secret`, `config` and `env` give.
    pub(crate) payload: Option<Payload<'a>>,
}

impl<'a> Context<'a> {
    pub(crate) fn of(task: &'a Task, node: &'a NodeFacts) -> Self {
        Self {
            container: &task.spec.container,
            service_id: task.service_id.to_string(),
            service_name: &task.service_name,
            service_labels: &task.service_labels,
            task_id: task.id.to_string(),
            task_name: task.name(),
            // A global service's task counts its node as its slot.
            slot: task.slot.map_or_else(|| node.node_id.to_string(), |slot| slot.to_string()),
            node,
            payload: None,
        }
    }

    /// Of a task that a service might have.
    pub(crate) fn trial(spec: &'a ServiceSpec, node: &'a NodeFacts) -> Self {
        Self {
            container: &spec.task.container,
            service_id: "serviceid".into(),
            service_name: &spec.name,
            service_labels: &spec.labels,
            task_id: "taskid".into(),
            task_name: format!("{}.1.taskid", spec.name),
            slot: "1".into(),
            node,
            payload: None,
        }
    }

    pub(crate) fn with(self, payload: Payload<'a>) -> Self {
        Self { payload: Some(payload), ..self }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Payload<'a> {
    pub(crate) secrets: &'a BTreeMap<SecretId, Secret>,
    pub(crate) configs: &'a BTreeMap<ConfigId, Config>,
}

type Result<T> = std::result::Result<T, String>;

/// The text with every action carried out. The error names what could not be done, and never what a secret holds.
pub(crate) fn expand(text: &str, context: &Context<'_>) -> Result<String> {
    if !text.contains("{{") {
        return Ok(text.to_owned());
    }
    let pieces = pieces(text)?;
    let mut rest = &pieces[..];
    let mut out = String::new();
    block(&mut rest, context, &mut Some(&mut out))?;
    match rest.first() {
        None => Ok(out),
        Some(_) => Err("template: expansion: unexpected {{end}} or {{else}}".into()),
    }
}

/// Up to the `end` or `else` of the block around, which stays. Nothing is evaluated where `out` is none.
fn block(pieces: &mut &[Piece], context: &Context<'_>, out: &mut Option<&mut String>) -> Result<()> {
    while let Some((piece, after)) = pieces.split_first() {
        match piece {
            Piece::Text(text) => {
                if let Some(out) = out {
                    out.push_str(text);
                }
            }
            Piece::Action(action) => match keyword(action) {
                "end" | "else" => return Ok(()),
                "if" => {
                    *pieces = after;
                    condition(&action[1..], pieces, context, out)?;
                    continue;
                }
                unknown @ ("range" | "with" | "define" | "template" | "block" | "break" | "continue") => {
                    return failed(format_args!("{{{{{unknown}}}}} is not supported"));
                }
                _ => {
                    if let Some(out) = out {
                        out.push_str(&pipeline(action, context)?.print());
                    }
                }
            },
        }
        *pieces = after;
    }
    Ok(())
}

fn keyword(action: &[Token]) -> &str {
    match action.first() {
        Some(Token::Name(name)) => name,
        _ => "",
    }
}

/// What follows an `if`, with its `end`.
fn condition(
    test: &[Token],
    pieces: &mut &[Piece],
    context: &Context<'_>,
    out: &mut Option<&mut String>,
) -> Result<()> {
    let mut holds = out.is_some() && pipeline(test, context)?.truth();
    // Whether a branch was taken, hence no other may be.
    let mut taken = false;
    loop {
        let mut nowhere = None;
        block(pieces, context, if holds { &mut *out } else { &mut nowhere })?;
        taken |= holds;
        let Some((Piece::Action(action), after)) = pieces.split_first() else { return failed("unclosed {{if}}") };
        *pieces = after;
        match (keyword(action), action.get(1)) {
            ("end", _) => return Ok(()),
            (_, None) => holds = out.is_some() && !taken,
            (_, Some(Token::Name(word))) if word == "if" => {
                holds = out.is_some() && !taken && pipeline(&action[2..], context)?.truth();
            }
            _ => return failed("unexpected words after {{else}}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Value<'a> {
    Text(String),
    Number(i64),
    Bool(bool),
    Labels(&'a Labels),
    /// The fields below a path, such as `Node`.
    Fields(&'static str),
}

impl Value<'_> {
    fn print(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Bool(truth) => truth.to_string(),
            Self::Labels(labels) => {
                let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
                format!("map[{}]", pairs.join(" "))
            }
            Self::Fields(path) => format!("{{{path}}}"),
        }
    }

    fn truth(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Number(number) => *number != 0,
            Self::Bool(truth) => *truth,
            Self::Labels(labels) => !labels.is_empty(),
            Self::Fields(_) => true,
        }
    }
}

/// Commands, each given what the one before it made as its last argument.
fn pipeline<'a>(tokens: &[Token], context: &Context<'a>) -> Result<Value<'a>> {
    let mut piped = None;
    let mut rest = tokens;
    loop {
        let (mut words, mut depth) = (Vec::new(), 0_usize);
        let mut group = Vec::new();
        let mut more = false;
        while let Some((token, after)) = rest.split_first() {
            rest = after;
            match token {
                Token::Open => depth += 1,
                Token::Close if depth == 0 => return failed("unexpected right paren"),
                Token::Close => depth -= 1,
                Token::Pipe if depth == 0 => {
                    more = true;
                    break;
                }
                _ => {}
            }
            match token {
                Token::Open if depth == 1 => {}
                Token::Close if depth == 0 => words.push(Word::Value(pipeline(&std::mem::take(&mut group), context)?)),
                token if depth > 0 => group.push(token.clone()),
                Token::Name(name) if name == "true" || name == "false" => {
                    words.push(Word::Value(Value::Bool(name == "true")));
                }
                Token::Name(name) => words.push(Word::Function(name.clone())),
                Token::Text(text) => words.push(Word::Value(Value::Text(text.clone()))),
                Token::Number(number) => words.push(Word::Value(Value::Number(*number))),
                Token::Field(path) => words.push(Word::Value(field(path, context)?)),
                Token::Pipe | Token::Open | Token::Close => {}
            }
        }
        if depth > 0 {
            return failed("unclosed left paren");
        }
        let value = command(words, piped.take(), context)?;
        if !more {
            return Ok(value);
        }
        piped = Some(value);
    }
}

enum Word<'a> {
    Function(String),
    Value(Value<'a>),
}

fn command<'a>(words: Vec<Word<'a>>, piped: Option<Value<'a>>, context: &Context<'a>) -> Result<Value<'a>> {
    let mut words = words.into_iter();
    match words.next() {
        Some(Word::Value(value)) if words.len() == 0 && piped.is_none() => Ok(value),
        Some(Word::Function(name)) => {
            let arguments: Vec<Value<'a>> = words
                .map(|word| match word {
                    Word::Value(value) => Ok(value),
                    Word::Function(name) => call(&name, Vec::new(), context),
                })
                .chain(piped.map(Ok))
                .collect::<Result<_>>()?;
            call(&name, arguments, context)
        }
        Some(Word::Value(_)) => failed("can't give argument to non-function"),
        None => failed("missing value for command"),
    }
}

fn field<'a>(path: &[String], context: &Context<'a>) -> Result<Value<'a>> {
    let node = context.node;
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    let text = match names[..] {
        [] => return Ok(Value::Fields("")),
        ["Service"] => return Ok(Value::Fields("Service")),
        ["Node"] => return Ok(Value::Fields("Node")),
        ["Node", "Platform"] => return Ok(Value::Fields("Node.Platform")),
        ["Task"] => return Ok(Value::Fields("Task")),
        ["Service", "Labels"] => return Ok(Value::Labels(context.service_labels)),
        ["Service", "Labels", key] => match context.service_labels.get(key) {
            Some(value) => value.clone(),
            None => return failed(format_args!("map has no entry for key {key:?}")),
        },
        ["Service", "ID"] => context.service_id.clone(),
        ["Service", "Name"] => context.service_name.to_owned(),
        ["Node", "ID"] => node.node_id.to_string(),
        ["Node", "Hostname"] => node.hostname.clone(),
        ["Node", "Platform", "OS"] => node.os.clone(),
        ["Node", "Platform", "Architecture"] => node.architecture.clone(),
        ["Task", "ID"] => context.task_id.clone(),
        ["Task", "Name"] => context.task_name.clone(),
        ["Task", "Slot"] => context.slot.clone(),
        _ => return failed(format_args!("can't evaluate field .{}", names.join("."))),
    };
    Ok(Value::Text(text))
}

fn call<'a>(name: &str, arguments: Vec<Value<'a>>, context: &Context<'a>) -> Result<Value<'a>> {
    let wrong = || failed(format_args!("wrong arguments for {name}"));
    let text = |text: String| Ok(Value::Text(text));
    match (name, &arguments[..]) {
        ("and" | "or", [_, ..]) => {
            let found = arguments.iter().find(|value| value.truth() == (name == "or"));
            Ok(found.or(arguments.last()).cloned().unwrap_or(Value::Bool(false)))
        }
        ("not", [value]) => Ok(Value::Bool(!value.truth())),
        ("eq", [first, others @ ..]) if !others.is_empty() => Ok(Value::Bool(others.contains(first))),
        ("ne", [a, b]) => Ok(Value::Bool(a != b)),
        ("len", [Value::Text(value)]) => Ok(Value::Number(i64::try_from(value.len()).unwrap_or(i64::MAX))),
        ("len", [Value::Labels(value)]) => Ok(Value::Number(i64::try_from(value.len()).unwrap_or(i64::MAX))),
        ("index", [Value::Labels(labels), Value::Text(key)]) => text(labels.get(key).cloned().unwrap_or_default()),
        ("print", values) => text(values.iter().map(Value::print).collect()),
        // swarmkit's, not the `join` of the docker CLI's --format: the separator is first, and all are strings.
        ("join", [Value::Text(separator), parts @ ..]) if parts.iter().all(|p| matches!(p, Value::Text(_))) => {
            let parts: Vec<String> = parts.iter().map(Value::print).collect();
            text(parts.join(separator))
        }
        ("printf", [Value::Text(format), values @ ..]) => text(print_formatted(format, values)?),
        ("secret", [Value::Text(target)]) => secret(target, context).map(Value::Text),
        ("config", [Value::Text(target)]) => config(target, context).map(Value::Text),
        ("env", [Value::Text(variable)]) if context.payload.is_some() => {
            let found = context.container.env.iter().find_map(|line| line.strip_prefix(variable)?.strip_prefix('='));
            text(found.unwrap_or_default().to_owned())
        }
        ("and" | "or" | "not" | "eq" | "ne" | "len" | "index" | "join" | "printf", _) => wrong(),
        ("secret" | "config" | "env", _) if context.payload.is_some() => wrong(),
        _ => failed(format_args!("function {name:?} not defined")),
    }
}

/// `%s`, `%v`, `%d`, `%q` and `%%`.
fn print_formatted(format: &str, values: &[Value<'_>]) -> Result<String> {
    let (mut out, mut values) = (String::new(), values.iter());
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match (letters.next(), values.as_slice().first()) {
            (Some('%'), _) => {
                out.push('%');
                continue;
            }
            (Some('s' | 'v' | 'd'), Some(value)) => out.push_str(&value.print()),
            (Some('q'), Some(value)) => out.push_str(&format!("{:?}", value.print())),
            (Some(verb), _) => return failed(format_args!("printf: %{verb} cannot be printed")),
            (None, _) => return failed("printf: a % without a verb"),
        }
        values.next();
    }
    Ok(out)
}

fn secret(target: &str, context: &Context<'_>) -> Result<String> {
    let Some(payload) = context.payload else { return failed("function \"secret\" not defined") };
    let found = context.container.secrets.iter().find(|s| s.file.name == target);
    match found.and_then(|reference| payload.secrets.get(&reference.secret_id)) {
        Some(secret) => Ok(String::from_utf8_lossy(&secret.data.0).into_owned()),
        None => failed(format_args!("secret target {target} not found")),
    }
}

fn config(target: &str, context: &Context<'_>) -> Result<String> {
    let Some(payload) = context.payload else { return failed("function \"config\" not defined") };
    let found = context.container.configs.iter().find(|c| c.file.name == target);
    match found.and_then(|reference| payload.configs.get(&reference.config_id)) {
        Some(config) => Ok(String::from_utf8_lossy(&config.data.0).into_owned()),
        None => failed(format_args!("config target {target} not found")),
    }
}

#[cfg(test)]
mod tests;
