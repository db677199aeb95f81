//! Calls under way: so many at once, none of them all one party's, and a few places apart for those who have not said who
//! they are and ask how the server is.
//!
//! A party may have at most [`SHARE`] times the places that are still free, as at the engine's door. Health checks and
//! reflection are open to all by default, and some of them last: without an identity they have places of their own, where one
//! that comes last always gets in, and the oldest call of whoever has most makes room.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep},
};

use super::party::Party;
use crate::error::{Error, Kind, Result};

/// Places that a party may have, over those that are free.
const SHARE: usize = 8;

/// Places of open calls.
const OPEN: usize = 256;

/// Of those, what one party may have.
const OPEN_PARTY: usize = OPEN / 2;

/// How long an open call may last: its caller asks again.
const OPEN_AGE: Duration = Duration::from_secs(1800);

/// Time that a caller is told to wait when the server has as many calls as it takes.
const WAIT_FOR_A_CALL: Duration = Duration::from_millis(100);

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    /// Connections on which one party may have calls at once.
    most_connections: usize,
    taken: Mutex<Taken>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    parties: HashMap<Party, Own>,
}

/// What a party has.
#[derive(Debug, Default)]
struct Own {
    calls: usize,
    /// Its calls by connection.
    connections: HashMap<usize, usize>,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    total: usize,
    /// Oldest first.
    parties: HashMap<Party, VecDeque<(u64, oneshot::Sender<()>)>>,
}

/// A call's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    party: Party,
    /// Its number, if it is an open call.
    open: Option<u64>,
    connection: usize,
}

/// Completes when an open call has to end: to make room, or for its age.
#[derive(Debug)]
pub(super) struct Eviction {
    evicted: oneshot::Receiver<()>,
    age: Pin<Box<Sleep>>,
}

impl Future for Eviction {
    type Output = Error;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Error> {
        let why = if Pin::new(&mut self.evicted).poll(context).is_ready() {
            "the call has ended to make room for others of callers without an identity"
        } else if self.age.as_mut().poll(context).is_ready() {
            "the call has ended for its age: ask again"
        } else {
            return Poll::Pending;
        };
        Poll::Ready(Error::new(Kind::Overloaded, why).retry_after(WAIT_FOR_A_CALL))
    }
}

impl Places {
    /// Places for `most` calls, beside those of open ones, where there may be `connections`: one party has calls on three
    /// quarters of these, so that the others are idle, and make room.
    pub(super) fn new(most: usize, connections: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_connections: (connections - connections / 4).max(1),
            taken: Mutex::default(),
            open: Mutex::default(),
        })
    }

    /// A place for a call of `party` on the connection of this number.
    ///
    /// # Errors
    /// `Overloaded` if there is none, or the party has its share.
    pub(super) fn enter(self: &Arc<Self>, party: &Party, connection: usize) -> Result<Place> {
        let full = |message: &str, limit: usize| {
            let error = Error::new(Kind::Overloaded, message).retry_after(WAIT_FOR_A_CALL);
            Err(error.with("limit", limit).with("party", party))
        };
        let mut taken = self.taken.lock();
        let taken = &mut *taken;
        let before = taken.parties.get(party);
        let own = before.map_or(0, |own| own.calls);
        if taken.total >= self.most {
            return full(
                "the server has as many calls under way as it takes",
                self.most,
            );
        }
        if own >= (SHARE * (self.most - taken.total)).max(1) {
            let message = "the caller has its share of the calls that may be under way";
            return full(message, self.most);
        }
        if let Some(own) = before
            && own.connections.len() >= self.most_connections
            && !own.connections.contains_key(&connection)
        {
            let message = "the caller has calls on as many connections as is its share of server.max_connections: use fewer";
            return full(message, self.most_connections);
        }
        taken.total += 1;
        let own = match taken.parties.get_mut(party) {
            Some(own) => own,
            None => taken.parties.entry(party.clone()).or_default(),
        };
        own.calls += 1;
        *own.connections.entry(connection).or_default() += 1;
        Ok(Place {
            places: Arc::clone(self),
            party: party.clone(),
            open: None,
            connection,
        })
    }

    /// A place for an open call of `party`; another one may have to go for it.
    pub(super) fn enter_open(self: &Arc<Self>, party: &Party) -> (Place, Eviction) {
        let mut open = self.open.lock();
        let open = &mut *open;
        let own = open.parties.get(party).map_or(0, VecDeque::len);
        if own >= OPEN_PARTY {
            open.evict(&party.clone());
        } else if open.total >= OPEN {
            let most = open.parties.iter().max_by_key(|(_, calls)| calls.len());
            if let Some(most) = most.map(|(party, _)| party.clone()) {
                open.evict(&most);
            }
        }
        open.last += 1;
        open.total += 1;
        let (evict, evicted) = oneshot::channel();
        let calls = open.parties.entry(party.clone()).or_default();
        calls.push_back((open.last, evict));
        let place = Place {
            places: Arc::clone(self),
            party: party.clone(),
            open: Some(open.last),
            connection: 0,
        };
        let eviction = Eviction {
            evicted,
            age: Box::pin(sleep(OPEN_AGE)),
        };
        (place, eviction)
    }
}

