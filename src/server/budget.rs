//! Bytes that calls hold outside the engine: what has arrived of their messages, and what is unread of their answers.
//!
//! A party may hold at most [`SHARE`] times what is still free: a lone party gets two thirds, several settle at equal
//! parts, and one that comes anew finds room (the dynamic thresholds of Choudhury and Hahne, 1998, as at the engine's
//! door).

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::party::Party;
use crate::{
    error::{Error, Kind},
    metrics::Metrics,
};

/// What a party may hold, over what is free.
const SHARE: f64 = 2.0;

/// Bytes of a message or an answer that are not counted: so many of each call are bounded by the number of calls.
pub(super) const FREE: usize = 8 << 10;

/// The part of the budget that one message or answer may have: what a lone party may hold.
pub const LONE_SHARE: f64 = SHARE / (SHARE + 1.0);

/// Time that a caller is told to wait when there is no room.
const WAIT_FOR_ROOM: Duration = Duration::from_millis(200);

/// Bytes that all calls together may hold.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    held: Mutex<Held>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    parties: HashMap<Party, usize>,
}

/// A call's bytes, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Account {
    budget: Arc<Budget>,
    party: Party,
    bytes: usize,
}

/// Why bytes were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// All parties together hold what there is.
    Full,
    /// This party holds its share.
    Share,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(super) fn new(limit: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: Mutex::default(),
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
        self.held.lock().total
    }

    /// Refuses a party that holds its share already: what it asks for could not be given to it.
    ///
    /// # Errors
    /// `Overloaded`.
    pub(super) fn check(&self, party: &Party) -> Result<(), Error> {
        let held = self.held.lock();
        let own = held.parties.get(party).copied().unwrap_or(0);
        if own == 0 || own as f64 <= SHARE * (self.limit - held.total) as f64 {
            return Ok(());
        }
        drop(held);
        Err(self.refuse(
            Refused::Share,
            party,
            own,
            "requests in arrival and unread answers",
        ))
    }

    fn refuse(&self, why: Refused, party: &Party, bytes: usize, of: &str) -> Error {
        self.metrics.refused("bytes");
        let limit = self.limit;
        let message = match why {
            Refused::Full => format!(
                "there is no room for {bytes} bytes of {of}: all callers together hold most of the {limit} bytes of \
                 limits.transport_bytes"
            ),
            Refused::Share => format!(
                "{party} would hold {bytes} bytes of {of}, more than its share of the {limit} bytes of \
                 limits.transport_bytes: read the answers, and send fewer at once"
            ),
        };
        Error::new(Kind::Overloaded, message).retry_after(WAIT_FOR_ROOM)
    }
}

impl Account {
    /// Holds `bytes` of `what` in all from now on, of which the first [`FREE`] do not count.
    ///
    /// # Errors
    /// `Overloaded` for bytes that the party may not hold at the moment; what it held it still holds.
    pub(super) fn hold(&mut self, bytes: usize, what: &str) -> Result<(), Error> {
        self.try_hold(bytes)
            .map_err(|why| self.budget.refuse(why, &self.party, bytes, what))
    }

    fn try_hold(&mut self, bytes: usize) -> Result<(), Refused> {
        let wanted = bytes.saturating_sub(FREE);
        if wanted == self.bytes {
            return Ok(());
        }
        let mut held = self.budget.held.lock();
        let held = &mut *held;
        let own = held.parties.get(&self.party).copied().unwrap_or(0);
        let (total, own) = (held.total - self.bytes + wanted, own - self.bytes + wanted);
        if wanted > self.bytes {
            if total > self.budget.limit {
                return Err(Refused::Full);
            }
            if own as f64 > SHARE * (self.budget.limit - total) as f64 {
                return Err(Refused::Share);
            }
        }
        held.total = total;
        self.budget.metrics.transport_bytes(total);
        if own == 0 {
            held.parties.remove(&self.party);
        } else if let Some(entry) = held.parties.get_mut(&self.party) {
            *entry = own;
        } else {
            held.parties.insert(self.party.clone(), own);
        }
        self.bytes = wanted;
        Ok(())
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // Less is never refused.
        let _ = self.try_hold(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::net::IpAddr;

    use super::*;

    fn budget(limit: usize) -> Arc<Budget> {
        Budget::new(limit, Arc::default())
    }

    fn party(number: u8) -> Party {
        Party::Address(IpAddr::from([10, 0, 0, number]))
    }

    #[test]
    fn a_lone_party_leaves_a_third_and_one_that_comes_anew_finds_room() {
        let budget = budget(900_000);
        let mut flood = Vec::new();
        loop {
            let mut account = budget.account(party(1));
            if account.try_hold(FREE + 1000).is_err() {
                break;
            }
            flood.push(account);
        }
        assert_eq!(budget.held(), 600_000);
        let mut other = budget.account(party(2));
        assert_eq!(other.try_hold(FREE + 100_000), Ok(()));
        assert_eq!(other.try_hold(FREE + 250_000), Err(Refused::Share));
        assert_eq!(budget.held(), 700_000, "a refusal changes nothing");
        drop(flood);
        assert_eq!(other.try_hold(FREE + 500_000), Ok(()));
        assert_eq!(other.try_hold(FREE + 901_000), Err(Refused::Full));
        drop(other);
        assert_eq!(budget.held(), 0);
        assert!(budget.held.lock().parties.is_empty());
    }

    #[test]
    fn small_messages_cost_nothing() {
        let budget = budget(0);
        assert_eq!(budget.account(party(1)).try_hold(FREE), Ok(()));
        assert_eq!(
            budget.account(party(1)).try_hold(FREE + 1),
            Err(Refused::Full)
        );
    }

    proptest! {
        #[test]
        fn what_is_held_is_the_sum_of_accounts_and_under_the_limit(
            steps in proptest::collection::vec((0_usize..8, 0_u8..3, 0_usize..400_000), 1..200),
        ) {
            let budget = budget(1_000_000);
            let mut accounts: Vec<Option<Account>> = (0..8).map(|_| None).collect();
            for (index, number, bytes) in steps {
                match &mut accounts[index] {
                    Some(account) if bytes > 0 => drop(account.try_hold(bytes)),
                    Some(_) => accounts[index] = None,
                    empty => *empty = Some(budget.account(party(number))),
                }
                let sum: usize = accounts.iter().flatten().map(|account| account.bytes).sum();
                prop_assert_eq!(budget.held(), sum);
                prop_assert!(sum <= budget.limit);
                let parties: usize = budget.held.lock().parties.values().sum();
                prop_assert_eq!(parties, sum);
            }
            accounts.clear();
            prop_assert_eq!(budget.held(), 0);
        }
    }
}
