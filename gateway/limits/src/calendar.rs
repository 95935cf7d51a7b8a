//! Placeholder.
use std::sync::Arc;
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar;
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period { pub id: Arc<str>, pub starts: u64, pub ends: u64 }
impl Period { pub fn contains(&self, at: u64) -> bool { (self.starts..self.ends).contains(&at) } }
impl Calendar { pub fn period(&self, at: u64) -> Period { let d = at / 86_400_000_000; Period { id: d.to_string().into(), starts: d * 86_400_000_000, ends: (d + 1) * 86_400_000_000 } } }
