//! The protocol as the walk over a message sees it: which fields repeat, how many entries each may have, and what its bytes
//! become.

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use prost::Message;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

use super::FILE_DESCRIPTOR_SET;

/// Most numbers of a tensor that is written as numbers (16 MiB of `float`): larger ones belong into `raw_input_contents`.
pub(super) const NUMBERS: usize = 4 << 20;

/// Most entries of a repeated or mapped field of which nothing else is said, in one message, wherever in it they are.
pub(super) const ENTRIES: usize = 256;

/// Fields that may have another number of entries than [`ENTRIES`].
pub(super) const BOUNDS: &[(&str, usize)] = &[
    // `limits.frames` is what a configuration allows of these.
    ("frostline.v1.Clip.frames", 4096),
    ("inference.ModelInferRequest.inputs", 16),
    ("inference.ModelInferRequest.outputs", 64),
    ("inference.ModelInferRequest.raw_input_contents", 16),
    ("inference.InferTensorContents.bool_contents", NUMBERS),
    ("inference.InferTensorContents.int_contents", NUMBERS),
    ("inference.InferTensorContents.int64_contents", NUMBERS),
    ("inference.InferTensorContents.uint_contents", NUMBERS),
    ("inference.InferTensorContents.uint64_contents", NUMBERS),
    ("inference.InferTensorContents.fp32_contents", NUMBERS),
    ("inference.InferTensorContents.fp64_contents", NUMBERS),
    ("inference.InferTensorContents.bytes_contents", 4096),
];

/// Most fields that repeat, over all messages; a test holds that these are enough.
pub(super) const COUNTERS: usize = 64;

/// What a field's bytes become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Another message, by index.
    Message(usize),
    /// Text, which is copied.
    Text,
    /// Bytes, which are shared with the message.
    Bytes,
    /// A number of this many bytes, on the wire a varint.
    Varint(usize),
    /// A number of this many bytes.
    Fixed(usize),
}

#[derive(Debug)]
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) kind: Kind,
    /// Index among the counters, for a field that repeats.
    pub(super) counter: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Counted {
    pub(super) field: String,
    pub(super) message: String,
    pub(super) limit: usize,
}

#[derive(Debug, Default)]
pub(super) struct Schema {
    pub(super) messages: Vec<Vec<Field>>,
    pub(super) counted: Vec<Counted>,
    /// Messages that callers send: package, name, index.
    pub(super) requests: Vec<(String, String, usize)>,
}

pub(super) static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    // What the build wrote decodes; a test holds it.
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    Schema::of(&set)
});

impl Schema {
    fn of(set: &FileDescriptorSet) -> Self {
        let mut found = Vec::new();
        for file in &set.file {
            for message in &file.message_type {
                collect(&format!(".{}", file.package()), message, &mut found);
            }
        }
        let index: HashMap<String, usize> = found
            .iter()
            .enumerate()
            .map(|(index, (name, _))| (name.clone(), index))
            .collect();
        let mut schema = Self::default();
        let services = set.file.iter().flat_map(|file| &file.service);
        let methods: Vec<_> = services.flat_map(|service| &service.method).collect();
        let sent = reached(methods.iter().map(|method| method.input_type()), &found);
        for (name, message) in &found {
            let sent = sent.contains(name.as_str());
            let fields = message.field.iter();
            let fields = fields
                .filter_map(|field| schema.field(&name[1..], field, sent, &index))
                .collect();
            schema.messages.push(fields);
        }
        for method in methods {
            let input = method.input_type();
            if let (Some(message), Some((package, name))) =
                (index.get(input), input.rsplit_once('.'))
            {
                let package = package.trim_start_matches('.').to_owned();
                schema.requests.push((package, name.to_owned(), *message));
            }
        }
        schema
    }

    fn field(
        &mut self,
        message: &str,
        field: &FieldDescriptorProto,
        sent: bool,
        index: &HashMap<String, usize>,
    ) -> Option<Field> {
        let kind = match field.r#type() {
            Type::Message | Type::Group => Kind::Message(*index.get(field.type_name())?),
            Type::String => Kind::Text,
            Type::Bytes => Kind::Bytes,
            Type::Bool => Kind::Varint(1),
            Type::Int32 | Type::Uint32 | Type::Sint32 | Type::Enum => Kind::Varint(4),
            Type::Int64 | Type::Uint64 | Type::Sint64 => Kind::Varint(8),
            Type::Fixed32 | Type::Sfixed32 | Type::Float => Kind::Fixed(4),
            Type::Fixed64 | Type::Sfixed64 | Type::Double => Kind::Fixed(8),
        };
        let repeated = sent && field.label() == Label::Repeated && self.counted.len() < COUNTERS;
        let counter = repeated.then(|| {
            let full = format!("{message}.{}", field.name());
            let bound = BOUNDS.iter().find(|(name, _)| *name == full);
            self.counted.push(Counted {
                field: field.name().to_owned(),
                message: message.rsplit('.').next().unwrap_or(message).to_owned(),
                limit: bound.map_or(ENTRIES, |(_, limit)| *limit),
            });
            self.counted.len() - 1
        });
        Some(Field {
            number: u32::try_from(field.number()).ok()?,
            kind,
            counter,
        })
    }
}

/// The messages that those called `roots` can hold, and they.
fn reached<'a>(
    roots: impl Iterator<Item = &'a str>,
    found: &[(String, &'a DescriptorProto)],
) -> HashSet<&'a str> {
    let fields: HashMap<&str, _> = found.iter().map(|(name, m)| (&**name, &m.field)).collect();
    let (mut seen, mut waiting) = (HashSet::new(), roots.collect::<Vec<_>>());
    while let Some(name) = waiting.pop() {
        if seen.insert(name) {
            let held = fields
                .get(name)
                .into_iter()
                .flat_map(|fields| fields.iter());
            waiting.extend(held.map(|field| field.type_name()));
        }
    }
    seen
}

pub(super) fn collect<'a>(
    prefix: &str,
    message: &'a DescriptorProto,
    found: &mut Vec<(String, &'a DescriptorProto)>,
) {
    let name = format!("{prefix}.{}", message.name());
    found.push((name.clone(), message));
    for nested in &message.nested_type {
        collect(&name, nested, found);
    }
}
