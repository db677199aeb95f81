//! How much a message may hold, found by a walk over its tags before anything of it is made.
//!
//! Two bytes on the wire can be an empty message of a repeated field, which takes a hundred when it is made: what a request
//! costs must be known from its bytes. So each message that a caller sends is walked once, without an allocation, and its
//! entries are counted by field against the bounds below. The walk follows the descriptors, so that a field that the
//! protocol gets is bounded from its first day, by [`ENTRIES`].

use super::schema::{COUNTERS, Field, Kind, SCHEMA, Schema};

/// Most fields beside the entries that are counted: those that do not repeat, each time that they come, and unknown ones. Walking
/// and making so many takes a millisecond or two.
const OTHERS: usize = 64 << 10;

/// Deepest nesting that is followed, as in prost, which refuses more.
const DEPTH: usize = 100;

/// A field that has more entries than it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TooMany {
    /// The field, as the protocol calls it, such as `inputs` of `ModelInferRequest`.
    pub(super) field: &'static str,
    /// The message that has it.
    pub(super) message: &'static str,
    /// What it may have.
    pub(super) limit: usize,
}

/// What a message takes once it is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Entries of repeated and mapped fields, and messages, at any depth.
    pub(super) entries: usize,
    /// Bytes of text and numbers that are copied out of the message; bytes of images are not, they are shared.
    pub(super) copied: usize,
    /// Fields beside those entries: each time that one comes, unknown ones as well.
    pub(super) others: usize,
}

/// A message that callers send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request(usize);

/// The message called `name` in `package`, if callers send it.
pub(super) fn request(package: &str, name: &str) -> Option<Request> {
    let requests = &SCHEMA.requests;
    let found = requests.iter().find(|(p, n, _)| n == name && p == package);
    found.map(|(_, _, message)| Request(*message))
}

/// Counts what is in `bytes`, a message of the kind `request`. Bytes that are no such message are left to the decoder, which
/// says so.
///
/// # Errors
/// The first field that has too many entries.
pub(super) fn check(Request(message): Request, bytes: &[u8]) -> Result<Content, TooMany> {
    let schema = &*SCHEMA;
    let mut walk = Walk {
        schema,
        counts: [0; COUNTERS],
        content: Content::default(),
    };
    // What is malformed ends the walk, and the decoder at the same byte.
    match walk.message(message, bytes, DEPTH) {
        Err(Stop::TooMany(field)) => {
            let counted = &schema.counted[field];
            Err(TooMany {
                field: &counted.field,
                message: &counted.message,
                limit: counted.limit,
            })
        }
        Err(Stop::TooManyOthers) => Err(TooMany {
            field: "request",
            message: "message, unknown and repeated fields included",
            limit: OTHERS,
        }),
        Ok(()) | Err(Stop::Malformed) => Ok(walk.content),
    }
}

// === the walk ===

enum Stop {
    /// More entries than this counter may have.
    TooMany(usize),
    TooManyOthers,
    Malformed,
}

struct Walk<'a> {
    schema: &'a Schema,
    counts: [usize; COUNTERS],
    content: Content,
}

