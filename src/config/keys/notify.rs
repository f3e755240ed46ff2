//! `[notify]`: who is told when something is wrong.

use super::{Key, Written, parse_duration, secret};
use crate::config::Settings;
use crate::notify::Form;
use crate::secret::Source;
use std::time::Duration;

/// A flush takes its time.
const RPO_ABOVE_MIN: Duration = Duration::from_secs(1);

pub(super) const KEYS: &[Key] = &[
    Key {
        name: "notify.webhook",
        flag: None,
        variable: Some("SEAWALL_NOTIFY_WEBHOOK"),
        written: Written::Secret,
        default: None,
        example: "\"https://alerts.example.org/seawall\"",
        about: "`run` posts a small JSON document to this address when something is wrong, and when it is right again: no WAL comes, \
                what comes is not stored, the slot is in danger, WAL was lost, the archiver has ended because of an error, what is scheduled failed or found \
                something. Each is told once. It is tried for ten minutes, and nothing waits for it.",
        set: |settings, text| set(settings, "notify.webhook", Form::Json, text),
    },
    Key {
        name: "notify.slack",
        flag: None,
        variable: Some("SEAWALL_NOTIFY_SLACK"),
        written: Written::Secret,
        default: None,
        example: "\"https://hooks.slack.com/services/…\"",
        about: "The same for an incoming web hook of Slack, or of what takes `{\"text\": …}` as Slack does (Mattermost).",
        set: |settings, text| set(settings, "notify.slack", Form::Slack, text),
    },
    Key {
        name: "notify.pagerduty",
        flag: None,
        variable: Some("SEAWALL_NOTIFY_PAGERDUTY"),
        written: Written::Secret,
        default: None,
        example: "\"0123456789abcdef0123456789abcdef\"",
        about: "The same as events of PagerDuty (Events API, version 2): the routing key of an integration. What is right again \
                resolves its incident.",
        set: |settings, text| set(settings, "notify.pagerduty", Form::PagerDuty, text),
    },
    Key {
        name: "notify.stream_after",
        flag: None,
        variable: None,
        written: Written::Text,
        default: Some("2m"),
        example: "\"30s\"",
        about: "So long the stream may be interrupted before anybody is told: a restart of the server is no news.",
        set: |settings, text| {
            settings.notify.stream_after = parse_duration(text)?;
            Ok(())
        },
    },
    Key {
        name: "notify.rpo_above",
        flag: None,
        variable: None,
        written: Written::Text,
        default: Some("5m"),
        example: "\"1m\"",
        about: "So much may be lost, in time, while the stream comes: above that, because the store hangs, refuses or is slow, \
                somebody is told that what is committed does not become durable. At a start it is counted from there.",
        set: |settings, text| match parse_duration(text)? {
            length if length < RPO_ABOVE_MIN => Err("is at least 1s".to_owned()),
            length => {
                settings.notify.rpo_above = length;
                Ok(())
            }
        },
    },
];

/// The text is a secret, or says where one is: no message quotes it.
fn set(settings: &mut Settings, key: &'static str, form: Form, text: &str) -> Result<(), String> {
    let secret = secret(key, text)?;
    if let Source::Given(text) = secret.source()
        && text.contains(char::is_whitespace)
    {
        return Err("has blanks in it".to_owned());
    }
    settings.notify.hooks.insert(form, secret);
    Ok(())
}
