//! What the control plane has sent, as it was sent, and whether an update fits to it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use seiketsu_config::{
    push::{Document, Held, MOST_MESSAGE_BYTES, Sum, Update},
    tenant::Tenant,
    values::Id,
};

/// A document, to the letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) revision: u64,
    pub(super) content: Arc<str>,
    /// Of the content and whose it is.
    pub(super) sum: Sum,
}

impl Sent {
    /// None: the head.
    pub(super) fn new(tenant: Option<&Id>, revision: u64, content: impl Into<Arc<str>>) -> Self {
        let content = content.into();
        Self { revision, sum: Sum::of(tenant, &content), content }
    }
}

/// A tenant, as it was last sent and as it is in force.
#[derive(Debug)]
pub(super) struct HeldTenant {
    pub(super) newest: Sent,
    pub(super) in_force: Option<InForce>,
    /// Why it is not in force as it was last sent.
    pub(super) refused: Vec<String>,
}

#[derive(Debug)]
pub(super) struct InForce {
    pub(super) sent: Sent,
    pub(super) tenant: Arc<Tenant>,
}

/// All documents, and the state that they are.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// None, if nothing was ever sent, or something of it is missing.
    pub(super) state: Option<Held>,
    pub(super) head: Option<Sent>,
    pub(super) tenants: HashMap<Id, HeldTenant>,
}

/// An update in one piece.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) to: Held,
    pub(super) after: Option<u64>,
    pub(super) head: Option<Sent>,
    pub(super) put: BTreeMap<Id, Sent>,
    pub(super) gone: BTreeSet<Id>,
    bytes: usize,
}

/// Why an update cannot be applied to what is held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misfit {
    #[error("it follows upon revision {after}, and held is {}", .held.map_or("nothing".to_owned(), |held| format!("revision {held}")))]
    After { after: u64, held: Option<u64> },
    #[error("it is of another store than what is held")]
    Store,
    #[error("the documents that it leads to are not those that it should lead to (sum {found}, expected {expected})")]
    Sum { found: Sum, expected: Sum },
    #[error("its parts do not belong together")]
    Parts,
    #[error("it is larger than {MOST_UPDATE_BYTES} bytes")]
    TooLarge,
}

/// Half a million tenants. More is a mistake, and would take the memory that requests need.
const MOST_UPDATE_BYTES: usize = 16 * MOST_MESSAGE_BYTES;

/// Parts of an update, until the last one is there.
#[derive(Debug, Default)]
pub(super) struct Assembly(Option<(u64, Result<Incoming, Misfit>)>);

impl Assembly {
    /// Adds a part; gives the update, or why it is none, when this was the last one.
    pub(super) fn add(&mut self, part: Update) -> Option<(u64, Result<Incoming, Misfit>)> {
        let (nonce, more) = (part.nonce, part.more);
        let so_far = match self.0.take() {
            Some((before, so_far)) if before == nonce => so_far.and_then(|incoming| incoming.with(part)),
            // One that broke off is made good by the next.
            _ => Incoming::new(part),
        };
        if !more {
            return Some((nonce, so_far));
        }
        self.0 = Some((nonce, so_far));
        None
    }

    /// Parts of another connection will not be continued.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

impl Incoming {
    fn new(part: Update) -> Result<Self, Misfit> {
        let Update { to, after, .. } = part;
        let (put, gone) = (BTreeMap::new(), BTreeSet::new());
        Self { to, after, head: None, put, gone, bytes: 0 }.with(part)
    }