impl Open {
    /// Ends the oldest call of `party`.
    fn evict(&mut self, party: &Party) {
        let Some(calls) = self.parties.get_mut(party) else {
            return;
        };
        if calls.pop_front().is_some() {
            self.total -= 1;
        }
        if calls.is_empty() {
            self.parties.remove(party);
        }
    }

    fn leave(&mut self, party: &Party, id: u64) {
        let Some(calls) = self.parties.get_mut(party) else {
            return;
        };
        // One that had to make room is gone already.
        if let Ok(index) = calls.binary_search_by_key(&id, |(id, _)| *id) {
            calls.remove(index);
            self.total -= 1;
        }
        if calls.is_empty() {
            self.parties.remove(party);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(id) = self.open {
            self.places.open.lock().leave(&self.party, id);
            return;
        }
        let mut taken = self.places.taken.lock();
        taken.total -= 1;
        let Some(own) = taken.parties.get_mut(&self.party) else {
            return;
        };
        own.calls -= 1;
        if own.calls == 0 {
            taken.parties.remove(&self.party);
        } else if let Some(calls) = own.connections.get_mut(&self.connection) {
            *calls -= 1;
            if *calls == 0 {
                own.connections.remove(&self.connection);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn party(number: u8) -> Party {
        Party::from(IpAddr::from([10, 0, 0, number]))
    }

    /// Whether a call may go on.
    fn still(eviction: &mut Eviction) -> bool {
        eviction.evicted.try_recv() == Err(oneshot::error::TryRecvError::Empty)
    }

    #[test]
    fn one_party_leaves_places_to_others() {
        let places = Places::new(90, 8);
        let flood: Vec<_> = std::iter::from_fn(|| places.enter(&party(1), 0).ok()).collect();
        assert_eq!(flood.len(), 80);
        let other = places.enter(&party(2), 0).unwrap();
        drop((flood, other));
        let taken = places.taken.lock();
        assert_eq!((taken.total, taken.parties.len()), (0, 0));
    }

    #[test]
    fn of_few_places_each_can_be_taken() {
        let places = Places::new(2, 8);
        let both = [places.enter(&party(1), 0), places.enter(&party(1), 0)];
        assert!(both.iter().all(Result::is_ok));
        assert!(places.enter(&party(2), 0).is_err());
    }

    #[test]
    fn one_party_has_calls_on_some_of_the_connections() {
        let places = Places::new(90, 8);
        let calls: Vec<_> = (0..10).map(|c| places.enter(&party(1), c)).collect();
        assert_eq!(calls.iter().filter(|call| call.is_ok()).count(), 6);
        // More on one of them, and another's on any.
        let more = [places.enter(&party(1), 5), places.enter(&party(2), 9)];
        assert!(more.iter().all(Result::is_ok));
        drop(calls);
        assert!(places.enter(&party(1), 9).is_ok());
    }

    #[tokio::test]
    async fn who_comes_last_gets_in_and_who_has_most_makes_room() {
        let places = Places::new(1, 8);
        let steady = places.enter_open(&party(1));
        let mut floods: Vec<_> = (2..5)
            .flat_map(|number| std::iter::repeat_n(number, OPEN))
            .map(|number| places.enter_open(&party(number)))
            .collect();
        let mut probe = places.enter_open(&party(9));
        let (place, mut evicted) = steady;
        assert!(still(&mut evicted) && still(&mut probe.1));
        let left = floods
            .iter_mut()
            .filter_map(|(_, e)| still(e).then_some(()));
        assert_eq!(left.count(), OPEN - 2);
        drop((place, floods, probe));
        // Those that had to go give back nothing that is another's.
        assert_eq!(places.open.lock().total, 0);
        assert!(places.open.lock().parties.is_empty());
    }

    #[tokio::test]
    async fn an_open_party_ends_its_own_calls_first() {
        let places = Places::new(1, 8);
        let mut own: Vec<_> = (0..OPEN_PARTY + 3)
            .map(|_| places.enter_open(&party(1)))
            .collect();
        let ended = own.iter_mut().position(|(_, evicted)| still(evicted));
        assert_eq!(ended, Some(3));
    }
}