impl Walk<'_> {
    fn message(&mut self, message: usize, mut bytes: &[u8], depth: usize) -> Result<(), Stop> {
        if depth == 0 {
            return Err(Stop::Malformed);
        }
        let fields = &self.schema.messages[message];
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let number = u32::try_from(key >> 3).map_err(|_| Stop::Malformed)?;
            let field = fields.iter().find(|field| field.number == number);
            if field.is_none_or(|field| field.counter.is_none()) {
                self.others(1)?;
            }
            match key & 7 {
                0 => {
                    varint(&mut bytes)?;
                    self.numbers(field, 1)?;
                }
                1 => {
                    take(&mut bytes, 8)?;
                    self.numbers(field, 1)?;
                }
                5 => {
                    take(&mut bytes, 4)?;
                    self.numbers(field, 1)?;
                }
                2 => {
                    let length = varint(&mut bytes)?;
                    let length = usize::try_from(length).map_err(|_| Stop::Malformed)?;
                    let content = take(&mut bytes, length)?;
                    if let Some(field) = field {
                        self.content(field, content, depth)?;
                    }
                }
                // No message of the protocol has groups; prost skips those that it does not know.
                3 => {
                    let before = bytes.len();
                    skip_group(number, &mut bytes, depth - 1)?;
                    // A field takes two bytes at least.
                    self.others((before - bytes.len()) / 2)?;
                }
                _ => return Err(Stop::Malformed),
            }
        }
        Ok(())
    }

    /// What has a length: text, bytes, a message, or numbers one after another.
    fn content(&mut self, field: &Field, content: &[u8], depth: usize) -> Result<(), Stop> {
        match field.kind {
            Kind::Message(message) => {
                self.entries(field, 1)?;
                self.message(message, content, depth - 1)
            }
            Kind::Text => {
                self.content.copied += content.len();
                self.entries(field, 1)
            }
            Kind::Bytes => self.entries(field, 1),
            // Each ends with the one byte that has no continuation bit.
            Kind::Varint(_) => {
                let count = content.iter().filter(|byte| **byte < 0x80).count();
                self.numbers(Some(field), count)
            }
            Kind::Fixed(width) => self.numbers(Some(field), content.len() / width),
        }
    }

    fn numbers(&mut self, field: Option<&Field>, count: usize) -> Result<(), Stop> {
        let Some(field) = field else {
            return Ok(());
        };
        if let Kind::Varint(width) | Kind::Fixed(width) = field.kind {
            self.content.copied += count * width;
        }
        match field.counter {
            Some(counter) => self.count(counter, count),
            None => Ok(()),
        }
    }

    fn entries(&mut self, field: &Field, count: usize) -> Result<(), Stop> {
        self.content.entries += count;
        match field.counter {
            Some(counter) => self.count(counter, count),
            None => Ok(()),
        }
    }

    fn others(&mut self, count: usize) -> Result<(), Stop> {
        self.content.others += count;
        match self.content.others > OTHERS {
            true => Err(Stop::TooManyOthers),
            false => Ok(()),
        }
    }

    fn count(&mut self, counter: usize, count: usize) -> Result<(), Stop> {
        self.counts[counter] += count;
        match self.counts[counter] > self.schema.counted[counter].limit {
            true => Err(Stop::TooMany(counter)),
            false => Ok(()),
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Stop> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            *bytes = &bytes[index + 1..];
            return Ok(value);
        }
    }
    Err(Stop::Malformed)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Stop> {
    let (taken, rest) = bytes.split_at_checked(count).ok_or(Stop::Malformed)?;
    *bytes = rest;
    Ok(taken)
}

