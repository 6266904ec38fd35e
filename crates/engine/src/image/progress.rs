//! The items of the JSON streams that pull, push, load and import answer with (moby `pkg/jsonmessage`).

use serde::Serialize;
use tokio::sync::mpsc;

/// One line of a progress stream. Serialises to Docker's field names in Docker's order.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    pub detail: Option<ProgressDetail>,
    /// The bar, drawn for clients that do not draw their own.
    #[serde(rename = "progress", skip_serializing_if = "Option::is_none")]
    pub bar: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<serde_json::Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProgressDetail {
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Progress {
    /// `{"status": …}`.
    pub fn message(status: impl Into<String>) -> Self {
        Self { status: Some(status.into()), ..Self::default() }
    }

    /// `{"status": …, "id": …}`: a headline about a tag.
    pub fn about(id: impl Into<String>, status: impl Into<String>) -> Self {
        Self { status: Some(status.into()), id: Some(id.into()), ..Self::default() }
    }

    /// `{"status": …, "progressDetail": {}, "id": …}`: what a layer is doing.
    pub fn update(id: impl Into<String>, status: impl Into<String>) -> Self {
        Self { detail: Some(ProgressDetail::default()), ..Self::about(id, status) }
    }

    /// How far a layer has come.
    pub fn transfer(id: impl Into<String>, status: impl Into<String>, current: u64, total: u64) -> Self {
        Self {
            detail: Some(ProgressDetail { current, total }),
            bar: Some(bar(current, total)),
            ..Self::about(id, status)
        }
    }

    pub fn stream(text: impl Into<String>) -> Self {
        Self { stream: Some(text.into()), ..Self::default() }
    }

    pub fn aux(value: serde_json::Value) -> Self {
        Self { aux: Some(value), ..Self::default() }
    }
}

/// moby's bar: `[=====>      ]  1.05MB/12.3MB`.
fn bar(current: u64, total: u64) -> String {
    if total == 0 {
        return format!("{:>8}", size(current));
    }
    let done = usize::try_from((current.min(total) * 50) / total).unwrap_or(50);
    let mut drawn = "=".repeat(done);
    if done < 50 {
        drawn.push('>');
        drawn.push_str(&" ".repeat(50 - done));
    } else {
        drawn.push('>');
    }
    format!("[{drawn}] {:>8}/{}", size(current), size(total))
}

/// Go-units `HumanSize`: four significant digits, decimal units.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    #[expect(clippy::cast_precision_loss, reason = "shown with four digits")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    // Go's %.4g: four significant digits without trailing zeros.
    let digits = if value >= 1000.0 {
        0
    } else if value >= 100.0 {
        1
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    let mut text = format!("{value:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{text}{}", UNITS[unit])
}

/// Where progress goes. A receiver that went away is not an error: the work goes on until its future is dropped.
#[derive(Clone, Debug)]
pub struct ProgressSender(Option<mpsc::Sender<Progress>>);

impl ProgressSender {
    pub fn new(sender: mpsc::Sender<Progress>) -> Self {
        Self(Some(sender))
    }

    /// For callers that show nothing, such as a task's pull.
    pub fn silent() -> Self {
        Self(None)
    }

    /// Waits for room: for lines that must not be lost.
    pub async fn send(&self, item: Progress) {
        if let Some(sender) = &self.0 {
            let _ = sender.send(item).await;
        }
    }

    /// Drops the item if there is no room: for the many lines of a transfer.
    pub fn offer(&self, item: Progress) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_dockers() {
        let line = |p: Progress| serde_json::to_string(&p).unwrap();
        assert_eq!(
            line(Progress::about("latest", "Pulling from library/x")),
            r#"{"status":"Pulling from library/x","id":"latest"}"#
        );
        assert_eq!(
            line(Progress::update("abc", "Pulling fs layer")),
            r#"{"status":"Pulling fs layer","progressDetail":{},"id":"abc"}"#
        );
        assert_eq!(
            line(Progress::transfer("abc", "Downloading", 500_000, 1_000_000)),
            r#"{"status":"Downloading","progressDetail":{"current":500000,"total":1000000},"progress":"[=========================>                         ]    500kB/1MB","id":"abc"}"#
        );
        assert_eq!(size(1_234_567), "1.235MB");
        assert_eq!(size(999), "999B");
    }
}
