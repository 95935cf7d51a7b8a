//! An exported audit trail, verified with nothing but the public key of its seals.

use std::io::{self, BufRead};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::store::{
    audit::{AuditRow, FIRST},
    seals::{Seal, is_sealed},
};

/// What `GET /audit/key` answers.
#[derive(Debug, Deserialize)]
pub(super) struct PublicKey {
    key: String,
    store: Uuid,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Seal { seal: Seal },
    Entry(Box<AuditRow>),
}

/// Reads it to its end; as `GET /audit/verify` answers, and up to which entry it is sealed.
pub(super) fn verify(lines: impl BufRead, key: &PublicKey) -> io::Result<Value> {
    let public = URL_SAFE_NO_PAD.decode(&key.key).unwrap_or_default();
    let mut faults = Vec::new();
    let (mut entries, mut sealed, mut last, mut before) = (0_u64, 0, 0, FIRST.to_owned());
    for line in lines.lines() {
        let line = line?;
        if line.is_empty() {
            continue;
        }
        let mut fault = |number: u64, what: &str| {
            faults.push(json!({ "table": "audit_log", "row": number.to_string(), "number": number, "what": what }));
        };
        match serde_json::from_str(&line) {
            Ok(Line::Entry(row)) => {
                if row.number != last + 1 {
                    fault(row.number, "entries before it are missing, or it stands elsewhere");
                } else if row.hash_after(&before) != row.hash {
                    fault(row.number, "it was altered, or stands where another one stood");
                }
                (last, before) = (row.number, row.hash);
                entries += 1;
            }
            Ok(Line::Seal { seal }) if seal.number != last || seal.hash != before => {
                fault(seal.number, "its seal is that of another trail, or stands elsewhere");
            }
            Ok(Line::Seal { seal }) if is_sealed(key.store, &public, &seal) => sealed = seal.number,
            Ok(Line::Seal { seal }) => fault(seal.number, "its seal was not made with this key"),
            Err(_) => fault(last + 1, "the line after the entry before cannot be read"),
        }
    }
    if sealed < last || last == 0 {
        let what = "the last entries are not sealed: an end is missing, or was made by somebody else";
        faults.push(json!({ "table": "audit_log", "row": last.to_string(), "number": last, "what": what }));
    }
    Ok(json!({ "intact": faults.is_empty(), "entries": entries, "hash": before, "faults": faults }))
}