    fn with(mut self, part: Update) -> Result<Self, Misfit> {
        if part.to != self.to || part.after != self.after {
            return Err(Misfit::Parts);
        }
        if let Some(Document { tenant, revision, content }) = part.head {
            let sent = Sent::new(None, revision, Box::<str>::from(content));
            self.bytes += sent.content.len();
            if tenant.is_some() || self.head.replace(sent).is_some() {
                return Err(Misfit::Parts);
            }
        }
        for Document { tenant, revision, content } in part.put {
            let Some(id) = tenant else { return Err(Misfit::Parts) };
            let sent = Sent::new(Some(&id), revision, Box::<str>::from(content));
            self.bytes += sent.content.len();
            if self.put.insert(id, sent).is_some() {
                return Err(Misfit::Parts);
            }
        }
        self.gone.extend(part.gone);
        if self.bytes > MOST_UPDATE_BYTES { Err(Misfit::TooLarge) } else { Ok(self) }
    }
}

impl Holding {
    /// Whether this update leads from what is held to what it says that it leads to.
    pub(super) fn fits(&self, update: &Incoming) -> Result<(), Misfit> {
        if update.gone.iter().any(|id| update.put.contains_key(id)) {
            return Err(Misfit::Parts);
        }
        let found = match update.after {
            None => update.put.values().chain(&update.head).fold(Sum::default(), |sum, sent| sum.with(sent.sum)),
            Some(after) => {
                let held = self.state.map(|held| held.revision);
                let state = self.state.filter(|state| state.revision == after).ok_or(Misfit::After { after, held })?;
                if state.store != update.to.store {
                    return Err(Misfit::Store);
                }
                let replaced = update.put.keys().chain(&update.gone).filter_map(|id| self.tenants.get(id));
                let head = self.head.iter().filter(|_| update.head.is_some());
                let without = replaced.map(|held| &held.newest).chain(head);
                let sum = without.fold(state.sum, |sum, sent| sum.without(sent.sum));
                update.put.values().chain(&update.head).fold(sum, |sum, sent| sum.with(sent.sum))
            }
        };
        let expected = update.to.sum;
        if found == expected { Ok(()) } else { Err(Misfit::Sum { found, expected }) }
    }

