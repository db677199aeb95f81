//! Who makes a call, and what that lets it do.

use std::{collections::BTreeSet, sync::Arc};

use tonic::Extensions;

use crate::{
    engine::{Engine, Head},
    error::{Error, Kind, Result},
};

/// Who makes a call. The authorization layer puts one into each request's extensions; where there is none, the caller
/// is anonymous and may do everything.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    /// Its name, for logs, fair shares and for who may share results with whom; empty for anonymous callers.
    name: Arc<str>,
    grants: Arc<Grants>,
}

/// What an identity may do.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Grants {
    /// Heads that it may use and see.
    pub(super) heads: Allowed,
    /// Methods that it may call, as `Service/Method` without the package, such as `VisionService/Detect`.
    pub(super) methods: Allowed,
    /// How much of it.
    pub(super) quota: Quota,
}

/// How much an identity may do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quota {
    /// Calls a second; 0 for no bound.
    pub(super) rate: f64,
    /// Calls at once after a pause.
    pub(super) burst: u32,
    /// Calls under way at once; 0 for no bound.
    pub(super) concurrency: usize,
    /// Pixels of images a second, as much as those of a plain JPEG cost; 0 for no bound.
    pub(super) pixels: f64,
}

impl Grants {
    /// Nothing.
    pub(super) fn none() -> Self {
        Self {
            heads: Allowed::Only(BTreeSet::new()),
            methods: Allowed::Only(BTreeSet::new()),
            quota: Quota::default(),
        }
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            rate: 0.0,
            burst: 1,
            concurrency: 0,
            pixels: 0.0,
        }
    }
}

/// A set of names; an entry `prefix*` stands for all that begin so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Every name.
    #[default]
    All,
    /// These.
    Only(BTreeSet<String>),
    /// What both hold.
    Both(Box<[Self; 2]>),
}

impl Allowed {
    /// The set that a list in a file or a claim means; `*` alone is everything.
    pub(super) fn from_list(list: impl IntoIterator<Item = String>) -> Self {
        let names: BTreeSet<String> = list.into_iter().collect();
        if names.contains("*") {
            Self::All
        } else {
            Self::Only(names)
        }
    }

    /// What is in this one and in `other`.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, set) | (set, Self::All) => set,
            (one, other) => Self::Both(Box::new([one, other])),
        }
    }

    /// Whether `name` is in it.
    pub(super) fn holds(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|allowed| match allowed.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => allowed == name,
            }),
            Self::Both(both) => both.iter().all(|allowed| allowed.holds(name)),
        }
    }
}

impl Identity {
    pub(super) fn new(name: impl Into<Arc<str>>, grants: Arc<Grants>) -> Self {
        Self {
            name: name.into(),
            grants,
        }
    }

    /// Whoever calls an open method without an identity that holds: it may use no head.
    pub(super) fn nobody() -> Self {
        Self::new("", Arc::new(Grants::none()))
    }

    /// The same without a bound on its rate.
    pub(super) fn unhurried(&self) -> Self {
        let mut grants = Grants::clone(&self.grants);
        grants.quota.rate = 0.0;
        Self::new(Arc::clone(&self.name), Arc::new(grants))
    }

    /// How much it may do.
    pub(super) fn quota(&self) -> Quota {
        self.grants.quota
    }

    /// The one that a request carries, or the anonymous one.
    pub(super) fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// Its name; empty for anonymous callers.
    pub(super) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// Whether it may use and see the head called `name`.
    pub(super) fn may_use(&self, name: &str) -> bool {
        self.grants.heads.holds(name)
    }

    /// Whether it may call `Service/Method`.
    pub(super) fn may_call(&self, method: &str) -> bool {
        self.grants.methods.holds(method)
    }

    /// Refuses a head that it may not use, whether or not there is one: what exists is not told. `field` is where the
    /// request names it.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub(super) fn check_head(&self, name: &str, field: &str) -> Result<()> {
        if self.may_use(name) {
            return Ok(());
        }
        let shown: String = name.chars().take(64).collect();
        let message = format!("{:?} may not use a head called {shown:?}", &*self.name);
        Err(Error::new(Kind::PermissionDenied, message).at(field))
    }

    /// The loaded heads that it may use, by name.
    pub(super) fn heads(&self, engine: &Engine) -> Vec<Arc<Head>> {
        let mut heads = engine.heads();
        heads.retain(|head| self.may_use(&head.manifest.name));
        heads
    }

    /// The loaded head called `name`; `field` is where the request names it.
    ///
    /// # Errors
    /// `PermissionDenied` for one that it may not use, `LoadFailed` for one that is there but does not load, `UnknownHead`
    /// for one that is not loaded.
    pub(super) fn head(&self, engine: &Engine, name: &str, field: &str) -> Result<Arc<Head>> {
        self.check_head(name, field)?;
        engine.head(name).ok_or_else(|| {
            if let Some(reason) = engine.fault(name) {
                let message = format!("the head {name:?} does not serve: {reason}");
                return Error::new(Kind::LoadFailed, message).at(field);
            }
            let loaded: Vec<_> = self
                .heads(engine)
                .iter()
                .map(|head| head.manifest.name.clone())
                .collect();
            let shown: String = name.chars().take(64).collect();
            let message = format!("no head is called {shown:?}; loaded are {loaded:?}");
            Error::new(Kind::UnknownHead, message).at(field)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_allow_names_prefixes_and_everything() {
        let list = |names: &[&str]| Allowed::from_list(names.iter().map(|n| (*n).to_owned()));
        let some = list(&["scene", "team-*"]);
        assert!(some.holds("scene") && some.holds("team-a"));
        assert!(!some.holds("scenes") && !some.holds("objects") && !some.holds(""));
        assert!(list(&["x", "*"]).holds("anything"));
        assert!(!list(&[]).holds("anything"));
        let both = list(&["team-a*", "scene"]).and(list(&["team-*"]));
        assert!(both.holds("team-a1") && !both.holds("team-b") && !both.holds("scene"));
        assert_eq!(list(&["*"]).and(some.clone()), some);
    }
}
