//! A template's text as pieces: what is printed as it is, and the words of each action.

use super::Result;

pub(super) fn failed<T>(why: impl std::fmt::Display) -> Result<T> {
    Err(format!("template: expansion: {why}"))
}

pub(super) enum Piece {
    Text(String),
    Action(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Text(String),
    Number(i64),
    /// `.Node.Hostname`; empty for the dot alone.
    Field(Vec<String>),
    Name(String),
    Pipe,
    Open,
    Close,
}

/// Text and actions in turn; a `-` at a brace takes the space beside it away, a comment is nothing.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece>> {
    let mut out = Vec::new();
    let (mut rest, mut trim) = (text, false);
    while let Some(start) = rest.find("{{") {
        let (before, after) = (&rest[..start], &rest[start + 2..]);
        let trim_before = after.starts_with("- ");
        let before = if trim { before.trim_start() } else { before };
        out.push(Piece::Text(if trim_before { before.trim_end() } else { before }.to_owned()));
        let after = if trim_before { &after[2..] } else { after };
        let inner = after.trim_start();
        let end = match inner.strip_prefix("/*") {
            Some(comment) => {
                let Some(close) = comment.find("*/") else { return failed("unclosed comment") };
                after.len() - comment.len() + close + 2
            }
            None => end_of_action(after)?,
        };
        let Some(close) = after[end..].find("}}") else { return failed("unclosed action") };
        let mut action = &after[..end + close];
        rest = &after[end + close + 2..];
        trim = action.ends_with(" -");
        if trim {
            action = &action[..action.len() - 2];
        }
        if !inner.starts_with("/*") {
            out.push(Piece::Action(tokens(action)?));
        }
    }
    out.push(Piece::Text(if trim { rest.trim_start() } else { rest }.to_owned()));
    Ok(out)
}

/// Where the braces may close: outside of strings.
fn end_of_action(text: &str) -> Result<usize> {
    let mut position = 0;
    while let Some(next) = text[position..].find(['"', '`', '}']) {
        let at = position + next;
        match text.as_bytes()[at] {
            b'}' if text[at..].starts_with("}}") => return Ok(at),
            b'}' => position = at + 1,
            _ => match string(&text[at..]) {
                Some((_, length)) => position = at + length,
                None => return failed("unterminated string"),
            },
        }
    }
    failed("unclosed action")
}

/// A string at the beginning of the text, and how many bytes it takes there.
fn string(text: &str) -> Option<(String, usize)> {
    if let Some(raw) = text.strip_prefix('`') {
        let end = raw.find('`')?;
        return Some((raw[..end].to_owned(), end + 2));
    }
    let (mut out, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices().skip(1) {
        match (escaped, c) {
            (false, '"') => return Some((out, at + 1)),
            (false, '\\') => escaped = true,
            (false, c) => out.push(c),
            (true, c) => {
                escaped = false;
                out.push(match c {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
            }
        }
    }
    None
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '|' | '(' | ')' => {
                out.push(match first {
                    '|' => Token::Pipe,
                    '(' => Token::Open,
                    _ => Token::Close,
                });
                1
            }
            '"' | '`' => {
                let Some((text, length)) = string(rest) else { return failed("unterminated string") };
                out.push(Token::Text(text));
                length
            }
            _ => {
                let length = rest.find([' ', '\t', '\n', '\r', '|', '(', ')', '"', '`']).unwrap_or(rest.len());
                out.push(word(&rest[..length])?);
                length
            }
        };
        rest = rest[length..].trim_start();
    }
    Ok(out)
}

fn word(word: &str) -> Result<Token> {
    if let Some(path) = word.strip_prefix('.') {
        let parts = path.split('.').filter(|part| !part.is_empty()).map(str::to_owned);
        return Ok(Token::Field(parts.collect()));
    }
    if let Ok(number) = word.parse() {
        return Ok(Token::Number(number));
    }
    if word.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Ok(Token::Name(word.to_owned()));
    }
    failed(format_args!("{word:?} is not supported"))
}
