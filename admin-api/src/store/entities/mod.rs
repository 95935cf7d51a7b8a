//! The rows of the tables, one file for each.
//!
//! Derived code makes them public whatever they are; nothing outside the store sees them.
#![allow(unreachable_pub)]

pub(crate) mod alert;
pub(crate) mod alert_rule;
pub(crate) mod api_gateway_config;
pub(crate) mod api_key;
pub(crate) mod audit_log;
pub(crate) mod audit_seal;
pub(crate) mod consumer;
pub(crate) mod control;
pub(crate) mod cursor;
pub(crate) mod endpoint;
pub(crate) mod event;
pub(crate) mod host;
pub(crate) mod idempotency_key;
pub(crate) mod node;
pub(crate) mod operator;
pub(crate) mod order;
pub(crate) mod order_answer;
pub(crate) mod own_secret;
pub(crate) mod revision;
pub(crate) mod revision_change;
pub(crate) mod route;
pub(crate) mod sealing_key;
pub(crate) mod service;
pub(crate) mod siem_sink;
pub(crate) mod tenant;
pub(crate) mod token;
pub(crate) mod webhook;
pub(crate) mod webhook_delivery;
