//! New limits in the place of former ones. What the coordinator knows, it knows of either; this is about what it
//! cannot be asked while it is away: new limits are no new quotas.

use std::collections::HashMap;

use super::{Holdings, Kind, account::Account};

impl Holdings {
    /// Goes on where these stand, as far as requests without the coordinator need to know.
    pub(crate) fn go_on_from(&self, former: &Self) {
        let places: HashMap<&str, usize> =
            former.plan.limits.iter().enumerate().map(|(index, limit)| (&*limit.key, index)).collect();
        let (mut state, former_state) = (self.state.lock(), former.state.lock());
        state.accounts.resize_with(self.leases.len(), Account::default);
        let accounts = state.accounts.iter_mut().zip(&self.known).zip(&self.plan.limits);
        for ((account, known), limit) in accounts {
            let Some(place) = places.get(&*limit.key).copied() else { continue };
            let (Some(former_account), Some(former_known), Some(former_limit)) =
                (former_state.accounts.get(place), former.known.get(place), former.plan.limits.get(place))
            else {
                continue;
            };
            if let (Kind::Bucket(_), Kind::Bucket(_)) = (&limit.kind, &former_limit.kind) {
                // Its share has begun, and does not begin again.
                account.share = former_account.share.without_tokens();
                continue;
            }
            let (
                Kind::Quota { limit: quota, calendar },
                Kind::Quota { limit: former_quota, calendar: former_calendar },
            ) = (&limit.kind, &former_limit.kind)
            else {
                continue;
            };
            if calendar == former_calendar {
                // With what the coordinator has not been told yet, which it may be by the former ones only.
                let used = if former_account.has_known {
                    former_quota.saturating_sub(former_known.left()).saturating_add(former_account.untold())
                } else {
                    former_account.granted
                };
                known.set_left(quota.saturating_sub(used));
                known.set_renewed_at(former_known.renewed_at());
                account.go_on_from(former_account);
                if quota == former_quota {
                    (account.usual, account.usual_for_long) = (former_account.usual, former_account.usual_for_long);
                }
            }
        }
    }
}
