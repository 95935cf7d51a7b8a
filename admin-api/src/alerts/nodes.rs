//! What is wrong with nodes.

use std::collections::BTreeMap;

use seiketsu_config::values::Id;
use time::Duration;

use super::Facts;
use crate::store::{alerts::Found, nodes::NodeRow};

fn about(node: &NodeRow, summary: String) -> Found {
    Found { subject: format!("node {}", node.id), tenant: None, summary }
}

fn is_known(facts: &Facts<'_>, node: &NodeRow, hours: u32) -> bool {
    facts.now - node.heard_at < Duration::hours(hours.into())
}

pub(super) fn gone(facts: &Facts<'_>, forget_hours: u32) -> Vec<Found> {
    let gone = |node: &&NodeRow| !node.live && !node.draining && is_known(facts, node, forget_hours);
    facts.nodes.iter().filter(gone).map(|node| about(node, format!("the node {} is gone", node.id))).collect()
}

pub(super) fn not_ready(facts: &Facts<'_>) -> Vec<Found> {
    let not_ready = |node: &&NodeRow| node.live && !node.ready && !node.draining;
    let told = |node: &NodeRow| about(node, format!("the node {} is connected, and not ready", node.id));
    facts.nodes.iter().filter(not_ready).map(told).collect()
}

pub(super) fn behind(facts: &Facts<'_>) -> Vec<Found> {
    let behind = |node: &&NodeRow| node.live && node.revision < facts.newest;
    let told = |node: &NodeRow| about(node, format!("the node {} does not come to the newest revision", node.id));
    facts.nodes.iter().filter(behind).map(told).collect()
}

pub(super) fn refuses(facts: &Facts<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for node in facts.nodes.iter().filter(|node| node.live) {
        for refused in &node.refused {
            let document = refused.tenant.as_ref().map_or("the head".to_owned(), |tenant| format!("tenant {tenant}"));
            let why = refused.errors.first().map_or("", String::as_str);
            found.push(Found {
                subject: format!("{document} at node {}", node.id),
                tenant: refused.tenant.clone(),
                summary: format!("the node {} refuses {document}: {why}", node.id),
            });
        }
    }
    found
}

pub(super) fn region_without(facts: &Facts<'_>, region: Option<&Id>, forget_hours: u32) -> Vec<Found> {
    let mut regions: BTreeMap<&str, bool> = region.map(|region| (region.as_str(), false)).into_iter().collect();
    for node in facts.nodes.iter().filter(|node| is_known(facts, node, forget_hours)) {
        let Some(name) = node.region.as_deref() else { continue };
        if region.is_none_or(|region| region.as_str() == name) {
            *regions.entry(name).or_default() |= node.live;
        }
    }
    let without = regions.into_iter().filter(|(_, is_live)| !is_live);
    without
        .map(|(region, _)| Found {
            subject: format!("region {region}"),
            tenant: None,
            summary: format!("no node of the region {region} is connected"),
        })
        .collect()
}