    /// The sum of all documents as they were last sent.
    pub(super) fn sum(&self) -> Sum {
        let sent = self.tenants.values().map(|held| &held.newest).chain(&self.head);
        sent.fold(Sum::default(), |sum, sent| sum.with(sent.sum))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::value::RawValue;
    use uuid::Uuid;

    use super::*;

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn document(tenant: Option<&str>, content: &str) -> Document {
        let content = RawValue::from_string(format!("{content:?}")).unwrap();
        Document { tenant: tenant.map(id), revision: 1, content }
    }

    fn sum(documents: &[(Option<&str>, &str)]) -> Sum {
        let sums = documents.iter().map(|(tenant, content)| Sum::of(tenant.map(id).as_ref(), &format!("{content:?}")));
        sums.fold(Sum::default(), Sum::with)
    }

    fn update(revision: u64, after: Option<u64>, sum: Sum, put: &[(&str, &str)], gone: &[&str]) -> Update {
        Update {
            nonce: revision,
            to: Held { store: Uuid::nil(), revision, sum },
            after,
            more: false,
            head: None,
            put: put.iter().map(|(tenant, content)| document(Some(tenant), content)).collect(),
            gone: gone.iter().map(|tenant| id(tenant)).collect(),
        }
    }

    fn whole(update: Update) -> Result<Incoming, Misfit> {
        Assembly::default().add(update).unwrap().1
    }

    fn take(holding: &mut Holding, update: Incoming) {
        if update.after.is_none() {
            holding.tenants.clear();
        }
        for (id, newest) in update.put {
            holding.tenants.insert(id, HeldTenant { newest, in_force: None, refused: Vec::new() });
        }
        for id in update.gone {
            holding.tenants.remove(&id);
        }
        holding.state = Some(update.to);
    }

    #[test]
    fn an_update_that_does_not_follow_does_not_fit() {
        let mut holding = Holding::default();
        let delta = |revision, after, store, contents: &[(Option<&str>, &str)], put: &[(&str, &str)]| {
            let mut update = update(revision, after, sum(contents), put, &[]);
            update.to.store = store;
            whole(update).unwrap()
        };
        let nil = Uuid::nil();
        let first = delta(2, Some(1), nil, &[(Some("a"), "1")], &[("a", "1")]);
        assert_eq!(holding.fits(&first), Err(Misfit::After { after: 1, held: None }));
        let first = delta(2, None, nil, &[(Some("a"), "1")], &[("a", "1")]);
        assert_eq!(holding.fits(&first), Ok(()));
        take(&mut holding, first);
        assert_eq!(holding.sum(), holding.state.unwrap().sum);
        let both = [(Some("a"), "1"), (Some("b"), "1")];
        for (after, store, contents, fits) in [
            (2, nil, &both[..], true),
            (1, nil, &both, false),
            (3, nil, &both, false),
            (2, Uuid::max(), &both, false),
            (2, nil, &both[..1], false),
        ] {
            let next = delta(3, Some(after), store, contents, &[("b", "1")]);
            assert_eq!(holding.fits(&next).is_ok(), fits, "{after} {store} {contents:?}");
        }
    }

    #[test]
    fn parts_become_one_update_with_the_last_of_them() {
        let mut assembly = Assembly::default();
        let part = |nonce, more, tenant: &str| Update {
            nonce,
            more,
            head: (tenant == "a").then(|| document(None, "head")),
            ..update(2, None, sum(&[(None, "head"), (Some("a"), "1"), (Some("b"), "1")]), &[(tenant, "1")], &[])
        };
        assert!(assembly.add(part(1, true, "x")).is_none());
        // That one broke off.
        assert!(assembly.add(part(2, true, "a")).is_none());
        let (nonce, update) = assembly.add(part(2, false, "b")).unwrap();
        let update = update.unwrap();
        assert_eq!((nonce, update.put.len(), Holding::default().fits(&update)), (2, 2, Ok(())));

        // The same tenant twice, and parts that lead elsewhere: told once, at the end.
        assert!(assembly.add(part(3, true, "a")).is_none());
        assert!(assembly.add(part(3, true, "a")).is_none());
        assert_eq!(assembly.add(part(3, false, "b")).unwrap().1.unwrap_err(), Misfit::Parts);
        assert!(assembly.add(part(4, true, "a")).is_none());
        let elsewhere = Update { after: Some(1), ..part(4, false, "b") };
        assert_eq!(assembly.add(elsewhere).unwrap().1.unwrap_err(), Misfit::Parts);
        assert!(assembly.add(part(5, true, "a")).is_none());
        assembly.clear();
        assert_eq!(assembly.add(part(5, false, "b")).unwrap().1.unwrap().put.len(), 1);
    }

    proptest! {
        /// The control plane's side is a plain map, of which it sends what has changed.
        #[test]
        fn any_way_from_state_to_state_fits_and_no_other_does(
            states in prop::collection::vec(prop::collection::btree_map("[a-d]", "[xy]", 0..4), 1..8),
            wrong in 0..8_usize,
        ) {
            let mut holding = Holding::default();
            let mut before: BTreeMap<String, String> = BTreeMap::new();
            for (number, state) in states.iter().enumerate() {
                let revision = number as u64 + 1;
                let all: Vec<_> = state.iter().map(|(id, content)| (Some(id.as_str()), content.as_str())).collect();
                let put: Vec<_> = state.iter().filter(|(id, content)| before.get(*id) != Some(content))
                    .map(|(id, content)| (id.as_str(), content.as_str())).collect();
                let gone: Vec<_> = before.keys().filter(|id| !state.contains_key(*id)).map(String::as_str).collect();
                let after = (number > 0).then_some(revision - 1);
                if number == wrong && !(put.is_empty() && gone.is_empty()) {
                    // A change that is left out shows.
                    let less = whole(update(revision, after, sum(&all), put.get(1..).unwrap_or_default(), if put.is_empty() { &gone[1..] } else { &gone })).unwrap();
                    prop_assert!(holding.fits(&less).is_err());
                }
                let next = whole(update(revision, after, sum(&all), &put, &gone)).unwrap();
                prop_assert_eq!(holding.fits(&next), Ok(()));
                take(&mut holding, next);
                prop_assert_eq!(holding.sum(), sum(&all));
                before = state.clone();
            }
        }
    }
}
