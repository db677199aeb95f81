//! The methods that the server has.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use prost::Message;

/// The methods that this server has, by path. Only these become labels: paths come from outside.
#[derive(Debug, Clone)]
pub(super) struct Methods(Arc<HashMap<String, Arc<str>>>);

impl Methods {
    /// The methods in these encoded sets of descriptors.
    pub(super) fn of(sets: &[&[u8]]) -> Result<Self, prost::DecodeError> {
        let mut methods = HashMap::new();
        for set in sets {
            for file in prost_types::FileDescriptorSet::decode(*set)?.file {
                for service in &file.service {
                    for method in &service.method {
                        let path =
                            format!("{}.{}/{}", file.package(), service.name(), method.name());
                        let name = path.as_str().into();
                        methods.insert(format!("/{path}"), name);
                    }
                }
            }
        }
        Ok(Self(Arc::new(methods)))
    }

    /// The method's name, and whether there is one.
    pub(super) fn get(&self, path: &str) -> (Arc<str>, bool) {
        static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());
        let name = self.0.get(path);
        (Arc::clone(name.unwrap_or(&UNKNOWN)), name.is_some())
    }

    /// The names of all methods, `package.Service/Method`, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(|name| &**name)
    }
}
