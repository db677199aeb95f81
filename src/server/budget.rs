//! Bytes that calls hold outside the engine: what has arrived of their messages, and what is unread of their answers.
//! Parties share them.

use std::{sync::Arc, time::Duration};

use super::party::Party;
use crate::{
    error::{Error, Kind},
    metrics::Metrics,
    shares::{ALONE, Refused, Shares},
};

/// Bytes of a message or an answer that are not counted: so many of each call are bounded by the number of calls.
pub(super) const FREE: usize = 8 << 10;

/// The part of the budget that a lone party may come to hold: a message or an answer has to fit it.
pub const LONE_SHARE: f64 = ALONE;

/// Time that a caller is told to wait when there is no room.
const WAIT_FOR_ROOM: Duration = Duration::from_millis(200);

/// Bytes that all calls together may hold.
#[derive(Debug)]
pub(super) struct Budget {
    shares: Shares<Party>,
    metrics: Arc<Metrics>,
}

/// A call's bytes, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Account {
    budget: Arc<Budget>,
    party: Party,
    bytes: u64,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(super) fn new(limit: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            shares: Shares::new(limit as u64),
            metrics,
        })
    }

    /// An account of `party` that holds nothing yet.
    pub(super) fn account(self: &Arc<Self>, party: Party) -> Account {
        Account {
            budget: Arc::clone(self),
            party,
            bytes: 0,
        }
    }

    /// Bytes held now.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.shares.held() as usize
    }

    /// Refuses a party that holds its share already: what it asks for could not be given to it.
    ///
    /// # Errors
    /// `Overloaded`.
    pub(super) fn check(&self, party: &Party) -> Result<(), Error> {
        match self.shares.has_share(party) {
            true => Err(self.refuse(Refused::Share(0), party, "more")),
            false => Ok(()),
        }
    }

    fn refuse(&self, why: Refused, party: &Party, what: &str) -> Error {
        self.metrics.refused("bytes");
        let limit = self.shares.limit();
        let message = match why {
            Refused::Full(_) => format!("there is no room for {what} (limits.transport_bytes)"),
            Refused::Share(_) => format!(
                "there is no room for {what}: the caller has its share of limits.transport_bytes: read the answers, and \
                 send fewer requests at once"
            ),
        };
        let error = Error::new(Kind::Overloaded, message).retry_after(WAIT_FOR_ROOM);
        error.with("party", party).with("limit", limit)
    }
}

/// Where the parts of a call that outlive its messages are on account.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    budget: Arc<Budget>,
    party: Party,
}

impl Ledger {
    /// For calls of `party`.
    pub(super) fn new(budget: &Arc<Budget>, party: &Party) -> Self {
        Self {
            budget: Arc::clone(budget),
            party: party.clone(),
        }
    }

    /// Whom the call is counted for.
    pub(super) fn party(&self) -> Party {
        self.party.clone()
    }

    /// An account that holds nothing yet.
    pub(super) fn account(&self) -> Account {
        self.budget.account(self.party.clone())
    }
}

impl Account {
    /// Holds `bytes` of `what` in all from now on, of which the first [`FREE`] do not count.
    ///
    /// # Errors
    /// `Overloaded` for bytes that the party may not hold at the moment; what it held it still holds.
    pub(super) fn hold(&mut self, bytes: usize, what: &str) -> Result<(), Error> {
        let wanted = bytes.saturating_sub(FREE) as u64;
        if wanted == self.bytes {
            return Ok(());
        }
        let shares = &self.budget.shares;
        shares
            .change(&self.party, Some(1.0), self.bytes, wanted)
            .map_err(|why| {
                let error = self.budget.refuse(why, &self.party, what);
                error.with("value", bytes)
            })?;
        self.bytes = wanted;
        self.budget.metrics.transport_bytes(shares.held());
        Ok(())
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // Less is never refused.
        let _ = self.hold(0, "");
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn accounts_give_back_what_they_hold_and_a_party_is_told_why() {
        let budget = Budget::new(900_000, Arc::default());
        let party = |number: u8| Party::from(IpAddr::from([10, 0, 0, number]));
        let mut flood = Vec::new();
        let refused = loop {
            let mut account = budget.account(party(1));
            match account.hold(FREE + 1000, "answers") {
                Ok(()) => flood.push(account),
                Err(refused) => break refused,
            }
        };
        assert_eq!(budget.held(), 600_000);
        assert!(
            refused.message().contains("its share") && refused.message().contains("answers"),
            "{refused}"
        );
        let told = |name: &str| {
            let mut values = refused.values().iter();
            values.find_map(|(key, value)| (*key == name).then_some(&**value))
        };
        assert!(told("party").is_some_and(|party| party.contains("10.0.0.1")));
        assert_eq!(told("value"), Some("9192"));
        flood[0].hold(FREE, "answers").unwrap();
        assert!(budget.check(&party(1)).is_ok() && budget.check(&party(2)).is_ok());
        drop(flood);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn small_messages_cost_nothing() {
        let budget = Budget::new(0, Arc::default());
        let mut account = budget.account(Party::Local);
        assert!(account.hold(FREE, "answers").is_ok());
        assert!(account.hold(FREE + 1, "answers").is_err());
    }
}
