//! `Up 3 minutes (healthy)`: the words of `docker ps`, which the daemon writes, not the client.

use std::time::Duration;

/// go-units `HumanDuration`.
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let minutes = seconds / 60;
    // Go rounds hours to the nearest.
    let hours = (seconds + 1800) / 3600;
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// `Status` of a listed container. `state` is Docker's word, `health` its health's if it has a check; `up` and `ended` are
/// how long ago it started and ended.
pub fn status_text(state: &str, health: Option<&str>, exit_code: i32, up: Duration, ended: Option<Duration>) -> String {
    match state {
        "running" => {
            let health = match health {
                Some("starting") => " (health: starting)".into(),
                Some(word) => format!(" ({word})"),
                None => String::new(),
            };
            format!("Up {}{health}", human_duration(up))
        }
        "paused" => format!("Up {} (Paused)", human_duration(up)),
        "restarting" => format!("Restarting ({exit_code}) {} ago", human_duration(ended.unwrap_or_default())),
        "removing" => "Removal In Progress".into(),
        "dead" => "Dead".into(),
        "exited" => match ended {
            Some(ended) => format!("Exited ({exit_code}) {} ago", human_duration(ended)),
            None => String::new(),
        },
        _ => "Created".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_units_prints_them() {
        for (secs, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (2 * 3600, "2 hours"),
            (3 * 86_400, "3 days"),
            (20 * 86_400, "2 weeks"),
            (100 * 86_400, "3 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(human_duration(Duration::from_secs(secs)), text);
        }
    }

    #[test]
    fn statuses() {
        let s = Duration::from_secs(5);
        assert_eq!(status_text("running", Some("healthy"), 0, s, None), "Up 5 seconds (healthy)");
        assert_eq!(status_text("running", Some("starting"), 0, s, None), "Up 5 seconds (health: starting)");
        assert_eq!(status_text("exited", None, 137, s, Some(s)), "Exited (137) 5 seconds ago");
        assert_eq!(status_text("created", None, 0, s, None), "Created");
    }
}