/// Skips to the end of the group `number`.
fn skip_group(number: u32, bytes: &mut &[u8], depth: usize) -> Result<(), Stop> {
    if depth == 0 {
        return Err(Stop::Malformed);
    }
    loop {
        let key = varint(bytes)?;
        let inner = u32::try_from(key >> 3).map_err(|_| Stop::Malformed)?;
        match key & 7 {
            0 => drop(varint(bytes)?),
            1 => drop(take(bytes, 8)?),
            2 => {
                let length = usize::try_from(varint(bytes)?).map_err(|_| Stop::Malformed)?;
                take(bytes, length)?;
            }
            3 => skip_group(inner, bytes, depth - 1)?,
            4 if inner == number => return Ok(()),
            5 => drop(take(bytes, 4)?),
            _ => return Err(Stop::Malformed),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::{
        super::{
            self as proto, FILE_DESCRIPTOR_SET, inference,
            schema::{BOUNDS, ENTRIES, NUMBERS, collect},
        },
        *,
    };

    const INFER: (&str, &str) = ("inference", "ModelInferRequest");
    const ANALYZE: (&str, &str) = ("frostline.v1", "AnalyzeRequest");

    fn check((package, name): (&str, &str), bytes: &[u8]) -> Result<Content, TooMany> {
        super::check(request(package, name).unwrap(), bytes)
    }

    fn infer(inputs: usize, contents: inference::InferTensorContents) -> Vec<u8> {
        let mut request = inference::ModelInferRequest::default();
        let input = inference::model_infer_request::InferInputTensor {
            name: "image".to_owned(),
            ..Default::default()
        };
        request.inputs = vec![input; inputs];
        if let Some(first) = request.inputs.first_mut() {
            first.contents = Some(contents);
        }
        request.encode_to_vec()
    }

    #[test]
    fn unknown_and_repeated_fields_are_counted() {
        // Field 99 as a number, and a priority again and again.
        for field in [&[0x98, 0x06, 1][..], &[0x20, 1]] {
            assert!(check(ANALYZE, &field.repeat(OTHERS)).is_ok());
            let refused = check(ANALYZE, &field.repeat(OTHERS + 1)).unwrap_err();
            assert_eq!((refused.field, refused.limit), ("request", OTHERS));
        }
        // A group of unknown fields.
        let group = [
            &[0x9b, 0x06][..],
            &[0x08, 1].repeat(2 * OTHERS),
            &[0x9c, 0x06],
        ]
        .concat();
        assert!(check(ANALYZE, &group).is_err());
    }

    #[test]
    fn the_protocols_requests_are_known_and_its_bounds_name_fields() {
        let schema = &*SCHEMA;
        for (package, name) in [ANALYZE, INFER, ("frostline.v1", "LoadHeadRequest")] {
            assert!(request(package, name).is_some(), "{name}");
        }
        assert_eq!(request("frostline.v1", "AnalyzeResponse"), None);
        assert!(schema.counted.len() < COUNTERS, "{}", schema.counted.len());
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let mut found = Vec::new();
        for file in &set.file {
            for message in &file.message_type {
                collect(&format!(".{}", file.package()), message, &mut found);
            }
        }
        for (bound, _) in BOUNDS {
            let (message, field) = bound.rsplit_once('.').unwrap();
            let known = found.iter().any(|(name, message_)| {
                name[1..] == *message && message_.field.iter().any(|f| f.name() == field)
            });
            assert!(known, "{bound}");
        }
    }

    #[test]
    fn millions_of_empty_entries_are_counted_and_not_made() {
        // Field 5, empty, and again.
        let inputs = [0x2a, 0x00].repeat(1 << 20);
        let refused = check(INFER, &inputs).unwrap_err();
        assert_eq!((refused.field, refused.limit), ("inputs", 16));
        let outputs = [0x32, 0x00].repeat(65);
        let refused = check(INFER, &outputs).unwrap_err();
        assert_eq!((refused.field, refused.limit), ("outputs", 64));
        // Spread over several inputs, a map's entries are one sum.
        let input: Vec<u8> = [0x22, 0x00].repeat(20);
        let mut request = Vec::new();
        for _ in 0..16 {
            request.extend([0x2a, input.len() as u8]);
            request.extend(&input);
        }
        let refused = check(INFER, &request).unwrap_err();
        assert_eq!(
            (refused.field, refused.message),
            ("parameters", "InferInputTensor")
        );
        let heads = [0x1a, 0x00].repeat(ENTRIES + 1);
        let refused = check(ANALYZE, &heads).unwrap_err();
        assert_eq!((refused.field, refused.limit), ("heads", ENTRIES));
    }

    #[test]
    fn numbers_are_counted_packed_and_one_by_one() {
        let contents = |count| inference::InferTensorContents {
            int64_contents: vec![1; count],
            ..Default::default()
        };
        let content = check(INFER, &infer(1, contents(1000))).unwrap();
        assert_eq!(content.copied, 8000 + "image".len());
        let many = check(INFER, &infer(1, contents(NUMBERS + 1))).unwrap_err();
        assert_eq!(many.field, "int64_contents");
        // Not packed, as a sender may: key and number, again and again, in `contents` of an input.
        let single = [0x18, 0x01].repeat(NUMBERS + 1);
        let mut input = vec![0x2a];
        prost::encoding::encode_varint(single.len() as u64, &mut input);
        input.extend(single);
        let mut request = vec![0x2a];
        prost::encoding::encode_varint(input.len() as u64, &mut request);
        request.extend(input);
        assert_eq!(check(INFER, &request).unwrap_err().field, "int64_contents");
    }

    #[test]
    fn what_is_damaged_is_left_to_the_decoder() {
        for bytes in [
            &[0x2a][..],
            &[0x2a, 0x05, 0x00],
            &[0xff; 11],
            &[0x2b, 0x2c],
            &[0x2c],
            &[0x07],
        ] {
            assert!(check(INFER, bytes).is_ok(), "{bytes:?}");
        }
        // Groups in groups, deeper than anybody goes.
        assert!(check(INFER, &[0x0b; 10_000]).is_ok());
    }

    proptest! {
        #[test]
        fn the_walk_takes_whatever_it_is_given(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let walked = check(INFER, &bytes);
            let made = inference::ModelInferRequest::decode(&bytes[..]);
            if let (Ok(content), Ok(request)) = (walked, made) {
                prop_assert!(content.entries >= request.inputs.len() + request.outputs.len());
            }
        }

        #[test]
        fn it_counts_what_the_decoder_makes(frames in 0_usize..100, heads in 0_usize..50) {
            let image = proto::Image::default();
            let clip = proto::Clip { frames: vec![image; frames] };
            let request = proto::AnalyzeRequest {
                input: Some(proto::analyze_request::Input::Clip(clip)),
                heads: vec!["scene".to_owned(); heads],
                ..Default::default()
            };
            let content = check(ANALYZE, &request.encode_to_vec()).unwrap();
            prop_assert_eq!(content.entries, 1 + frames + heads);
            prop_assert_eq!(content.copied, heads * "scene".len());
        }
    }
}
