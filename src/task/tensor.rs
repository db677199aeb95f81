//! Anything: outputs of any type, shape and names, given as they are.

use super::spec::Spec;

/// Raw outputs.
pub(super) const SPEC: Spec = Spec {
    name: "tensor",
    ..Spec::PLAIN
};
