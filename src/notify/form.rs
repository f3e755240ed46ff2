//! How an event is written for whoever receives it.

use super::Event;
use serde_json::{Value, json};

/// Who receives it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Form {
    /// Anybody: an object with fields of ours.
    Json,
    /// Slack's incoming web hooks, and what understands the same (`{"text": …}`).
    Slack,
    /// PagerDuty's Events API, version 2: the address is its own, and what is configured is the routing key.
    PagerDuty,
}

/// Where PagerDuty takes events.
pub(super) const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";

impl Form {
    /// In metrics and messages, as the setting is called.
    pub fn name(self) -> &'static str {
        match self {
            Form::Json => "webhook",
            Form::Slack => "slack",
            Form::PagerDuty => "pagerduty",
        }
    }

    /// Remembers by a name what is wrong, so that it can be told of the end of what it was never told, or by another process.
    pub(super) fn has_incidents(self) -> bool {
        self == Form::PagerDuty
    }

    /// The body; `key` is PagerDuty's routing key.
    pub(super) fn body(self, event: &Event, host: &str, key: &str) -> Value {
        let severity = if event.trouble.is_critical() { "critical" } else { "warning" };
        let name = event.trouble.name();
        match self {
            Form::Json => json!({
                "status": if event.is_resolved { "resolved" } else { "firing" },
                "event": name,
                "severity": severity,
                "cluster": event.cluster,
                "host": host,
                "summary": event.summary,
                "since": event.since.to_string(),
                "at": event.at.to_string(),
            }),
            Form::Slack => {
                let (sign, state) = match (event.is_resolved, event.trouble.is_critical()) {
                    (true, _) => (":white_check_mark:", "right again"),
                    (false, true) => (":rotating_light:", "critical"),
                    (false, false) => (":warning:", "warning"),
                };
                // The three characters that Slack takes for its own.
                let plain = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                let (cluster, summary) = (plain(&event.cluster), plain(&event.summary));
                json!({ "text": format!("{sign} *seawall, cluster {cluster}* ({name}, {state}): {summary}") })
            }
            Form::PagerDuty => json!({
                "routing_key": key,
                "event_action": if event.is_resolved { "resolve" } else { "trigger" },
                "dedup_key": format!("seawall/{}/{name}", event.cluster),
                "payload": {
                    "summary": summary(event),
                    "source": host,
                    "severity": severity,
                    "timestamp": event.at.to_string(),
                    "component": "seawall",
                    "group": event.cluster,
                    "class": name,
                },
            }),
        }
    }
}

/// PagerDuty takes at most 1,024 characters.
fn summary(event: &Event) -> String {
    let whole = format!("{}: {}", event.cluster, event.summary);
    whole.chars().take(1024).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Trouble;
    use super::*;
    use crate::metrics::Job;

    #[test]
    fn each_receiver_gets_what_it_understands() {
        let at = "2026-11-22T09:00:00Z".parse().unwrap();
        let event = Event {
            cluster: "shop".to_owned(),
            trouble: Trouble::Job(Job::Drill),
            is_resolved: false,
            is_of_before: false,
            summary: "a < b & c".to_owned(),
            since: at,
            at,
        };
        let plain = Form::Json.body(&event, "db1", "");
        assert_eq!(
            (&plain["status"], &plain["event"], &plain["severity"]),
            (&json!("firing"), &json!("job_drill"), &json!("warning"))
        );
        let slack = Form::Slack.body(&event, "db1", "");
        assert_eq!(slack["text"], ":warning: *seawall, cluster shop* (job_drill, warning): a &lt; b &amp; c");
        let pager = Form::PagerDuty.body(&Event { is_resolved: true, ..event }, "db1", "key");
        assert_eq!(
            (&pager["event_action"], &pager["dedup_key"]),
            (&json!("resolve"), &json!("seawall/shop/job_drill"))
        );
        assert_eq!(pager["routing_key"], "key");
    }
}
