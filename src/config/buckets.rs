//! The batch sizes of `[engine]`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Batch sizes: `"auto"` or a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "must be \"auto\" or a list of batch sizes")]
pub enum Buckets {
    /// Those that warm-up shows to be worthwhile.
    #[default]
    #[serde(with = "auto")]
    Auto,
    /// These.
    Sizes(Vec<usize>),
}

impl JsonSchema for Buckets {
    fn schema_name() -> Cow<'static, str> {
        "Buckets".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "enum": ["auto"] },
                { "type": "array", "items": { "type": "integer", "minimum": 1 } },
            ]
        })
    }
}

/// The word `auto`.
mod auto {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("auto")
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "auto" => Ok(()),
            other => Err(D::Error::custom(format!("{other:?} is not \"auto\""))),
        }
    }
}
