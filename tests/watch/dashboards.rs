//! `grafana/dashboards/`: what can be told of a dashboard without Grafana.

use crate::{assert_metrics_exist, read};
use serde_json::Value;
use std::collections::BTreeSet;

/// The files.
pub(crate) const DASHBOARDS: [&str; 2] =
    ["grafana/dashboards/seawall-cluster.json", "grafana/dashboards/seawall-fleet.json"];

/// A panel that asks Prometheus something.
pub(crate) struct Panel {
    /// The file and the title.
    pub(crate) place: String,
    /// What it asks.
    pub(crate) queries: Vec<String>,
    pub(crate) json: Value,
}

/// The panels of a dashboard, but for the headings of its rows.
pub(crate) fn panels(dashboard: &str) -> Vec<Panel> {
    let json: Value = serde_json::from_str(&read(dashboard)).unwrap();
    let all = json["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let panels: Vec<Panel> = all
        .map(|panel| Panel {
            place: format!("{dashboard}: {}", panel["title"].as_str().unwrap()),
            queries: panel["targets"].as_array().unwrap().iter().map(|it| text(&it["expr"])).collect(),
            json: panel.clone(),
        })
        .collect();
    assert!(panels.len() > 10, "{dashboard} has {} panels only", panels.len());
    panels
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

#[test]
fn every_panel_has_a_place_of_its_own_within_the_grid() {
    for dashboard in DASHBOARDS {
        let json: Value = serde_json::from_str(&read(dashboard)).unwrap();
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for panel in json["panels"].as_array().unwrap() {
            let title = text(&panel["title"]);
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{dashboard}: {title} has the id of another panel");
            let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
            assert!(side("w") > 0 && side("h") > 0 && side("x") + side("w") <= 24, "{dashboard}: {title}");
            for x in side("x")..side("x") + side("w") {
                for y in side("y")..side("y") + side("h") {
                    assert!(taken.insert((x, y)), "{dashboard}: {title} lies over another panel at {x}, {y}");
                }
            }
        }
    }
}

#[test]
fn every_panel_says_what_it_shows_in_which_unit_and_asks_the_source_that_was_chosen() {
    for panel in DASHBOARDS.into_iter().flat_map(panels) {
        let (place, json) = (&panel.place, &panel.json);
        assert!(text(&json["description"]).ends_with('.'), "{place} has no description");
        assert!(!text(&json["fieldConfig"]["defaults"]["unit"]).is_empty(), "{place} has no unit");
        assert!(!panel.queries.is_empty(), "{place} asks nothing");
        for source in json["targets"].as_array().unwrap().iter().chain([json]).map(|it| &it["datasource"]) {
            assert_eq!(source["uid"], "${datasource}", "{place}");
        }
        for query in &panel.queries {
            assert_metrics_exist(place, query);
        }
    }
}

#[test]
fn the_dashboard_of_one_cluster_shows_that_cluster_alone() {
    for panel in panels(DASHBOARDS[0]) {
        for query in &panel.queries {
            let series = query.matches("seawall_").count() + query.matches("seawall:").count();
            let chosen = query.matches("cluster=\"$cluster\"").count();
            assert_eq!(series, chosen, "{}: {query}", panel.place);
        }
    }
    let fleet = read(DASHBOARDS[1]);
    assert!(!fleet.contains("$cluster"), "that of all clusters has no cluster to choose");
}

#[test]
fn every_dashboard_has_the_variables_that_it_uses_and_a_name_of_its_own() {
    let mut uids = BTreeSet::new();
    for dashboard in DASHBOARDS {
        let json: Value = serde_json::from_str(&read(dashboard)).unwrap();
        assert!(uids.insert(text(&json["uid"])), "{dashboard} has the uid of the other one");
        let list = json["templating"]["list"].as_array().unwrap();
        let names: BTreeSet<String> = list.iter().map(|variable| text(&variable["name"])).collect();
        let source = read(dashboard);
        assert!(names.contains("datasource"), "{dashboard}");
        assert_eq!(names.contains("cluster"), source.contains("$cluster"), "{dashboard}");
    }
}
