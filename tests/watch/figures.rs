//! What the panels of a dashboard show, as text: the README has some of it.

use crate::dashboards::Panel;
use crate::prometheus::Prometheus;
use seawall::commands::print::{duration, size};
use serde_json::Value;
use std::time::Duration;

/// A line for each panel: its title, and each of its series with the value of now.
pub(crate) fn figures(panels: &[Panel], prometheus: &Prometheus, fill: impl Fn(&str) -> String) -> String {
    let mut text = String::new();
    for panel in panels {
        let unit = panel.json["fieldConfig"]["defaults"]["unit"].as_str().unwrap();
        let mut shown = Vec::new();
        for target in panel.json["targets"].as_array().unwrap() {
            for series in prometheus.query(&fill(target["expr"].as_str().unwrap())) {
                let value: f64 = series["value"][1].as_str().unwrap().parse().unwrap();
                let legend = legend(target["legendFormat"].as_str().unwrap_or_default(), &series["metric"]);
                if !value.is_nan() {
                    shown.push(format!("{legend} {}", in_unit(value, unit)).trim().to_owned());
                }
            }
        }
        text.push_str(&format!("{:<24} {}\n", panel.json["title"].as_str().unwrap(), shown.join(", ")));
    }
    text
}

/// `{{operation}}` is the value of that label.
fn legend(format: &str, labels: &Value) -> String {
    labels.as_object().unwrap().iter().fold(format.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{{{name}}}}}"), value.as_str().unwrap_or_default())
    })
}

/// As Grafana shows it, nearly.
fn in_unit(value: f64, unit: &str) -> String {
    match unit {
        "s" => Duration::try_from_secs_f64(value).map_or_else(|_| value.to_string(), duration),
        "bytes" => size(value.max(0.0) as u64),
        "Bps" => format!("{}/s", size(value.max(0.0) as u64)),
        "reqps" => format!("{value:.1}/s"),
        "currencyUSD" => format!("${value:.4}"),
        "dateTimeAsIso" => jiff::Timestamp::from_millisecond(value as i64).unwrap().to_string(),
        _ => format!("{value:.0}"),
    }
}
